"""The log when its storage fails: closed in bounded time, nothing acknowledged is lost, service returns by itself."""

import asyncio
import os
import shutil
import sqlite3
import threading
import time

import pytest

from audit.log import AuditLog
from audit.sql.sqlite import SqliteFile
from bulkhead.errors import AuditUnavailableError, ConfigError, LogForkError
from tests.simulator.audit_world import OTHER, TENANT, config, decision, opened

LIMIT_S = 8.0  # the append's 2 seconds, and what a slow machine adds; less than any of the faults lasts


@pytest.fixture
async def log(tmp_path):
    found = await opened(tmp_path)
    await found.ensure_log(TENANT)
    yield found
    await found.close()


async def refused_in_time(log: AuditLog, count: int = 20) -> None:
    """Check that appends and new logs fail, all within the limit."""
    started = time.monotonic()
    calls = [log.append(2, decision(number=n)) for n in range(count)]
    results = await asyncio.gather(*calls, log.ensure_log(OTHER), return_exceptions=True)
    assert {type(result) for result in results} == {AuditUnavailableError}
    assert time.monotonic() - started < LIMIT_S
    assert not log.health().writable
    assert log.health().reason


async def writable_again(log: AuditLog) -> None:
    """Check that the log says that it can be written without having been asked to."""
    for _ in range(3_000):
        if log.health().writable:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(log.health().reason)


