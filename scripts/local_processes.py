"""Start, watch and stop the processes of a local platform, and leave none behind."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STOP_TIMEOUT_S: Final = 25.0  # an agent drains for up to 20 s
LOG_TAIL_LINES: Final = 15


class LocalError(Exception):
    """Something about the local platform did not work; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process as remembered between two invocations.

    Attributes:
        name: e.g. ``control-plane``.
        pid: process id.
        started_ticks: start time in clock ticks since boot (proc(5), field 22): a reused pid has another one.
    """

    name: str
    pid: int
    started_ticks: int

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return start_ticks(self.pid) == self.started_ticks


def start_ticks(pid: int) -> int | None:
    """Return the start time of ``pid`` in clock ticks, or None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


class Processes:
    """The processes below one directory: ``processes.json`` remembers them, ``logs/`` has their output."""

    def __init__(self, *, root: Path) -> None:
        self._file = root / "processes.json"
        self._logs = root / "logs"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def remembered(self) -> list[Running]:
        """Return what was started and not yet stopped, in order."""
        try:
            return [Running(**entry) for entry in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []

    def log(self, name: str) -> Path:
        """Return the file that holds the output of process ``name``."""
        return self._logs / f"{name}.log"

    def start(self, name: str, command: Sequence[str], *, environment: Mapping[str, str]) -> Running:
        """Start ``command`` in a process group of its own and remember it.

        Raises:
            LocalError: a process of that name runs already.
        """
        known = [entry for entry in self.remembered() if entry.name != name]
        if any(entry.name == name and entry.alive() for entry in self.remembered()):
            raise LocalError(f"{name} runs already: stop it first")
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._children[name] = child
        running = Running(name=name, pid=child.pid, started_ticks=start_ticks(child.pid) or 0)
        self._remember([*known, running])
        return running

    def check(self, name: str) -> None:
        """Return if process ``name`` runs.

        Raises:
            LocalError: it has ended; the message holds the end of its log.
        """
        child = self._children.get(name)
        if child is not None:
            child.poll()
        if not any(entry.name == name and entry.alive() for entry in self.remembered()):
            raise LocalError(f"{name} has ended; the end of {self.log(name)}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """Return the last lines of a process's output."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        except FileNotFoundError:
            return "(no output)"

    def kill(self, name: str, *, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to process ``name`` alone and, if it is SIGKILL, wait for its end."""
        for entry in self.remembered():
            if entry.name == name and entry.alive():
                os.kill(entry.pid, signal_number)
                if signal_number == signal.SIGKILL:
                    self._wait(entry, timeout_s=5.0)

    def stop(self, names: Sequence[str] | None = None) -> None:
        """Stop processes in reverse order of their start: SIGTERM, then SIGKILL to the group."""
        entries = [entry for entry in self.remembered() if names is None or entry.name in names]
        for entry in reversed(entries):
            if entry.alive():
                os.kill(entry.pid, signal.SIGTERM)
                if not self._wait(entry, timeout_s=STOP_TIMEOUT_S):
                    os.killpg(entry.pid, signal.SIGKILL)
                    self._wait(entry, timeout_s=5.0)
        self._remember([entry for entry in self.remembered() if entry not in entries])

    def _wait(self, entry: Running, *, timeout_s: float) -> bool:
        child = self._children.get(entry.name)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if child is not None:
                child.poll()
            if not entry.alive():
                return True
            time.sleep(0.05)
        return False

    def _remember(self, entries: Sequence[Running]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._file.with_suffix(".tmp")
        scratch.write_text(
            json.dumps([{"name": e.name, "pid": e.pid, "started_ticks": e.started_ticks} for e in entries], indent=1)
        )
        scratch.replace(self._file)
