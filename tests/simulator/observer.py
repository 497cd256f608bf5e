"""How much the shape of sealed traffic tells: an observer who learns prompts by sizes and times, and guesses them.

He sits on the wire between the SDK and a worker and reads TLS records: their headers are in the clear. He is given more
than a real one has: every request's beginning and end, a connection with nothing else on it, and traces of the very
same prompts to learn from. His guess is the prompt of the nearest trace he knows.

The worker is real but for its engine, which gives fixed English answers with the pace and jitter of a GPU's.
"""

import asyncio
import random
import re
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from bulkhead.client.link import Link
from bulkhead.ids import SESSION
from bulkhead.protocol.payloads import Delta
from bulkhead.sealing import PaddingMode
from data_plane.inference.port import EngineRequest, FinishReason, TokenDelta, Usage
from tests.simulator.relay import RecordingRelay, Seen
from tests.simulator.scripted_engine import ScriptedEngine
from tests.simulator.sealed_service import answer, link_to, serve, worker_channel
from tests.simulator.sealed_world import World

__all__ = ["Leak", "Trace", "different_lengths", "equal_lengths", "measure"]

CONNECTIONS: Final = 6  # at once, one request on each
SETTLE_S: Final = 0.02  # for what the transport still says after an answer
PREFILL_S_A_CHARACTER: Final = 0.00005
_CONTROL_BYTES: Final = 64  # records of HTTP/2's own: pings, window updates
_PLACES: Final = 48  # sizes and gaps of the first so many records
_TEXTS: Final = (
    (
        "The heart pumps blood through arteries that carry oxygen to every organ, and veins bring it back "
        "again to the lungs where carbon dioxide leaves the body with each breath that a person takes while "
        "resting or running up a long hill."
    ),
    (
        "A contract is binding once an offer has been accepted, both sides intend legal relations, and each "
        "gives something of value; without these a court will usually find that nothing was promised which "
        "anyone could be held to afterwards."
    ),
    (
        "To bake bread, mix flour, water, salt and yeast, knead it for ten minutes, let it rise until it has "
        "doubled, shape it, and put it into a very hot oven with a little steam so that the crust turns thin, "
        "brown and crisp on all sides."
    ),
    (
        "Mortgage rates rose by half a point last week; people who refinance now should compare total costs, "
        "not only monthly payments, because fees that look small at signing add up to thousands over the "
        "thirty years of an ordinary loan."
    ),
    (
        "I am so sorry that you feel this way. It is okay to be sad. If you ever think of harming yourself, "
        "please call a crisis line right away; you do not have to go through it all alone, and talking to a "
        "friend today can help too."
    ),
    (
        "In Python, use a dict to count words: for w in text.split(): n[w] = n.get(w, 0) + 1, then sort by "
        "value. A Counter does the same in one line, and its most_common(10) gives you the top ten of them "
        "without any sorting by hand at all."
    ),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and the tokens of its answer."""

    prompt: str
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Time and size of each TLS record of one exchange, either way, and what its reader waited for."""

    ask: int
    up: tuple[tuple[float, int], ...]
    down: tuple[tuple[float, int], ...]
    first_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Leak:
    """What one padding mode tells and costs.

    Attributes:
        accuracy: share of right guesses from sizes and times together.
        by_size: from the sizes of records alone.
        by_time: from their times alone.
        chance: share of right guesses of somebody who sees nothing.
        size: mean bytes of one request and its answer.
        first_s: median time to the first text.
        total_s: median time to the whole answer with its receipt.
    """

    accuracy: float
    by_size: float
    by_time: float
    chance: float
    size: float
    first_s: float
    total_s: float


def equal_lengths(*, tokens: int) -> list[Ask]:
    """Return prompts of one length whose answers have equally many tokens: only their texts differ."""
    return [Ask(f"Prompt number {number} of six.", _tokens(text)[:tokens]) for number, text in enumerate(_TEXTS)]


def different_lengths(*, tokens: int) -> list[Ask]:
    """Return prompts of 20 to 4,000 characters whose answers have from a sixth of ``tokens`` to all of them."""
    return [
        Ask(f"Prompt number {number}. " + "Think. " * (number * 110), _tokens(text)[: tokens * (number + 1) // 6])
        for number, text in enumerate(_TEXTS)
    ]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r" ?[A-Za-z]{1,6}|[^A-Za-z]", text))


class _PacedEngine(ScriptedEngine):
    """Answers each prompt with its tokens: prefill by the prompt's length, then one token at a time, with jitter."""

    def __init__(self, asks: Sequence[Ask], token_s: float) -> None:
        super().__init__()
        self._asks = tuple(asks)
        self._token_s = token_s
        self._random = random.Random(5)
        self.context_tokens = 4_096

    async def tokenize(self, request: EngineRequest) -> tuple[int, ...]:
        """Return which prompt it is, five times."""
        return (next(at for at, ask in enumerate(self._asks) if ask.prompt == request.messages[0].content),) * 5

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Follow the prompt's answer."""
        ask = self._asks[request.prompt_token_ids[0]]
        await asyncio.sleep(len(ask.prompt) * PREFILL_S_A_CHARACTER)
        for number, text in enumerate(ask.tokens):
            await asyncio.sleep(self._token_s * self._random.uniform(0.8, 1.2))
            yield TokenDelta(text=text, token_ids=(number,))
        usage = Usage(prompt_tokens=5, completion_tokens=len(ask.tokens))
        yield TokenDelta(text="", token_ids=(), finish_reason=FinishReason.STOP, usage=usage)


async def measure(
    asks: Sequence[Ask], padding: PaddingMode, *, rounds: int, token_s: float, connections: int = CONNECTIONS
) -> tuple[Leak, list[Trace]]:
    """Ask everything ``rounds`` times under one padding, in a shuffled order, and let the observer guess."""
    world = World(seed=5, now_s=int(time.time()), padding=padding)
    certificate = load_pem_x509_certificate(world.keys.tls_certificate).public_bytes(Encoding.DER)
    with tempfile.TemporaryDirectory(prefix="bh-") as scratch, RecordingRelay() as relay:
        path = Path(scratch) / "w.sock"
        relay.target = f"unix:{path}"
        server = await serve(world, _PacedEngine(asks, token_s), path)
        try:
            # Shuffled: what the machine was doing at a time must not tell which prompt's turn it was, or was not.
            order = [(number, ask) for _ in range(rounds) for number, ask in enumerate(asks)]
            random.Random(7).shuffle(order)
            turns = iter(order)
            readers = [await _reader(world, certificate, relay, asks[0]) for _ in range(connections)]
            found = await asyncio.gather(*(_read(relay, link, at, turns) for link, at in readers))
            for link, _ in readers:
                await link.channel.close()
        finally:
            await server.stop(grace_s=0)
    traces = [trace for part in found for trace in part]
    return _leak(traces, len(asks)), traces


async def _reader(world: World, certificate: bytes, relay: RecordingRelay, ask: Ask) -> tuple[Link, int]:
    """Return a session on a connection of its own, warmed up, and that connection's number."""
    world.session = world.ids(SESSION)
    link = link_to(world, world.offer(), worker_channel(world, certificate, relay.address))
    async for _ in answer(link, ask.prompt).events():
        pass
    return link, relay.connections


async def _read(relay: RecordingRelay, link: Link, connection: int, turns: Iterator[tuple[int, Ask]]) -> list[Trace]:
    traces = []
    for number, ask in turns:
        began, first = time.monotonic(), 0.0
        async for event in answer(link, ask.prompt).events():
            if isinstance(event, Delta):
                first = first or time.monotonic()
        ended = time.monotonic()
        await asyncio.sleep(SETTLE_S)
        seen = [item for item in relay.seen if item.connection == connection and item.at_s >= began]
        up, down = (_records([item for item in seen if item.upwards is way]) for way in (True, False))
        traces.append(Trace(number, up, down, first - began, ended - began))
    return traces


def _records(seen: Sequence[Seen]) -> tuple[tuple[float, int], ...]:
    """Return time and size of each TLS record that is not HTTP/2's own talk (RFC 8446 section 5.1)."""
    found: list[tuple[float, int]] = []
    buffer = b""
    for item in seen:
        buffer += item.data
        while len(buffer) >= 5 and len(buffer) >= (size := 5 + int.from_bytes(buffer[3:5], "big")):
            if size > _CONTROL_BYTES:
                found.append((item.at_s, size))
            buffer = buffer[size:]
    return tuple(found)


def _leak(traces: Sequence[Trace], asks: int) -> Leak:
    sizes, times = np.array([_sizes(trace) for trace in traces]), np.array([_times(trace) for trace in traces])
    asked = np.array([trace.ask for trace in traces])
    return Leak(
        accuracy=_guess([sizes, times], asked),
        by_size=_guess([sizes], asked),
        by_time=_guess([times], asked),
        chance=1 / asks,
        size=statistics.mean(sum(size for _, size in (*trace.up, *trace.down)) for trace in traces),
        first_s=statistics.median(trace.first_s for trace in traces),
        total_s=statistics.median(trace.total_s for trace in traces),
    )


def _sizes(trace: Trace) -> list[float]:
    up, down = [float(size) for _, size in trace.up], [float(size) for _, size in trace.down]
    return [sum(up), sum(down), float(len(down)), *_fixed(down)]


def _times(trace: Trace) -> list[float]:
    moments = [at_s for at_s, _ in trace.down] or [0.0]
    gaps = [after - before for before, after in pairwise(moments)]
    return [moments[0] - trace.up[0][0], moments[-1] - moments[0], float(len(moments)), *_fixed(gaps)]


def _fixed(values: list[float]) -> list[float]:
    return (values + [0.0] * _PLACES)[:_PLACES]


Table: TypeAlias = npt.NDArray[Any]


def _guess(views: Sequence[Table], asked: Table) -> float:
    """Return how often the nearest of the other traces is of the same prompt; totals count as much as all places."""
    distance = np.zeros((len(asked), len(asked)))
    for features in views:
        spread = features.std(axis=0)
        scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        scaled[:, 3:] /= np.sqrt(_PLACES / 3)
        distance += ((scaled[:, None, :] - scaled[None, :, :]) ** 2).sum(axis=2)
    if distance.max() == 0.0:  # nothing to tell them apart by
        return 1 / len(set(asked.tolist()))
    np.fill_diagonal(distance, np.inf)
    ties = distance <= distance.min(axis=1, keepdims=True)  # of equally near traces he picks one blindly
    right = (ties & (asked[:, None] == asked[None, :])).sum(axis=1) / ties.sum(axis=1)
    return float(right.mean())
