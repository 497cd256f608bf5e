#!/usr/bin/env bash
# Set up everything the project needs, in .venv/ and a cache outside the checkout. Safe to repeat: finished steps are
# skipped. Usage: scripts/setup.sh [--model]     (--model also fetches the demo's chat model)
#
#   BULKHEAD_CACHE   tools and models (default ~/.cache/bulkhead)
#   TORCH_BACKEND    "cpu" installs torch without CUDA libraries; empty takes the locked build with them
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}"
tools="$cache/tools"
locks=deploy/requirements
opa_version=1.22.2
mkdir -p "$tools/bin"
say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
fail() { printf '[setup] %s\n' "$*" >&2; exit 1; }

find_uv() {
    if command -v uv >/dev/null; then command -v uv; return; fi
    if [ ! -x "$tools/uv/bin/uv" ]; then
        python=""
        for candidate in python3.11 python3; do command -v "$candidate" >/dev/null && python="$candidate" && break; done
        [ -n "$python" ] || fail "python3 is missing: install Python 3.11, then run this again"
        say "installing uv into $tools/uv" >&2
        "$python" -m venv "$tools/uv"
        "$tools/uv/bin/python" -m pip install --quiet --require-hashes -r "$locks/uv.txt" >&2
    fi
    echo "$tools/uv/bin/uv"
}

opa_is_new_enough() { # $1: path of an opa
    local found
    found="$("$1" version 2>/dev/null | sed -n 's/^Version: //p')"
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$opa_version" "$found" | sort -V | head -n1)" = "$opa_version" ]
}

opa_ready() {
    for candidate in "${BULKHEAD_OPA:-}" "$(command -v opa || true)" "$tools/bin/opa"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && opa_is_new_enough "$candidate"; then return 0; fi
    done
    return 1
}

opa_pid=""
if opa_ready; then
    say "OPA is here already"
else
    command -v go >/dev/null || fail "OPA $opa_version is missing and there is no Go to build it: put opa on PATH or install Go 1.25 or newer"
    say "building OPA $opa_version in the background (about 2.5 minutes, once)"
    GOBIN="$tools/bin" GOFLAGS=-trimpath go install "github.com/open-policy-agent/opa@v$opa_version" >"$cache/opa-build.log" 2>&1 &
    opa_pid=$!
fi

uv="$(find_uv)"
stamp=".venv/.bulkhead-setup"
want="$(cat "$locks"/base.txt "$locks"/torch.txt pyproject.toml sdk/pyproject.toml | sha256sum | cut -d' ' -f1) ${TORCH_BACKEND:-locked}"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    say "the Python environment is current"
else
    say "making the Python environment in .venv (Python 3.11, hash-locked)"
    [ -x .venv/bin/python ] || "$uv" venv --quiet --python 3.11 .venv
    "$uv" pip install --quiet --python .venv/bin/python --require-hashes --no-deps -r "$locks/base.txt"
    if [ -n "${TORCH_BACKEND:-}" ]; then
        say "installing torch for $TORCH_BACKEND"
        "$uv" pip install --quiet --python .venv/bin/python --torch-backend "$TORCH_BACKEND" \
            "$(grep -oE '^torch==[^ ]+' "$locks/torch.txt")"
    else
        say "installing torch with its CUDA libraries (TORCH_BACKEND=cpu leaves them out)"
        "$uv" pip install --quiet --python .venv/bin/python --require-hashes --no-deps -r "$locks/torch.txt"
    fi
    "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e sdk -e .
    echo "$want" > "$stamp"
    say "the Python environment is ready"
fi

if [ "${1:-}" = "--model" ]; then
    say "fetching the demo's chat model (SmolLM2-135M-Instruct), once"
    PATH="$(dirname "$uv"):$PATH" .venv/bin/python scripts/fetch_model.py chat
fi

if [ -n "$opa_pid" ]; then
    say "waiting for OPA's build"
    wait "$opa_pid" || { cat "$cache/opa-build.log" >&2; fail "OPA could not be built; the output stands above"; }
    opa_ready || fail "OPA was built but does not answer with version $opa_version or newer"
fi
say "done"
