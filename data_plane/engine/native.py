"""The native engine behind the port: checks requests, tokenises them, and streams what the engine's thread produces."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from bulkhead.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    UnsupportedError,
)
from data_plane.engine.config import EngineConfig
from data_plane.engine.port import (
    ChatMessage,
    Embedding,
    EmbedRequest,
    EngineCounters,
    EngineHealth,
    EngineRequest,
    EngineState,
    ModelDescription,
    TokenDelta,
)
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sequence import Sequence
from data_plane.engine.stepper import Job, Stepper
from data_plane.engine.stream import DeltaStream
from data_plane.engine.tokenizer import Tokenizer

__all__ = ["NativeEngine"]

_Result = TypeVar("_Result")
_FAILURE = "the engine failed and has stopped; its log has the details"


class NativeEngine:
    """Implements :class:`data_plane.engine.port.Engine` with torch; made by :meth:`open`."""

    def __init__(
        self, *, config: EngineConfig, runner: ModelRunner, tokenizer: Tokenizer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._description = runner.description
        self._tokenizer = tokenizer
        self._loop = loop
        self._limit = config.max_running + config.max_waiting
        self._kv_blocks = runner.pool.total
        self._state = EngineState.SERVING
        self._streams: dict[str, DeltaStream] = {}  # by request id
        self._ended = asyncio.Event()
        self._text = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-text")
        self._stepper = Stepper(runner=runner, threads=config.threads, loop=loop, on_failure=self._failed)
        self._stepper.start()

    @classmethod
    def open(cls, *, config: EngineConfig, loop: asyncio.AbstractEventLoop) -> Self:
        """Load the model and start. Blocks for seconds; raises as :func:`data_plane.engine.open_engine`."""
        with config.open_model() as source:
            runner = ModelRunner(config, source)
            description = runner.description
            tokenizer = Tokenizer(
                source=source, vocabulary=description.vocabulary, context_tokens=description.context_tokens
            )
        return cls(config=config, runner=runner, tokenizer=tokenizer, loop=loop)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """See :meth:`data_plane.engine.port.Engine.generate`."""
        stream = self._admit(request.request_id)
        job: Job | None = None
        try:
            prompt = await self._prompt(request)
            self._check_serving()
            job = Job(
                sequence=self._sequence(request, prompt),
                params=request.sampling,
                decode=self._tokenizer.decode,
                stream=stream,
            )
            self._stepper.submit(job)
            while True:
                delta = await stream.take()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            if job is not None:
                self._stepper.cancel(job)
            del self._streams[request.request_id]
            self._ended.set()

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Refuse: the native engine runs decoders, which are not embedding models."""
        raise UnsupportedError(
            f"{self._description.name} generates text: {request.request_id} needs an embedding model"
        )

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """See :meth:`data_plane.engine.port.Engine.tokenize`."""
        return tuple(await self._off_loop(lambda: self._tokenizer.encode(text)))

    async def count_tokens(self, messages: tuple[ChatMessage, ...]) -> int:
        """See :meth:`data_plane.engine.port.Engine.count_tokens`."""
        return len(await self._off_loop(lambda: self._tokenizer.encode_chat(messages)))

    def describe(self) -> ModelDescription:
        """See :meth:`data_plane.engine.port.Engine.describe`."""
        return self._description

    def health(self) -> EngineHealth:
        """See :meth:`data_plane.engine.port.Engine.health`."""
        counters = self._stepper.counters
        return EngineHealth(
            state=self._state,
            running=counters.running,
            waiting=counters.waiting,
            kv_blocks_used=counters.kv_blocks_used,
            kv_blocks_total=self._kv_blocks,
            steps=counters.steps,
        )

    def counters(self) -> EngineCounters:
        """See :meth:`data_plane.engine.port.Engine.counters`."""
        return self._stepper.counters

    async def drain(self, *, timeout_s: float) -> bool:
        """See :meth:`data_plane.engine.port.Engine.drain`."""
        if self._state is EngineState.SERVING:
            self._state = EngineState.DRAINING
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self._ended.clear()
                    await self._ended.wait()
        return not self._streams

    async def aclose(self) -> None:
        """See :meth:`data_plane.engine.port.Engine.aclose`."""
        if self._state is EngineState.CLOSED:
            return
        self._state = EngineState.CLOSED
        for stream in self._streams.values():
            stream.put(ShuttingDownError("the engine is closing"))
        await asyncio.to_thread(self._stepper.stop)
        self._text.shutdown(wait=False, cancel_futures=True)

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

    def _admit(self, request_id: str) -> DeltaStream:
        """Take a place for the request before any work is done for it."""
        self._check_serving()
        if request_id in self._streams:
            raise InvalidRequestError("a request of that id is in flight")
        if len(self._streams) >= self._limit:
            raise QueueFullError(f"{self._limit} requests are in flight, and more are not queued: try again later")
        stream = self._streams[request_id] = DeltaStream()
        return stream

    async def _prompt(self, request: EngineRequest) -> list[int]:
        if request.messages:
            return await self._off_loop(lambda: self._tokenizer.encode_chat(request.messages))
        if not all(0 <= token < self._description.vocabulary for token in request.prompt_token_ids):
            raise InvalidRequestError(f"a prompt token id is not between 0 and {self._description.vocabulary - 1}")
        return list(request.prompt_token_ids)

    def _sequence(self, request: EngineRequest, prompt: list[int]) -> Sequence:
        context, wanted = self._description.context_tokens, request.sampling.max_tokens
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens")
        if len(prompt) + (wanted or 1) > context:
            asked = f" and max_tokens of {wanted}" if wanted else ""
            raise ContextLengthError(
                f"a prompt of {len(prompt)} tokens{asked} does not fit the context of {context} tokens",
                details={
                    "prompt_tokens": str(len(prompt)),
                    "max_tokens": str(wanted or ""),
                    "context_tokens": str(context),
                },
            )
        return Sequence(
            request_id=request.request_id,
            tokens=prompt,
            prompt_tokens=len(prompt),
            max_tokens=wanted or context - len(prompt),
            scope=request.scope,
        )

    async def _off_loop(self, call: Callable[[], _Result]) -> _Result:
        if self._state is EngineState.CLOSED:
            raise ShuttingDownError("the engine is closed")
        return await self._loop.run_in_executor(self._text, call)
