"""The worker's confinement of itself, in an order that permissions allow: what needs root first, root given up last.

1. Descriptors: all but standard streams and the socket pair are closed.
2. Limits (getrlimit(2)): no core dump, which would hold keys and prompts; open files; address space where configured.
3. Network namespace (unshare(2)): an empty one, without even a loopback address that is up.
4. User id (setresuid(2)) and no supplementary groups; where root is kept, every capability is dropped instead.
5. PR_SET_NO_NEW_PRIVS: no exec gives any of it back. PR_SET_DUMPABLE 0: no core, and no ptrace or /proc access by
   processes of the same user.
6. mlockall(2), where the host lifts the limit on locked memory: nothing that this process touches goes to swap. With
   a limit in force, memory would run out at it, so it is left out then, and that is reported.
7. PR_SET_PDEATHSIG: SIGTERM when the agent's main thread ends (credentials changes clear it, so it comes late); and a
   check that the agent had not ended before.

Runs while the process has one thread and before it has read anything of its tenant's.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
from pathlib import Path
from typing import Final

from bulkhead.errors import AgentUnavailableError, ConfigError
from data_plane.sandbox.plan import ROOT_UID, SandboxPlan, Step

__all__ = ["confine"]

MIB: Final = 1 << 20
FIRST_OTHER_FD: Final = 3

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
# linux/capability.h: version 3, two words each of effective, permitted, inheritable
_CAPABILITY_VERSION_3: Final = 0x20080522
_MAX_CAPABILITY: Final = 63
# bits/mman-linux.h; MCL_ONFAULT (Linux 4.4): what is never touched takes no memory
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
# linux/sched.h
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000

_libc: Final = ctypes.CDLL(None, use_errno=True)


def confine(plan: SandboxPlan) -> tuple[str, ...]:
    """Carry out ``plan`` on this process and return the names of the confinements that hold.

    Raises:
        ConfigError: a required step is not possible here.
        AgentUnavailableError: the agent has ended.
    """
    held = ["descriptors", "limits"]
    _close_descriptors(plan.keep_fd)
    _limit(plan)
    unlimited = _lift_lock_limit()
    if plan.network is not Step.OFF and _leave_network(required=plan.network is Step.REQUIRE):
        held.append("network")
    if plan.uid >= 0:
        _take_user(plan.uid)
        held.append("user")
    elif os.geteuid() == ROOT_UID:
        _drop_capabilities()
        held.append("capabilities")
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)
    if unlimited and _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        held.append("memory_locked")
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != plan.parent_pid:
        raise AgentUnavailableError("the node agent ended before its worker began")
    return (*held, "no_new_privileges", "not_dumpable")


def _close_descriptors(keep: int) -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        if number >= FIRST_OTHER_FD and number != keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
                os.close(number)


def _limit(plan: SandboxPlan) -> None:
    os.umask(0o077)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = plan.open_files if hard == resource.RLIM_INFINITY else min(plan.open_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        if plan.memory_mib:
            resource.setrlimit(resource.RLIMIT_AS, (plan.memory_mib * MIB, plan.memory_mib * MIB))
    except (OSError, ValueError) as error:
        raise ConfigError(f"sandbox: cannot set a resource limit: {error}") from error


def _lift_lock_limit() -> bool:
    """Lift the limit on locked memory; tell whether there is none now. Needs CAP_SYS_RESOURCE, or no limit before."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY


def _leave_network(*, required: bool) -> bool:
    """Move into an empty network namespace; tell whether that worked."""
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNET if uid == ROOT_UID else _CLONE_NEWNET | _CLONE_NEWUSER
    if _libc.unshare(flags) == 0:
        if flags & _CLONE_NEWUSER:
            # Keep the same ids inside, or files of this user would look foreign (user_namespaces(7)).
            Path("/proc/self/setgroups").write_text("deny", "ascii")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")
        return True
    if required:
        raise ConfigError(
            f'sandbox.network = "require": {os.strerror(ctypes.get_errno())}; run the agent with the right to make '
            'network namespaces, or set "if_possible" or "off"'
        )
    return False


def _take_user(uid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise ConfigError(f"sandbox: cannot take user id {uid}: {error.strerror}") from error
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (uid, uid, uid):
        raise ConfigError(f"sandbox: user id {uid} was not taken")


def _drop_capabilities() -> None:
    for capability in range(_MAX_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # EINVAL beyond the kernel's last capability
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", *([0] * 6))) != 0:
        raise ConfigError(f"sandbox: cannot drop capabilities: {os.strerror(ctypes.get_errno())}")


def _prctl(name: str, option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise ConfigError(f"sandbox: {name}: {os.strerror(ctypes.get_errno())}")
