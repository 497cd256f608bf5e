"""The audit store's contract, over the model in memory, SQLite and PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit.chain import GENESIS, LockState
from audit.model import LogInfo, Order, Page, RecordFilter, RoundHead
from audit.sql import open_store
from audit.store import AuditStore, NewLeaf, Placed
from bulkhead.errors import ConflictError, InvalidRequestError, LogForkError, NotFoundError
from bulkhead.transparency.merkle import Frontier
from tests.simulator.audit_memory_store import MemoryAuditStore
from tests.simulator.audit_world import OTHER, TENANT, closing, decision, event, new_leaf, opening, stamper

PLATFORM = LogInfo(log_id=1, origin="audit.test/platform/1", tenant=None, epoch=1, slot=None)
FIRST = LogInfo(log_id=2, origin="audit.test/t/a/1", tenant=TENANT, epoch=1, slot=0)
SECOND = LogInfo(log_id=3, origin="audit.test/t/b/1", tenant=OTHER, epoch=1, slot=1)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str | None:
    """Where an empty database is; None for the model."""
    if request.param == "memory":
        return None
    return tmp_path / "a.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")


@pytest.fixture
def store(database: Path | str | None) -> Iterator[AuditStore]:
    found = MemoryAuditStore() if database is None else open_store(database, busy_timeout_s=0.2)
    yield found
    found.close()


@pytest.fixture
def commit(store: AuditStore) -> Callable[..., tuple[object, ...]]:
    """Commit leaves on top of the last commit; return their places."""

    def do(*batch: NewLeaf) -> tuple[object, ...]:
        return store.commit(batch, store.last_commit()).places

    return do


@pytest.fixture
def logs(commit) -> None:
    commit(opening(PLATFORM), opening(FIRST), opening(SECOND))


def test_an_empty_store_is_at_genesis(store):
    """A new store has no commit, log, head, round or record."""
    assert store.last_commit() == GENESIS
    assert store.chain_at(0) == GENESIS.chain
    assert store.chain_at(1) is None
    assert (store.logs(), store.heads(), store.last_round(), store.unindexed()) == ((), (), None, 0)


@pytest.mark.usefixtures("logs")
def test_texts_are_kept_as_they_are(store, commit):
    """Quotes, backslashes, braces, commas and other alphabets come back from the index and from a checkpoint's note."""
    odd = ['"', "\\", '\\"', "{", "},{", "NULL", "'; --", "%s", "\u00e9\u4e2d\U0001f600", "tab\there"]
    commit(*(new_leaf(2, decision(number=text)) for text in odd))
    assert store.project(99) == len(odd) + 3
    for text in odd:
        (found,) = store.query(RecordFilter(log_id=2, session=f"sess_{text}"), Page()).rows
        assert (found.row.session, found.row.pair_id) == (f"sess_{text}", f"pair_{text}")
    store.put_checkpoints({(2, size): text for size, text in enumerate(odd, start=1)})
    assert [note for _, note in store.checkpoints(2, 0, 99)] == odd


def test_indexes_follow_the_order_of_the_batch(store, logs, commit):
    """Leaves get the next indexes of their own logs in the order in which they were handed in."""
    records = [decision(number=n, tenant=t) for n, t in enumerate([TENANT, OTHER, TENANT, TENANT, OTHER])]
    leaves = [new_leaf(2 if r.fields.tenant == TENANT else 3, r) for r in records]
    assert commit(*leaves) == (Placed(2, 1), Placed(3, 1), Placed(2, 2), Placed(2, 3), Placed(3, 2))
    assert [stored.leaf for stored in store.leaves(2, 1, 9)] == [records[0].leaf, records[2].leaf, records[3].leaf]
    assert store.leaf_hashes(3, 0, 9)[1:] == (leaves[1].leaf_hash, leaves[4].leaf_hash)


