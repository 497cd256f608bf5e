"""Worker processes as the agent sees them: spawned from its main thread, watched through pid descriptors, ended.

A process is gone when the kernel says so: it was reaped, and its group was killed before that. A scrub rests on this
proof. Processes of an earlier agent are recognised by pid and start time together.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import InternalError, WorkerLostError
from data_plane.sandbox import SandboxPlan

__all__ = ["ProcessIdentity", "WorkerProcess", "end_stranger"]

KILL_TIMEOUT_S: Final = 10.0  # a killed process that stays is stuck in the kernel: its place is cordoned
_STAT_FIELDS_AFTER_NAME: Final = 20  # proc(5): starttime is field 22, the name is field 2
_ENDED: Final = frozenset({"Z", "X"})  # proc(5): zombie, dead


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process beyond the reuse of its pid; ``started`` is in clock ticks since boot (proc(5), starttime)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """Return the identity of the process that has ``pid`` now, if one does that has not ended.

        One that has ended and waits to be reaped by its new parent (containers often have none that reaps) holds no
        memory, no files and no sockets any more.
        """
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            fields = stat.rpartition(")")[2].split()
            return None if fields[0] in _ENDED else cls(pid, int(fields[_STAT_FIELDS_AFTER_NAME - 1]))
        except (OSError, ValueError, IndexError):
            return None

    @property
    def is_alive(self) -> bool:
        """Whether exactly this process exists and has not ended."""
        return ProcessIdentity.of(self.pid) == self


class WorkerProcess:
    """One spawned worker.

    Attributes:
        identity: for finding it again after a restart of the agent.
        channel: the agent's end of the socket pair, not yet taken over by anybody.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> None:
        self._process = process
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)
        self.identity = ProcessIdentity.of(process.pid) or ProcessIdentity(process.pid, 0)
        self.channel = channel

    @classmethod
    def spawn(
        cls,
        *,
        plan: SandboxPlan,
        channel: tuple[socket.socket, socket.socket],
        cwd: Path,
        environment: Mapping[str, str],
        arguments: tuple[str, ...],
    ) -> "WorkerProcess":
        """Start ``python -m data_plane worker`` in a session of its own.

        The kernel's parent-death signal follows the spawning thread, so this is the main thread's to call. The child
        execs at once: nothing of the agent's memory, its evidence key included, lives on in it.

        Args:
            plan: names the worker's end, ``channel[1]``, which is closed here afterwards.
            channel: agent's end and worker's end.
            cwd: the partition's run directory.
            environment: the whole environment of the worker.
            arguments: further arguments; visible to every user of the host.

        Raises:
            WorkerLostError: the process could not be started.
        """
        if threading.current_thread() is not threading.main_thread():
            raise InternalError("workers are spawned from the main thread")
        mine, theirs = channel
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "data_plane", "worker", "--sandbox", plan.to_argument(), *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            mine.close()
            raise WorkerLostError(f"the worker could not be started: {error.strerror}") from error
        finally:
            theirs.close()
        return cls(process, mine)

    @property
    def is_gone(self) -> bool:
        """Whether the process was reaped."""
        return self._exited.done()

    async def wait(self) -> int:
        """Return the exit status once the process is gone; negative for a signal."""
        return await asyncio.shield(self._exited)

    async def end(self) -> bool:
        """Kill the process if it is still there; tell whether it is proven gone."""
        if not self.is_gone:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await asyncio.wait({asyncio.ensure_future(self.wait())}, timeout=KILL_TIMEOUT_S)
        return self.is_gone

    def _reap(self) -> None:
        # Until it is reaped the pid cannot name another group. Workers start no processes; should one have, it ends.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._exited.done():
            self._exited.set_result(status)


async def end_stranger(identity: ProcessIdentity, *, patience_s: float) -> bool:
    """End a worker of an earlier agent process; tell whether it is proven gone.

    Args:
        identity: as recorded when it was spawned.
        patience_s: time that it gets to end by itself: it has seen its agent go.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    try:
        # The descriptor is of whatever has the pid now; while that is the worker, pid and group are its own.
        if identity.is_alive and not await _exits(descriptor, patience_s) and identity.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(identity.pid, signal.SIGKILL)
            await _exits(descriptor, KILL_TIMEOUT_S)
    finally:
        os.close(descriptor)
    return not identity.is_alive


async def _exits(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(await asyncio.to_thread(poll.poll, int(timeout_s * 1000)))
