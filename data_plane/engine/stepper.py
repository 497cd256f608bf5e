"""The engine's thread: takes requests in, computes steps, hands text out. The only thread that touches the model.

What arrives is put into an inbox and taken in before each step, so a request that went away costs nothing further. What
a step produced for all requests goes to the event loop in one call. A step that raises ends every request with
InternalError and the thread with it: the state of the model is then not known.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from bulkhead.errors import BulkheadError, InternalError
from data_plane.engine.job import Job
from data_plane.engine.port import EngineCounters, TokenDelta
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sampling import Choice
from data_plane.engine.sequence import Sequence
from data_plane.engine.stream import DeltaStream

__all__ = ["Stepper"]

_LOG = logging.getLogger(__name__)
JOIN_TIMEOUT_S: Final = 60.0  # far above one step, on the slowest machine

Emission: TypeAlias = tuple[DeltaStream, "TokenDelta | BulkheadError"]


@dataclass(frozen=True, slots=True)
class _Submit:
    job: Job


@dataclass(frozen=True, slots=True)
class _Cancel:
    job: Job


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Stepper:
    """Runs steps on a thread of its own until stopped.

    Args:
        runner: the model; overwritten when the thread ends.
        threads: intra-operation threads of torch.
        loop: where streams are fed.
        on_failure: called on the loop, once, after a step has failed; it ends all streams.
    """

    def __init__(
        self, *, runner: ModelRunner, threads: int, loop: asyncio.AbstractEventLoop, on_failure: Callable[[], None]
    ) -> None:
        self._runner = runner
        self._threads = threads
        self._loop = loop
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[_Submit | _Cancel | _Stop] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by id of the sequence
        self.counters = EngineCounters()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a request."""
        self._inbox.put(_Submit(job))

    def cancel(self, job: Job) -> None:
        """Take a request out before the next step; nothing happens if it has ended."""
        self._inbox.put(_Cancel(job))

    def stop(self) -> None:
        """Stop after the current step and wait for the thread, which overwrites the model. Blocks.

        Raises:
            InternalError: the thread hangs in a step.
        """
        self._inbox.put(_Stop())
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise InternalError(f"the engine's thread did not stop within {JOIN_TIMEOUT_S:g} s")

    def _main(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            try:
                while self._take_in():
                    self._step()
            except Exception:  # noqa: BLE001 - a thread's end is a boundary: whatever is raised, requests must not hang
                _LOG.exception("an engine step failed; the engine takes no more requests")
                self._post(self._on_failure)
            finally:
                for job in self._jobs.values():
                    self._runner.scheduler.end(job.sequence)
                self._runner.erase()

    def _take_in(self) -> bool:
        """Take in what has arrived, waiting while there is nothing to compute; False when told to stop."""
        scheduler = self._runner.scheduler
        while True:
            idle = not self._jobs
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            match message:
                case _Submit(job):
                    self._jobs[id(job.sequence)] = job
                    scheduler.add(job.sequence)
                case _Cancel(job):
                    if self._jobs.pop(id(job.sequence), None) is not None:
                        scheduler.end(job.sequence)
                        self._count(cancelled=1)
                case _Stop():
                    return False

    def _step(self) -> None:
        scheduler, started = self._runner.scheduler, time.monotonic()
        chunks = scheduler.schedule()
        choices = self._runner.step(chunks, [self._jobs[id(chunk.sequence)].sampler for chunk in chunks])
        emissions: list[Emission] = []
        for chunk, choice in zip(chunks, choices, strict=True):
            scheduler.computed(chunk, None if choice is None else choice.token)
            if choice is not None:
                emissions.append(self._take(chunk.sequence, choice))
        self._count(
            steps=1,
            computed_tokens=sum(chunk.count for chunk in chunks),
            produced_tokens=len(emissions),
            finished=sum(isinstance(item, TokenDelta) and item.finish_reason is not None for _, item in emissions),
            busy_s=time.monotonic() - started,
        )
        self._post(lambda: _deliver(emissions))

    def _take(self, sequence: Sequence, choice: Choice) -> Emission:
        job = self._jobs[id(sequence)]
        item = job.take(choice)
        if isinstance(item, BulkheadError) or item.finish_reason is not None:
            self._runner.scheduler.end(sequence)
            del self._jobs[id(sequence)]
        return job.stream, item

    def _count(
        self,
        *,
        steps: int = 0,
        computed_tokens: int = 0,
        produced_tokens: int = 0,
        finished: int = 0,
        cancelled: int = 0,
        busy_s: float = 0.0,
    ) -> None:
        old, scheduler = self.counters, self._runner.scheduler
        self.counters = EngineCounters(
            steps=old.steps + steps,
            computed_tokens=old.computed_tokens + computed_tokens,
            produced_tokens=old.produced_tokens + produced_tokens,
            finished=old.finished + finished,
            cancelled=old.cancelled + cancelled,
            busy_s=old.busy_s + busy_s,
            preemptions=scheduler.preemptions,
            running=scheduler.running,
            waiting=scheduler.waiting,
            kv_blocks_used=self._runner.pool.used,
        )

    def _post(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nobody listens any more, and the process is on its way out
            self._inbox.put(_Stop())


def _deliver(emissions: Sequences[Emission]) -> None:
    for stream, item in emissions:
        stream.put(item)
