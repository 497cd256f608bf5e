"""The lock store of one host: a file that remembers the last acknowledged commit.

Two slots of 4 KiB, each ``magic(8) ‖ seq(8, big-endian) ‖ chain(32) ‖ SHA-256 of these(32)``. A move writes the slot
that does not hold the current state, in place, and returns after fdatasync: a crash while writing spoils only that
slot, and the other still holds the state before. The file is a second memory beside the database, so that a database
restored from a backup is recognised; it must never be restored together with it.
"""

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

from audit.chain import GENESIS, LockState
from audit.model import Failpoint, no_failpoint
from bulkhead.errors import AuditUnavailableError, LogForkError
from bulkhead.files import sync_directory

__all__ = ["FileLockStore"]

_MAGIC: Final = b"bhlock\x00\x01"
_SLOT_BYTES: Final = 4096  # a page: the two slots never share a block that is written at once
_STATE_BYTES: Final = 8 + 8 + 32
_RECORD_BYTES: Final = _STATE_BYTES + 32


class FileLockStore:
    """A :class:`~audit.store.LockStore` in a file, for every process of one host; one thread at a time moves it."""

    def __init__(self, path: Path, *, failpoint: Failpoint = no_failpoint) -> None:
        self._path = path
        self._failpoint = failpoint
        self._fd = -1

    def open(self, *, create: bool) -> None:
        """Open the file; see :meth:`audit.store.LockStore.open`.

        Raises:
            LogForkError: it is not there and ``create`` is false.
            AuditUnavailableError: it cannot be opened or created.
        """
        self.close()
        try:
            if create and not self._path.exists():
                self._create()
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise LogForkError(
                f"the audit database has commits but its lock store {self._path} is missing; writing is refused"
            ) from error
        except OSError as error:
            raise AuditUnavailableError(f"the lock store {self._path} cannot be opened: {error.strerror}") from error

    def read(self) -> LockState:
        """Return the current state.

        Raises:
            LogForkError: neither slot is readable.
            AuditUnavailableError: the file cannot be read.
        """
        return self._newest(self._slots())

    def move(self, expected: LockState, new: LockState) -> LockState:
        """Replace ``expected`` by ``new``; return what the store holds then: ``new``, or what another put there.

        Raises:
            LogForkError: neither slot is readable.
            AuditUnavailableError: the file cannot be written; whether it was is unknown, so read it again.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                slots = self._slots()
                current = self._newest(slots)
                if current != expected:
                    return current
                target = next(offset for offset, state in slots if state != current)
                os.pwrite(self._fd, _encode(new), target)
                self._failpoint("lock.written")
                os.fdatasync(self._fd)
                self._failpoint("lock.synced")
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError as error:
            raise AuditUnavailableError(f"the lock store cannot be written: {error.strerror}") from error
        return new

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _slots(self) -> list[tuple[int, LockState | None]]:
        try:
            return [(offset, _decode(os.pread(self._fd, _RECORD_BYTES, offset))) for offset in (0, _SLOT_BYTES)]
        except OSError as error:
            raise AuditUnavailableError(f"the lock store cannot be read: {error.strerror}") from error

    def _newest(self, slots: list[tuple[int, LockState | None]]) -> LockState:
        states = [state for _, state in slots if state is not None]
        if not states:
            raise LogForkError(f"the lock store {self._path} holds no readable state; writing is refused")
        return max(states, key=lambda state: state.seq)

    def _create(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _encode(GENESIS).ljust(2 * _SLOT_BYTES, b"\x00"), 0)  # all blocks, so that a full disk later
            os.fsync(fd)  # cannot keep a slot from being written in place
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):  # another process was first: its file holds
            os.link(temporary, self._path)
        temporary.unlink()
        sync_directory(self._path.parent)


def _encode(state: LockState) -> bytes:
    body = _MAGIC + state.seq.to_bytes(8, "big") + state.chain
    return body + hashlib.sha256(body).digest()


def _decode(data: bytes) -> LockState | None:
    body, digest = data[:_STATE_BYTES], data[_STATE_BYTES:]
    if len(data) != _RECORD_BYTES or not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    return LockState(int.from_bytes(body[8:16], "big"), body[16:48])
