"""PostgreSQL fails under the log: nothing acknowledged is lost, callers are told in time, service returns by itself."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from audit.log import AuditLog
from audit.sql import open_store
from bulkhead.errors import AuditUnavailableError, ConfigError, LogForkError
from tests.simulator.audit_world import TENANT, decision, opened, verified
from tests.simulator.postgres import PostgresServer, postgres_server
from tests.simulator.small_disk import full, may_mount, small_disk

TIMEOUT_S = 2.0
LIMIT_S = TIMEOUT_S + 8.0  # what a slow machine adds; the faults last until they are taken back
OF_THE_LOG = "FROM pg_stat_activity WHERE application_name = 'bulkhead-audit'"


@pytest.fixture(scope="module")
def server():
    """A server to be broken."""
    with postgres_server(max_connections="20", superuser_reserved_connections="3") as found:
        yield found


@pytest.fixture
async def log(tmp_path, server):
    url = server.url(server.new_database())
    found = await opened(tmp_path, database=url, append_timeout_s=TIMEOUT_S)
    await found.ensure_log(TENANT)
    await found.append(2, decision())
    yield found
    await found.close()
    assert verified(tmp_path, url).lock_checked


async def refused_in_time(log: AuditLog) -> None:
    """Check that appends fail with UNAVAILABLE within the time that was promised."""
    started = time.monotonic()
    results = await asyncio.gather(*(log.append(2, decision(number=n)) for n in range(8)), return_exceptions=True)
    assert {type(result) for result in results} == {AuditUnavailableError}, results
    assert time.monotonic() - started < LIMIT_S


async def writable_again(log: AuditLog) -> None:
    """Check that the log finds out by itself that it can write again, and gives a record sent again one place."""
    for _ in range(3_000):
        if log.health().writable:
            break
        await asyncio.sleep(0.01)
    record = decision()
    first = await log.append(2, record)
    assert (await log.append(2, record)).index == first.index
    assert (await log.receipt(2, 1)).leaf  # readers are back, too


async def test_a_server_that_is_stopped(log, server):
    """Stopped in a fast shutdown under load, and started again."""
    server.stop()
    await refused_in_time(log)
    server.start()
    await writable_again(log)


async def test_a_server_that_crashes_under_load(log, server):
    """A crash loses nothing that was acknowledged; what was not is there once or not at all."""
    records = [decision(number=n) for n in range(400)]

    async def send(record) -> bool:
        with contextlib.suppress(AuditUnavailableError):
            await log.append(2, record)
            return True
        return False

    async def crash() -> None:
        await asyncio.sleep(0.02)
        await asyncio.to_thread(server.stop, 3)  # SIGQUIT

    *done, _ = await asyncio.gather(*(send(record) for record in records), crash())
    server.start()
    await writable_again(log)
    places = [(await log.append(2, record)).index for record in records]
    assert len(set(places)) == len(records)
    kept = [
        log._store.find(record.record_id) for record, acknowledged in zip(records, done, strict=True) if acknowledged
    ]
    assert None not in kept


async def test_a_server_that_is_frozen(log, server):
    """SIGSTOP: connections stay open and nobody answers; writers and readers are told in time."""
    with server.frozen():
        await refused_in_time(log)
        started = time.monotonic()
        with pytest.raises(AuditUnavailableError):
            await log.index_of(2, "rec_x")
        assert time.monotonic() - started < 4 * LIMIT_S
    await writable_again(log)


async def test_no_connection_left(log, server):
    """Others hold every connection while the log must connect anew."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(psycopg.connect(server.url(), autocommit=True))]
        while True:
            ended = held[0].execute(f"SELECT pg_terminate_backend(pid) {OF_THE_LOG}").fetchall()
            await asyncio.sleep(0.1)
            before = len(held)
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    held.append(stack.enter_context(psycopg.connect(server.url())))
            if not ended and len(held) == before:  # the log has none, and there is none to have
                break
        await refused_in_time(log)
    await writable_again(log)


async def test_a_connection_that_is_ended(log, server):
    """The server ends the writer's connection between two commits: the caller does not notice."""
    server.execute(f"SELECT pg_terminate_backend(pid) {OF_THE_LOG}")
    assert (await log.append(2, decision())).index == 2


async def test_serialisation_failures(tmp_path, server):
    """The server refuses commits as not serialisable, at first some and then all: retried, then refused in time."""
    name = server.new_database()
    url = server.url(name)
    log = await opened(tmp_path, database=url, append_timeout_s=TIMEOUT_S)
    await log.ensure_log(TENANT)
    server.execute("CREATE SEQUENCE tries", database=name)
    server.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('tries') <= 3 OR to_regclass('always') IS NOT NULL THEN"
        " RAISE SQLSTATE '40001' USING MESSAGE = 'could not serialize access'; END IF; RETURN NEW; END $$",
        database=name,
    )
    server.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON audit_commit FOR EACH ROW EXECUTE FUNCTION fail()", database=name
    )
    assert (await log.append(2, decision())).index == 1
    assert server.execute("SELECT last_value FROM tries", database=name) == [(4,)]
    server.execute("CREATE TABLE always ()", database=name)
    await refused_in_time(log)
    server.execute("DROP TABLE always", database=name)
    await writable_again(log)
    await log.close()
    assert verified(tmp_path, url).lock_checked


