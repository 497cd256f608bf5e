"""Durable appends to the audit log on SQLite and PostgreSQL, beside Tessera's POSIX driver in the same run.

What counts is the same on both sides: the record has its index, is in the tree, and database (or files) and tree are on
the disk. Tessera's future ends there (its POSIX driver integrates before it answers); ours is then in the lock store,
too. Neither has signed a checkpoint by then; what waiting for a signed one takes is measured apart. Tessera runs with
its defaults (batches of 256 entries or 250 ms) and with a batch age of 1 ms. Records are built before the clock
starts: Tessera is handed finished leaves, too. Leaves have 800 bytes on both sides.
"""

import asyncio
import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from audit.config import AuditConfig
from audit.log import AuditLog
from audit.model import Page, RecordFilter
from audit.records import Action, PlatformReason, Record, build_record, platform_cause
from audit.sql import open_reader
from audit.sql.verify import verify_database
from benchmarks.report import Row, median, percentile
from bulkhead import ids
from tests.simulator.postgres import postgres_server

MANY_LOGS: Final = 1024
LEAF_BYTES: Final = 800
READS: Final = 200
DEFAULTS: Final = "defaults"
BRISK: Final = "1 ms"
_SETTINGS: Final = {DEFAULTS: (), BRISK: ("-age", "1ms")}
_PEER: Final = Path(__file__).parent / "peers" / "tessera"
_LEAST_PEER_S: Final = 1.5  # a few batches of 250 ms
_SYNCS: Final = 300

Add: TypeAlias = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        seconds: of each measurement.
        appenders: at once, on one log.
        many_appenders: at once, on many logs.
        logs: how many these are.
        sustained: records of the measurement that lasts until all of them are in the index.
    """

    seconds: float = 1.0
    appenders: tuple[int, ...] = (1, 16, 64, 256, 1024)
    many_appenders: tuple[int, ...] = (64, 1024)
    logs: int = MANY_LOGS
    sustained: int = 30_000


QUICK: Final = Scale(seconds=0.5, appenders=(1, 64), many_appenders=(64,), logs=16, sustained=5_000)


async def measure(*, quick: bool = False, tell: Callable[[Row], None] = lambda _: None) -> list[Row]:
    """Return the rows: rates beside the peer's, and what reading and verifying cost on the log that this made.

    ``tell`` gets each row as soon as it is there.
    """
    scale = QUICK if quick else Scale()
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        tell(row)

    with tempfile.TemporaryDirectory(prefix="bh-bench-") as name:
        scratch = Path(name)
        add(_disk(scratch))
        peer = _Tessera(scratch, scale)
        await _database("SQLite", scratch / "one" / "audit.db", scratch / "one", peer, add)
        with postgres_server(shared_buffers="256MB", max_wal_size="4GB") as server:
            url = server.url(server.new_database())
            await _database("PostgreSQL", url, scratch / "two", peer, add)
        add(peer.published())
    return rows


def _disk(scratch: Path) -> Row:
    """Measure the floor below every durable append: the disk's answer to fdatasync."""
    kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    mount = next(str(path) for path in (scratch, *scratch.parents) if str(path) in kinds)
    fd = os.open(scratch / "sync", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, bytes(1 << 20), 0)
        os.fsync(fd)
        found = []
        for step in (0, 24_576):  # the lock store's slot; a commit's pages at the end of a write-ahead log
            took_ms = []
            for number in range(_SYNCS):
                started = time.perf_counter()
                os.pwrite(fd, bytes(step or 4_096), (1 << 20) + number * step if step else 0)
                os.fdatasync(fd)
                took_ms.append((time.perf_counter() - started) * 1e3)
            found.append(median(took_ms))
    finally:
        os.close(fd)
        (scratch / "sync").unlink()
    return Row(
        f"fdatasync of the disk ({kinds[mount]} at {mount}): 4 KiB in place; 24 KiB at the end of a file",
        f"p50 {found[0]:.2f} ms; {found[1]:.2f} ms",
    )