async def test_a_locked_database(log, tmp_path):
    """While another connection holds the database, appends fail closed; then service returns by itself."""
    with sqlite3.connect(tmp_path / "audit.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        await refused_in_time(log)
        other.execute("ROLLBACK")
    await writable_again(log)
    record = decision()
    first = await log.append(2, record)
    assert (await log.append(2, record)).index == first.index
    assert (await log.ensure_log(OTHER)).slot == 1


@pytest.mark.parametrize(
    ("pragma", "undo", "words"),
    [
        ("PRAGMA query_only=ON", "PRAGMA query_only=OFF", "readonly"),
        ("PRAGMA max_page_count=1", "PRAGMA max_page_count=1000000", "full"),
    ],
    ids=["read-only", "disk full"],
)
async def test_a_database_that_cannot_be_written(log, pragma, undo, words):
    """Read-only or full: appends fail closed with the reason, then service returns by itself."""
    backend = log._store._backend
    backend.begin = (*SqliteFile.begin, pragma)
    results = await asyncio.gather(
        *(log.append(2, decision(padding="x" * 9_000)) for _ in range(20)), return_exceptions=True
    )
    assert {type(result) for result in results} == {AuditUnavailableError}
    assert words in str(results[0])
    backend.begin = (*SqliteFile.begin, undo)
    await writable_again(log)
    assert (await log.append(2, decision())).index == 1


async def test_a_database_that_hangs(tmp_path):
    """A commit that does not come back fails its callers in time; once it does, the record is there once."""
    hang = threading.Event()
    hang.set()

    def failpoint(step: str) -> None:
        if step == "commit.chained":
            hang.wait(30)

    log = await opened(tmp_path, failpoint)
    await log.ensure_log(TENANT)
    hang.clear()
    record = decision()
    started = time.monotonic()
    with pytest.raises(AuditUnavailableError, match=record.record_id):
        await log.append(2, record)
    assert time.monotonic() - started < LIMIT_S
    hang.set()
    assert (await log.append(2, record)).index == 1
    assert (await log.append(2, decision())).index == 2
    await log.close()


async def test_a_caller_that_gave_up_before_the_commit_left_nothing(tmp_path):
    """A record whose caller was told UNAVAILABLE before it was taken is not appended behind its back."""
    hang = threading.Event()
    hang.set()

    def failpoint(step: str) -> None:
        if step == "commit.chained":
            hang.wait(30)

    log = await opened(tmp_path, failpoint, append_timeout_s=0.3)
    await log.ensure_log(TENANT)
    hang.clear()
    results = await asyncio.gather(*(_later(log, n) for n in range(3)), return_exceptions=True)
    assert {type(result) for result in results} == {AuditUnavailableError}
    hang.set()
    await writable_again(log)
    await log.append(2, decision())
    sessions = [stored.leaf.count(b'"sess_0"') for stored in log._store.leaves(2, 1, 9)]
    assert len(sessions) == 2  # the one that hung, and the last
    await log.close()


async def _later(log: AuditLog, number: int) -> None:
    await asyncio.sleep(0.05 * number)
    await log.append(2, decision(number=number))


async def test_a_lock_store_that_fails(log, monkeypatch):
    """Committed but not locked is not acknowledged; sent again the record keeps the place it has."""
    real, failing = os.fdatasync, [True]

    def fdatasync(fd: int) -> None:
        if failing[0]:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    record = decision()
    with pytest.raises(AuditUnavailableError, match="lock store"):
        await log.append(2, record)
    assert log.size(2) == 1  # no checkpoint may speak of it yet
    failing[0] = False
    await writable_again(log)
    assert (await log.append(2, record)).index == 1
    assert log._lock.read() == log._store.last_commit()


async def test_a_replaced_database_stops_writing(log, tmp_path):
    """When the file under the running process is another one, nothing more is acknowledged, for good."""
    await log.append(2, decision())
    shutil.copy(tmp_path / "audit.db", tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(tmp_path / "audit.db")
    for _ in range(2):
        with pytest.raises(LogForkError):
            await log.append(2, decision())
    assert log.health().forked


async def test_another_writer_of_the_lock_store_stops_writing(log):
    """A lock store that somebody else moved is a fork."""
    from audit.chain import LockState

    lock, state = log._lock, log._lock.read()
    lock.move(state, LockState(state.seq + 5, bytes(32)))
    with pytest.raises(LogForkError):
        await log.append(2, decision())
    assert not log.health().writable


async def test_an_edited_chain_stops_writing(log):
    """When the database no longer holds the lock store's commit, nothing more is written."""
    from sqlalchemy import text

    await log.append(2, decision())
    with log._store._writing() as connection:
        connection.execute(
            text("UPDATE audit_commit SET chain = zeroblob(32) WHERE seq = (SELECT max(seq) FROM audit_commit)")
        )
    with pytest.raises(LogForkError):
        await log.append(2, decision())


async def test_a_restored_backup_is_refused(tmp_path):
    """An older copy of the database beside the newer lock store does not open; the newer one does."""
    log = await opened(tmp_path)
    await log.ensure_log(TENANT)
    await log.close()
    shutil.copy(tmp_path / "audit.db", tmp_path / "backup.db")
    log = await opened(tmp_path)
    await log.append(2, decision())
    await log.close()
    shutil.copy(tmp_path / "audit.db", tmp_path / "newest.db")
    shutil.copy(tmp_path / "backup.db", tmp_path / "audit.db")
    with pytest.raises(LogForkError, match="backup"):
        await opened(tmp_path)
    shutil.copy(tmp_path / "newest.db", tmp_path / "audit.db")
    log = await opened(tmp_path)
    assert log.size(2) == 2
    await log.close()


async def test_a_missing_lock_store_is_refused(tmp_path):
    """A database with commits does not open without its lock store; a removed database does not start anew."""
    log = await opened(tmp_path)
    await log.close()
    lock, database = tmp_path / "lock" / "audit.lock", tmp_path / "audit.db"
    lock.rename(tmp_path / "aside")
    with pytest.raises(LogForkError, match="missing"):
        await opened(tmp_path)
    (tmp_path / "aside").rename(lock)
    database.rename(tmp_path / "aside")
    with pytest.raises(LogForkError):
        await opened(tmp_path)


async def test_a_database_ahead_of_the_lock_is_kept(tmp_path):
    """What a crash between commit and lock leaves is kept, and the lock store follows."""
    log = await opened(tmp_path)
    await log.ensure_log(TENANT)
    await log.close()
    shutil.copy(tmp_path / "lock" / "audit.lock", tmp_path / "before")
    log = await opened(tmp_path)
    record = decision()
    await log.append(2, record)
    await log.close()
    shutil.copy(tmp_path / "before", tmp_path / "lock" / "audit.lock")
    log = await opened(tmp_path)
    assert (await log.append(2, record)).index == 1
    assert log._lock.read() == log._store.last_commit()
    await log.close()


async def test_a_queue_without_end_is_refused(log, monkeypatch):
    """Beyond the bound a record is refused at once instead of waiting."""
    monkeypatch.setattr("audit.log.writer.MAX_QUEUED", 0)
    with pytest.raises(AuditUnavailableError, match="wait"):
        await log.append(2, decision())


async def test_a_log_key_that_others_can_read_is_refused(tmp_path):
    """The process does not start with a key file that is not private."""
    await (await opened(tmp_path)).close()
    (tmp_path / "keys" / "log-root.key").chmod(0o644)
    with pytest.raises(ConfigError):
        await opened(tmp_path)


@pytest.mark.parametrize(
    "bad", [{"append_timeout_s": 0.0}, {"round_interval_s": 0.0}, {"round_interval_s": 1e9}], ids=str
)
def test_bad_values_are_refused(tmp_path, bad):
    """Configuration out of range is a ConfigError."""
    with pytest.raises(ConfigError):
        config(tmp_path, **bad)


async def test_a_defect_fails_its_callers_and_nothing_else(tmp_path):
    """An exception that nobody foresaw in the commit thread is UNAVAILABLE to its callers; the thread lives on."""
    failing = False

    def failpoint(step: str) -> None:
        if failing and step == "commit.heads":
            raise ValueError("a defect")

    log = await opened(tmp_path, failpoint)
    await log.ensure_log(TENANT)
    failing = True
    record = decision()
    with pytest.raises(AuditUnavailableError, match="a defect"):
        await log.append(2, record)
    failing = False
    assert (await log.append(2, record)).index == 1
    await log.close()
