"""Become OPA: leave root, die with the parent, run the program. Executed by path in an interpreter of its own.

    python -I -S launch.py PARENT_PID UID GID PROGRAM ARGUMENT...

A process of its own rather than `preexec_fn`: after a fork in a process with threads (gRPC has many) only
async-signal-safe calls are allowed, and Python makes others. UID and GID -1 keep the account.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_MAX_OPEN_FILES: Final = 4096
_GOGC: Final = "400"  # a quarter less CPU per decision for some 10 MiB


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def main(arguments: list[str]) -> None:
    """Replace this process by the program; any failure ends it with a traceback on standard error."""
    parent, uid, gid = (int(text) for text in arguments[:3])
    program = arguments[3:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold tokens and inputs
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if gid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
    if uid >= 0:
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of account, which clears it
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(1)
    environment = {"HOME": str(Path.cwd()), "PATH": "", "GOGC": _GOGC}
    os.execve(program[0], program, environment)  # noqa: S606  # becoming the program is the point


if __name__ == "__main__":
    main(sys.argv[1:])
