"""A process that appends until it is killed.

It writes a line per acknowledged record, and kills itself with SIGKILL when a commit reaches a step for the n-th time.
With the step `none` it goes on until it is killed from outside.
"""

import asyncio
import os
import signal
from pathlib import Path

from audit.log import AuditLog
from tests.simulator.audit_world import config, decision

TENANTS = [f"tenant_01h455vb4pex5vsknk084sn02{suffix}" for suffix in "abc"]
APPENDERS = 6


async def append_forever(log: AuditLog, tenant: str, out: int) -> None:
    """Append to the tenant's log, one record after the other."""
    info = await log.ensure_log(tenant)
    while True:
        done = await log.append(info.log_id, decision(tenant=tenant))
        os.write(out, f"{done.log_id} {done.index} {done.record_id}\n".encode())


def run(out: Path, directory: Path, database: Path | str, step: str, nth: int) -> None:
    """Run until killed; `out` gets `ready` and then the acknowledged records."""
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(_run(fd, directory, database, step, nth))


async def _run(out: int, directory: Path, database: Path | str, step: str, nth: int) -> None:
    reached = 0

    def failpoint(name: str) -> None:
        nonlocal reached
        reached += name == step
        if reached == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    log = await AuditLog.open(config(directory, round_interval_s=0.1, database=database), failpoint=failpoint)
    os.write(out, b"ready\n")
    await asyncio.gather(*(append_forever(log, TENANTS[n % len(TENANTS)], out) for n in range(APPENDERS)))
