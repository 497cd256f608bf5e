"""The path into the newest round (GetRoundPath, without gRPC): milliseconds for one of many tenants, rounds going on.

    python -m benchmarks.audit_newest            # 1,024 tenants, on SQLite and PostgreSQL, about a minute
    python -m benchmarks.audit_newest 64 SQLite  # another number of tenants, one database

A round is made each second over logs of which a few, or all, grow meanwhile. The limit beside it, in the same run: the
checkpoint of a log, which needs the same answer about what is acknowledged and no round.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from audit.config import AuditConfig
from audit.log import AuditLog
from audit.model import LogInfo
from benchmarks.report import median, percentile
from bulkhead import ids
from bulkhead.errors import UnavailableError
from tests.simulator.audit_world import decision
from tests.simulator.postgres import postgres_server

_SECONDS = 6.0
_PAUSE_S = 0.005  # between two questions: some 150 a second


async def main() -> None:
    """Measure and print."""
    tenants = int(sys.argv[1]) if len(sys.argv) > 1 else 1_024
    names = sys.argv[2:] or ["SQLite", "PostgreSQL"]
    with tempfile.TemporaryDirectory(prefix="bh-bench-") as name:
        if "SQLite" in names:
            await _database("SQLite", Path(name) / "one" / "audit.db", Path(name) / "one", tenants)
        if "PostgreSQL" in names:
            with postgres_server(shared_buffers="256MB") as server:
                await _database("PostgreSQL", server.url(server.new_database()), Path(name) / "two", tenants)


async def _database(name: str, database: Path | str, directory: Path, tenants: int) -> None:
    log = await AuditLog.open(
        AuditConfig(
            database=database, lock=directory / "lock" / "audit.lock", keys_dir=directory / "keys", domain="bench.test"
        )
    )
    names = [ids.new_id(ids.TENANT) for _ in range(tenants)]
    logs = [await log.ensure_log(tenant) for tenant in names]
    for grown in (max(1, tenants // 64), tenants):
        growing = asyncio.create_task(_grow(log, logs[:grown]))
        await asyncio.sleep(3.0)
        one = await _ask(logs, lambda info: log.round_path(info.log_id))
        limit = await _ask(logs, lambda info: log.checkpoint(info.log_id))
        print(f"{name}, {tenants} tenants, {grown} of them growing: {one}; a checkpoint: {limit}")
        await asyncio.sleep(15.0)
        started = time.perf_counter()
        await log.round_path(logs[-1].log_id)
        took_ms = (time.perf_counter() - started) * 1e3
        growing.cancel()
        print(f"  the first question in fifteen seconds: {took_ms:.1f} ms; all at once: {await _together(log, logs)}")
    await log.close()


async def _grow(log: AuditLog, logs: list[LogInfo]) -> None:
    number = 0
    while True:
        started = time.monotonic()
        await asyncio.gather(
            *(log.append(info.log_id, decision(tenant=info.tenant or "", number=number)) for info in logs)
        )
        number += 1
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - started)))


async def _ask(logs: list[LogInfo], ask: Callable[[LogInfo], Awaitable[object]]) -> str:
    chance, took_ms = random.Random(1), []
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        info = chance.choice(logs)
        started = time.perf_counter()
        await ask(info)
        took_ms.append((time.perf_counter() - started) * 1e3)
        await asyncio.sleep(_PAUSE_S)
    return f"p50 {median(took_ms):.2f}, p99 {percentile(took_ms, 99):.1f}, at most {max(took_ms):.1f} ms"


async def _together(log: AuditLog, logs: list[LogInfo]) -> str:
    async def one(info: LogInfo) -> bool:
        try:
            return await log.round_path(info.log_id) is not None
        except UnavailableError:
            return False

    started = time.perf_counter()
    answered = sum(await asyncio.gather(*map(one, logs)))
    return f"{answered} of {len(logs)} answered in {(time.perf_counter() - started) * 1e3:.0f} ms"


if __name__ == "__main__":
    asyncio.run(main())
