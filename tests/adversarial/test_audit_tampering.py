"""An administrator with full rights over the SQLite database edits the audit log; each edit is detected and named.

Rewrites of everything, and older copies, are in test_audit_rewriting.py, for both databases.
"""

import hashlib
import io
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.cli import program
from bulkhead.errors import BulkheadError, CheckpointError, ConsistencyError, ProofError, RecordError
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.merkle import leaf_hash
from tests.simulator.audit_forgery import RECORDS, StoppedPlatform, edit, stopped_platform, verify
from tests.simulator.audit_world import TENANT


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> StoppedPlatform:
    directory = tmp_path_factory.mktemp("audit")
    return stopped_platform(directory, directory / "audit.db")


@pytest.fixture
def copy(platform: StoppedPlatform, tmp_path: Path) -> Path:
    """A copy of the database, to be edited."""
    shutil.copy(platform.database, tmp_path / "copy.db")
    return tmp_path / "copy.db"


def record_at(path: Path, index: int) -> tuple[str, bytes]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT record_id, leaf FROM audit_leaf WHERE log_id = 2 AND idx = ?", [index])
        return found.fetchone()


def test_the_untouched_database_verifies(platform, copy):
    """The control: nothing edited, everything checked."""
    report = verify(platform, copy)
    assert (report.records, report.indexed, report.logs) == (309, 309, 3)
    assert report.signatures == report.checkpoints >= 12
    assert report.lock_checked


LEAF_7 = "WHERE log_id = 2 AND idx = 7"
OF_8 = "FROM audit_leaf WHERE log_id = 2 AND idx = 8"
NOTE_61 = "SELECT note FROM audit_checkpoint WHERE log_id = 2 AND size = 61"

