"""Sealed, authorised, audited serving against the same engine behind plain TLS gRPC, and in process beside both."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from benchmarks.plain_server import METHOD, SCOPE, engine_config
from benchmarks.report import Row, median, verdict
from bulkhead.client import AsyncBulkhead, AsyncSession
from data_plane.engine import open_engine
from data_plane.inference.port import ChatMessage, Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams

PROMPT: Final = "Write a long and detailed story about a lighthouse keeper, number {}."
NEW_TOKENS: Final = 64
ROUNDS: Final = 6  # each serving goes first twice
FIRST_TOKEN_ROUNDS: Final = 21
START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds to its first delta and to its end, and its tokens."""

    first_s: float
    total_s: float
    tokens: int


Ask = Callable[[str, int], Awaitable[Answer]]


async def _collect(deltas: AsyncIterator[int]) -> Answer:
    started = time.perf_counter()
    first, tokens = 0.0, 0
    async for count in deltas:
        first = first or time.perf_counter() - started
        tokens += count
    return Answer(first, time.perf_counter() - started, tokens)


def _sealed(session: AsyncSession) -> Ask:
    async def deltas(prompt: str, max_tokens: int) -> AsyncIterator[int]:
        async for delta in session.generate(prompt, max_tokens=max_tokens):
            yield delta.tokens

    return lambda prompt, max_tokens: _collect(deltas(prompt, max_tokens))


def _plain(channel: grpc.aio.Channel) -> Ask:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)

    async def deltas(prompt: str, max_tokens: int) -> AsyncIterator[int]:
        async for message in call(json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode()):
            yield json.loads(message)["tokens"]

    return lambda prompt, max_tokens: _collect(deltas(prompt, max_tokens))


def _in_process(engine: Engine) -> Ask:
    async def deltas(prompt: str, max_tokens: int) -> AsyncIterator[int]:
        request = EngineRequest(
            request_id=uuid.uuid4().hex,
            messages=(ChatMessage(role="user", content=prompt),),
            sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            scope=SCOPE,
        )
        async for delta in engine.generate(request):
            yield len(delta.token_ids)

    return lambda prompt, max_tokens: _collect(deltas(prompt, max_tokens))


@asynccontextmanager
async def _plain_server(model: Path, threads: int) -> AsyncIterator[Ask]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        server = subprocess.Popen(  # noqa: ASYNC220  starting it takes milliseconds
            [sys.executable, "-m", "benchmarks.plain_server", str(model), scratch, str(threads)],
            stdin=subprocess.PIPE,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not (directory / "port").exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the plain server did not start")
                await asyncio.sleep(0.1)
            credentials = grpc.ssl_channel_credentials((directory / "ca.pem").read_bytes())
            address = f"localhost:{(directory / 'port').read_text()}"
            async with grpc.aio.secure_channel(address, credentials) as channel:
                yield _plain(channel)
        finally:
            server.communicate()


async def _rate(ask: Ask, sequences: int, salt: int) -> float:
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(ask(PROMPT.format(salt * 1000 + number), NEW_TOKENS) for number in range(sequences))
    )
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - started)


def _in_turn(asks: dict[str, Ask], number: int) -> list[tuple[str, Ask]]:
    """Return the servings in the order of round ``number``: each goes first, second and last equally often."""
    servings = list(asks.items())
    at = number % len(servings)
    return servings[at:] + servings[:at]


async def measure(client_config: Path, model: Path, threads: int) -> list[Row]:
    """Return rows for time to first token and tokens/s at 1 and 16 sequences, the three in turn, one busy at a time."""
    engine = await open_engine(engine_config(model, threads))
    try:
        async with (
            _plain_server(model, threads) as plain,
            AsyncBulkhead.from_profile("acme", path=client_config) as client,
            client.open_session() as session,
        ):
            asks = {"sealed": _sealed(session), "plain": plain, "in process": _in_process(engine)}
            for ask in asks.values():
                await ask(PROMPT.format(0), 4)
            return [await _first_token(asks), await _throughput(asks, 1), await _throughput(asks, 16)]
    finally:
        await engine.aclose()


async def _first_token(asks: dict[str, Ask]) -> Row:
    first_ms: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(FIRST_TOKEN_ROUNDS):
        for name, ask in _in_turn(asks, number):
            first_ms[name].append((await ask(PROMPT.format(number), 2)).first_s * 1e3)
    sealed, plain, bare = (median(first_ms[name]) for name in ("sealed", "plain", "in process"))
    added = median([s - p for s, p in zip(first_ms["sealed"], first_ms["plain"], strict=True)])
    return Row(
        "time to first token in an open session, ms",
        f"{sealed:.1f}; {added:+.1f} against plain TLS gRPC, {sealed - bare:+.1f} against the engine in process",
        f"plain TLS gRPC {plain:.1f}; engine in process {bare:.1f}",
        "<= 3 ms added to plain TLS gRPC",
        verdict(met=added <= 3.0),
    )


async def _throughput(asks: dict[str, Ask], sequences: int) -> Row:
    rates: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(ROUNDS):
        for name, ask in _in_turn(asks, number):
            rates[name].append(await _rate(ask, sequences, number))
    sealed, plain, bare = (median(rates[name]) for name in ("sealed", "plain", "in process"))
    ratio = median([s / p for s, p in zip(rates["sealed"], rates["plain"], strict=True)])
    return Row(
        f"tokens/s end to end, {sequences} sequence{'s' if sequences > 1 else ''}, {NEW_TOKENS} new tokens",
        f"{sealed:.1f}; {ratio:.3f} of plain TLS gRPC, {sealed / bare:.3f} of the engine in process",
        f"plain TLS gRPC {plain:.1f}; engine in process {bare:.1f}",
        ">= 0.97 of plain TLS gRPC",
        verdict(met=ratio >= 0.97),
    )
