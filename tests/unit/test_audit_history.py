"""Past rounds, made again from the database: what was made, on every store, or an error and no answer."""

import random

import pytest
from sqlalchemy import text

from audit.log.history import MAX_ROUNDS, RoundHistory
from audit.log.prover import Prover
from audit.log.rounds import PastRound
from audit.sql import open_store
from audit.sql.store import SqlAuditStore
from bulkhead.errors import NotFoundError, RecordError
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import verify_inclusion
from tests.simulator.audit_memory_store import MemoryAuditStore
from tests.simulator.audit_rounds import Rounds


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def rounds(request, tmp_path):
    if request.param == "memory":
        store = MemoryAuditStore()
    else:
        at = tmp_path / "a.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")
        store = open_store(at, busy_timeout_s=1.0)
    yield Rounds(store)
    store.close()


@pytest.fixture
def sql(tmp_path):
    store = open_store(tmp_path / "a.db", busy_timeout_s=1.0)
    yield Rounds(store)
    store.close()


def history(rounds: Rounds) -> RoundHistory:
    """Return the history as a process that was just started has it."""
    return RoundHistory(store=rounds.store, keys=rounds.keys, prover=Prover(rounds.store))


def ask(past: RoundHistory, rounds: Rounds, first: int, limit: int, *, size: int | None = None) -> list[PastRound]:
    whole = next(head.size for head in rounds.store.heads() if head.log_id == rounds.platform.log_id)
    return past.rounds(rounds.platform, whole if size is None else size, rounds.logs, first, limit)


def same(past: PastRound, rounds: Rounds) -> bool:
    """Whether a round that was made again is the one that was made, paths included."""
    made, of = rounds.made[past.round.number], past.round
    root = parse_leaf(past.record.leaf).data["root"]
    for slot, hashed in enumerate(made.hashes):
        verify_inclusion(
            index=slot, size=len(made.hashes), leaf=hashed, proof=of.path(slot), root=bytes.fromhex(str(root))
        )
    texts = tuple(of.head(slot).text() for slot in range(len(of.logs)))
    return (texts, past, of.root().hex()) == (made.texts, made.past, root)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_made_again_is_what_was_made(rounds, seed):
    """Over random histories, with restarts and makers in turn, every page from any place is what was made."""
    play(rounds, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6, 206))
def test_what_is_made_again_over_many_histories(sql, seed):
    """The same over two hundred histories."""
    play(sql, seed)


def play(rounds: Rounds, seed: int) -> None:
    """Let logs grow and rounds be made at random, and ask for pages between."""
    chance = random.Random(seed)
    rounds.open()
    kept = history(rounds)
    for _ in range(60):
        rounds.step(chance)
        if rounds.made and chance.random() < 0.3:
            first, limit = chance.randint(1, len(rounds.made)), chance.randint(1, 9)
            for past in (kept, history(rounds)):
                found = ask(past, rounds, first, limit)
                stop = min(first + limit, len(rounds.made) + 1)
                assert [one.round.number for one in found] == list(range(first, stop))
                assert all(same(one, rounds) for one in found)
    assert all(same(one, rounds) for one in ask(history(rounds), rounds, 1, MAX_ROUNDS))


def test_only_what_is_published(rounds):
    """A round whose record is not in the published tree yet is not shown, whether it was made again before or not."""
    rounds.open()
    for _ in range(4):
        rounds.round(between=3)
    index = rounds.made[3].past.record.index
    for past in (history(rounds), kept := history(rounds), kept):
        assert [one.round.number for one in ask(past, rounds, 1, 9, size=index)] == [1, 2]
        assert [one.round.number for one in ask(past, rounds, 1, 9, size=index + 1)] == [1, 2, 3]
        assert ask(past, rounds, 5, 9) == []
        for at, number in ((0, None), (index - 1, 2), (index, 2), (index + 1, 3)):
            newest = past.newest(rounds.platform, at, rounds.logs)
            assert (newest and newest.round.number) == number
            assert past.known_newest(rounds.platform, at) == newest


