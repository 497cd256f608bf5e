"""An audit log of ten million records: what a proof, a page of a query and verification cost there; bytes per record.

    python -m benchmarks.audit_scale --dir DIR                       # about half an hour and 20 GB for each database
    python -m benchmarks.audit_scale --dir DIR --phase read          # a phase again: append, index, read or verify
    python -m benchmarks.audit_scale --dir DIR --quick               # 20,000 records
    python -m benchmarks.audit_scale --dir DIR --database postgresql

The log is one tenant's. It is made by the store's own commits and the index's own projector, the lock store moving
with each commit, in batches of 4,096. Only the records' bytes come from a shorter way than in service: pairs of a
decision and its outcome, each made once by the record builders, with ids, times and sequence numbers put in after;
verification, which parses every one of them, would refuse a wrong one. The query beside it is the same on a log of
20,000 records, in the same run.
"""

import argparse
import asyncio
import base64
import dataclasses
import functools
import itertools
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from audit import records
from audit.config import AuditConfig
from audit.lockstore import FileLockStore
from audit.log import AuditLog
from audit.model import LogInfo, Page, RecordFilter
from audit.records import Record, Stamper
from audit.sql import SqlAuditStore, open_reader, open_store
from audit.sql.verify import verify_database
from audit.store import NewLeaf
from benchmarks.report import Row, as_json, machine, percentile, table
from bulkhead import ids
from bulkhead.transparency.merkle import leaf_hash
from tests.simulator.postgres import PostgresServer

RECORDS: Final = 10_000_000
QUICK: Final = 20_000
TENANT: Final = "tenant_01h455vb4pex5vsknk084sn02q"
PHASES: Final = ("append", "index", "read", "verify")
_BATCH: Final = 4_096
_READS: Final = 200
_PROCESSES: Final = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
_LONG_READS: Final = 20  # of those that take long
_EVERY_S: Final = 10.0  # between two lines of progress
_SETTINGS: Final = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
_CROCKFORD: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")
_NUMBER: Final = 1_234_567_890_123_456  # stands for a number of 16 digits until it is replaced


def _say(text: str) -> None:
    print(f"[scale] {text}", file=sys.stderr, flush=True)