# ruff: noqa: S608 - the administrator's statements are put together from this file's own text
# name, statements, error, words of the message
EDITS: list[tuple[str, list[str], type[BulkheadError], str]] = [
    ("a leaf", [f"UPDATE audit_leaf SET leaf = replace(leaf, 'allow', 'ALLOW') {LEAF_7}"], RecordError, "record 7 "),
    ("a leaf as text", [f"UPDATE audit_leaf SET leaf = CAST(leaf AS TEXT) {LEAF_7}"], RecordError, "record 7 "),
    ("a leaf as number", [f"UPDATE audit_leaf SET leaf = 5 {LEAF_7}"], RecordError, "record 7 "),
    ("a leaf hash", [f"UPDATE audit_leaf SET leaf_hash = zeroblob(32) {LEAF_7}"], RecordError, "record 7 "),
    ("a leaf hash as text", [f"UPDATE audit_leaf SET leaf_hash = 'x' {LEAF_7}"], RecordError, "record 7 "),
    ("a record id", [f"UPDATE audit_leaf SET record_id = 'rec_x' {LEAF_7}"], RecordError, "record 7 .*own id"),
    ("a deleted record", [f"DELETE FROM audit_leaf {LEAF_7}"], RecordError, "record 7 is missing"),
    ("the last record", ["DELETE FROM audit_leaf WHERE log_id = 3 AND idx = 5"], RecordError, "missing"),
    (
        "two records in each other's place",
        [
            f"UPDATE audit_leaf SET idx = -1 {LEAF_7}",
            "UPDATE audit_leaf SET idx = 7 WHERE log_id = 2 AND idx = 8",
            "UPDATE audit_leaf SET idx = 8 WHERE log_id = 2 AND idx = -1",
        ],
        RecordError,
        "record 7 is missing",
    ),
    (
        "a payload of equal length",
        [f"UPDATE audit_leaf SET leaf = (SELECT leaf {OF_8}) {LEAF_7}"],
        RecordError,
        "record 7 ",
    ),
    (
        "payload and hash of another record",
        [f"UPDATE audit_leaf SET (leaf, leaf_hash) = (SELECT leaf, leaf_hash {OF_8}) {LEAF_7}"],
        RecordError,
        "record 7 ",
    ),
    (
        "a record moved to another tenant's log",
        ["UPDATE audit_leaf SET log_id = 3, idx = 6 WHERE log_id = 2 AND idx = 300"],
        RecordError,
        "missing",
    ),
    (
        "another tenant's record in its place",
        [
            f"DELETE FROM audit_leaf {LEAF_7}",
            f"UPDATE audit_leaf SET log_id = 2, idx = 7, pos = (SELECT pos - 1 {OF_8}) WHERE log_id = 3 AND idx = 5",
        ],
        RecordError,
        "record 7 .*another tenant",
    ),
    (
        "an inserted record",
        [f"INSERT INTO audit_leaf SELECT 310, 2, 301, 'rec_x', leaf, leaf_hash {OF_8}"],
        RecordError,
        "rec_x belongs to no commit",
    ),
    ("a position", ["UPDATE audit_leaf SET pos = 400 WHERE pos = 309"], RecordError, "missing"),
    ("an index column", [f"UPDATE audit_index SET decision = 'deny' {LEAF_7}"], RecordError, "record 7 .*index says"),
    ("a hiding index column", [f"UPDATE audit_index SET session = 'x' {LEAF_7}"], RecordError, "record 7 .*index says"),
    ("an index column's type", [f"UPDATE audit_index SET ts_us = 'x' {LEAF_7}"], RecordError, "record 7 .*index says"),
    ("left out of the index", [f"DELETE FROM audit_index {LEAF_7}"], RecordError, "record 7 .*leaves it out"),
    (
        "an index row of nothing",
        ["INSERT INTO audit_index SELECT 999, 2, 900, 1, '', '', '', '', ''"],
        RecordError,
        "999",
    ),
    ("a head's size", ["UPDATE audit_head SET size = 300 WHERE log_id = 2"], ConsistencyError, "head"),
    ("a head's size as text", ["UPDATE audit_head SET size = 'x' WHERE log_id = 2"], ConsistencyError, "head"),
    ("a head's frontier", ["UPDATE audit_head SET frontier = zeroblob(length(frontier))"], ConsistencyError, "head"),
    ("a deleted head", ["DELETE FROM audit_head WHERE log_id = 2"], ConsistencyError, "head"),
    ("a head of nothing", ["INSERT INTO audit_head SELECT 9, 0, x''"], ConsistencyError, "not registered"),
    (
        "a tile's hash",
        ["UPDATE audit_tile SET hashes = CAST(substr(hashes,1,1280) || zeroblob(32) || substr(hashes,1313) AS BLOB)"],
        RecordError,
        "record 40 ",
    ),
    ("a short tile", ["UPDATE audit_tile SET hashes = x'00'"], ConsistencyError, "tile 0/0"),
    ("a tile as text", ["UPDATE audit_tile SET hashes = 'x'"], ConsistencyError, "tile 0/0"),
    ("a deleted tile", ["DELETE FROM audit_tile"], ConsistencyError, "tile 0/0"),
    ("a tile of nothing", ["INSERT INTO audit_tile SELECT 3, 0, 0, hashes FROM audit_tile"], ProofError, "log 3"),
    ("a commit's chain", ["UPDATE audit_commit SET chain = zeroblob(32) WHERE seq = 3"], ConsistencyError, "commit 3"),
    ("a chain as text", ["UPDATE audit_commit SET chain = 'x' WHERE seq = 3"], ConsistencyError, "commit 3"),
    ("a commit's end", ["UPDATE audit_commit SET pos = pos - 1 WHERE seq = 5"], ConsistencyError, "commit 5"),
    ("a deleted commit", ["DELETE FROM audit_commit WHERE seq = 5"], ConsistencyError, "commit 6"),
    (
        "a checkpoint's text",
        ["UPDATE audit_checkpoint SET note = replace(note, '/1', '/2') WHERE log_id = 2 AND size = 31"],
        CheckpointError,
        "size 31",
    ),
    ("a checkpoint's type", ["UPDATE audit_checkpoint SET note = x'00' WHERE size = 31"], CheckpointError, "size 31"),
    (
        "a checkpoint of another size",
        [f"UPDATE audit_checkpoint SET note = ({NOTE_61}) WHERE log_id = 2 AND size = 31"],
        ConsistencyError,
        "size 31",
    ),
    ("a round's number", ["UPDATE audit_round SET round = 9"], ConsistencyError, "audit_round .* the 1 rounds"),
    ("a forgotten round", ["DELETE FROM audit_round"], ConsistencyError, "audit_round .* the 1 rounds"),
    ("a round's size", ["UPDATE audit_round SET size = 900 WHERE log_id = 2"], ConsistencyError, "log 2 at 900"),
    ("a log's tenant", ["UPDATE audit_log SET tenant = 'x' WHERE log_id = 2"], RecordError, "another tenant"),
    ("a log's slot", ["UPDATE audit_log SET slot = 7 WHERE log_id = 2"], RecordError, "record 0 .*does not open"),
    ("a log's name", ["UPDATE audit_log SET origin = 'x/1' WHERE log_id = 2"], RecordError, "record 0 .*does not open"),
    ("a log struck out", ["DELETE FROM audit_log WHERE log_id = 2"], RecordError, "not registered"),
]


