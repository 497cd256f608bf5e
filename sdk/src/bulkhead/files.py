"""Small files that survive a power cut whole: written, synchronised, renamed into place, the directory synchronised."""

import os
from pathlib import Path
from typing import Final

__all__ = ["create_file", "replace_file", "sync_directory"]

_PRIVATE: Final = 0o600


def create_file(path: Path, data: bytes, *, mode: int = _PRIVATE) -> None:
    """Write a new file, one that only its owner can read unless ``mode`` says more; one that is there is never touched.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written.
    """
    _write(path, data, os.O_EXCL, mode)


def replace_file(path: Path, data: bytes, *, partial: Path, mode: int = _PRIVATE) -> None:
    """Put ``data`` in the place of the file's content, as a whole; durable on return.

    Args:
        path: the file; its directory exists.
        data: the complete content.
        partial: where it is written first, on the same file system; one writer at a time.
        mode: permission bits of a new file, before the process's mask.

    Raises:
        OSError: it cannot be written; the old content may still be there.
    """
    _write(partial, data, os.O_TRUNC, mode)
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: it is none, or cannot be synchronised.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, flag: int, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
