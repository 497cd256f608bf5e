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
fsck_version=v1.0.4        # github.com/transparency-dev/tessera/cmd/fsck: reads our tiles in the tests
omniwitness_version=v0.0.0-20260720115447-2e1c6971d19e # github.com/transparency-dev/witness: cosigns our checkpoints
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

# SoftHSM is the PKCS#11 token of the tests.
softhsm_here() {
    for candidate in "${BULKHEAD_SOFTHSM:-}" /usr/lib/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so /opt/homebrew/lib/softhsm/libsofthsm2.so; do
        [ -n "$candidate" ] && [ -f "$candidate" ] && command -v softhsm2-util >/dev/null && return 0
    done
    return 1
}
if ! softhsm_here; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing SoftHSM (Debian package softhsm2) for the tests of keys in tokens"
        { apt-get install -y -qq softhsm2 || { apt-get update -qq && apt-get install -y -qq softhsm2; }; } \
            >"$cache/softhsm-install.log" 2>&1 || cat "$cache/softhsm-install.log" >&2
    fi
    softhsm_here || say "SoftHSM is missing, so tests of keys in tokens will fail: install it (Debian: apt-get install softhsm2)"
fi

opa_pid=""
if opa_ready; then
    say "OPA is here already"
else
    command -v go >/dev/null || fail "OPA $opa_version is missing and there is no Go to build it: put opa on PATH or install Go 1.25 or newer"
    say "building OPA $opa_version in the background (about 2.5 minutes, once)"
    GOBIN="$tools/bin" GOFLAGS=-trimpath go install "github.com/open-policy-agent/opa@v$opa_version" >"$cache/opa-build.log" 2>&1 &
    opa_pid=$!
fi

# Go programs that only the tests need: each in a folder that names its version, so that what is there is the right one.
go_tool() { # $1: name, $2: package, $3: version
    local folder="$tools/$1@${3##*-}"
    [ -x "$folder/$1" ] && return 0
    command -v go >/dev/null || { echo "$1 is missing and there is no Go to build it: install Go 1.25 or newer"; return 1; }
    mkdir -p "$folder"
    GOBIN="$folder" GOFLAGS="-trimpath -buildvcs=false" nice go install "$2@$3" || { echo "$1 could not be built"; return 1; }
}
go_tools() {
    go_tool fsck github.com/transparency-dev/tessera/cmd/fsck "$fsck_version"
    go_tool omniwitness github.com/transparency-dev/witness/cmd/omniwitness "$omniwitness_version"
}
if [ ! -x "$tools/fsck@$fsck_version/fsck" ] || [ ! -x "$tools/omniwitness@${omniwitness_version##*-}/omniwitness" ]; then
    say "building the tests' Go tools in the background (about 2 minutes, once)"
fi
go_tools >"$cache/go-tools.log" 2>&1 &
go_tools_pid=$!

for tool in spin gcc mkfs.ext4; do # Debian's packages that tests run: a model checker, its compiler, small file systems
    command -v "$tool" >/dev/null && continue
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "tests need $tool: install Debian's spin, gcc and e2fsprogs"; continue; }
    say "installing spin, gcc and e2fsprogs with apt-get"
    { apt-get update -qq && apt-get install -y -qq spin gcc libc6-dev e2fsprogs; } >"$cache/apt.log" 2>&1 || { cat "$cache/apt.log" >&2; fail "apt-get could not install spin, gcc and e2fsprogs"; }
    break
done

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
wait "$go_tools_pid" || { cat "$cache/go-tools.log" >&2; fail "a Go tool of the tests could not be built; the output stands above"; }
say "done"
