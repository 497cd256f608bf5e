"""The real engine on the tiny random model, and ways to ask it."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.engine import EngineConfig, open_engine
from data_plane.inference.port import ChatMessage, Engine, EngineRequest, FinishReason, TokenDelta, Usage
from data_plane.inference.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: the joined deltas."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    deltas: tuple[TokenDelta, ...]


@asynccontextmanager
async def running_engine(model: Path, **settings: Any) -> AsyncIterator[Engine]:
    """Open an engine with small memory, and close it at the end."""
    defaults: dict[str, Any] = {"threads": 1, "kv_memory_mib": 16, "block_tokens": 8, "max_running": 16}
    engine = await open_engine(EngineConfig(model_path=model, **(defaults | settings)))
    try:
        yield engine
    finally:
        await engine.aclose()


def token_request(request_id: str, tokens: tuple[int, ...], **sampling: Any) -> EngineRequest:
    """Return a request for a prompt of token ids."""
    return EngineRequest(request_id=request_id, prompt_token_ids=tokens, sampling=SamplingParams(**sampling))


def chat_request(request_id: str, content: str, **sampling: Any) -> EngineRequest:
    """Return a request for a conversation of one user turn."""
    message = ChatMessage(role="user", content=content)
    return EngineRequest(request_id=request_id, messages=(message,), sampling=SamplingParams(**sampling))


async def answer(engine: Engine, request: EngineRequest) -> Answer:
    """Take a request to its end."""
    deltas: list[TokenDelta] = []
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            deltas.append(delta)  # noqa: PERF401 - an error must leave what came before it
    last = deltas[-1]
    if last.finish_reason is None or last.usage is None:
        raise AssertionError("the stream ended without a finish reason")
    return Answer(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
        deltas=tuple(deltas),
    )
