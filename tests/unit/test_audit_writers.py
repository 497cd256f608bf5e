"""Several control planes that append to one PostgreSQL database, and the lock stores that they share."""

import asyncio
import itertools

import pytest

from audit.chain import GENESIS, LockState
from audit.lockstore import FileLockStore
from audit.log import AuditLog
from audit.log.writer import CommitThread
from audit.model import no_failpoint
from audit.sql import SqlLockStore, open_reader
from bulkhead.errors import AuditUnavailableError, ConfigError, LogForkError
from bulkhead.transparency import verify_receipt
from bulkhead.transparency.leaf import parse_leaf
from tests.contract.test_audit_store import PLATFORM
from tests.simulator.audit_memory_store import MemoryAuditStore
from tests.simulator.audit_world import OTHER, TENANT, decision, opened, opening, verified
from tests.simulator.postgres import PostgresServer, postgres_server
from tests.unit.test_audit_lockstore import STATES

THIRD = "tenant_01h455vb4pex5vsknk084sn02s"


async def test_writers_share_one_history(tmp_path, audit_url):
    """Three writers append to the same logs at once: no place is given twice, and everything verifies."""
    logs = [await opened(tmp_path, database=audit_url, round_interval_s=0.05) for _ in range(3)]

    async def append(log: AuditLog, tenant: str, count: int) -> list[tuple[int, int]]:
        info = await log.ensure_log(tenant)
        done = [await log.append(info.log_id, decision(tenant=tenant, number=n)) for n in range(count)]
        return [(appended.log_id, appended.index) for appended in done]

    found = await asyncio.gather(*(append(log, tenant, 40) for log in logs for tenant in (TENANT, OTHER, THIRD)))
    places = list(itertools.chain.from_iterable(found))
    assert len(set(places)) == len(places) == 360
    for log in logs:
        assert {info.tenant: info.log_id for info in log.logs()} == {
            info.tenant: info.log_id for info in logs[0].logs()
        }
        await log.close()
    report = verified(tmp_path, audit_url)
    assert report.lock_checked
    assert report.logs == 4
    assert report.records >= 364


async def test_rounds_of_several_writers_have_one_order(tmp_path, audit_url):
    """Whoever makes a round, its number is taken once and no tenant's log is smaller than in a round before."""
    logs = [await opened(tmp_path, database=audit_url, round_interval_s=0.05) for _ in range(2)]
    infos = [await logs[0].ensure_log(tenant) for tenant in (TENANT, OTHER)]
    await asyncio.gather(*(logs[1].ensure_log(tenant) for tenant in (TENANT, OTHER)))
    for number in range(20):
        await asyncio.gather(
            *(log.append(info.log_id, decision(tenant=info.tenant, number=number)) for log in logs for info in infos)
        )
        await asyncio.sleep(0.02)
    platform = logs[0].platform_log
    for info in infos:
        paths = [await log.round_path(info.log_id) for log in (*logs, *logs)]
        shown = [parse_leaf(path.receipt.leaf).data["round"] for path in paths if path is not None]
        assert len(shown) == 4
        assert shown == sorted(shown)  # whoever is asked, and whoever made it: never an older one
    await asyncio.gather(*(log.close() for log in logs))
    reader = open_reader(audit_url)
    leaves = [parse_leaf(stored.leaf) for stored in reader.leaves(platform.log_id, 1, 1_000)]
    reader.close()
    rounds = [leaf.data["round"] for leaf in leaves if leaf.action == "log.round"]
    assert rounds == list(range(1, len(rounds) + 1))
    assert len(rounds) > 5
    assert verified(tmp_path, audit_url).lock_checked


