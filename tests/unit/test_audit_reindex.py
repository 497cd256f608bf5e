"""The query index rebuilt, beside a running platform where the database allows it, and projectors that take turns."""

import asyncio
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from audit.cli import program
from audit.log import AuditLog
from audit.model import Page, RecordFilter
from audit.sql import open_store
from bulkhead.errors import RecordError
from tests.simulator.audit_forgery import edit
from tests.simulator.audit_world import OTHER, TENANT, decision, opened, verified


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "audit.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")


async def indexed(log: AuditLog) -> None:
    """Wait until the index has caught up by itself."""
    for _ in range(6_000):
        if log.health().unindexed == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(log.health())


DAMAGE = [
    "UPDATE audit_index SET decision = 'deny' WHERE log_id = 2 AND idx = 7",
    "DELETE FROM audit_index WHERE log_id = 2 AND idx = 9",
    "DELETE FROM audit_index WHERE log_id = 3",
    "UPDATE audit_index SET idx = 9 WHERE log_id = 2 AND idx = 20",  # takes a place that is another record's
    "INSERT INTO audit_index SELECT 999, 2, 900, 1, '', '', '', '', ''",  # of nothing: nothing would be indexed again
]


async def test_any_damage_is_repaired(tmp_path, database):
    """Edited, deleted, misplaced, invented rows: after a rebuild the index says what the records say, and goes on."""
    log = await opened(tmp_path, database=database)
    mine, other = await log.ensure_log(TENANT), await log.ensure_log(OTHER)
    await asyncio.gather(*(log.append(mine.log_id, decision(number=n)) for n in range(40)))
    await log.append(other.log_id, decision(tenant=OTHER))
    await indexed(log)
    await log.close()
    edit(database, *DAMAGE)
    with pytest.raises(RecordError, match="index"):
        verified(tmp_path, database)
    store = open_store(database, busy_timeout_s=1.0)
    done = 0
    while (reached := store.rebuild_index(done, 7)) > done:
        done = reached
    store.close()
    report = verified(tmp_path, database)
    assert report.indexed == report.records == done
    log = await opened(tmp_path, database=database)
    await log.append(mine.log_id, decision())
    await indexed(log)
    await log.close()
    assert verified(tmp_path, database).indexed == done + 1


async def test_beside_a_running_platform(tmp_path, audit_url):
    """On PostgreSQL the index is rebuilt while a platform appends and lists: no append waits for it or is left out."""
    log = await opened(tmp_path, database=audit_url, append_timeout_s=30.0)
    info = await log.ensure_log(TENANT)
    await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for n in range(300)))
    await indexed(log)
    edit(audit_url, "UPDATE audit_index SET session = 'x'")
    stop = asyncio.Event()
    listed: list[int] = []

    async def append() -> int:
        count = 0
        while not stop.is_set():
            await log.append(info.log_id, decision(number=1_000 + count))
            count += 1
        return count

    async def read() -> None:
        while not stop.is_set():
            page = await log.records(RecordFilter(log_id=info.log_id, action="log."), Page())
            listed.append(page.indexed)
            await asyncio.sleep(0.01)

    appending, reading = asyncio.create_task(append()), asyncio.create_task(read())
    for _ in range(3):
        result = await asyncio.to_thread(CliRunner().invoke, program, ["reindex", "--db", audit_url])
        assert result.exit_code == 0, result.output
    stop.set()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    appended = await appending
    assert appended
    assert listed == sorted(listed)  # never less than it was
    await indexed(log)
    await log.close()
    report = verified(tmp_path, audit_url)
    assert report.indexed == report.records == 302 + appended


async def test_a_projector_without_its_turn_asks_again(tmp_path, audit_url):
    """While another process holds the projector's turn nothing is indexed; after it what was appended is, unasked."""
    log = await opened(tmp_path, database=audit_url)
    info = await log.ensure_log(TENANT)
    await indexed(log)
    with psycopg.connect(audit_url) as other:
        other.execute("SELECT id FROM audit_writer WHERE id = 2 FOR UPDATE")
        await log.append(info.log_id, decision())
        await asyncio.sleep(0.5)
        assert log.health().unindexed == 1
        assert log.health().writable
    await indexed(log)
    page = await log.records(RecordFilter(log_id=info.log_id, action="decision"), Page())
    assert len(page.records) == 1
    await log.close()
