"""Life cycle of a server process: start, wait for a signal, stop in an orderly way within a bound.

SIGTERM and SIGINT both ask for an orderly stop; a second one ends the process at once. SIGKILL is an ordinary event: a
process keeps nothing in memory alone that its restart needs.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import structlog

from bulkhead.errors import BulkheadError

__all__ = ["EXIT_DONE", "EXIT_FAILED", "EXIT_USAGE", "Process", "TaskSet", "run_process"]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

log = structlog.get_logger(__name__)


class Process(Protocol):
    """What :func:`run_process` drives."""

    async def start(self) -> None:
        """Come up, or raise; what had started by then is stopped by ``stop``."""

    async def failed(self) -> None:
        """Return, or raise, only when the process cannot go on (a task that must run has ended)."""

    async def stop(self) -> None:
        """Drain and stop. Safe to call after a failed start."""


def run_process(process: Process, *, stop_timeout_s: float) -> int:
    """Run ``process`` until SIGTERM, SIGINT or its own failure; return the exit status.

    It leaves no core dump, which would hold the keys that it signs with.

    Args:
        process: not started yet.
        stop_timeout_s: an orderly stop that takes longer is given up.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return asyncio.run(_run(process, stop_timeout_s))


async def _run(process: Process, stop_timeout_s: float) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stopping)
    status = EXIT_DONE
    try:
        await process.start()
        gc.collect()
        gc.freeze()  # what a start makes stays: a full collection that walks all of it would hold up calls for longer
        log.info("process.started", pid=os.getpid())
        status = await _until_stopped(process, stopping)
    except BulkheadError as error:
        log.error("process.failed", code=error.code, reason=error.message)  # noqa: TRY400  typed: the code says it
        status = EXIT_FAILED
    try:
        async with asyncio.timeout(stop_timeout_s):
            await process.stop()
    except TimeoutError:
        log.exception("process.stop_timeout", stop_timeout_s=stop_timeout_s)
        status = EXIT_FAILED
    log.info("process.stopped", status=status)
    return status


async def _until_stopped(process: Process, stopping: asyncio.Event) -> int:
    waiting = asyncio.create_task(stopping.wait())
    failing = asyncio.create_task(process.failed())
    done, pending = await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    if failing in done:
        failing.result()  # raises what ended it
        return EXIT_FAILED
    return EXIT_DONE


def _on_signal(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(EXIT_FAILED)  # asked twice: the orderly way is taking too long for somebody
    stopping.set()


class TaskSet:
    """Background tasks that must run as long as the process does.

    A task that ends by an exception is a failure of the process: :meth:`failed` raises it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] | None = None

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run ``work`` until it ends or :meth:`stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def failed(self) -> None:
        """Wait for the first task that fails, and raise its exception."""
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        await self._failure

    async def stop(self) -> None:
        """Cancel every task and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("task.failed", task=task.get_name(), exc_info=error)
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        if not self._failure.done():
            self._failure.set_exception(error)
