"""The native engine behind the port: checks requests, tokenises them, and streams what the engine's thread produces."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Self

from bulkhead.errors import (
    DeadlineError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    UnsupportedError,
)
from data_plane.engine.config import EngineConfig
from data_plane.engine.intake import Intake
from data_plane.engine.job import Job
from data_plane.engine.memory import returning_what_is_freed
from data_plane.engine.runner import ModelRunner
from data_plane.engine.stepper import Stepper
from data_plane.engine.stream import DeltaStream
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.metrics import EngineMetrics
from data_plane.inference.port import (
    Embedding,
    EmbedRequest,
    EngineRequest,
    EngineState,
    ModelDescription,
    TokenDelta,
)

__all__ = ["NativeEngine"]

_FAILURE = "the engine failed and has stopped; its log has the details"


class NativeEngine:
    """Implements :class:`data_plane.inference.port.Engine` with torch; made by :meth:`open`."""

    def __init__(self, *, config: EngineConfig, stepper: Stepper, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self._description = runner.description
        self._limit = config.max_running + config.max_waiting
        self._answers = 0  # in flight, which is what memory and places are for
        self._state = EngineState.SERVING
        self._streams: dict[str, DeltaStream] = {}  # by request id
        self._ended = asyncio.Event()
        self._intake = Intake(
            tokenizer=tokenizer,
            model=self._description,
            end_tokens=runner.spec.end_tokens,
            forms_at_load=config.forms_at_load,
        )
        self._stepper = stepper
        stepper.on_failure = self._failed

    @classmethod
    def open(cls, *, config: EngineConfig, loop: asyncio.AbstractEventLoop) -> Self:
        """Load the model and start. Blocks for seconds; raises as :func:`data_plane.engine.open_engine`."""
        with config.open_model() as source, returning_what_is_freed():
            stepper = Stepper(load=lambda: ModelRunner(config, source), threads=config.threads, loop=loop)
            runner = stepper.start()
            try:
                description = runner.description
                tokenizer = Tokenizer(
                    source=source, vocabulary=description.vocabulary, context_tokens=description.context_tokens
                )
                return cls(config=config, stepper=stepper, runner=runner, tokenizer=tokenizer)
            except BaseException:
                stepper.stop()
                raise

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """See :meth:`data_plane.inference.port.Engine.generate`."""
        answers = request.sampling.n
        stream = self._admit(request.request_id, answers)
        jobs: list[Job] = []
        timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        over_s = None if request.timeout_s is None else loop.time() + request.timeout_s
        try:
            try:
                async with asyncio.timeout_at(over_s):
                    jobs = await self._intake.jobs(request, stream)
                    echo = await self._intake.prompt_text(jobs[0]) if request.sampling.echo else ""
            except TimeoutError as error:
                raise _late(request) from error
            self._check_serving()
            for job in jobs:
                self._stepper.submit(job)
            if over_s is not None:
                timer = loop.call_at(over_s, self._expire, request, stream, jobs)
            if request.sampling.echo:
                for job in jobs:
                    yield TokenDelta(text=echo, token_ids=(), index=job.index)
            tally = _Tally(answers)
            while tally.open:
                yield tally.of_request(await stream.take())
        finally:
            if timer is not None:
                timer.cancel()
            for job in jobs:
                self._stepper.cancel(job)
            del self._streams[request.request_id]
            self._answers -= answers
            self._ended.set()

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Refuse: the native engine runs decoders, which are not embedding models."""
        raise UnsupportedError(
            f"{self._description.name} generates text: {request.request_id} needs an embedding model"
        )

    async def tokenize(self, request: EngineRequest) -> tuple[int, ...]:
        """See :meth:`data_plane.inference.port.Engine.tokenize`."""
        return tuple(await self._intake.tokenize(request))

    def describe(self) -> ModelDescription:
        """See :meth:`data_plane.inference.port.Engine.describe`."""
        return self._description

    def metrics(self) -> EngineMetrics:
        """See :meth:`data_plane.inference.port.Engine.metrics`."""
        return self._stepper.metrics

    def health(self) -> EngineState:
        """See :meth:`data_plane.inference.port.Engine.health`."""
        return self._state

    async def drain(self, *, timeout_s: float) -> bool:
        """See :meth:`data_plane.inference.port.Engine.drain`."""
        if self._state is EngineState.SERVING:
            self._state = EngineState.DRAINING
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self._ended.clear()
                    await self._ended.wait()
        return not self._streams

    async def aclose(self) -> None:
        """See :meth:`data_plane.inference.port.Engine.aclose`."""
        if self._state is EngineState.CLOSED:
            return
        self._state = EngineState.CLOSED
        for stream in self._streams.values():
            stream.put(ShuttingDownError("the engine is closing"))
        await asyncio.to_thread(self._stepper.stop)
        self._intake.close()

    def _expire(self, request: EngineRequest, stream: DeltaStream, jobs: list[Job]) -> None:
        for job in jobs:
            self._stepper.cancel(job, expired=True)
        stream.put(_late(request))

    def _failed(self) -> None:
        if self._state is not EngineState.CLOSED:
            self._state = EngineState.FAILED
        for stream in self._streams.values():
            stream.put(InternalError(_FAILURE))

    def _check_serving(self) -> None:
        if self._state is EngineState.FAILED:
            raise InternalError(_FAILURE)
        if self._state is not EngineState.SERVING:
            raise ShuttingDownError("the engine takes no new requests")

    def _admit(self, request_id: str, answers: int) -> DeltaStream:
        """Take places for the answers to a request before any work is done for it."""
        self._check_serving()
        if request_id in self._streams:
            raise InvalidRequestError("a request of that id is in flight")
        if answers > self._limit:
            raise InvalidRequestError(f"n is at most {self._limit} here: so many answers are held at once")
        if self._answers + answers > self._limit:
            raise QueueFullError(f"{self._answers} answers are in flight of at most {self._limit}: try again later")
        self._answers += answers
        stream = self._streams[request_id] = DeltaStream()
        return stream


class _Tally:
    """Makes one usage of those of a request's answers."""

    def __init__(self, answers: int) -> None:
        self.open = answers
        self._completed = 0
        self._cached = 0

    def of_request(self, delta: TokenDelta) -> TokenDelta:
        """Return a delta with the usage of the whole request where the last answer ends, else with none."""
        if delta.usage is None:
            return delta
        self.open -= 1
        self._completed += delta.usage.completion_tokens
        if delta.index == 0:  # what the prompt found: the others find what this one left as well
            self._cached = delta.usage.cached_tokens
        whole = replace(delta.usage, completion_tokens=self._completed, cached_tokens=self._cached)
        return replace(delta, usage=None if self.open else whole)


def _late(request: EngineRequest) -> DeadlineError:
    return DeadlineError(f"the request was not done within {request.timeout_s:g} s")