def test_heads_are_those_of_the_leaves(store, logs, commit):
    """After every commit each head is the compact range of the log's leaf hashes."""
    for n in range(9):
        commit(*(new_leaf(2, decision(number=n)) for _ in range(n)))
        for head in store.heads():
            assert head.frontier == Frontier().extend(store.leaf_hashes(head.log_id, 0, 4_000))


def test_chain_is_the_models(store):
    """Every store's chain equals the model's over the same commits."""
    model = MemoryAuditStore()
    batches = [[opening(PLATFORM), opening(FIRST), opening(SECOND)]] + [
        [new_leaf(2 + n % 2, decision(number=n, tenant=OTHER if n % 2 else TENANT)) for _ in range(n + 1)]
        for n in range(5)
    ]
    for batch in batches:
        model.commit(batch, model.last_commit())
        store.commit(batch, store.last_commit())
        assert model.last_commit() == store.last_commit()


def test_the_same_leaf_again_keeps_its_place(store, logs, commit):
    """A record id that is there already is not appended again, alone, among others or twice in one batch."""
    old, new = new_leaf(2, decision()), new_leaf(2, decision())
    assert commit(old) == (Placed(2, 1),)
    before = store.last_commit()
    assert commit(old) == (Placed(2, 1),)
    assert store.last_commit() == before
    assert commit(new, old, new) == (Placed(2, 2), Placed(2, 1), Placed(2, 2))
    assert len(store.leaves(2, 0, 99)) == 3


def test_an_id_with_other_content_is_a_conflict(store, logs, commit):
    """A second record under a taken id is refused alone; its neighbours are committed."""
    record, other = decision(), decision()
    commit(new_leaf(2, record))
    stolen = NewLeaf(2, record.record_id, other.leaf, new_leaf(2, other).leaf_hash)
    places = commit(stolen, new_leaf(2, other))
    assert isinstance(places[0], ConflictError)
    assert places[1] == Placed(2, 2)


def test_an_unknown_log_is_refused_alone(store, logs, commit):
    """A leaf for a log that does not exist fails by itself."""
    places = commit(new_leaf(9, decision()), new_leaf(2, decision()))
    assert isinstance(places[0], NotFoundError)
    assert places[1] == Placed(2, 1)


@pytest.mark.parametrize(
    "taken",
    [
        LogInfo(log_id=2, origin="audit.test/t/c/1", tenant="tenant_c", epoch=1, slot=2),
        LogInfo(log_id=4, origin=FIRST.origin, tenant="tenant_c", epoch=1, slot=2),
        LogInfo(log_id=4, origin="audit.test/t/c/1", tenant=TENANT, epoch=1, slot=2),
        LogInfo(log_id=4, origin="audit.test/t/c/1", tenant="tenant_c", epoch=1, slot=0),
    ],
    ids=["number", "origin", "tenant", "slot"],
)
def test_a_log_is_opened_once(store, logs, commit, taken):
    """Number, origin, tenant and slot of a log each belong to one log."""
    places = commit(opening(taken), new_leaf(2, decision()))
    assert isinstance(places[0], ConflictError)
    assert places[1] == Placed(2, 1)
    assert len(store.logs()) == 3


def test_a_foreign_lock_state_is_a_fork(store, logs, commit):
    """A commit on top of a lock state that is not in this store is refused and changes nothing."""
    last = store.last_commit()
    for foreign in (LockState(last.seq, bytes(32)), LockState(last.seq + 1, last.chain), LockState(0, bytes(32))):
        with pytest.raises(LogForkError):
            store.commit([new_leaf(2, decision())], foreign)
    assert store.last_commit() == last
    assert commit(new_leaf(2, decision())) == (Placed(2, 1),)


def test_a_store_ahead_of_the_lock_is_kept(store, logs, commit):
    """A commit that was never acknowledged stays, and the next goes on top of it."""
    behind = store.last_commit()
    commit(new_leaf(2, decision()))
    assert store.commit([new_leaf(2, decision())], behind).places == (Placed(2, 2),)


