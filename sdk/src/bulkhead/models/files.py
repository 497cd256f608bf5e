"""Reading ranges of regular files that somebody else may exchange meanwhile."""

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from bulkhead.errors import InvalidRequestError

__all__ = ["OpenFiles"]


class OpenFiles:
    """Files by name, opened when they are first read and open until :meth:`close`; reads from any thread.

    A file that is replaced after that is read as it was, never in parts of both.

    Args:
        places: where each lies; the last part of a path is no symbolic link.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = dict(places)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def read_into(self, name: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the file's bytes from ``offset`` on.

        Raises:
            InvalidRequestError: no such file, it cannot be read, or it ends before.
        """
        descriptor = self._descriptor(name)
        done = 0
        while done < len(target):
            try:
                count = os.preadv(descriptor, [target[done:]], offset + done)
            except (OSError, ValueError, OverflowError) as error:
                raise InvalidRequestError(f"model file {name} cannot be read: {type(error).__name__}") from error
            if count == 0:
                raise InvalidRequestError(f"model file {name} ends before byte {offset + len(target)}")
            done += count

    def close(self) -> None:
        """Close every file; nothing can be read afterwards."""
        with self._lock:
            self._places.clear()
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if (known := self._descriptors.get(name)) is not None:
                return known
            if (place := self._places.get(name)) is None:
                raise InvalidRequestError(f"model file {name[:200]} cannot be read: the model has no such file")
            try:
                # O_NONBLOCK: opening a named pipe must not wait for a writer.
                opened = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise InvalidRequestError(f"model file {name} cannot be read: {type(error).__name__}") from error
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                os.close(opened)
                raise InvalidRequestError(f"{name} is not a regular file")
            self._descriptors[name] = opened
            return opened
