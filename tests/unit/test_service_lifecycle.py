import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from bulkhead.errors import ConfigError
from service.lifecycle import TaskSet, run_process


class _Process:
    """Records what was asked of it."""

    def __init__(self, *, start_error: Exception | None = None, hang_s: float = 0.0) -> None:
        self.told: list[str] = []
        self._start_error = start_error
        self._hang_s = hang_s

    async def start(self) -> None:
        self.told.append("start")
        if self._start_error is not None:
            raise self._start_error
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.told.append("stop")
        await asyncio.sleep(self._hang_s)


def test_sigterm_is_an_orderly_stop() -> None:
    """SIGTERM stops the process in order, with exit status 0."""
    process = _Process()
    assert run_process(process, stop_timeout_s=2) == 0
    assert process.told == ["start", "stop"]


def test_a_failed_start_is_cleaned_up() -> None:
    """A start that fails still stops what had come up, with exit status 1."""
    process = _Process(start_error=ConfigError("no"))
    assert run_process(process, stop_timeout_s=2) == 1
    assert process.told == ["start", "stop"]


def test_a_stop_that_hangs_is_given_up() -> None:
    """A stop beyond its bound ends the process with exit status 1 instead of hanging."""
    assert run_process(_Process(hang_s=60), stop_timeout_s=0.1) == 1


def test_a_second_signal_ends_at_once() -> None:
    """Asked twice, the process ends without waiting for its orderly stop."""
    code = textwrap.dedent("""
        import asyncio, os, signal
        from service.lifecycle import run_process
        class P:
            async def start(self):
                os.kill(os.getpid(), signal.SIGTERM)
            async def failed(self):
                await asyncio.Event().wait()
            async def stop(self):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(60)
        run_process(P(), stop_timeout_s=60)
    """)
    done = subprocess.run([sys.executable, "-c", code], timeout=20, check=False, capture_output=True)
    assert done.returncode == 1


async def test_background_work_that_fails_fails_the_process() -> None:
    """A background task's exception reaches whoever waits for failure; one that ends by itself does not."""
    tasks = TaskSet()

    async def fine() -> None:
        return

    async def broken() -> None:
        raise ConfigError("broken")

    tasks.start(fine(), name="fine")
    await asyncio.sleep(0)
    tasks.start(broken(), name="broken")
    with pytest.raises(ConfigError, match="broken"):
        await asyncio.wait_for(tasks.failed(), 1)


async def test_stopping_cancels_background_work() -> None:
    """Stop cancels every task and waits for its clean-up."""
    tasks = TaskSet()
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    tasks.start(work(), name="work")
    await asyncio.sleep(0)
    await tasks.stop()
    assert cleaned.is_set()