async def test_a_writer_sees_what_another_acknowledged(tmp_path, audit_url):
    """Checkpoint and receipts of one writer cover the records of another, at once; a tenant's log is opened once."""
    first, second = [await opened(tmp_path, database=audit_url) for _ in range(2)]
    one, other = await asyncio.gather(first.ensure_log(TENANT), second.ensure_log(TENANT))
    assert one == other
    appended = await first.append(one.log_id, decision())
    receipt = await second.receipt(one.log_id, appended.index)
    assert receipt.leaf == appended.leaf
    verify_receipt(receipt, vkey=second.vkey(one.log_id), origin=one.origin)
    assert (await second.checkpoint(one.log_id)).splitlines()[1] == "2"
    await first.close()
    await second.close()


@pytest.fixture(scope="module")
def lock_server():
    """A second server, for the lock store alone."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def lock(lock_server: PostgresServer):
    store = SqlLockStore(lock_server.url(lock_server.new_database()), name="test", limit_s=1.0)
    store.open(create=True)
    yield store
    store.close()


def test_a_lock_store_in_sql_compares_and_swaps(lock):
    """The row moves from what is expected only; anything else moves nothing and is told what is there."""
    for old, new in itertools.pairwise(STATES):
        assert lock.move(old, new) == new
        assert lock.read() == new
    assert lock.move(STATES[0], STATES[1]) == STATES[-1]
    lock.open(create=True)
    assert lock.read() == STATES[-1]


def test_a_lock_store_that_is_gone_is_a_fork(lock_server):
    """A lock store without its row is not begun anew beside a database with commits."""
    store = SqlLockStore(lock_server.url(lock_server.new_database()), name="test", limit_s=1.0)
    with pytest.raises(LogForkError, match="no row"):
        store.open(create=False)
    store.close()


async def test_two_hosts_share_a_lock_store_in_sql(tmp_path, audit_url, lock_server):
    """Writers of several hosts agree through a second server; a lock on the audit database's own is refused."""
    lock = lock_server.url(lock_server.new_database())
    logs = [await opened(tmp_path, database=audit_url, lock=lock) for _ in range(2)]
    info = await logs[0].ensure_log(TENANT)
    assert await logs[1].ensure_log(TENANT) == info
    done = await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for log in logs for n in range(50)))
    assert sorted(appended.index for appended in done) == list(range(1, 101))
    lock_server.execute("UPDATE audit_lock SET chain = sha256('x')", database=lock.split("/")[3].split("?")[0])
    with pytest.raises(LogForkError):
        await logs[0].append(info.log_id, decision())
    await asyncio.gather(*(log.close() for log in logs))
    with pytest.raises(ConfigError, match="server"):
        await opened(tmp_path, database=audit_url, lock=audit_url)


async def test_a_lock_server_that_is_down_stops_appends_alone(tmp_path, audit_url):
    """While the lock store's server is down appends are refused in time; afterwards service returns by itself."""
    with postgres_server() as server:
        log = await opened(tmp_path, database=audit_url, lock=server.url())
        info = await log.ensure_log(TENANT)
        record = decision()
        server.stop()
        with pytest.raises(AuditUnavailableError):
            await log.append(info.log_id, record)
        server.start()
        for _ in range(500):
            if log.health().writable:
                break
            await asyncio.sleep(0.01)
        assert (await log.append(info.log_id, record)).index == 1
        await log.close()


async def test_a_commit_lost_in_a_fail_over_is_not_acknowledged(tmp_path):
    """Another writer's move of the lock store counts for the own commit only if the database holds both."""
    store, lock = MemoryAuditStore(), FileLockStore(tmp_path / "lock")
    lock.open(create=True)
    there = store.commit([opening(PLATFORM)], GENESIS).last
    thread = CommitThread(
        store=store,
        lock=lock,
        locked=GENESIS,
        loop=asyncio.get_running_loop(),
        acknowledged=lambda _committed, _placed: None,
        failpoint=no_failpoint,
    )
    lock.move(GENESIS, there)
    thread._move_lock(there)
    thread._locked = GENESIS
    with pytest.raises(LogForkError, match="does not go with ours"):
        thread._move_lock(LockState(there.seq, bytes(32)))  # ours, of the server that is gone
    lock.close()
