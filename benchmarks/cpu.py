"""CPU time of processes by what their threads do, out of /proc: it repeats on a busy machine, where wall time does not.

The threads that compute are told apart by how much they do: as many as the engine has, the busiest of the process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["CpuMeter", "Spent", "children_of"]

_NS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of CPU: of the process's first thread (its event loop), of the threads that compute, of all others."""

    loop_s: float
    engine_s: float
    others_s: float

    @property
    def besides_s(self) -> float:
        """What is not computing."""
        return self.loop_s + self.others_s


class CpuMeter:
    """Measures one process between :meth:`start` and :meth:`stop`.

    Args:
        pid: of the process; its threads may come and go.
        engine_threads: how many of them compute.
    """

    def __init__(self, pid: int, *, engine_threads: int = 0) -> None:
        self._pid = pid
        self._engine_threads = engine_threads
        self._before: dict[int, float] = {}

    def start(self) -> None:
        """Note what was spent before."""
        self._before = self._read()

    def stop(self) -> Spent:
        """Return what was spent since :meth:`start`."""
        spent = {tid: seconds - self._before.get(tid, 0.0) for tid, seconds in self._read().items()}
        loop_s = spent.pop(self._pid, 0.0)
        rest = sorted(spent.values(), reverse=True)
        return Spent(loop_s, sum(rest[: self._engine_threads]), sum(rest[self._engine_threads :]))

    def _read(self) -> dict[int, float]:
        """Return seconds on a CPU by thread (Documentation/scheduler/sched-stats: first field, nanoseconds)."""
        seconds: dict[int, float] = {}
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                seconds[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / _NS
            except (OSError, IndexError):  # it ended meanwhile
                continue
        return seconds


def children_of(pid: int) -> tuple[int, ...]:
    """Return the processes that ``pid`` has started and that run."""
    return tuple(
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    )
