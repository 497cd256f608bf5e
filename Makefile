# Bulkhead: `make demo` shows the main job, `make test` runs everything. Both set up what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
BIN := .venv/bin
PACKAGES := sdk/src/bulkhead service control_plane data_plane audit scripts benchmarks
T ?= 60
JOBS ?= 3

# The whole suite: most tests several at a time, then those that measure time. Sets `status` if any fails.
define SUITE
echo "[test] running the suite (seeded samples; make test-long runs the full counts), $(JOBS) tests at a time"; \
$(PY) -m pytest -m "not long and not alone" -q --durations=15 -n $(JOBS) --dist loadscope --no-loadscope-reorder || status=1; \
$(LINTED) \
echo "[test] running the tests that hold something to a time limit, one at a time"; \
$(PY) -m pytest -m "not long and alone" -q --durations=5 $(FILES_ALONE) || status=1
endef
# Only the files that have such tests are imported.
FILES_ALONE := $$(grep -rlF --include='test_*.py' pytest.mark.alone tests)

# Tests that wait leave time for the lint, but those that measure time do not: it ends before them.
LINT_BESIDE = linted="$$(mktemp)"; $(MAKE) --no-print-directory checks >"$$linted" 2>&1 & lint=$$!; \
	trap 'kill "$$lint"; rm -f "$$linted"' EXIT;
LINTED = wait "$$lint" || { status=1; echo "[lint] FAILED"; }; trap - EXIT; cat "$$linted"; rm -f "$$linted";

.PHONY: help setup setup-model demo up down test test-long lint checks format proto bench fuzz bench-engine clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: ## the Python environment and OPA; every other target does this first
	@scripts/setup.sh

setup-model:
	@scripts/setup.sh --model

demo: setup-model ## the main job end to end on this machine: two tenants, a denial, an officer's proof
	@$(PY) scripts/demo.py

up: setup-model ## start a local platform in var/ and print what to type next
	@$(PY) scripts/local_platform.py up --root var

down: ## stop the local platform of `make up`
	@if [ -x $(PY) ]; then $(PY) scripts/local_platform.py down --root var; else echo "nothing is set up, so nothing runs"; fi

test: setup-model ## lint and the whole suite
	@status=0; $(LINT_BESIDE) $(SUITE); exit $$status

test-long: setup-model ## the full counts that the suite samples, then lint and the suite
	@status=0; echo "[test] full counts, $(JOBS) tests at a time"; \
	$(PY) -m pytest -m "long and not alone" -v --durations=15 -n $(JOBS) --dist load --maxschedchunk 1 || status=1; \
	echo "[test] full counts that hold something to a time limit, one at a time"; \
	$(PY) -m pytest -m "long and alone" -v || status=1; \
	$(LINT_BESIDE) $(SUITE); exit $$status

lint: setup ## format, style, types, layers, protos, policies, generated code, what the pages name
	@$(MAKE) --no-print-directory checks

checks:
	@echo "[lint] ruff" && $(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@echo "[lint] mypy --strict" && $(BIN)/mypy --no-error-summary $(PACKAGES)
	@echo "[lint] import layers" && $(BIN)/lint-imports --no-cache | tail -n 3
	@echo "[lint] protos" && $(BIN)/buf lint proto && $(PY) scripts/generate_proto.py --check
	@echo "[lint] policies" && $(PY) -m control_plane.authz.check policies
	@echo "[lint] pages" && $(PY) -m pytest -q --no-header --disable-warnings tests/unit/test_docs.py

format: setup ## format Python and Rego
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix-only --quiet . ; $(PY) -m control_plane.authz.check policies --format

proto: setup ## generate the gRPC code again
	@$(PY) scripts/generate_proto.py

bench: setup-model ## the table of benchmarks (benchmarks/results/ keeps the committed ones)
	@$(PY) -m benchmarks.run

bench-engine: setup-model ## the native engine against vLLM's CPU build and this machine's limits (15 minutes)
	@$(PY) -m benchmarks.engine

fuzz: setup ## atheris on every parser, T seconds each (default 60), as many at a time as there are cores
	@$(PY) -m tests.fuzz --seconds $(T)

clean: down ## remove everything that setup, tests and runs made inside the checkout
	@rm -rf .venv var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
