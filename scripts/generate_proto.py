"""Generate the committed gRPC code from ``proto/``, or check that it is current.

``proto/bulkhead`` goes to the SDK (``bulkhead.v1``), ``proto/bulkhead_fleet`` to ``service.bulkhead_fleet.v1``: the
fleet protocol is internal and is in no tenant's wheel.

    python scripts/generate_proto.py            # write
    python scripts/generate_proto.py --check    # exit 1 when the committed code is not what protoc gives
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = {
    ROOT / "proto" / "bulkhead": (ROOT / "sdk/src/bulkhead/v1", "bulkhead/v1"),
    ROOT / "proto" / "bulkhead_fleet": (ROOT / "service/bulkhead_fleet/v1", "bulkhead_fleet/v1"),
}


def generate(out: Path) -> None:
    """Write protoc's output for every .proto file below ``out``."""
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    bin_dir = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT / 'proto'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *files,
        ],
        check=True,
        cwd=ROOT / "proto",
    )
    for path in [*out.rglob("*.py"), *out.rglob("*.pyi")]:
        text = path.read_text()
        moved = text.replace("from bulkhead_fleet.v1 import", "from service.bulkhead_fleet.v1 import")
        moved = moved.replace("import bulkhead_fleet.v1.", "import service.bulkhead_fleet.v1.")
        if moved != text:
            path.write_text(moved)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    stale: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(out)
        for target, package in TREES.values():
            fresh = sorted(path for path in (out / package).iterdir() if path.is_file())
            if arguments.check:
                stale += [
                    str(target / path.name)
                    for path in fresh
                    if not (target / path.name).is_file() or not filecmp.cmp(path, target / path.name, shallow=False)
                ]
                continue
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / "__init__.py").write_text('"""Generated from proto/; do not edit."""\n')
            for path in fresh:
                shutil.copy(path, target / path.name)
    for name in stale:
        print(f"stale generated code: {name}: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
