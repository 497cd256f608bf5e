"""One fuzzing process: instruments what a target imports, and hands it to atheris (libFuzzer).

Usage: ``python -m tests.fuzz.drive MODULE NAME [libFuzzer options] CORPUS…``; started by ``python -m tests.fuzz``.
"""

import os
import sys
from typing import Final

import atheris

MAX_GROWTH_BYTES: Final = 192 * 1024 * 1024  # libFuzzer's own corpus and coverage tables take some 30 MiB
_WARM_UP_RUNS: Final = 1_024  # caches, and the committed corpus
_SAMPLE_EVERY: Final = 256
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class MemoryGrowthError(Exception):
    """The process holds on to far more memory than when it had warmed up."""


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  # called often
        return int(statm.read().split()[1]) * _PAGE_BYTES


class _Watched:
    """Calls a target, and looks at the process's memory now and then."""

    def __init__(self, target) -> None:
        self._target = target
        self._runs = 0
        self._base = 0

    def __call__(self, data: bytes) -> None:
        self._target.try_one(data)
        self._runs += 1
        if self._runs % _SAMPLE_EVERY:
            return
        held = resident_bytes()
        if self._runs == _WARM_UP_RUNS:
            self._base = held
        if self._base and held > self._base + MAX_GROWTH_BYTES:
            raise MemoryGrowthError(f"{self._target.name}: {self._base >> 20} MiB grew to {held >> 20} MiB")


def main() -> None:
    """Fuzz one target until libFuzzer's options end it."""
    _, module, name, *options = sys.argv
    with atheris.instrument_imports(include=["bulkhead", "control_plane", "data_plane", "audit", "service"]):
        from tests.fuzz.registry import load_targets

        target = load_targets([module])[name]
    atheris.Setup([sys.argv[0], f"-max_len={target.max_bytes}", *options], _Watched(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
