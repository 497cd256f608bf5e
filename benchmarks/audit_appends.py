"""Durable appends to the audit log on SQLite and PostgreSQL, beside Tessera's POSIX driver in the same run.

Records are built before the clock starts: Tessera is handed finished leaves, too. Both sides count an append when it
is durable and has its index: Bulkhead's is then also in the lock store.
"""

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from audit.config import AuditConfig
from audit.log import AuditLog
from audit.model import Page, RecordFilter
from audit.records import PlatformReason, Record, platform_cause, tenant_facts
from audit.sql import open_reader
from audit.sql.verify import verify_database
from benchmarks.report import Row, median, percentile, verdict
from bulkhead import ids
from tests.simulator.postgres import postgres_server

SECONDS: Final = 2.0
APPENDERS: Final = (1, 16, 64, 256, 1024)
LOGS: Final = 1024
PADDING: Final = "x" * 450  # brings a leaf to about 800 bytes
READS: Final = 200
_PEER: Final = Path(__file__).parent / "peers" / "tessera"


async def measure() -> list[Row]:
    """Return the rows: rates beside the peer's, and what reading and verifying cost on the log that this made."""
    with tempfile.TemporaryDirectory() as scratch:
        peer = _tessera(Path(scratch))
        rows = await _database("SQLite", Path(scratch) / "one" / "audit.db", Path(scratch) / "one", peer)
        with postgres_server(shared_buffers="256MB", max_wal_size="2GB") as server:
            url = server.url(server.new_database())
            rows += await _database("PostgreSQL", url, Path(scratch) / "two", peer)
    return rows


def _tessera(scratch: Path) -> dict[int, dict[str, float]]:
    """Build and run the peer; rates and latencies by number of appenders."""
    program = scratch / "tessera"
    subprocess.run(["go", "build", "-o", program, "."], cwd=_PEER, check=True)
    command = [
        str(program),
        "-dir",
        str(scratch / "log"),
        "-seconds",
        str(SECONDS),
        "-appenders",
        ",".join(map(str, APPENDERS)),
    ]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return {row["appenders"]: row for row in map(json.loads, found.stdout.splitlines())}


def _records(log: AuditLog, tenants: list[str], count: int) -> list[Record]:
    cause = platform_cause(PlatformReason.STARTUP)
    return [
        tenant_facts(log.stamp(), tenant=tenants[n % len(tenants)], cause=cause, revision=1, facts={"p": PADDING})
        for n in range(count)
    ]


async def _appender(
    log: AuditLog, ids_: dict[str, int], source: Iterator[Record], until: float, ms: list[float]
) -> None:
    for record in source:
        if time.perf_counter() >= until:
            return
        started = time.perf_counter()
        await log.append(ids_[record.fields.tenant or ""], record)
        ms.append((time.perf_counter() - started) * 1e3)


async def _rate(
    log: AuditLog, ids_: dict[str, int], records: list[Record], appenders: int
) -> tuple[float, list[float]]:
    ms: list[float] = []
    source = iter(records)
    started = time.perf_counter()
    await asyncio.gather(*(_appender(log, ids_, source, started + SECONDS, ms) for _ in range(appenders)))
    return len(ms) / (time.perf_counter() - started), ms


async def _database(name: str, database: Path | str, directory: Path, peer: dict[int, dict[str, float]]) -> list[Row]:
    config = AuditConfig(
        database=database,
        lock=directory / "audit.lock",
        keys_dir=directory / "keys",
        domain="bench",
        append_timeout_s=30.0,
    )
    log = await AuditLog.open(config)
    rows: list[Row] = []
    try:
        tenants = [ids.new_id(ids.TENANT) for _ in range(LOGS)]
        places = {tenants[0]: (await log.ensure_log(tenants[0])).log_id}
        for appenders in APPENDERS:
            records = _records(log, tenants[:1], 600 if appenders == 1 else 24_000)
            rate, ms = await _rate(log, places, records, appenders)
            rows.append(_row(f"{name}, one log", appenders, rate, ms, peer[appenders]))
        for tenant in tenants[1:]:
            places[tenant] = (await log.ensure_log(tenant)).log_id
        for appenders in (64, 1024):
            rate, ms = await _rate(log, places, _records(log, tenants, 12_000), appenders)
            rows.append(_row(f"{name}, {LOGS:,} logs", appenders, rate, ms, peer[appenders]))
        rows += await _reads(name, log, places[tenants[0]])
    finally:
        await log.close()
    return rows + _verified(name, database)


def _row(what: str, appenders: int, rate: float, ms: list[float], peer: dict[str, float]) -> Row:
    p50, p99 = percentile(ms, 50), percentile(ms, 99)
    ratio = rate / peer["per_s"]
    goal, met = (">= 10x", ratio >= 10) if appenders <= 64 else (">= 0.5x", ratio >= 0.5)
    if appenders == 1:
        goal, met = f"{goal}; p50 <= 5 ms", met and p50 <= 5.0
    return Row(
        f"durable appends/s, {what}, {appenders:,} appender{'s' if appenders > 1 else ''}",
        f"{rate:,.0f} /s, p50 {p50:.2f} ms, p99 {p99:.2f} ms ({ratio:.2f}x)",
        f"Tessera POSIX: {peer['per_s']:,.0f} /s, p50 {peer['p50_ms']:.2f} ms, p99 {peer['p99_ms']:.2f} ms",
        goal,
        verdict(met=met),
    )


async def _reads(name: str, log: AuditLog, log_id: int) -> list[Row]:
    size = log.size(log_id)
    while log.health().unindexed:  # noqa: ASYNC110 - nothing tells when the projector is done
        await asyncio.sleep(0.1)
    proof_ms, page_ms = [], []
    for number in range(READS):
        started = time.perf_counter()
        await log.receipt(log_id, number * size // READS)
        proof_ms.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        await log.records(RecordFilter(log_id=log_id), Page(after=f"i{number * size // READS + 100}"))
        page_ms.append((time.perf_counter() - started) * 1e3)
    return [
        Row(f"record with verified proof, {name}, {size:,} records", f"p50 {median(proof_ms):.2f} ms"),
        Row(f"page of 100 records, compared with leaves, {name}", f"p50 {median(page_ms):.2f} ms"),
    ]


def _verified(name: str, database: Path | str) -> list[Row]:
    reader = open_reader(database)
    try:
        started = time.perf_counter()
        report = verify_database(reader, vkeys={})
        took_s = time.perf_counter() - started
    finally:
        reader.close()
    rows = [
        Row(
            f"verify of the whole database, {name}, {report.records:,} records",
            f"{report.records / took_s:,.0f} records/s",
        )
    ]
    if isinstance(database, Path):
        rows.append(
            Row(
                "bytes per record, SQLite, indexes and tiles included",
                f"{database.stat().st_size / report.records:,.0f}",
            )
        )
    return rows
