"""An administrator with full SQL rights over the PostgreSQL database; each edit is detected and named.

The SQLite file's counterpart, with more edits, is test_audit_tampering.py; rewrites are in test_audit_rewriting.py.
"""

import psycopg
import pytest

from bulkhead.errors import BulkheadError, ConsistencyError, LogForkError, ProofError, RecordError
from tests.simulator.audit_forgery import StoppedPlatform, stopped_platform, verify
from tests.simulator.audit_world import TENANT, decision, opened
from tests.simulator.postgres import PostgresServer


@pytest.fixture(scope="module")
def template(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, template: str) -> StoppedPlatform:
    return stopped_platform(tmp_path_factory.mktemp("audit"), postgres.url(template))


@pytest.fixture
def copy(platform: StoppedPlatform, postgres: PostgresServer, template: str) -> str:
    """A copy of the database, to be edited."""
    return postgres.url(postgres.new_database(template=template))


def test_the_untouched_database_verifies(platform, copy):
    """The control: nothing edited, everything checked."""
    report = verify(platform, copy)
    assert (report.logs, report.records) == (3, 309)
    assert report.lock_checked
    assert report.signatures == report.checkpoints > 10


# ruff: noqa: S608 - the administrator's statements are put together from this file's own text
LEAF_7 = "WHERE log_id = 2 AND idx = 7"
EDITS: list[tuple[str, str, type[BulkheadError], str]] = [
    (
        "a leaf",
        f"UPDATE audit_leaf SET leaf = overlay(leaf placing '\\x58' from 20) {LEAF_7}",
        RecordError,
        "record 7 ",
    ),
    (
        "a leaf and its hash",
        (
            "UPDATE audit_leaf SET leaf = x, leaf_hash = sha256('\\x00'::bytea || x) FROM (SELECT convert_to(replace("
            f"convert_from(leaf, 'UTF8'), 'allow', 'error'), 'UTF8') AS x FROM audit_leaf {LEAF_7}) AS y {LEAF_7}"
        ),
        ProofError,
        "record|commit",
    ),
    ("a deleted record", f"DELETE FROM audit_leaf {LEAF_7}", RecordError, "record 7 is missing"),
    (
        "two payloads of equal length in each other's place",
        (
            "UPDATE audit_leaf AS a SET leaf = b.leaf, leaf_hash = b.leaf_hash FROM audit_leaf AS b"
            " WHERE a.log_id = 2 AND b.log_id = 2 AND (a.idx, b.idx) IN ((7, 8), (8, 7))"
        ),
        RecordError,
        "record 7 ",
    ),
    (
        "two records in each other's place",
        (
            f"UPDATE audit_leaf SET idx = -1 {LEAF_7}; UPDATE audit_leaf SET idx = 7 WHERE log_id = 2 AND idx = 8;"
            " UPDATE audit_leaf SET idx = 8 WHERE log_id = 2 AND idx = -1"
        ),
        RecordError,
        "record",
    ),
    (
        "an inserted record",
        (
            "INSERT INTO audit_leaf SELECT (SELECT max(pos) FROM audit_leaf) + 1, 2, 301, 'rec_x', leaf, leaf_hash"
            f" FROM audit_leaf {LEAF_7}"
        ),
        RecordError,
        "rec_x",
    ),
    ("an index column", f"UPDATE audit_index SET decision = 'deny' {LEAF_7}", RecordError, "record 7 .*index"),
    ("a hidden record", f"DELETE FROM audit_index {LEAF_7}", RecordError, "record 7 .*index leaves it out"),
    (
        "payload and hash of another record",
        (
            "UPDATE audit_leaf AS a SET leaf = b.leaf, leaf_hash = b.leaf_hash FROM audit_leaf AS b"
            " WHERE a.log_id = 2 AND a.idx = 7 AND b.log_id = 2 AND b.idx = 8"
        ),
        RecordError,
        "record 7 .*own id",
    ),
    (
        "a record moved to another tenant's log",
        "UPDATE audit_leaf SET log_id = 3, idx = 6 WHERE log_id = 2 AND idx = 300",
        RecordError,
        "missing",
    ),
    ("a forgotten round", "DELETE FROM audit_round", ConsistencyError, "audit_round"),
    ("a log's tenant", "UPDATE audit_log SET tenant = 'x' WHERE log_id = 2", RecordError, "another tenant"),
    ("a tile", "UPDATE audit_tile SET hashes = overlay(hashes placing '\\x00ff' from 300)", RecordError, "tile 0/0"),
    ("a head", "UPDATE audit_head SET size = size - 1, frontier = '' WHERE log_id = 3", ProofError, "head"),
    ("a chain value", "UPDATE audit_commit SET chain = sha256('x') WHERE seq = 5", ConsistencyError, "commit 5"),
    (
        "a kept checkpoint",
        "UPDATE audit_checkpoint SET note = translate(note, 'abcdefghij', 'bcdefghija') WHERE log_id = 2 AND size = 61",
        ProofError,
        "61",
    ),
]


@pytest.mark.parametrize(("statement", "error", "words"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_each_edit_is_detected(platform, copy, statement, error, words):
    """Every edit is detected, by an error that names what it was done to."""
    with psycopg.connect(copy) as session:
        session.execute(statement.encode())
    with pytest.raises(error, match=words):
        verify(platform, copy)


async def test_the_chain_edited_under_the_running_process(tmp_path, audit_url):
    """An edit of the last commit stops the running writer: the lock store's commit is no longer there."""
    log = await opened(tmp_path, database=audit_url)
    info = await log.ensure_log(TENANT)
    with psycopg.connect(audit_url) as session:
        session.execute("UPDATE audit_commit SET chain = sha256('x') WHERE seq = (SELECT max(seq) FROM audit_commit)")
    with pytest.raises(LogForkError):
        await log.append(info.log_id, decision())
    await log.close()


async def test_another_database_under_the_running_process(tmp_path, audit_url, postgres):
    """An older copy put in the database's place while the process runs: writing stops at the first commit."""
    name = audit_url.split("/")[3].split("?")[0]
    log = await opened(tmp_path, database=audit_url)
    info = await log.ensure_log(TENANT)
    await log.close()
    older = postgres.new_database(template=name)
    log = await opened(tmp_path, database=audit_url)
    await log.append(info.log_id, decision())
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # the process comes back for its index at once
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    postgres.execute(f"ALTER DATABASE {name} RENAME TO aside")
    postgres.execute(f"ALTER DATABASE {older} RENAME TO {name}")
    with pytest.raises(LogForkError):
        await log.append(info.log_id, decision())
    assert log.health().forked
    await log.close()
    with pytest.raises(LogForkError, match="backup"):
        await opened(tmp_path, database=audit_url)
