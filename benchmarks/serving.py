"""Sealed, authorised, audited serving against the same engine behind plain TLS gRPC, and in process beside both.

Beside the rates stands the CPU besides the engines' own threads, which repeats on a busy machine where rates do not.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from benchmarks.cpu import CpuMeter, children_of
from benchmarks.plain_server import METHOD, SCOPE, engine_config
from benchmarks.report import Row, median, verdict
from bulkhead.client import AsyncBulkhead, AsyncSession
from data_plane.engine import open_engine
from data_plane.inference.port import ChatMessage, Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams

PROMPT: Final = "Write a long and detailed story about a lighthouse keeper, number {}."
NEW_TOKENS: Final = 64
ROUNDS: Final = 6  # each serving comes at each place twice, and after each other one equally often
FIRST_TOKEN_ROUNDS: Final = 24
PAUSE_S: Final = 0.3  # threads of the engine that served last spin a while after their last work
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
async def _plain_server(model: Path, threads: int) -> AsyncIterator[tuple[Ask, int]]:
    """Start the peer; yield what asks it, and its process."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        server = subprocess.Popen(  # noqa: ASYNC220  starting it takes milliseconds
            [sys.executable, "-m", "benchmarks.plain_server", str(model), scratch, str(threads)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # as a worker's: Linux shares cores out by session first (sched(7), autogroups)
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
                yield _plain(channel), server.pid
        finally:
            server.communicate()


async def _rate(ask: Ask, sequences: int, salt: int) -> float:
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(ask(PROMPT.format(salt * 1000 + number), NEW_TOKENS) for number in range(sequences))
    )
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - started)


def _in_turn(asks: dict[str, Ask], number: int) -> list[tuple[str, Ask]]:
    """Return the servings in the order of round ``number``; each possible order comes equally often."""
    orders = list(itertools.permutations(asks.items()))
    return list(orders[number % len(orders)])


def _meters(*, agent: int, plain: int, threads: int) -> dict[str, dict[str, CpuMeter]]:
    """Return what measures the processes on each serving's way, by serving and name."""
    (worker,) = children_of(agent)
    return {
        "sealed": {
            "client": CpuMeter(os.getpid()),
            "tray's agent": CpuMeter(agent),
            "worker": CpuMeter(worker, engine_threads=threads),
        },
        "plain": {"client": CpuMeter(os.getpid()), "server": CpuMeter(plain, engine_threads=threads)},
    }


async def measure(
    client_config: Path, model: Path, threads: int, *, agent: int, tell: Callable[[Row], None]
) -> list[Row]:
    """Return rows for time to first token and tokens/s at 1 and 16 sequences, the three in turn, one busy at a time.

    Args:
        client_config: profiles of a running platform with one tray.
        model: directory of the model that it serves.
        threads: of each engine.
        agent: process of the tray's agent.
        tell: told of each row as it comes, for a run may be cut short.
    """
    engine = await open_engine(engine_config(model, threads))
    try:
        async with (
            _plain_server(model, threads) as (plain, plain_pid),
            AsyncBulkhead.from_profile("acme", path=client_config) as client,
            client.open_session() as session,
        ):
            asks = {"sealed": _sealed(session), "plain": plain, "in process": _in_process(engine)}
            for ask in asks.values():
                await ask(PROMPT.format(0), 4)
            meters = _meters(agent=agent, plain=plain_pid, threads=threads)
            rows: list[Row] = []
            for part in (_throughput(asks, 16, meters), _throughput(asks, 1, meters), _first_token(asks)):
                for row in await part:
                    tell(row)
                    rows.append(row)
            return rows
    finally:
        await engine.aclose()


async def _first_token(asks: dict[str, Ask]) -> tuple[Row, ...]:
    first_ms: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(FIRST_TOKEN_ROUNDS):
        for name, ask in _in_turn(asks, number):
            await asyncio.sleep(PAUSE_S)
            first_ms[name].append((await ask(PROMPT.format(number), 2)).first_s * 1e3)
    sealed, plain, bare = (median(first_ms[name]) for name in ("sealed", "plain", "in process"))
    added = median([s - p for s, p in zip(first_ms["sealed"], first_ms["plain"], strict=True)])
    row = Row(
        "time to first token in an open session, ms",
        f"{sealed:.1f}; {added:+.1f} against plain TLS gRPC, {sealed - bare:+.1f} against the engine in process",
        f"plain TLS gRPC {plain:.1f}; engine in process {bare:.1f}",
        "<= 3 ms added to plain TLS gRPC",
        verdict(met=added <= 3.0),
    )
    return (row,)


async def _throughput(
    asks: dict[str, Ask], sequences: int, meters: Mapping[str, Mapping[str, CpuMeter]]
) -> tuple[Row, ...]:
    rates: dict[str, list[float]] = {name: [] for name in asks}
    spent_us: dict[str, dict[str, list[float]]] = {
        name: {process: [] for process in of_serving} for name, of_serving in meters.items()
    }
    for number in range(ROUNDS):
        for name, ask in _in_turn(asks, number):
            await asyncio.sleep(PAUSE_S)
            running = meters.get(name, {})
            for meter in running.values():
                meter.start()
            rates[name].append(await _rate(ask, sequences, number))
            for process, meter in running.items():
                spent_us[name][process].append(meter.stop().besides_s / (sequences * NEW_TOKENS) * 1e6)
    sealed, plain, bare = (median(rates[name]) for name in ("sealed", "plain", "in process"))
    ratios = sorted(s / p for s, p in zip(rates["sealed"], rates["plain"], strict=True))
    ratio = median(ratios)
    what = f"{sequences} sequence{'s' if sequences > 1 else ''}, {NEW_TOKENS} new tokens"
    return Row(
        f"tokens/s end to end, {what}",
        f"{sealed:.1f}; {ratio:.3f} of plain TLS gRPC ({ratios[0]:.3f} to {ratios[-1]:.3f} over {ROUNDS} rounds), "
        f"{sealed / bare:.3f} of the engine in process",
        f"plain TLS gRPC {plain:.1f}; engine in process {bare:.1f}",
        ">= 0.97 of plain TLS gRPC",
        verdict(met=ratio >= 0.97),
    ), Row(
        f"CPU besides the engine's threads, µs a token, {what}",
        _by_process(spent_us["sealed"]),
        f"plain TLS gRPC {_by_process(spent_us['plain'])}",
    )


def _by_process(spent_us: Mapping[str, list[float]]) -> str:
    medians = {process: median(values) for process, values in spent_us.items()}
    parts = ", ".join(f"{process} {value:.0f}" for process, value in medians.items())
    return f"{sum(medians.values()):.0f} ({parts})"
