"""Small files that must be whole and private: keys, credentials, port lists.

A write appears completely or not at all (write, fsync, rename, fsync of the directory). A private file is created with
its final mode, so that no moment exists in which others could open it.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError
from bulkhead.files import create_file, sync_directory

__all__ = ["PRIVATE", "PUBLIC", "make_private_directory", "read_private", "write_file"]

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
MAX_SECRET_BYTES: Final = 64 * 1024  # keys, tokens and certificate chains are far smaller


def make_private_directory(path: Path) -> Path:
    """Create ``path`` and its parents, for its owner only where it is new; return it.

    Raises:
        ConfigError: it cannot be created, or something else stands there.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the directory {path}: {error.strerror}") from error
    return path


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE, replace: bool = True) -> None:
    """Write ``data`` to ``path`` durably and as a whole.

    Args:
        path: its directory exists.
        data: the complete content.
        mode: permission bits, :data:`PRIVATE` or :data:`PUBLIC`.
        replace: false refuses to touch an existing file.

    Raises:
        ConfigError: the file exists (``replace=False``), or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            create_file(temporary, data, mode=mode)
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike a rename, fails when the name is taken
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already and is not overwritten") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path, *, what: str, max_bytes: int = MAX_SECRET_BYTES) -> bytes:
    """Return the content of a secret's file.

    Args:
        path: as the configuration names it.
        what: names the secret in errors; the content never appears in one.
        max_bytes: a longer file is refused.

    Raises:
        ConfigError: the file is missing, unreadable, not a regular file, open to group or others, empty or too long.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{what}: {path} is not a regular file")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{what}: {path} is open to group or others; run: chmod 600 {path}")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from error
    if not data or len(data) > max_bytes:
        raise ConfigError(f"{what}: {path} is empty or longer than {max_bytes} bytes")
    return data