class _Tessera:
    """The peer; ``figures`` are its rates and latencies by (setting, logs, appenders)."""

    def __init__(self, scratch: Path, scale: Scale) -> None:
        self.scale = scale
        self._scratch = scratch
        self._program = scratch / "tessera"
        self.figures: dict[tuple[str, int, int], Mapping[str, float]] = {}
        subprocess.run(["go", "build", "-o", self._program, "."], cwd=_PEER, check=True)

    def run(self, logs: int) -> None:
        """Measure every setting and number of appenders on so many logs, unless that was done."""
        counts = self.scale.appenders if logs == 1 else self.scale.many_appenders
        for setting, options in _SETTINGS.items():
            if (setting, logs, counts[0]) not in self.figures:
                for row in self._run(*options, "-appenders", ",".join(map(str, counts)), "-logs", logs):
                    self.figures[setting, logs, int(row["appenders"])] = row

    def published(self) -> Row:
        """Return what an append takes until a signed checkpoint covers it, at best."""
        found = self._run(*_SETTINGS[BRISK], "-checkpoint", "100ms", "-published", "-appenders", 16)[0]
        return Row(
            "Tessera, one log, 16 appenders, until a published checkpoint covers the record (1 ms, and the shortest "
            "checkpoint interval, 100 ms)",
            "",
            f"{found['per_s']:,.0f} /s, p50 {found['p50_ms']:.2f} ms",
        )

    def _run(self, *arguments: object) -> list[dict[str, float]]:
        place = tempfile.mkdtemp(prefix="tessera-", dir=self._scratch)
        seconds = max(self.scale.seconds, _LEAST_PEER_S)
        command = [self._program, "-dir", place, "-seconds", seconds, "-bytes", LEAF_BYTES, *arguments]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=200)
        return [json.loads(line) for line in done.stdout.splitlines()]


def _records(log: AuditLog, tenants: Sequence[str], count: int) -> list[Record]:
    """Return records of about 800 bytes; one is built, and the others are it under other ids and tenants."""
    cause = platform_cause(PlatformReason.STARTUP)
    padding = ""
    for _ in range(2):  # the first shows how much is missing
        first = build_record(
            log.stamp(), action=Action.TENANT_UPDATED, tenant=tenants[0], cause=cause, data={"name": padding}
        )
        padding += "x" * (LEAF_BYTES - len(first.leaf))
    made = []
    for number in range(count):
        tenant, record_id = tenants[number % len(tenants)], ids.new_id(ids.RECORD)
        leaf = first.leaf.replace(first.record_id.encode(), record_id.encode())
        leaf = leaf.replace(tenants[0].encode(), tenant.encode())
        made.append(Record(leaf, dataclasses.replace(first.fields, record_id=record_id, tenant=tenant)))
    return made


async def _appender(
    log: AuditLog, places: Mapping[str, int], source: Iterator[Record], until: float, ms: list[float]
) -> None:
    clock = time.perf_counter
    for record in source:
        started = clock()
        if started >= until:
            return
        await log.append(places[record.fields.tenant or ""], record)
        ms.append((clock() - started) * 1e3)


async def _rate(
    log: AuditLog, places: Mapping[str, int], records: Sequence[Record], appenders: int, seconds: float
) -> tuple[float, list[float]]:
    """Append until the time is over, or the records are; return the rate and each append's milliseconds."""
    ms: list[float] = []
    source = iter(records)
    started = time.perf_counter()
    await asyncio.gather(*(_appender(log, places, source, started + seconds, ms) for _ in range(appenders)))
    return len(ms) / (time.perf_counter() - started), ms


async def _indexed(log: AuditLog) -> None:
    while log.health().unindexed:  # noqa: ASYNC110 - nothing tells when the projector is done
        await asyncio.sleep(0.01)


