"""What confinement a worker gets: configured on the agent, carried out by the worker on itself.

Two steps depend on the host's permissions and can be configured: a network namespace of its own, and a user id of its
own. Everything else always applies. What holds in the end is reported by the worker, logged, and stands in evidence.
"""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError
from service.config import require_between

__all__ = ["SandboxConfig", "SandboxPlan", "Step", "check_reachable", "plan_for"]

ROOT_UID: Final = 0
MAX_UID: Final = 2**31 - 1
MIN_OPEN_FILES: Final = 256  # torch and a gRPC server with a few streams


class Step(Enum):
    """How much a step is wanted."""

    REQUIRE = "require"
    """A worker that cannot take the step does not start."""
    IF_POSSIBLE = "if_possible"
    """Taken where the host permits it; left out otherwise, and reported as left out."""
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """Confinement of workers, as an operator configures it.

    Attributes:
        network: a network namespace of its own: a worker needs its Unix socket only.
        user: a user id of its own out of ``[uid_first, uid_first + uid_count)``, one for each partition at a time.
            Needs root, and an interpreter, packages and models that other users can read.
        uid_first: first user id of the range; group ids are equal. The range must belong to nobody else.
        uid_count: length of the range, so the most partitions with ``user`` on.
        open_files: most open files of a worker.
        memory_mib: bound on a worker's address space; 0 for none. Torch maps far more than it uses.
    """

    network: Step = Step.REQUIRE
    user: Step = Step.REQUIRE
    uid_first: int = 61_184  # systemd's range for dynamic users ends at 65,519; 61,184 is its beginning
    uid_count: int = 256
    open_files: int = 4096
    memory_mib: int = 0

    def __post_init__(self) -> None:
        require_between(self.uid_first, 1000, MAX_UID)
        require_between(self.uid_count, 1, MAX_UID - self.uid_first)
        require_between(self.open_files, MIN_OPEN_FILES, 1 << 20)
        require_between(self.memory_mib, 0, 1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPlan:
    """What one worker does to itself at its start.

    Attributes:
        uid: user and group id to take; -1 keeps the agent's.
        parent_pid: the agent; a worker whose parent is another process by then was orphaned.
        keep_fd: the inherited end of the socket pair; every other descriptor above 2 is closed.
    """

    network: Step
    uid: int
    parent_pid: int
    keep_fd: int
    open_files: int
    memory_mib: int

    def to_argument(self) -> str:
        """Return the plan as one command-line argument; it holds no secret."""
        return json.dumps({**asdict(self), "network": self.network.value})

    @classmethod
    def from_argument(cls, text: str) -> "SandboxPlan":
        """Return the plan in a command-line argument.

        Raises:
            ConfigError: it was not written by :meth:`to_argument`.
        """
        try:
            fields = json.loads(text)
            return cls(
                network=Step(fields["network"]),
                **{name: int(fields[name]) for name in ("uid", "parent_pid", "keep_fd", "open_files", "memory_mib")},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("worker: not a sandbox plan; agents start workers, people do not") from error


def plan_for(config: SandboxConfig, *, slot: int, keep_fd: int, needed: Iterable[Path]) -> SandboxPlan:
    """Return the plan of the worker in ``slot`` (its number among live partitions).

    Args:
        config: the operator's.
        slot: index into the range of user ids.
        keep_fd: the worker's end of the socket pair.
        needed: what the worker must be able to read: interpreter, packages, its model.

    Raises:
        ConfigError: a user id of its own is required and cannot be had.
    """
    uid = -1
    if config.user is not Step.OFF:
        wanted = config.uid_first + slot
        problem = _user_problem(config, slot=slot, uid=wanted, needed=needed)
        if problem is None:
            uid = wanted
        elif config.user is Step.REQUIRE:
            raise ConfigError(
                f'sandbox.user = "require": {problem}; make it so, or set "if_possible" or "off" and accept that '
                "workers share the agent's user id"
            )
    return SandboxPlan(
        network=config.network,
        uid=uid,
        parent_pid=os.getpid(),
        keep_fd=keep_fd,
        open_files=config.open_files,
        memory_mib=config.memory_mib,
    )


def _user_problem(config: SandboxConfig, *, slot: int, uid: int, needed: Iterable[Path]) -> str | None:
    if os.geteuid() != ROOT_UID:
        return "the agent does not run as root"
    if slot >= config.uid_count:
        return f"all {config.uid_count} user ids of the range are in use"
    for path in needed:
        blocked = check_reachable(path, uid=uid)
        if blocked is not None:
            return f"user id {uid} cannot read {path}: {blocked} is closed to it"
    return None


def check_reachable(path: Path, *, uid: int) -> Path | None:
    """Return the first directory or file on the way to ``path`` that user id ``uid`` may not pass, or None.

    Looks at mode bits of the resolved path; access control lists only ever grant more here.
    """
    resolved = path.resolve()
    for step in (*reversed(resolved.parents), resolved):
        try:
            status = step.stat()
        except OSError:
            return step
        bits = (
            status.st_mode >> 6
            if status.st_uid == uid
            else status.st_mode >> 3
            if status.st_gid == uid
            else (status.st_mode)
        )
        wanted = stat.S_IXOTH if step != resolved else stat.S_IROTH
        if stat.S_ISDIR(status.st_mode):
            wanted |= stat.S_IXOTH
        if bits & wanted != wanted:
            return step
    return None
