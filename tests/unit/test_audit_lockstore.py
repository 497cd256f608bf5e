import hashlib
import itertools
import os

import pytest

from audit.chain import GENESIS, LockState
from audit.lockstore import FileLockStore
from bulkhead.errors import AuditUnavailableError, LogForkError

STATES = [GENESIS, *(LockState(n, hashlib.sha256(bytes([n])).digest()) for n in range(1, 6))]


@pytest.fixture
def lock(tmp_path):
    store = FileLockStore(tmp_path / "audit.lock")
    store.open(create=True)
    yield store
    store.close()


def test_it_moves_step_by_step(lock, tmp_path):
    """Each state is what a fresh reader finds after the move; the file never grows."""
    assert lock.read() == GENESIS
    size = (tmp_path / "audit.lock").stat().st_size
    for old, new in itertools.pairwise(STATES):
        lock.move(old, new)
        other = FileLockStore(tmp_path / "audit.lock")
        other.open(create=False)
        assert other.read() == new
        other.close()
    assert (tmp_path / "audit.lock").stat().st_size == size


def test_a_move_from_something_else_moves_nothing(lock):
    """Compare-and-swap: a stale or foreign expectation moves nothing and is told what is there."""
    assert lock.move(STATES[0], STATES[1]) == STATES[1]
    assert lock.move(STATES[0], STATES[1]) == STATES[1]
    for expected in (STATES[0], STATES[2], LockState(1, bytes(32))):
        assert lock.move(expected, STATES[3]) == STATES[1]
    assert lock.read() == STATES[1]


@pytest.mark.parametrize("torn", [0, 8, 20, 60, 79])
def test_a_torn_slot_leaves_the_state_before(lock, tmp_path, torn):
    """A crash in the middle of a write spoils one slot; the other holds the state before, and writing goes on."""
    lock.move(STATES[0], STATES[1])
    lock.move(STATES[1], STATES[2])
    data = bytearray((tmp_path / "audit.lock").read_bytes())
    newest = next(at for at in (0, 4096) if data[at + 8 : at + 16] == (2).to_bytes(8, "big"))
    data[newest + torn] ^= 0xFF
    (tmp_path / "audit.lock").write_bytes(data)
    assert lock.read() == STATES[1]
    lock.move(STATES[1], STATES[3])
    assert lock.read() == STATES[3]


@pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"\xff" * 8192])
def test_nothing_readable_is_refused(tmp_path, content):
    """A file without one good slot is a fork, not a fresh start."""
    (tmp_path / "audit.lock").write_bytes(content)
    store = FileLockStore(tmp_path / "audit.lock")
    store.open(create=True)
    with pytest.raises(LogForkError):
        store.read()
    with pytest.raises(LogForkError):
        store.move(GENESIS, STATES[1])
    store.close()


def test_a_missing_file_is_only_made_for_an_empty_database(tmp_path):
    """Without permission to create, a missing lock store is refused."""
    with pytest.raises(LogForkError):
        FileLockStore(tmp_path / "audit.lock").open(create=False)


def test_a_failing_disk_is_unavailable(lock, monkeypatch):
    """When fdatasync fails the caller learns that nothing is known, as a typed error."""

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(AuditUnavailableError):
        lock.move(STATES[0], STATES[1])


def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path):
    """A path that cannot exist is a typed error."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AuditUnavailableError):
        FileLockStore(tmp_path / "file" / "audit.lock").open(create=True)
