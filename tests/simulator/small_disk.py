"""A file system of a few megabytes that a test fills, write-protects and freezes: faults that no mock can fake.

It is an ext4 image on a loop device, so it needs the right to mount. The kernel says what goes wrong, not a test.
"""

import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

SIZE_MIB: Final = 8
BALLAST: Final = "ballast"


def run(*command: str) -> None:
    """Run a command of the system; fail with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def small_disk(at: Path, *, size_mib: int = SIZE_MIB) -> Iterator[Path]:
    """Mount an empty file system at ``at``, and unmount it at the end."""
    image = at.with_suffix(".img")
    image.touch()
    os.truncate(image, size_mib * 2**20)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image))
    at.mkdir(parents=True)
    run("mount", "-o", "loop", str(image), str(at))
    try:
        (at / "lost+found").rmdir()
        at.chmod(0o700)
        yield at
    finally:
        run("umount", "--lazy", str(at))
        image.unlink()


def may_mount(scratch: Path) -> bool:
    """Return whether this process may mount a file system."""
    try:
        with small_disk(scratch / "probe"):
            return True
    except (AssertionError, OSError):
        return False


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Another connection holds the write lock of the database."""
    with closing(sqlite3.connect(store / "audit.db", isolation_level=None, timeout=10)) as other:
        other.execute("begin exclusive")
        yield
        other.execute("rollback")


@contextmanager
def full(store: Path) -> Iterator[None]:
    """Not a block is left."""
    ballast = store / BALLAST
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        yield
    finally:
        ballast.unlink()


@contextmanager
def read_only(store: Path) -> Iterator[None]:
    """Neither database nor write-ahead log can be written, not even through open files: immutable, chattr(1).

    The third file is memory that SQLite's connections share; the kernel would end the process that writes to it.
    """
    with ExitStack() as undo:
        for file in (store / "audit.db", store / "audit.db-wal"):
            run("chattr", "+i", str(file))
            undo.callback(run, "chattr", "-i", str(file))
        yield


@contextmanager
def frozen(store: Path) -> Iterator[None]:
    """Whoever writes hangs in the kernel: fsfreeze(8)."""
    run("fsfreeze", "--freeze", str(store))
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", str(store))