@pytest.mark.parametrize(("statements", "error", "words"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_an_edit_is_detected_and_named(platform, copy, statements, error, words):
    """Each edit of a table is detected by its own check, which says what does not hold."""
    edit(copy, *statements)
    with pytest.raises(error, match=words):
        verify(platform, copy)


def test_any_byte_of_any_record_counts(platform, copy):
    """One byte changed anywhere in any record's leaf names that record, also through the command."""
    rng = random.Random(6)
    for _ in range(25):
        index = rng.randrange(1, RECORDS)
        record, leaf = record_at(copy, index)
        at, bit = rng.randrange(len(leaf)), 1 << rng.randrange(8)
        changed = leaf[:at] + bytes([leaf[at] ^ bit]) + leaf[at + 1 :]
        with sqlite3.connect(copy) as connection:
            connection.execute("UPDATE audit_leaf SET leaf = ? WHERE record_id = ?", [changed, record])
        connection.close()
        with pytest.raises(RecordError, match=record) as caught:
            verify(platform, copy)
        assert caught.value.details["index"] == str(index)
        with sqlite3.connect(copy) as connection:
            connection.execute("UPDATE audit_leaf SET leaf = ? WHERE record_id = ?", [leaf, record])
        connection.close()
    verify(platform, copy)


def test_one_byte_of_the_file(platform, copy):
    """One byte of a record changed in the file itself: the command fails with exit code 1 and names the record."""
    record, leaf = record_at(copy, 123)
    data = copy.read_bytes()
    at = data.index(leaf[:200]) + 100
    copy.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    keys = platform.directory / "keys"
    good = CliRunner().invoke(program, ["verify", str(platform.directory / "audit.db"), "--keys", str(keys)])
    bad = CliRunner().invoke(program, ["verify", str(copy), "--keys", str(keys)])
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert record in bad.output
    assert "record 123" in bad.output


@pytest.fixture
def exported(platform: StoppedPlatform, tmp_path: Path) -> bytes:
    """The tenant's export."""
    out = tmp_path / "export.jsonl"
    arguments = ["export", "--db", str(platform.directory / "audit.db"), "--tenant", TENANT, "--out", str(out)]
    assert CliRunner().invoke(program, arguments).exit_code == 0
    return out.read_bytes()


def test_any_byte_of_an_export_counts(platform, exported):
    """A change of any byte of an export (but the key it names for convenience) is refused with a typed error."""
    rng = random.Random(7)
    vkeys = [platform.vkeys[platform.origin]]
    verify_export(io.BytesIO(exported), vkeys=vkeys)
    head = exported.index(b'"type":"record"')
    for _ in range(60):
        at = rng.randrange(head, len(exported))
        changed = exported[:at] + bytes([exported[at] ^ (1 << rng.randrange(7))]) + exported[at + 1 :]
        with pytest.raises(ProofError):
            verify_export(io.BytesIO(changed), vkeys=vkeys)


def test_a_damaged_database_gives_no_export(platform, copy, tmp_path):
    """Exporting stops at the first record that does not hold, names it, and leaves no file that looks whole."""
    edit(copy, "UPDATE audit_leaf SET leaf = replace(leaf, 'allow', 'ALLOW') WHERE log_id=2 AND idx=7")
    out = tmp_path / "export.jsonl"
    result = CliRunner().invoke(program, ["export", "--db", str(copy), "--tenant", TENANT, "--out", str(out)])
    assert result.exit_code == 1
    assert "record 7 " in result.output
    assert not out.exists()


def test_digests_are_those_of_the_standard_library():
    """The tests' own forging does not rest on the code under test: a leaf hash is SHA-256 of 0x00 and the leaf."""
    assert leaf_hash(b"x") == hashlib.sha256(b"\x00x").digest()