async def _database(name: str, database: Path | str, directory: Path, peer: _Tessera, add: Add) -> None:
    scale = peer.scale
    config = AuditConfig(
        database=database,
        lock=directory / "audit.lock",
        keys_dir=directory / "keys",
        domain="bench",
        append_timeout_s=30.0,
    )
    log = await AuditLog.open(config)
    try:
        tenants = [ids.new_id(ids.TENANT) for _ in range(scale.logs)]
        places = {tenants[0]: (await log.ensure_log(tenants[0])).log_id}
        peer.run(1)
        for appenders in scale.appenders:
            records = _records(log, tenants[:1], _enough(appenders, scale))
            await _indexed(log)
            found = await _rate(log, places, records, appenders, scale.seconds)
            add(_row(name, 1, appenders, found, peer))
        for row in await _sustained(name, log, places, _records(log, tenants[:1], scale.sustained)):
            add(row)
        for row in await _reads(name, log, places[tenants[0]]):
            add(row)
        for tenant in tenants[1:]:
            places[tenant] = (await log.ensure_log(tenant)).log_id
        await _indexed(log)
        peer.run(scale.logs)
        for appenders in scale.many_appenders:
            records = _records(log, tenants, _enough(appenders, scale))
            await _indexed(log)
            found = await _rate(log, places, records, appenders, scale.seconds)
            add(_row(name, scale.logs, appenders, found, peer))
    finally:
        await log.close()
    for row in _verified(name, database):
        add(row)


def _enough(appenders: int, scale: Scale) -> int:
    """Return more records than are appended in the time."""
    return int(scale.seconds * min(10_000 * appenders, 60_000))


def _row(name: str, logs: int, appenders: int, found: tuple[float, list[float]], peer: _Tessera) -> Row:
    rate, ms = found
    p50, p99 = percentile(ms, 50), percentile(ms, 99)
    least = 10.0 if appenders <= 64 else 0.5
    goal = f">= {least:g}x" + ("; p50 <= 5 ms" if appenders == 1 else "")
    ratios, words, verdicts = [], [], []
    for setting in _SETTINGS:
        other = peer.figures[setting, logs, appenders]
        ratio = rate / other["per_s"]
        met = ratio >= least and (appenders > 1 or p50 <= 5.0)
        ratios.append(f"{ratio:,.2f}x" if ratio < 10 else f"{ratio:,.0f}x")
        words.append(f"{setting}: {other['per_s']:,.0f} /s, p50 {other['p50_ms']:.2f} ms, p99 {other['p99_ms']:.2f} ms")
        verdicts.append(f"{setting}: {'met' if met else 'short'}")
    return Row(
        f"durable appends/s, {name}, {'one log' if logs == 1 else f'{logs:,} logs'}, "
        f"{appenders:,} appender{'s' if appenders > 1 else ''}",
        f"{rate:,.0f} /s, p50 {p50:.2f} ms, p99 {p99:.2f} ms ({', '.join(ratios)})",
        f"Tessera POSIX, {'; '.join(words)}",
        goal,
        ", ".join(verdicts),
    )


async def _sustained(name: str, log: AuditLog, places: Mapping[str, int], records: Sequence[Record]) -> list[Row]:
    await _indexed(log)
    started = time.perf_counter()
    await _rate(log, places, records, 64, float("inf"))
    appended_s = time.perf_counter() - started
    await _indexed(log)
    indexed_s = time.perf_counter() - started
    ms = []
    for record in _records(log, list(places), READS):
        begun = time.perf_counter()
        appended = await log.append(places[record.fields.tenant or ""], record)
        await log.prove(appended)
        ms.append((time.perf_counter() - begun) * 1e3)
    return [
        Row(
            f"{len(records):,} records by 64 appenders, {name}",
            f"{len(records) / appended_s:,.0f} /s; until all are in the index {len(records) / indexed_s:,.0f} /s",
        ),
        Row(
            f"append with a signed checkpoint and a verified proof under it, {name}, 1 appender",
            f"p50 {percentile(ms, 50):.2f} ms, p99 {percentile(ms, 99):.2f} ms",
        ),
    ]


async def _reads(name: str, log: AuditLog, log_id: int) -> list[Row]:
    size = log.size(log_id)
    await _indexed(log)
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
