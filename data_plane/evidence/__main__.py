"""``python -m data_plane.evidence``: what this host's hardware says of itself, collected into files.

Runs with the standard library, nvidia-ml-py and this package on the path; verifying is ``bulkhead evidence verify``'s.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bulkhead.errors import BulkheadError, ConfigError
from data_plane.evidence.nvml import NONCE_BYTES, GpuQuotes
from data_plane.evidence.tsm import CONFIGFS, REPORT_DATA_BYTES, ConfigFs, TsmQuotes

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
PROGRAM: Final = "python -m data_plane.evidence"
EPILOG: Final = """examples:
  python -m data_plane.evidence --state --json
  python -m data_plane.evidence --nonce 4cff…2e --out evidence/
  python -m data_plane.evidence --cpu --nonce 00 --out evidence/ --privilege-level 0
  bulkhead evidence verify evidence/quote.bin evidence/auxiliary.bin --nonce 4cff…2e --policy trust.toml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect what ``arguments`` ask for and return the exit status: 0 only if everything was collected."""
    options = _parser().parse_args(arguments)
    try:
        nonce = _nonce(options.nonce)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_USAGE
    both = not (options.cpu or options.gpu)
    facts: dict[str, Any] = {}
    if options.cpu or both:
        facts["cpu"] = _tried(lambda: _processor(options, nonce))
    if options.gpu or both:
        facts["gpu"] = _tried(lambda: _gpus(options, nonce))
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if options.as_json else _text(facts))
    return EXIT_FAILED if any("error" in part for part in facts.values()) else EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Collect attestation evidence from this host: a quote of its processor (configfs-tsm: SEV-SNP, "
        "TDX) and reports of its GPUs (NVML). Ends with 0 if all of it was collected, with 1 if a part was not, whose "
        "error is told with its code, and with 2 on wrong usage.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", action="store_true", help="the processor alone")
    parser.add_argument("--gpu", action="store_true", help="the GPUs alone")
    parser.add_argument("--state", action="store_true", help="ask nothing for evidence, say what is there")
    parser.add_argument(
        "--nonce",
        default="00",
        help="hexadecimal; the processor's REPORT_DATA is it, filled with zeros to 64 bytes, the GPUs' nonce its first "
        "32 bytes (default: zeros)",
    )
    parser.add_argument("--out", type=Path, help="directory for the files; without it only sizes are told")
    parser.add_argument("--privilege-level", type=int, choices=range(4), help="VMPL, of SEV-SNP")
    parser.add_argument("--configfs", type=Path, default=CONFIGFS, help=argparse.SUPPRESS)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON for programs")
    return parser


def _tried(collect: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = collect()
    except BulkheadError as error:
        return {"error": {"code": error.code, "message": error.message}}
    return found


def _processor(options: argparse.Namespace, nonce: bytes) -> dict[str, Any]:
    tree = ConfigFs(options.configfs)
    if options.state:
        return {"configfs": str(options.configfs), "present": options.configfs.is_dir()}
    quote = TsmQuotes(tree, privilege_level=options.privilege_level).quote(nonce.ljust(REPORT_DATA_BYTES, b"\0"))
    files = {"quote": _write(options.out, "quote.bin", quote.quote)}
    if quote.auxiliary:
        files["auxiliary"] = _write(options.out, "auxiliary.bin", quote.auxiliary)
    return {"technology": quote.technology, "provider": quote.provider, "files": files}


def _gpus(options: argparse.Namespace, nonce: bytes) -> dict[str, Any]:
    quotes = GpuQuotes()
    state = quotes.state()
    facts: dict[str, Any] = {
        "driver_version": state.driver_version,
        "confidential_computing": "on" if state.enabled else "off" if state.supported else "not supported",
        "developer_tools": state.developer_tools,
        "gpus": [],
    }
    if options.state:
        return {**facts, "gpus": list(state.uuids)}
    for number, uuid in enumerate(state.uuids):
        quote = quotes.report(uuid, nonce.ljust(NONCE_BYTES, b"\0")[:NONCE_BYTES])
        files = {
            "report": _write(options.out, f"gpu{number}-report.bin", quote.report),
            "certificates": _write(options.out, f"gpu{number}-certificates.pem", quote.certificates),
        }
        facts["gpus"].append({"uuid": uuid, "files": files})
    return facts


def _write(folder: Path | None, name: str, data: bytes) -> dict[str, Any]:
    if folder is None:
        return {"bytes": len(data)}
    try:
        (folder / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{folder / name}: cannot be written: {error.strerror}") from error
    return {"bytes": len(data), "path": str(folder / name)}


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise ConfigError("--nonce must be hexadecimal") from error
    if len(nonce) > REPORT_DATA_BYTES:
        raise ConfigError(f"--nonce has at most {REPORT_DATA_BYTES} bytes")
    return nonce


def _text(facts: dict[str, Any]) -> str:
    lines = []
    for name, part in facts.items():
        error = part.get("error")
        told = f"error {error['code']}: {error['message']}" if error else json.dumps(part)
        lines.append(f"{name}: {told}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
