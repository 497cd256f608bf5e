"""A run directory that OPA's own account can reach, and what a killed control plane left in it.

`/root` is closed to other users and OPA does not run as root, so its program, configuration and bundle go into a fresh
directory below a base that is open to search. Directory and files belong to the control plane; OPA can only read them.

A control plane that was killed takes its OPA with it (parent-death signal); where that failed, the next start finds the
process by its pid file and ends it.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bulkhead.errors import ConfigError

__all__ = ["NOBODY", "Account", "RunDirectory", "default_account", "reap_stale"]

PREFIX: Final = "bulkhead-opa-"
_OWNER: Final = "owner"
_PID: Final = "opa.pid"


@dataclass(frozen=True, slots=True)
class Account:
    """Numeric user and group that OPA runs as."""

    uid: int
    gid: int


NOBODY: Final = Account(uid=65534, gid=65534)


def default_account() -> Account | None:
    """Return the account to change to: nobody's when this process is root, else None (stay)."""
    return NOBODY if os.geteuid() == 0 else None


class RunDirectory:
    """One control plane's directory of OPA processes; made by :meth:`create`."""

    def __init__(self, *, path: Path, opa: Path) -> None:
        self.path = path
        self.opa = opa
        self._count = 0

    @classmethod
    def create(cls, *, base: Path | None, opa: Path, account: Account | None) -> Self:
        """Make a fresh directory below ``base`` (None: the system's temporary directory).

        Raises:
            ConfigError: ``base`` cannot be written, or ``account`` cannot reach it.
        """
        parent = (base or Path(tempfile.gettempdir())).resolve()
        try:
            if base is not None:
                parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            if account is not None and not _searchable(parent):
                raise ConfigError("OPA's run directory lies below one that other users may not enter; choose another")
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            path.chmod(0o711)  # to be entered by OPA's account, listed by nobody else
            (path / _OWNER).write_text(_identity(os.getpid()) or "", encoding="ascii")
            program = opa.resolve()
            if account is not None and not (_searchable(program.parent) and program.stat().st_mode & 0o005 == 0o005):
                program = _bring(program, path / "opa")
        except OSError as error:
            raise ConfigError(f"OPA's run directory cannot be made: {error.strerror}") from error
        return cls(path=path, opa=program)

    def new_process(self) -> Path:
        """Return a fresh directory for the files of one process."""
        self._count += 1
        path = self.path / str(self._count)
        path.mkdir()
        path.chmod(0o755)  # whatever the umask
        return path

    @staticmethod
    def put(path: Path, files: dict[str, bytes]) -> None:
        """Write ``files`` below ``path``, readable by OPA and writable by nobody."""
        for name, content in files.items():
            (path / name).write_bytes(content)
            (path / name).chmod(0o444)

    @staticmethod
    def note_pid(path: Path, pid: int) -> None:
        """Leave the pid of the process of ``path`` for :func:`reap_stale`."""
        (path / _PID).write_text(str(pid), encoding="ascii")

    def remove(self) -> None:
        """Remove the directory; its processes must have ended."""
        shutil.rmtree(self.path, ignore_errors=True)


def reap_stale(base: Path | None) -> int:
    """End the OPA processes of control planes that are gone and remove their directories; return how many ended.

    Only directories of this user are looked at, and only a process whose command line names the directory is ended, so
    that a forged pid file ends nothing.
    """
    parent = (base or Path(tempfile.gettempdir())).resolve()
    ended = 0
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.lstat().st_uid != os.geteuid() or _owner_alive(path):
                continue
            ended += sum(_end(pid, path) for pid in _pids(path))
            shutil.rmtree(path, ignore_errors=True)
    return ended


def _owner_alive(path: Path) -> bool:
    try:
        owner = (path / _OWNER).read_text(encoding="ascii")
    except FileNotFoundError:
        return True  # being made right now, or not ours
    pid = owner.partition(" ")[0]
    return not pid.isdigit() or _identity(int(pid)) == owner


def _pids(path: Path) -> Iterator[int]:
    for file in path.glob(f"*/{_PID}"):
        text = file.read_text(encoding="ascii")
        if text.isdigit():
            yield int(text)


def _end(pid: int, path: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if os.fsencode(f"{path}/") not in command:
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def _identity(pid: int) -> str | None:
    """Return pid and start time in clock ticks (proc(5), field 22), which together name one process; None if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"


def _searchable(path: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _bring(program: Path, target: Path) -> Path:
    """Return a hard link to ``program``, or a copy where the file system or its mode forbids one."""
    if program.stat().st_mode & 0o005 == 0o005:
        with contextlib.suppress(OSError):
            os.link(program, target)
            return target
    shutil.copyfile(program, target)
    target.chmod(0o555)
    return target
