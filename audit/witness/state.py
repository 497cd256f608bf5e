"""What a witness has cosigned, one small file per log, replaced as a whole and synchronised before it counts."""

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bulkhead.encoding import b64decode, b64encode, canonical_json, parse_canonical
from bulkhead.errors import AuditUnavailableError, MalformedRequestError
from bulkhead.files import replace_file
from bulkhead.transparency.merkle import HASH_BYTES
from bulkhead.transparency.note import MAX_NOTE_BYTES

__all__ = ["Seen", "WitnessState"]

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """The checkpoint of a log that was cosigned last.

    Attributes:
        origin: the log.
        size: leaves in its tree.
        root: root hash.
        note: as the log signed it.
    """

    origin: str
    size: int
    root: bytes
    note: str


class WitnessState:
    """A directory that one process uses at a time. Close it with :meth:`close`, or use it in a ``with`` block."""

    def __init__(self, directory: Path) -> None:
        """Open the directory, making it at first.

        Raises:
            AuditUnavailableError: it cannot be used, or another process uses it.
        """
        self._directory = directory
        self._guard = -1
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._guard = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise AuditUnavailableError(f"another witness uses the state in {directory}") from error
        except OSError as error:
            self.close()
            raise AuditUnavailableError(f"the witness's state {directory} cannot be used: {error.strerror}") from error

    def last(self, origin: str) -> Seen | None:
        """Return what was cosigned last of a log, or None.

        Raises:
            AuditUnavailableError: the file cannot be read or is damaged: nothing may be cosigned until it is repaired.
        """
        path = self._path(origin)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuditUnavailableError(f"the witness's state {path} cannot be read: {error.strerror}") from error
        try:
            found = parse_canonical(data, max_bytes=2 * MAX_NOTE_BYTES, what="witness state")
            root = b64decode(str(found.get("root")), what="root")
        except MalformedRequestError as error:
            raise AuditUnavailableError(f"the witness's state {path} is damaged: {error.message}") from error
        size, note = found.get("size"), found.get("note")
        known = found.get("v") == _VERSION and found.get("origin") == origin
        if not known or type(size) is not int or not isinstance(note, str) or len(root) != HASH_BYTES:
            raise AuditUnavailableError(f"the witness's state {path} is damaged, or of another log")
        return Seen(origin, size, root, note)

    def remember(self, seen: Seen) -> None:
        """Replace what is remembered of a log; durable on return.

        Raises:
            AuditUnavailableError: it could not be written; the old state may still be there.
        """
        path = self._path(seen.origin)
        data = canonical_json(
            {"v": _VERSION, "origin": seen.origin, "size": seen.size, "root": b64encode(seen.root), "note": seen.note}
        )
        try:
            replace_file(path, data, partial=path.with_suffix(".new"), mode=0o666)
        except OSError as error:
            raise AuditUnavailableError(f"the witness's state {path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Let another process use the directory."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, origin: str) -> Path:
        return self._directory / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json"
