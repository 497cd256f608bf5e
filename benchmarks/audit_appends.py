"""Durable appends to the audit log on SQLite: rate and latency at 1, 16 and 64 appenders."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

from audit.config import AuditConfig
from audit.log import AuditLog
from audit.records import PlatformReason, platform_cause, tenant_facts
from benchmarks.report import Row, percentile, verdict
from bulkhead import ids

SECONDS: Final = 3.0
PADDING: Final = "x" * 560  # brings a leaf to about 800 bytes


async def _appender(log: AuditLog, tenant: str, log_id: int, until: float, took_ms: list[float]) -> None:
    cause = platform_cause(PlatformReason.STARTUP)
    while time.perf_counter() < until:
        record = tenant_facts(log.stamp(), tenant=tenant, cause=cause, revision=1, facts={"padding": PADDING})
        started = time.perf_counter()
        await log.append(log_id, record)
        took_ms.append((time.perf_counter() - started) * 1e3)


async def measure() -> list[Row]:
    """Return one row for each number of appenders."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        config = AuditConfig(
            database=directory / "audit.db", lock=directory / "audit.lock", keys_dir=directory / "keys", domain="bench"
        )
        log = await AuditLog.open(config)
        try:
            tenant = ids.new_id(ids.TENANT)
            info = await log.ensure_log(tenant)
            for appenders in (1, 16, 64):
                took_ms: list[float] = []
                started = time.perf_counter()
                tasks = (_appender(log, tenant, info.log_id, started + SECONDS, took_ms) for _ in range(appenders))
                await asyncio.gather(*tasks)
                rate = len(took_ms) / (time.perf_counter() - started)
                p50, p99 = percentile(took_ms, 50), percentile(took_ms, 99)
                single = appenders == 1
                rows.append(
                    Row(
                        f"audit appends/s, durable, SQLite, {appenders} appender{'s' if appenders > 1 else ''}",
                        f"{rate:,.0f} /s, p50 {p50:.2f} ms, p99 {p99:.2f} ms",
                        goal="single record p50 <= 5 ms" if single else "",
                        verdict=verdict(met=p50 <= 5.0) if single else "",
                    )
                )
        finally:
            await log.close()
    return rows
