"""A process that appends until it is killed.

It writes a line per acknowledged record, and kills itself with SIGKILL when a commit reaches a step for the n-th time.
With the step `none` it goes on until it is killed from outside. Like every caller it sends a record again, the same
bytes, until it is told its place.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from audit.config import AuditConfig
from audit.log import AuditLog
from bulkhead.errors import AuditUnavailableError
from tests.simulator.audit_world import decision

TENANTS = [f"tenant_01h455vb4pex5vsknk084sn02{suffix}" for suffix in "abc"]
APPENDERS = 6
T = TypeVar("T")


async def until_told(call: Callable[[], Awaitable[T]]) -> T:
    """Call again and again while the log is unavailable: on a machine that is busy, a commit may take too long."""
    while True:
        try:
            return await call()
        except AuditUnavailableError:
            await asyncio.sleep(0.05)


async def append_forever(log: AuditLog, tenant: str, out: int) -> None:
    """Append to the tenant's log, one record after the other."""
    info = await until_told(lambda: log.ensure_log(tenant))
    while True:
        record = decision(tenant=tenant)
        done = await until_told(lambda record=record: log.append(info.log_id, record))
        os.write(out, f"{done.log_id} {done.index} {done.record_id}\n".encode())


def run(out: Path, where: AuditConfig, step: str, nth: int) -> None:
    """Run until killed; `out` gets `ready` and then the acknowledged records."""
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(_run(fd, where, step, nth))


async def _run(out: int, where: AuditConfig, step: str, nth: int) -> None:
    reached = 0

    def failpoint(name: str) -> None:
        nonlocal reached
        reached += name == step
        if reached == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    log = await until_told(lambda: AuditLog.open(where, failpoint=failpoint))
    os.write(out, b"ready\n")
    await asyncio.gather(*(append_forever(log, TENANTS[n % len(TENANTS)], out) for n in range(APPENDERS)))
