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
from concurrent.futures import Future
from dataclasses import replace
from typing import Final, Literal, TypeAlias

import torch

from bulkhead.errors import BulkheadError, InternalError
from data_plane.engine.job import Job
from data_plane.engine.profile import traced
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sampling import Choice
from data_plane.engine.scheduler import Chunk
from data_plane.engine.sequence import Sequence, SequenceState
from data_plane.engine.stream import DeltaStream
from data_plane.inference.metrics import EngineMetrics
from data_plane.inference.port import FinishReason, TokenDelta

__all__ = ["Stepper"]

_LOG = logging.getLogger(__name__)
JOIN_TIMEOUT_S: Final = 60.0  # far above one step, on the slowest machine
TRACE_PAUSE_S: Final = 1.0  # between two traced steps, which take longer than others for whoever is in them

Emission: TypeAlias = tuple[DeltaStream, "TokenDelta | BulkheadError"]
Event: TypeAlias = Literal["submitted", "cancelled", "expired"]


class Stepper:
    """Runs steps on a thread of its own until stopped.

    The thread loads the model too: OpenMP's threads belong to the thread that first called for them, and with a second
    set of them beside it every barrier would sleep instead of spin.

    Args:
        load: returns the model, which is overwritten when the thread ends.
        threads: intra-operation threads of torch.
        loop: where streams are fed.

    ``on_failure``, set by the owner, is called on the loop, once, after a step has failed; it ends all streams.
    """

    def __init__(
        self,
        *,
        load: Callable[[], ModelRunner],
        threads: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._load = load
        self._loaded: Future[ModelRunner] = Future()
        self._threads = threads
        self._loop = loop
        self.on_failure: Callable[[], None] = lambda: None
        self._inbox: queue.SimpleQueue[tuple[Event, Job] | None] = queue.SimpleQueue()  # None: stop
        self._jobs: dict[int, Job] = {}  # by id of the sequence
        self.metrics = EngineMetrics()  # replaced as a whole, so that the loop may read it at any time
        self._trace_from = 0.0
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> ModelRunner:
        """Start the thread and return the model that it has loaded; raises what ``load`` raises. Blocks."""
        self._thread.start()
        runner = self._runner = self._loaded.result()
        return runner

    def submit(self, job: Job) -> None:
        """Queue a request."""
        job.timing.queued = time.monotonic()
        self._inbox.put(("submitted", job))

    def cancel(self, job: Job, *, expired: bool = False) -> None:
        """Take a request out before the next step; nothing happens if it has ended."""
        self._inbox.put(("expired" if expired else "cancelled", job))

    def stop(self) -> None:
        """Stop after the current step and wait for the thread, which overwrites the model. Blocks.

        Raises:
            InternalError: the thread hangs in a step.
        """
        self._inbox.put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise InternalError(f"the engine's thread did not stop within {JOIN_TIMEOUT_S:g} s")

    def _main(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            runner = self._runner = self._load()
        except BaseException as error:  # noqa: BLE001 - raised again where the engine is opened
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(runner)
        with torch.inference_mode():
            try:
                while self._take_in():
                    if self._jobs:
                        self._step()
            except BaseException:  # noqa: BLE001 - a thread's end is a boundary: whatever is raised, requests must not hang
                _LOG.exception("an engine step failed; the engine takes no more requests")
                self._post(self.on_failure)
            finally:
                try:
                    for job in self._jobs.values():
                        runner.scheduler.end(job.sequence)
                finally:
                    runner.erase()

    def _take_in(self) -> bool:
        """Take in what has arrived, waiting while there is nothing to compute; False when told to stop."""
        scheduler = self._runner.scheduler
        while True:
            idle = not self._jobs
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            event, job = message
            if event == "submitted":
                self._jobs[id(job.sequence)] = job
                scheduler.add(job.sequence)
            elif self._drop(job):
                self._count(**{event: 1})

    def _drop(self, job: Job) -> bool:
        if self._jobs.pop(id(job.sequence), None) is None:
            return False
        self._runner.scheduler.end(job.sequence)
        return True

    def _step(self) -> None:
        scheduler, started = self._runner.scheduler, time.monotonic()
        chunks = scheduler.schedule()
        choices = self._compute(chunks)
        emissions: list[Emission] = []
        ended = time.monotonic()
        for chunk, of_chunk in zip(chunks, choices, strict=True):
            timing = self._jobs[id(chunk.sequence)].timing
            timing.started = timing.started or started
            if of_chunk:
                timing.first = timing.first or ended
            self._record(chunk, of_chunk, emissions)
        self._count(
            steps=1,
            computed_tokens=sum(chunk.rows for chunk in chunks),
            produced_tokens=len(emissions),
            finished=sum(isinstance(item, TokenDelta) and item.finish_reason is not None for _, item in emissions),
            guessed=sum(len(chunk.guesses) for chunk in chunks),
            guessed_right=sum(max(0, len(of_chunk) - 1) for of_chunk in choices),
            busy_s=time.monotonic() - started,
        )
        self._post(lambda: _deliver(emissions))

    def _compute(self, chunks: Sequences[Chunk]) -> Sequences[Sequences[Choice]]:
        """Return what a step chooses for each chunk; traced if an answer that has begun asks for that."""
        jobs = [self._jobs[id(chunk.sequence)] for chunk in chunks]
        samplers = [job.sampler for job in jobs]
        curious = [job for job in jobs if job.profile and job.timing.first]
        if not curious or time.monotonic() < self._trace_from:
            return self._runner.step(chunks, samplers)
        choices, trace = traced(lambda: self._runner.step(chunks, samplers))
        self._trace_from = time.monotonic() + TRACE_PAUSE_S
        for job in curious:
            job.profile, job.trace = False, trace
        return choices

    def _record(self, chunk: Chunk, choices: Sequences[Choice], emissions: list[Emission]) -> None:
        """Write down what a chunk gave, token by token, as far as its answer goes."""
        scheduler, sequence = self._runner.scheduler, chunk.sequence
        scheduler.computed(chunk, choices[0].token if choices else None)
        for rank, choice in enumerate(choices):
            if rank:
                scheduler.confirmed(chunk, choice.token)
            emissions.append(self._take(sequence, choice))
            if sequence.state is SequenceState.ENDED:
                return

    def _take(self, sequence: Sequence, choice: Choice) -> Emission:
        job = self._jobs[id(sequence)]
        try:
            item = job.take(choice)
        except BulkheadError as error:  # the model's tokenizer has no text for this token
            item = error
        if isinstance(item, BulkheadError) or item.finish_reason is not None:
            self._drop(job)
            if isinstance(item, TokenDelta):
                job.timing.ended = time.monotonic()
                self.metrics = self.metrics.answered(
                    job.timing,
                    prompt_tokens=sequence.prompt_tokens,
                    completion_tokens=sequence.completion_tokens,
                    stopped=item.finish_reason is FinishReason.STOP,
                )
        return job.stream, item

    def _count(self, *, busy_s: float = 0.0, **more: int) -> None:
        """Add to the totals, and take down how things stand."""
        old, scheduler, pool = self.metrics.counters, self._runner.scheduler, self._runner.pool
        counters = replace(
            old,
            **{name: getattr(old, name) + count for name, count in more.items()},
            busy_s=old.busy_s + busy_s,
            preemptions=scheduler.preemptions,
            queried_tokens=scheduler.queried_tokens,
            cached_tokens=scheduler.cached_tokens,
            running=scheduler.running,
            waiting=scheduler.waiting,
        )
        self.metrics = replace(self.metrics, counters=counters, kv_use=pool.used / pool.total)

    def _post(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nobody listens any more, and the process is on its way out
            self._inbox.put(None)


def _deliver(emissions: Sequences[Emission]) -> None:
    for stream, item in emissions:
        stream.put(item)
