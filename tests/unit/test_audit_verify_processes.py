"""Verification with leaves read in several processes says the same as in one."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from audit.chain import GENESIS
from audit.leaves import LeafReader
from audit.model import StoredLeaf
from audit.sql import open_reader, open_sqlite
from audit.sql.verify import verify_database
from bulkhead.errors import AuditUnavailableError, BulkheadError
from tests.contract.test_audit_store import FIRST, PLATFORM
from tests.simulator.audit_world import decision, new_leaf, opening

RECORDS = 2_500  # three reads of 1,000
EDITS = [
    "UPDATE audit_leaf SET leaf = replace(CAST(leaf AS TEXT), 'because', 'Because') WHERE pos = 2100",
    "UPDATE audit_leaf SET leaf_hash = zeroblob(32) WHERE pos IN (700, 2200)",
    "DELETE FROM audit_leaf WHERE pos = 1700",
    "UPDATE audit_index SET decision = 'deny' WHERE pos = 2300",
    "UPDATE audit_leaf SET leaf = CAST('{}' AS BLOB) WHERE pos = 1",
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "audit.db"
    store = open_sqlite(path, busy_timeout_s=1.0)
    leaves = [new_leaf(2, decision(number=n)) for n in range(RECORDS)]
    store.commit([opening(PLATFORM), opening(FIRST), *leaves], GENESIS)
    while store.project(1_000):
        pass
    store.close()
    return path


def verified(path: Path, processes: int) -> object:
    """Return the report, or what the error says."""
    reader = open_reader(path)
    try:
        return verify_database(reader, vkeys={}, processes=processes)
    except BulkheadError as error:
        return type(error), error.message, dict(error.details)
    finally:
        reader.close()


def test_a_good_database_verifies_in_several_processes(database):
    """The report is the same, and counts every record and index row."""
    found = verified(database, 2)
    assert found == verified(database, 1)
    assert (found.records, found.indexed) == (RECORDS + 2, RECORDS + 2)


@pytest.mark.parametrize("edit", EDITS)
def test_the_same_record_is_named(database, tmp_path, edit):
    """An edited database fails with the same error, of the same record, however many processes read it."""
    copy = shutil.copy(database, tmp_path / "audit.db")
    with sqlite3.connect(copy) as connection:
        assert connection.execute(edit).rowcount
    connection.close()
    found = verified(tmp_path / "audit.db", 2)
    assert isinstance(found, tuple), "it verified"
    assert found == verified(tmp_path / "audit.db", 1)


def test_a_reading_process_that_ends_is_an_error():
    """Verification whose reading processes are killed fails with a typed error, and does not wait for them."""
    with LeafReader(2) as leaf_reader:
        assert leaf_reader.read([])() == []
        for process in leaf_reader._pool._processes.values():
            process.kill()
            process.join()
        with pytest.raises(AuditUnavailableError, match="before its time"):
            leaf_reader.read([StoredLeaf(1, 1, 0, "rec_1", b"{}", bytes(32))])()
