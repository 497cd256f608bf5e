"""What a broker did, one line of JSON each, durable before anything leaves: the tenant's own record beside the log."""

import json
import os
import threading
from pathlib import Path

from bulkhead.errors import KeyBrokerError

__all__ = ["ReleaseJournal"]


class ReleaseJournal:
    """An append-only file. Safe from any thread.

    Args:
        path: of the file; made if it does not exist.

    Raises:
        KeyBrokerError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeyBrokerError(f"{path}: the journal of releases cannot be opened: {error.strerror}") from error

    def write(self, **fields: str | int) -> None:
        """Append one entry; it is on disk when this returns.

        Raises:
            KeyBrokerError: it could not be written; the caller releases nothing.
        """
        line = json.dumps(fields, ensure_ascii=True, sort_keys=True).encode() + b"\n"
        with self._lock:
            try:
                if os.write(self._descriptor, line) != len(line):
                    raise KeyBrokerError(f"{self._path}: the journal of releases is cut short: the disk is full")
                os.fdatasync(self._descriptor)
            except OSError as error:
                raise KeyBrokerError(f"{self._path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
