"""A large export verified offline by the command: no socket, no database, bounded memory, the bad record named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulator.audit_logs import SIGNER
from tests.simulator.large_export import write_large_export

MEASURED = """
import sys
def offline(event, _):
    if event.startswith(("socket.", "sqlite3.")):
        raise RuntimeError(event)
sys.addaudithook(offline)
from bulkhead.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()  # ru_maxrss would begin with what the parent had
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def verify(path: Path) -> tuple[int, dict, str, int]:
    """Run the command, which may open no socket and no database; return exit code, JSON, error line, peak in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "audit", "verify", str(path), "--log-key", SIGNER.vkey, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    *errors, peak_kib = done.stderr.strip().splitlines()
    return done.returncode, json.loads(done.stdout or "{}"), "\n".join(errors), int(peak_kib) // 1_024


def check(tmp_path: Path, records: int, *, peak_mib: int) -> None:
    path = tmp_path / "log.jsonl"
    write_large_export(path, records)
    code, found, errors, peak = verify(path)
    assert (code, found["records"], found["verified"]) == (0, records, True), errors
    assert peak <= peak_mib
    bad = records * 7 // 10
    data = path.read_bytes()
    at = data.index(f'"index":{bad},'.encode())
    changed = data.index(b"because", at)
    path.write_bytes(data[:changed] + b"Because" + data[changed + 7 :])
    code, _, errors, peak = verify(path)
    assert code == 1
    assert f"record {bad} (rec_" in errors
    assert peak <= peak_mib


def test_an_export_verifies_in_bounded_memory(tmp_path):
    """30,000 records verify within the memory of a small process; a changed one is named."""
    check(tmp_path, 30_000, peak_mib=64)


@pytest.mark.long
def test_a_million_records(tmp_path):
    """A million records verify offline in the same memory; a changed one is named."""
    check(tmp_path, 1_000_000, peak_mib=64)
