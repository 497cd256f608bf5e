#!/usr/bin/env bash
# Write the hash-locked requirements: base.txt (everything but torch), torch.txt (torch with its CUDA libraries) and
# sdk.txt (what a tenant installs) and uv.txt (the installer itself). Run it after changing a dependency in either pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
out=deploy/requirements
mkdir -p "$out"
compile() { uv pip compile --quiet --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 "$@"; }

all="$(mktemp)"
trap 'rm -f "$all" "$all.torch"' EXIT
compile --no-annotate --no-emit-package bulkhead-sdk --extra engine --extra nvml --extra postgres --group dev pyproject.toml --output-file "$all" >/dev/null
# What torch alone brings: the CUDA libraries, triton, torch itself.
grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==[^ ]+' "$all" | grep -v '^nvidia-ml-py=' > "$all.torch"
skip=()
while IFS='=' read -r name _; do skip+=(--no-emit-package "$name"); done < "$all.torch"
compile --no-annotate --no-emit-package bulkhead-sdk --extra engine --extra nvml --extra postgres --group dev "${skip[@]}" --constraint "$all" pyproject.toml \
    --output-file "$out/base.txt" >/dev/null
compile --no-deps --no-annotate "$all.torch" --output-file "$out/torch.txt" >/dev/null
echo 'uv==0.13.9' | compile --no-annotate - --output-file "$out/uv.txt" >/dev/null
compile --no-annotate sdk/pyproject.toml --constraint "$all" --output-file "$out/sdk.txt" >/dev/null
wc -l "$out"/*.txt
