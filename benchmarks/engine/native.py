"""The native engine as it is measured: through its port, in this process."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from data_plane.inference.port import Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams

__all__ = ["Run", "batch", "replay"]


@dataclass(frozen=True, slots=True)
class Run:
    """One batch: seconds in all, and tokens/s of decoding while every sequence was past its prompt."""

    total_s: float
    decode_per_s: float


async def _request(
    engine: Engine, name: str, prompt: Sequence[int], new_tokens: int, *, now: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return when each token came."""
    sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    request = EngineRequest(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling)
    times: list[float] = []
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            times += [now()] * len(delta.token_ids)
    return times


async def batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int | Sequence[int],
    now: Callable[[], float] = time.perf_counter,
) -> Run:
    """Take all prompts together to ``new_tokens`` new tokens, each or one after another."""
    counts = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
    started = now()
    times = await asyncio.gather(
        *(
            _request(engine, str(index), prompt, count, now=now)
            for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
        )
    )
    ended = now()
    begun = max(item[0] for item in times)
    later = sum(moment > begun for item in times for moment in item)
    return Run(total_s=ended - started, decode_per_s=later / (ended - begun) if later else 0.0)


async def replay(engine: Engine, requests: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Send requests as they arrive; return when each one's tokens came, in seconds after its arrival."""
    started = time.perf_counter()

    async def send(index: int, request: dict[str, Any]) -> list[float]:
        due = started + request["at_s"]
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        times = await _request(engine, str(index), request["prompt"], request["new_tokens"])
        return [moment - due for moment in times]

    return list(await asyncio.gather(*(send(index, request) for index, request in enumerate(requests))))
