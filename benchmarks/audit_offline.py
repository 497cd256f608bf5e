"""Offline verification of an export of a million records: records a second, and the process's peak memory.

The limit beside it, in the same run: reading the same file and hashing each of its records with SHA-256, nothing else.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row
from bulkhead.transparency.merkle import leaf_hash
from tests.simulator.audit_logs import SIGNER
from tests.simulator.large_export import write_large_export

_VERIFY = """
import sys, time
from bulkhead.transparency.export import verify_export
begun = time.perf_counter()
with open(sys.argv[1], "rb") as file:
    records = verify_export(file, vkeys=[sys.argv[2]]).records
took = time.perf_counter() - begun
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(records, took, peak)
"""


def measure(records: int = 1_000_000) -> list[Row]:
    """Write an export, verify it in a process of its own, and read and hash it alone."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.jsonl"
        size = write_large_export(path, records)
        done = subprocess.run(
            [sys.executable, "-c", _VERIFY, str(path), SIGNER.vkey], capture_output=True, text=True, check=True
        )
        verified, took_s, peak_kib = done.stdout.split()
        begun = time.perf_counter()
        with path.open("rb") as file:
            for line in file:
                value = json.loads(line)
                if value["type"] == "record":
                    leaf_hash(value["leaf"].encode())
        limit_s = time.perf_counter() - begun
    return [
        Row(
            f"audit verify offline, export of {int(verified):,} records of {size / records:,.0f} bytes",
            f"{records / float(took_s):,.0f} records/s, peak memory {int(peak_kib) / 1_024:.0f} MiB",
            peer=f"reading and hashing alone {records / limit_s:,.0f} records/s: {limit_s / float(took_s):.2f} of it",
        )
    ]


if __name__ == "__main__":
    for row in measure():
        print(row.what, row.measured, row.peer, sep="\n")