class _Progress:
    """Says how far it is, now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self.started = self._said = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self._said > _EVERY_S:
            self._said = now
            rate = done / (now - self.started)
            _say(f"{self._what}: {done:,} of {self._total:,}, {rate:,.0f}/s")

    def rate(self) -> str:
        """Return what was done in a second, of the whole."""
        return f"{self._total / (time.perf_counter() - self.started):,.0f} records/s"


class _Source:
    """Makes records: decision, outcome, decision, … of sessions of their own, 20 ms apart."""

    def __init__(self) -> None:
        self._random = random.Random(20)
        stamps = Stamper(
            writer="ab" * 8,
            wall_ns=lambda: _NUMBER * 1_000,
            monotonic_ns=lambda: _NUMBER * 1_000,
            started_ns=0,
            random_bytes=bytes,
        )
        self._templates = [_template(record) for record in _pair(stamps)]

    def leaves(self, log_id: int, start: int) -> Iterator[NewLeaf]:
        """Return leaves for ever; ``start`` is the first one's place in the log."""
        begun_us = 1_700_000_000_000_000
        pair = pair_id = ""
        for number in itertools.count(start):
            us = begun_us + 20_000 * number
            record_id = f"{ids.RECORD}_{self._suffix(us // 1_000)}"
            if number % 2 == start % 2:
                pair, pair_id = self._suffix(us // 1_000), self._suffix(us // 1_000)
            values = {"id": record_id, "number": us, "session": pair, "pair": pair_id}
            leaf = (self._templates[number % 2] % values).encode()
            yield NewLeaf(log_id, record_id, leaf, leaf_hash(leaf))

    def _suffix(self, ms: int) -> str:
        """Return the 26 characters of a TypeID: a UUIDv7 in base32."""
        bits = self._random.getrandbits(74)
        value = ms << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & ((1 << 62) - 1)
        return base64.b32encode((value << 30).to_bytes(20, "big"))[:26].translate(_CROCKFORD).decode()


def _pair(stamps: Stamper) -> tuple[Record, Record]:
    subject = records.Subject("subj_01h455vb4pex5vsknk084sn02q", ("developer",))
    cause = records.tenant_cause(credential="cred_01h455vb4pex5vsknk084sn02q", request_id="req_SESSION")
    decided = records.decision(
        stamps.stamp(),
        subject=subject,
        cause=cause,
        tier="gpu",
        decision=records.Decision.ALLOW,
        reasons=[records.Reason("OK", "tenancy", "every rule allows it")],
        bundle="ab" * 32,
        policy_input={"subject": {"roles": ["developer"], "groups": ["research"]}, "context": {"region": "eu-west"}},
        tenant=TENANT,
        session="sess_SESSION",
        pair_id="pair_PAIR",
        model="smollm2-135m",
    )
    outcome = records.outcome(
        stamps.stamp(),
        subject=subject,
        cause=cause,
        result="ready",
        tier="gpu",
        partition="part_01h455vb4pex5vsknk084sn02q",
        evidence="cd" * 32,
        evidence_kind="hardware",
        details={"model_digest": "ef" * 32},
        tenant=TENANT,
        session="sess_SESSION",
        pair_id="pair_PAIR",
        model="smollm2-135m",
    )
    return outcome, decided  # a log's first record opens it, so that even places are outcomes


def _template(record: Record) -> str:
    text = record.leaf.decode().replace("%", "%%")
    for found, field in ((record.record_id, "id"), ("SESSION", "session"), ("PAIR", "pair"), (str(_NUMBER), "number")):
        text = text.replace(found, f"%({field})s")
    return text


def _config(directory: Path, database: Path | str) -> AuditConfig:
    return AuditConfig(
        database=database,
        lock=directory / "audit.lock",
        keys_dir=directory / "keys",
        domain="bench",
        append_timeout_s=60.0,
        round_interval_s=600.0,
    )


async def _opened(config: AuditConfig) -> LogInfo:
    log = await AuditLog.open(config)
    try:
        return await log.ensure_log(TENANT)
    finally:
        await log.close()


def append(config: AuditConfig, size: int, data_bytes: Callable[[], int]) -> list[Row]:
    """Bring the tenant's log to ``size`` records."""
    info = asyncio.run(_opened(config))
    store = open_store(config.database, busy_timeout_s=config.busy_timeout_s)
    assert isinstance(config.lock, Path)
    lock = FileLockStore(config.lock)
    lock.open(create=False)
    try:
        first = next(head.size for head in store.heads() if head.log_id == info.log_id)
        progress = _Progress("appending", size - first)
        _append(store, lock, info.log_id, (first, size), progress)
        rate = progress.rate()
        store.maintain(idle=True)
    finally:
        lock.close()
        store.close()
    return [
        Row(f"appending, in commits of {_BATCH:,} records", rate),
        Row("bytes per record: leaf, its two keys, tiles, heads", f"{data_bytes() / size:,.0f}"),
    ]


def index(config: AuditConfig, size: int, data_bytes: Callable[[], int]) -> list[Row]:
    """Bring the index up to the log."""
    store = open_store(config.database, busy_timeout_s=config.busy_timeout_s)
    try:
        progress = _Progress("indexing", store.unindexed())
        done = 0
        while step := store.project(_BATCH):
            done += step
            progress(done)
            store.maintain(idle=False)
        rate = progress.rate()
        store.maintain(idle=True)
    finally:
        store.close()
    return [Row("indexing", rate), Row("bytes per record, the index with it", f"{data_bytes() / size:,.0f}")]


def _append(
    store: SqlAuditStore, lock: FileLockStore, log_id: int, places: tuple[int, int], progress: _Progress
) -> None:
    first, size = places
    leaves = _Source().leaves(log_id, first)
    locked = lock.read()
    for start in range(first, size, _BATCH):
        batch = list(itertools.islice(leaves, min(_BATCH, size - start)))
        committed = store.commit(batch, locked)
        locked = lock.move(locked, committed.last)
        store.maintain(idle=False)
        progress(start + len(batch) - first)


async def _reads(config: AuditConfig) -> list[Row]:
    begun = time.perf_counter()
    log = await AuditLog.open(config)
    opening_s = time.perf_counter() - begun
    info = await log.ensure_log(TENANT)
    size = log.size(info.log_id)
    chance = random.Random(21)
    everything = RecordFilter(log_id=info.log_id)
    allowed = dataclasses.replace(everything, action="decision", decision="allow")
    try:
        found = await log.records(everything, Page(after=f"i{size // 2}", limit=1))
        session = dataclasses.replace(everything, session=found.records[0].fields.session)
        since_us = found.records[0].fields.ts_us

        async def proof() -> None:
            await log.receipt(info.log_id, chance.randrange(size))

        async def consistency() -> None:
            await log.extension(info.log_id, chance.randrange(1, size))

        async def page(query: RecordFilter) -> None:
            await log.records(query, Page(after=f"i{chance.randrange(1_000, size)}"))

        async def hour() -> None:
            await log.records(
                dataclasses.replace(everything, since_us=since_us, until_us=since_us + 3_600_000_000), Page()
            )

        async def one_session() -> None:
            await log.records(session, Page())

        rows = [Row("opening the log", f"{opening_s:,.2f} s")]
        for name, read in (
            ("a record at a random place with its proof, verified", proof),
            ("a consistency proof from a random size, verified", consistency),
            ("100 records at a random place", lambda: page(everything)),
            ("100 allowed decisions from a random place on", lambda: page(allowed)),
            ("the newest 100 records of an hour long ago", hour),
            ("the records of one session", one_session),
        ):
            took_ms = []
            for _ in range(_LONG_READS if read is hour else _READS):
                begun = time.perf_counter()
                await read()
                took_ms.append((time.perf_counter() - begun) * 1e3)
            rows.append(Row(name, f"p50 {percentile(took_ms, 50):.2f} ms, p99 {percentile(took_ms, 99):.2f} ms"))
    finally:
        await log.close()
    return rows


def verify(config: AuditConfig, processes: int) -> list[Row]:
    """Verify the whole database, leaves read by so many processes."""
    reader = open_reader(config.database)
    assert isinstance(config.lock, Path)
    lock = FileLockStore(config.lock)
    lock.open(create=False)
    try:
        total = sum(head.size for head in reader.heads())
        progress = _Progress("verifying", total)
        before_s = _processor_s()
        report = verify_database(
            reader, vkeys={}, locked=lock.read(), progress=lambda done, _: progress(done), processes=processes
        )
        assert report.records == report.indexed == total
        took_s, busy_s = time.perf_counter() - progress.started, _processor_s() - before_s
    finally:
        lock.close()
        reader.close()
    peaks = [resource.getrusage(who).ru_maxrss / 1_024 for who in _PROCESSES]
    memory = f"{peaks[0]:,.0f} MiB" + (f", of each reading process {peaks[1]:,.0f} MiB" if processes > 1 else "")
    return [
        Row(
            f"verification of the whole database, {processes} reading",
            f"{took_s:,.0f} s: {total / took_s:,.0f} records/s; {busy_s:,.0f} s of processors: "
            f"{busy_s / total * 1e6:,.0f} µs a record; peak memory {memory}",
        )
    ]


def _processor_s() -> float:
    """Return the processor time of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in _PROCESSES)


@contextmanager
def _sqlite(directory: Path) -> Iterator[tuple[Path | str, Callable[[], int]]]:
    path = directory / "audit.db"
    yield path, lambda: path.stat().st_size


@contextmanager
def _postgres(directory: Path) -> Iterator[tuple[Path | str, Callable[[], int]]]:
    server = PostgresServer(directory / "pg", **_SETTINGS)
    if not server.data.exists():
        server.initialise()
    server.start()

    def size() -> int:
        found = server.execute("SELECT pg_database_size('postgres')")[0][0]
        assert isinstance(found, int)
        return found

    try:
        yield server.url(), size
    finally:
        server.stop()


def run(directory: Path, kind: str, size: int, phases: Sequence[str], processes: int) -> list[Row]:
    """Go through the phases, on a log of ``size`` records and on a small one; return the rows."""
    name = "SQLite" if kind == "sqlite" else "PostgreSQL"
    rows: list[Row] = []
    for count in dict.fromkeys((QUICK, size)):
        place = directory / f"{kind}-{count}"
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)  # PostgreSQL's own user passes through
        with (_sqlite if kind == "sqlite" else _postgres)(place) as (where, data_bytes):
            config = _config(place, where)
            work: dict[str, Callable[[], list[Row]]] = {
                "append": functools.partial(append, config, count, data_bytes),
                "index": functools.partial(index, config, count, data_bytes),
                "read": functools.partial(lambda config: asyncio.run(_reads(config)), config),
                "verify": functools.partial(verify, config, processes),
            }
            for phase in phases:
                _say(f"{name}, {count:,} records: {phase}")
                rows += [
                    dataclasses.replace(row, what=f"{row.what}, {name}, {count:,} records") for row in work[phase]()
                ]
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the databases are made, and stay")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--records", type=int, default=RECORDS, help="default: ten million")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} records")
    parser.add_argument("--phase", action="append", choices=PHASES, help="only this phase, in order; repeatable")
    parser.add_argument("--processes", type=int, default=1, help="how many read leaves in verification (1)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for programs")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else arguments.records
    phases = arguments.phase or PHASES
    free, need = shutil.disk_usage(arguments.dir.parent).free, size * 2_000
    if "append" in phases and free < need:
        parser.error(f"{need / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    rows = run(arguments.dir, arguments.database, size, phases, arguments.processes)
    print(as_json(rows) if arguments.as_json else f"{machine()}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