def test_an_empty_batch_commits_nothing(store, logs):
    """Committing nothing gives the last commit."""
    last = store.last_commit()
    done = store.commit([], last)
    assert (done.last, done.places) == (last, ())
    assert store.last_commit() == last


def test_full_tiles_are_kept(store, logs, commit):
    """A tile is there once it is full, equal to the leaf hashes, whatever the commits' sizes."""
    total = 1
    for size in (100, 154, 1, 256, 3, 255):  # ends before, at and after tile boundaries
        commit(*(new_leaf(2, decision()) for _ in range(size)))
        total += size
        for number in range(4):
            expected = (
                b"".join(store.leaf_hashes(2, number * 256, (number + 1) * 256)) if number < total // 256 else None
            )
            assert store.tile(2, 0, number) == expected
    assert store.tile(2, 1, 0) is None


def test_a_kept_checkpoint_stays(store, logs):
    """The first note of a size is the one that is kept."""
    store.put_checkpoints({(2, 1): "first", (3, 1): "other"})
    store.put_checkpoints({(2, 1): "second", (2, 5): "later"})
    assert store.checkpoints(2, 0, 5) == ((1, "first"),)
    assert store.checkpoints(2, 0, 6) == ((1, "first"), (5, "later"))


def test_round_heads_are_committed_with_the_round(store, logs, commit):
    """The round's number is known as soon as its leaf is."""
    leaf = new_leaf(1, event())
    commit(NewLeaf(leaf.log_id, leaf.record_id, leaf.leaf, leaf.leaf_hash, round_heads=(RoundHead(7, 2, 1),)))
    assert store.last_round() == 7


@pytest.mark.usefixtures("logs")
def test_sizes_in_a_round_are_those_of_the_last_rows(store, commit):
    """A log's size in a round is that of its last row up to there; rows come back by round and log."""
    rows = [(1, 1, 3), (1, 2, 1), (2, 1, 4), (2, 3, 5), (4, 1, 6), (4, 2, 9)]
    for number in (1, 2, 4):
        leaf = new_leaf(1, event())
        heads = tuple(RoundHead(*row) for row in rows if row[0] == number)
        commit(NewLeaf(leaf.log_id, leaf.record_id, leaf.leaf, leaf.leaf_hash, round_heads=heads))
    found = {number: dict(store.sizes_in_round(number)) for number in range(6)}
    assert found == {
        0: {},
        1: {1: 3, 2: 1},
        2: (two := {1: 4, 2: 1, 3: 5}),
        3: two,
        4: (four := {1: 6, 2: 9, 3: 5}),
        5: four,
    }
    assert [store.newest_round(1, size) for size in range(3, 9)] == [None, 1, 2, 2, 4, 4]
    assert store.round_heads(0, 9) == tuple(RoundHead(*row) for row in rows)
    assert store.round_heads(2, 4) == (RoundHead(2, 1, 4), RoundHead(2, 3, 5))


def test_the_index_follows(store, logs, commit):
    """The projector takes leaves in commit order; queries say how far it has come."""
    commit(*(new_leaf(2, decision(number=n)) for n in range(10)))
    assert store.unindexed() == 13
    assert store.project(5) == 5
    page = store.query(RecordFilter(log_id=2), Page())
    assert (page.indexed, page.size, len(page.rows)) == (3, 11, 3)
    assert store.project(99) == 8
    assert store.project(99) == 0
    assert store.unindexed() == 0


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("log_id", [None, 2])
def test_paging_is_stable(store, logs, commit, order, log_id):
    """Following the pages lists every record once, in order, also while the log grows behind them."""
    commit(*(new_leaf(2, decision(number=n)) for n in range(10)))
    store.project(99)
    expected = [item.row.pos for item in store.query(RecordFilter(log_id=log_id), Page(order=order)).rows]
    found: list[int] = []
    token = ""
    while True:
        page = store.query(RecordFilter(log_id=log_id), Page(limit=3, after=token, order=order))
        found += [item.row.pos for item in page.rows]
        token = page.next
        if not token:
            break
        if order is Order.NEWEST_FIRST:
            commit(new_leaf(2, decision()))
            store.project(99)
    assert found == expected


