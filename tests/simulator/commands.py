"""The project's commands as a person runs them, each in a process of its own, without the time that imports take.

A process that has imported the commands forks one for each run (``multiprocessing``'s fork server, which the tests'
other many short processes share). Arguments, environment, standard streams and exit status are the command's own.
"""

import functools
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final

from scripts.local_platform import BIN, LocalError, LocalPlatform

__all__ = ["CommandedPlatform", "forking", "run_command"]

COMMANDS: Final = {
    "bulkhead": "bulkhead.cli",
    "bulkhead-admin": "control_plane.admin_cli",
    "bulkhead-audit": "audit.cli",
}
_PRELOADED: Final = (
    "tests.simulator.audit_crash_writer",
    "tests.simulator.commands",
    *COMMANDS.values(),
    "bulkhead.client.fleet",
    "bulkhead.client.tenancy",
    "bulkhead.client.session",
)


@functools.cache
def forking() -> ForkServerContext:
    """Return what starts processes from one that has imported everything already; a test process has one such."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def run_command(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: str = "", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run one of :data:`COMMANDS`, given by name or by path, to its end.

    Raises:
        subprocess.TimeoutExpired: it took longer and was killed.
    """
    with tempfile.TemporaryDirectory(prefix="bh-command-") as directory:
        streams = [Path(directory) / name for name in ("stdin", "stdout", "stderr", "status")]
        streams[0].write_text(stdin)
        streams[3].touch()
        arguments = list(map(str, command))
        process = forking().Process(target=_command, args=(arguments, dict(environment), Path.cwd(), streams))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout_s)
        said, told, status = (stream.read_text() for stream in streams[1:])
        return subprocess.CompletedProcess(arguments, int(status) if status else process.exitcode, said, told)


def _command(arguments: list[str], environment: dict[str, str], directory: Path, streams: list[Path]) -> None:
    """Become the command; write its exit status, which ``exitcode`` may miss where threads wait for many processes."""
    for number, stream in enumerate(streams[:3]):
        opened = os.open(stream, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    try:
        import_module(COMMANDS[Path(arguments[0]).name]).main()
    except SystemExit as end:
        streams[3].write_text(str(end.code if isinstance(end.code, int) else int(end.code is not None)))
        raise


class CommandedPlatform(LocalPlatform):
    """A local platform whose commands are run so; its services are processes as everywhere."""

    def run(self, command: Sequence[str], *, profile: str | None = None, check: bool = True) -> str:
        """Run a command of the platform to its end and return its standard output."""
        if Path(command[0]).parent != BIN or Path(command[0]).name not in COMMANDS or profile is None:
            return LocalPlatform.run(self, command, profile=profile, check=check)
        environment = self._environment() | {
            "BULKHEAD_CONFIG": str(self.client_config), "BULKHEAD_PROFILE": profile,
        }  # fmt: skip
        done = run_command(command, environment)
        if check and done.returncode:
            raise LocalError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr.strip()}")
        return done.stdout
