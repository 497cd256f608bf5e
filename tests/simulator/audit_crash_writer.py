"""A process that appends until it is killed: `python -m tests.simulator.audit_crash_writer DIR STEP NTH [URL]`.

It prints a line per acknowledged record, and kills itself with SIGKILL when a commit reaches STEP for the NTH time.
With STEP `none` it goes on until it is killed from outside. URL is a PostgreSQL database; without it SQLite is used.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from audit.log import AuditLog
from tests.simulator.audit_world import config, decision

TENANTS = [f"tenant_01h455vb4pex5vsknk084sn02{suffix}" for suffix in "abc"]
APPENDERS = 6


async def append_forever(log: AuditLog, tenant: str) -> None:
    """Append to the tenant's log, one record after the other."""
    info = await log.ensure_log(tenant)
    while True:
        done = await log.append(info.log_id, decision(tenant=tenant))
        os.write(1, f"{done.log_id} {done.index} {done.record_id}\n".encode())


async def main(directory: Path, step: str, nth: int, url: str | None = None) -> None:
    """Run until killed."""
    reached = 0

    def failpoint(name: str) -> None:
        nonlocal reached
        reached += name == step
        if reached == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    database = directory / "audit.db" if url is None else url
    log = await AuditLog.open(config(directory, round_interval_s=0.1, database=database), failpoint=failpoint)
    os.write(1, b"ready\n")
    await asyncio.gather(*(append_forever(log, TENANTS[n % len(TENANTS)]) for n in range(APPENDERS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