def test_what_was_just_made_is_not_made_again(rounds):
    """A round that its maker tells of is known where it is the newest of those that are published, and only there."""
    rounds.open()
    made = [rounds.round(between=3).past for _ in range(3)]
    places = [one.record.index for one in made]
    past = history(rounds)
    past.remember(made[1])
    known = [past.known_newest(rounds.platform, at + 1) for at in (0, *places)]
    assert known == [None, None, made[1], None]
    assert past.known_newest(rounds.platform, places[2]) is None  # the third may be in it
    past.remember(made[2])
    assert past.known_newest(rounds.platform, places[2]) == made[1]
    assert past.known_newest(rounds.platform, places[2] + 1) == made[2]
    past.forget()
    assert past.known_newest(rounds.platform, places[1] + 1) is None


def test_pages_are_bounded(sql, monkeypatch):
    """A page has so many rounds, fewer where there are many slots, and at least one; what is remembered is bounded."""
    monkeypatch.setattr("audit.log.history._MAX_SLOTS", 30)
    monkeypatch.setattr("audit.log.history._REMEMBERED_SLOTS", 100)
    sql.open()
    for _ in range(MAX_ROUNDS):
        sql.round()
    past = history(sql)
    assert len(ask(past, sql, 1, 1_000)) == 15
    for _ in range(40):
        sql.open()
    sql.round()
    assert [one.round.number for one in ask(past, sql, MAX_ROUNDS, 9)] == [MAX_ROUNDS]
    assert 0 < past._made._weight <= 100
    assert same(ask(past, sql, MAX_ROUNDS + 1, 9)[0], sql)


def test_trees_that_grew_far(sql):
    """Roots at sizes across tiles, and far from the last one that was asked for, are those of the rounds."""
    log = sql.open()
    for count in (1, 254, 1, 1, 700, 3_000, 0, 1):
        sql.grow(log, count)
        sql.round()
    past = history(sql)
    assert all(same(one, sql) for one in ask(past, sql, 1, 9))
    assert all(same(ask(history(sql), sql, number, 1)[0], sql) for number in (7, 3, 8, 1))


def test_rounds_of_an_earlier_epoch(rounds):
    """After a declared break earlier rounds are refused by name; later ones hold the new epochs, and new tenants."""
    log = rounds.open()
    rounds.grow(log, 3)
    rounds.round()
    rounds.next_epoch()
    rounds.round()
    rounds.open()
    rounds.round()
    past = history(rounds)
    with pytest.raises(NotFoundError, match="round 1 is of an earlier epoch"):
        ask(past, rounds, 1, 9)
    found = ask(past, rounds, 2, 9)
    assert [len(one.round.logs) for one in found] == [1, 2]
    assert found[0].round.logs[0].epoch == 2
    assert all(same(one, rounds) for one in found)


HEADS = "round 2 cannot be made again: the heads"


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_round SET size = 2 WHERE round = 2 AND log_id = 2", HEADS),
        ("DELETE FROM audit_round WHERE round = 2 AND log_id = 2", HEADS),
        ("DELETE FROM audit_round WHERE log_id = 2", "leaves a slot out"),
        ("UPDATE audit_round SET log_id = 9 WHERE round = 2 AND log_id = 2", "names a log 9"),
        ("UPDATE audit_round SET size = 0 WHERE round = 2 AND log_id = 1", ""),
        ("UPDATE audit_round SET size = size + 2 WHERE round = 2 AND log_id = 1", "no record of it"),
        ("UPDATE audit_leaf SET leaf_hash = zeroblob(32) WHERE log_id = 2 AND idx = 1", HEADS),
        ("DELETE FROM audit_leaf WHERE log_id = 2 AND idx = 4", "record 4 is missing"),
        ("DELETE FROM audit_leaf WHERE log_id = 1 AND idx = 4", "no record of it"),
    ],
)
def test_a_changed_database(sql, statement, problem):
    """Sizes, leaves or records that were changed give an error that says so; a place too early does no harm."""
    log, _ = sql.open(), sql.open()
    for _ in range(2):
        sql.grow(log, 2)
        sql.round(between=1)
    sql.grow(sql.platform, 2)
    store = sql.store
    assert isinstance(store, SqlAuditStore)
    with store._writing() as connection:
        connection.execute(text(statement))
    if problem:
        with pytest.raises(RecordError, match=problem):
            ask(history(sql), sql, 2, 9)
    else:
        assert same(ask(history(sql), sql, 2, 9)[0], sql)