@pytest.fixture
def open_directory():
    """A directory that the server's own user reaches."""
    root = Path(tempfile.mkdtemp(prefix="bh-", dir="/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


async def test_a_full_disk(tmp_path, server, open_directory):
    """The database's own disk is full: refused with the reason, and back when there is room."""
    root = open_directory
    assert may_mount(root), "this test mounts a small file system: run the suite as root, in a container that may mount"
    with small_disk(root / "disk", size_mib=24) as disk:
        (disk / "data").mkdir()
        shutil.chown(disk / "data", server.data.owner())
        disk.chmod(0o755)
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk / 'data'}'")
        server.execute("CREATE DATABASE on_small TABLESPACE small")
        url = server.url("on_small")
        log = await opened(tmp_path, database=url, append_timeout_s=TIMEOUT_S)
        await log.ensure_log(TENANT)
        await log.append(2, decision())
        with full(disk):
            for _ in range(200):  # until what PostgreSQL had set aside is used up
                results = await asyncio.gather(
                    *(log.append(2, decision(padding="x" * 9_000)) for _ in range(20)), return_exceptions=True
                )
                if any(isinstance(result, Exception) for result in results):
                    break
            assert {type(result) for result in results if isinstance(result, Exception)} == {AuditUnavailableError}
            assert not log.health().writable
            assert "space" in log.health().reason
        await writable_again(log)
        await log.close()
        assert verified(tmp_path, url).lock_checked
        server.execute("DROP DATABASE on_small")
        server.execute("DROP TABLESPACE small")


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_would_lose_records_is_refused(server, name):
    """A server with fsync or full_page_writes off is not written to."""
    server.set(name, "off")
    try:
        time.sleep(0.2)
        with pytest.raises(ConfigError, match=name):
            open_store(server.url(server.new_database()), busy_timeout_s=0.5)
    finally:
        server.set(name, "on")
        time.sleep(0.2)


def test_high_availability_needs_synchronous_standbys(server):
    """Where standbys may be promoted, synchronous_standby_names must be set."""
    with pytest.raises(ConfigError, match="synchronous_standby_names"):
        open_store(server.url(server.new_database()), busy_timeout_s=0.5, high_availability=True)


def both(primary: PostgresServer, standby: PostgresServer) -> str:
    """Return a URL that finds whichever of the two takes writes."""
    return f"postgresql://postgres@/postgres?host={primary.root},{standby.root}&target_session_attrs=read-write"


@contextlib.contextmanager
def pair(**settings: str):
    """A primary and its streaming standby, both running."""
    root = Path(tempfile.mkdtemp(prefix="bh-pg-", dir="/tmp"))
    root.chmod(0o755)
    with postgres_server(**settings) as primary:
        standby = primary.standby(root / "s", name="second")
        try:
            standby.start()
            for _ in range(500):
                if primary.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"):
                    break
                time.sleep(0.01)
            yield primary, standby
        finally:
            standby.stop(3)
            shutil.rmtree(root, ignore_errors=True)


async def test_a_synchronous_standby_is_promoted(tmp_path):
    """The primary crashes, its synchronous standby takes over: every acknowledged record is there, service goes on."""
    with pair() as (primary, standby):
        primary.set("synchronous_standby_names", "second")
        await asyncio.sleep(0.2)
        url = both(primary, standby)
        log = await opened(tmp_path, database=url, append_timeout_s=TIMEOUT_S, high_availability=True)
        await log.ensure_log(TENANT)
        done = await asyncio.gather(*(log.append(2, decision(number=n)) for n in range(100)))
        primary.stop(3)
        await refused_in_time(log)
        standby.settings["synchronous_standby_names"] = ""
        standby.promote()
        standby.set("synchronous_standby_names", "")
        assert all(log._store.find(appended.record_id) for appended in done)
        await asyncio.sleep(1.0)
        assert "synchronous_standby_names" in log.health().reason  # alone it would lose records at the next fail-over
        await log.close()
        alone = await opened(tmp_path, database=url, append_timeout_s=TIMEOUT_S)  # the operator's decision
        await writable_again(alone)
        await alone.close()
        assert verified(tmp_path, url).lock_checked


async def test_an_asynchronous_standby_that_lost_commits_is_refused(tmp_path):
    """A standby that lacks acknowledged commits is recognised by the lock store; the message names the way out."""
    with pair() as (primary, standby):
        with pytest.raises(ConfigError, match="synchronous_standby_names"):
            await opened(tmp_path, database=primary.url())
        standby.stop()
        log = await opened(tmp_path, database=primary.url(), append_timeout_s=TIMEOUT_S)
        await log.ensure_log(TENANT)
        await log.close()
        standby.start()
        written = primary.execute("SELECT pg_current_wal_lsn()::text")[0][0]
        for _ in range(500):
            if standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == [(True,)]:
                break
            await asyncio.sleep(0.01)
        standby.stop()
        log = await opened(tmp_path, database=primary.url(), append_timeout_s=TIMEOUT_S)
        await log.append(2, decision())
        await log.close()
        primary.stop()
        standby.start()
        standby.promote()
        with pytest.raises(LogForkError, match="declare"):
            await opened(tmp_path, database=standby.url())
