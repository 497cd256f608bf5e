"""An engine whose answers a test dictates: for faults that a real model does not have on demand."""

import asyncio
from collections.abc import AsyncGenerator

from bulkhead.errors import UnsupportedError
from data_plane.inference.metrics import EngineCounters, EngineMetrics
from data_plane.inference.port import (
    Embedding,
    EmbedRequest,
    EngineRequest,
    EngineState,
    FinishReason,
    ModelDescription,
    TokenDelta,
    Usage,
)
from data_plane.inference.sampling_params import SamplingParams


class ScriptedEngine:
    """Gives the texts of ``script``, one token each, or deltas; waits for its events, raises its exceptions.

    Attributes:
        script: texts, deltas, events to wait for, exceptions to raise.
        requests: what was asked, in order.
        counted: whose prompts were counted, in order.
        defaults: the model's.
        count_s: how long counting takes.
        closed: how many streams were closed before their end.
    """

    def __init__(self, *script: str | TokenDelta | asyncio.Event | Exception) -> None:
        self.script = script
        self.requests: list[EngineRequest] = []
        self.counted: list[EngineRequest] = []
        self.defaults = SamplingParams(temperature=1.0)
        self.count_s = 0.0
        self.closed = 0
        self.state = EngineState.SERVING
        self.context_tokens = 100

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Follow the script."""
        self.requests.append(request)
        count = 0
        try:
            for item in self.script:
                if isinstance(item, asyncio.Event):
                    await item.wait()
                elif isinstance(item, Exception):
                    raise item
                elif isinstance(item, TokenDelta):
                    count += len(item.token_ids)
                    yield item
                else:
                    count += 1
                    yield TokenDelta(text=item, token_ids=(count,))
            usage = Usage(prompt_tokens=5, completion_tokens=count)
            yield TokenDelta(text="", token_ids=(), finish_reason=FinishReason.STOP, usage=usage)
        except (asyncio.CancelledError, GeneratorExit):
            self.closed += 1
            raise

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Refuse: this is no encoder."""
        raise UnsupportedError(f"{request.request_id}: the model served is not an embedding model")

    async def tokenize(self, request: EngineRequest) -> tuple[int, ...]:
        """Return 5 tokens, always."""
        self.counted.append(request)
        await asyncio.sleep(self.count_s)
        return (1,) * 5 if request.messages else request.prompt_token_ids

    def describe(self) -> ModelDescription:
        """Describe nothing in particular."""
        return ModelDescription(
            name="scripted",
            architecture="None",
            context_tokens=self.context_tokens,
            vocabulary=1,
            weight_bytes=0,
            compute="fp32",
            weights="fp32",
            defaults=self.defaults,
        )

    def health(self) -> EngineState:
        """Return the state that the test set."""
        return self.state

    def metrics(self) -> EngineMetrics:
        """Count the requests only."""
        return EngineMetrics(counters=EngineCounters(steps=len(self.requests), finished=len(self.requests)))

    async def drain(self, *, timeout_s: float) -> bool:
        """Have nothing to finish."""
        return timeout_s >= 0

    async def aclose(self) -> None:
        """Close."""
        self.state = EngineState.CLOSED
