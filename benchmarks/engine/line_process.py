"""A process that answers one JSON line for each JSON line."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

__all__ = ["CLOCKS", "LineProcess"]

# Seconds, or a process's seconds of CPU: what a busy machine can still compare, as long as nobody spins.
CLOCKS: Final[Mapping[str, Callable[[], float]]] = MappingProxyType(
    {"wall": time.perf_counter, "cpu": time.process_time}
)


class LineProcess:
    """Started by making it, ended by leaving its context; its first line says that it is ready."""

    def __init__(self, command: Sequence[str], *, threads: int) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self._answer()

    def ask(self, **command: Any) -> Any:
        """Send a command and return what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