@pytest.mark.parametrize(
    "query",
    [
        RecordFilter(action="decision"),
        RecordFilter(action="log."),
        RecordFilter(action="platform.", log_id=1),
        RecordFilter(decision="deny"),
        RecordFilter(decision="deny", log_id=3),
        RecordFilter(session="sess_3"),
        RecordFilter(pair_id="pair_4", log_id=2),
        RecordFilter(subject="subj_01h455vb4pex5vsknk084sn02q"),
        RecordFilter(subject="subj_nobody"),
        RecordFilter(since_us=1_700_000_003_000_000, until_us=1_700_000_006_000_000),
        RecordFilter(since_us=1_700_000_003_000_000, until_us=1_700_000_006_000_000, log_id=2),
        RecordFilter(since_us=1_700_000_002_000_000, log_id=3, action="decision", decision="allow"),
    ],
)
def test_filters(store, logs, commit, query):
    """Each filter gives the model's answer."""
    model = MemoryAuditStore()
    model.commit([opening(PLATFORM), opening(FIRST), opening(SECOND)], GENESIS)
    clock = stamper(start_us=1_700_000_000_000_000)
    leaves = [
        new_leaf(2 + n % 2, decision(number=n, allow=n % 3 > 0, tenant=OTHER if n % 2 else TENANT, stamps=clock))
        for n in range(9)
    ] + [new_leaf(1, event(stamps=clock))]
    commit(*leaves)
    model.commit(leaves, model.last_commit())
    store.project(99)
    model.project(99)
    found = [item.row.pos for item in store.query(query, Page()).rows]
    assert found == [item.row.pos for item in model.query(query, Page()).rows]


def test_open_pairs(store, logs, commit):
    """Allowed decisions without outcome or renewal, of one log and some places of it, newest first, and none other."""
    model = MemoryAuditStore()
    model.commit([opening(PLATFORM), opening(FIRST), opening(SECOND)], GENESIS)
    leaves = [new_leaf(2, decision(number=n, allow=n % 4 > 0)) for n in range(1_200)]
    leaves += [new_leaf(2, closing(n, renewed=n % 3 == 0)) for n in range(600)]
    leaves += [new_leaf(3, decision(number=1_199, tenant=OTHER)), new_leaf(3, closing(1_000, tenant=OTHER))]
    for batch in (leaves[:1_000], leaves[1_000:]):
        commit(*batch)
        model.commit(batch, model.last_commit())
        store.project(2_000)
        model.project(2_000)
    for log_id, start, stop in ((2, 0, 1_801), (2, 601, 603), (2, 603, 1_100), (2, 1, 600), (3, 0, 3), (9, 0, 3)):
        found = store.open_pairs(log_id, start, stop)
        expected = model.open_pairs(log_id, start, stop)
        assert [item.row.index for item in found.rows] == [item.row.index for item in expected.rows]
        assert [item.stored and item.stored.leaf for item in found.rows] == [
            item.stored and item.stored.leaf for item in expected.rows
        ]
        assert (found.indexed, found.size) == (expected.indexed, expected.size)
    assert len(store.open_pairs(2, 0, 1_801).rows) == 450
    assert len(store.open_pairs(3, 0, 3).rows) == 1


@pytest.mark.parametrize(
    "page", [Page(limit=0), Page(limit=1_001), Page(after="x1"), Page(after="p1"), Page(after="i-1")]
)
def test_bad_pages_are_refused(store, logs, page):
    """A limit out of range or a token of another list is the caller's error."""
    with pytest.raises(InvalidRequestError):
        store.query(RecordFilter(log_id=2), page)
