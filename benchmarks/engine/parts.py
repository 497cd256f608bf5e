"""The parts of the engine's benchmark; each returns rows for the table."""

import asyncio
import csv
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.engine import native
from benchmarks.engine.limits import Limits
from benchmarks.engine.line_process import CLOCKS
from benchmarks.engine.vllm_peer import VllmPeer
from benchmarks.report import Row, median, percentile, verdict
from data_plane.engine import EngineConfig, open_engine
from data_plane.engine.config import WeightFormat
from data_plane.inference.port import Engine

__all__ = ["Setting", "context", "memory", "replay", "speed", "start"]

PROMPT, NEW = 32, 64
GOALS: Final = {1: 1.5, 16: 2.0, 64: 2.3}  # of vLLM
LIMIT_GOALS: Final = {16: 0.70, 64: 0.75}  # of the products alone
CONTEXT_REPEATS: Final = 3  # of half a minute each
REPLAYS: Final = 2  # of a minute and a half each, in turns with vLLM
PAUSE_S: Final = 0.3  # threads of the other process spin a while after their last work


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all parts share; ``vllm`` is its Python, None without the peer, and computes in ``peer_type``.

    ``clock`` is one of :data:`.line_process.CLOCKS`.
    """

    model: Path
    threads: int
    repeats: int
    vllm: Path | None
    peer_type: str = "float32"
    clock: str = "wall"

    @property
    def per(self) -> str:
        """What rates are given per."""
        return "s" if self.clock == "wall" else "CPU second"

    @contextmanager
    def peer(self) -> Iterator[VllmPeer | None]:
        """Run vLLM, if it is wanted."""
        if self.vllm is None:
            yield None
            return
        with VllmPeer(
            python=self.vllm, model=self.model, threads=self.threads, dtype=self.peer_type, clock=self.clock
        ) as peer:
            yield peer

    def limits(self, weights: WeightFormat, *, running: int) -> Limits:
        """Start the process that measures the limits of an engine for ``running`` sequences."""
        return Limits(model=self.model, threads=self.threads, weights=weights, running=running, clock=self.clock)

    @asynccontextmanager
    async def engine(self, weights: WeightFormat = "fp32", **options: Any) -> AsyncIterator[Engine]:
        """Open the native engine."""
        config = EngineConfig(
            model_path=self.model, threads=self.threads, weights=weights, **({"step_tokens": 2048} | options)
        )
        engine = await open_engine(config)
        try:
            yield engine
        finally:
            await engine.aclose()


def prompts(count: int, length: int, *, seed: int) -> list[list[int]]:
    """Return random prompts: tokens that are no special ones."""
    source = random.Random(seed)
    return [[source.randrange(100, 49_000) for _ in range(length)] for _ in range(count)]


def _shown(row: Row) -> Row:
    """Print a row as soon as it is measured: a run that is cut off has shown what it had."""
    print(f"[bench] {row.what}: {row.measured} | {row.peer} | {row.verdict}", file=sys.stderr, flush=True)
    return row


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


async def speed(setting: Setting, counts: Sequence[int], formats: Sequence[WeightFormat]) -> list[Row]:
    """Tokens/s at several counts of sequences, interleaved with vLLM and with the limit of the products."""
    rows: list[Row] = []
    with setting.peer() as peer:
        for weights in formats:
            for count in counts:
                with setting.limits(weights, running=count) as limits:
                    async with setting.engine(weights, max_running=count) as engine:
                        await native.batch(engine, prompts(2, PROMPT, seed=0), new_tokens=4)
                        rows += await _speed_of(setting, engine, limits, peer, count, weights)
    return rows


async def _speed_of(  # noqa: PLR0917 - the loop's body
    setting: Setting, engine: Engine, limits: Limits, peer: VllmPeer | None, count: int, weights: WeightFormat
) -> list[Row]:
    own, theirs, decode, limit = [], [], [], []
    for repeat in range(setting.repeats):
        work = prompts(count, PROMPT, seed=repeat)
        limit.append(count / await asyncio.to_thread(limits.step_s, count))
        await asyncio.sleep(PAUSE_S)
        run = await native.batch(engine, work, new_tokens=NEW, now=CLOCKS[setting.clock])
        own.append(count * NEW / run.total_s)
        decode.append(run.decode_per_s)
        await asyncio.sleep(PAUSE_S)
        if peer is not None:
            theirs.append(count * NEW / await asyncio.to_thread(peer.batch, work, new_tokens=NEW))
            await asyncio.sleep(PAUSE_S)
    goal = None
    if setting.peer_type == "float32":
        goal = 2.5 if weights == "bf16" and count == 1 else GOALS.get(count) if weights == "fp32" else None
    what = f"{count} sequence{'s' * (count > 1)}, {weights} weights"
    rows = []
    if theirs:
        ratio = median([mine / other for mine, other in zip(own, theirs, strict=True)])
        rows.append(
            Row(
                what=f"tokens/{setting.per}, {what}, prompts of {PROMPT}, {NEW} new tokens",
                measured=f"{_spread(own)}; {ratio:.2f} of vLLM",
                peer=f"vLLM {setting.peer_type} {_spread(theirs)}",
                goal="" if goal is None else f">= {goal} of vLLM",
                verdict="" if goal is None else verdict(met=ratio >= goal),
            )
        )
    share = median([mine / most for mine, most in zip(decode, limit, strict=True)])
    least = LIMIT_GOALS.get(count) if weights == "fp32" else None
    rows.append(
        Row(
            what=f"decode tokens/{setting.per}, {what}, mean context {PROMPT + NEW // 2}",
            measured=f"{_spread(decode)}; {share:.2f} of the limit",
            peer=f"this model's products alone {_spread(limit)}",
            goal="" if least is None else f">= {least:.2f} of the limit",
            verdict="" if least is None else verdict(met=share >= least),
        )
    )
    return [_shown(row) for row in rows]


async def context(setting: Setting, count: int = 16, length: int = 1024) -> list[Row]:
    """Decoding at a mean context of ``length`` against products and contiguous attention; rate of long prompts.

    Prompts begin one after another, so the sooner a sequence begins the more tokens it gets: all decode side by side
    from the last one's first token on, ``new_tokens`` each, around ``length``.
    """
    new_tokens, now = 16, CLOCKS[setting.clock]
    decode, limit, prefill, theirs = [], [], [], []
    with setting.peer() as peer, setting.limits("fp32", running=count) as limits:
        async with setting.engine(step_tokens=1024, kv_memory_mib=2048, max_running=count) as engine:
            await native.batch(engine, prompts(2, PROMPT, seed=0), new_tokens=4)
            for repeat in range(min(setting.repeats, CONTEXT_REPEATS)):
                work = prompts(count, length - new_tokens // 2, seed=repeat)
                ahead = range(count - 1, -1, -1)
                work = [prompt[: len(prompt) - more] for prompt, more in zip(work, ahead, strict=True)]
                limit.append(count / await asyncio.to_thread(limits.step_s, count, context=length))
                await asyncio.sleep(PAUSE_S)
                run = await native.batch(engine, work, new_tokens=[new_tokens + more for more in ahead], now=now)
                decode.append(run.decode_per_s)
                alone = prompts(1, length, seed=repeat + 100)
                prefill.append(length / (await native.batch(engine, alone, new_tokens=1, now=now)).total_s)
                await asyncio.sleep(PAUSE_S)
                if peer is not None:
                    theirs.append(length / await asyncio.to_thread(peer.batch, alone, new_tokens=1))
                    await asyncio.sleep(PAUSE_S)
    share = median([mine / most for mine, most in zip(decode, limit, strict=True)])
    rows = [
        Row(
            what=f"decode tokens/{setting.per}, {count} sequences, fp32, mean context {length}",
            measured=f"{_spread(decode)}; {share:.2f} of the limit",
            peer=f"products and contiguous attention {_spread(limit)}",
            goal=">= 0.75 of the limit",
            verdict=verdict(met=share >= 0.75),
        ),
        Row(
            what=f"prefill tokens/{setting.per}, one prompt of {length} tokens, fp32",
            measured=_spread(prefill),
            peer=f"vLLM {setting.peer_type} {_spread(theirs)}" if theirs else "",
        ),
    ]
    return [_shown(row) for row in rows]


def slice_of_trace(path: Path, *, skip: int, count: int, stretch: float) -> list[dict[str, Any]]:
    """Return ``count`` requests of a trace: arrivals ``stretch`` times as far apart, lengths cut to 1,024 and 64."""
    with path.open(newline="") as stream:
        taken = list(csv.DictReader(stream))[skip : skip + count]
    begun = datetime.fromisoformat(taken[0]["TIMESTAMP"][:26])
    source = random.Random(3)
    return [
        {
            "at_s": (datetime.fromisoformat(line["TIMESTAMP"][:26]) - begun).total_seconds() * stretch,
            "prompt": [source.randrange(100, 49_000) for _ in range(min(1024, max(1, int(line["ContextTokens"]))))],
            "new_tokens": min(64, max(2, int(line["GeneratedTokens"]))),
        }
        for line in taken
    ]


async def replay(setting: Setting, trace: Path, *, count: int, stretch: float) -> list[Row]:
    """Open-loop replay of a slice of a trace: what a user waits for the first token, and for each further one."""
    requests = slice_of_trace(trace, skip=100, count=count, stretch=stretch)
    own: list[list[float]] = []
    theirs: list[list[float]] = []
    with setting.peer() as peer:
        async with setting.engine(step_tokens=512, kv_memory_mib=2048) as engine:
            await native.batch(engine, prompts(2, PROMPT, seed=0), new_tokens=4)
            if peer is not None:
                peer.batch(prompts(2, PROMPT, seed=0), new_tokens=4)
            for _ in range(min(setting.repeats, REPLAYS)):
                own += await native.replay(engine, requests)
                await asyncio.sleep(PAUSE_S)
                if peer is not None:
                    theirs += await asyncio.to_thread(peer.replay, requests)
                    await asyncio.sleep(PAUSE_S)
    span, tokens = requests[-1]["at_s"], sum(len(item["prompt"]) for item in requests) / count
    work = f"open-loop replay of {count} requests of {trace.stem} in {span:.0f} s (mean prompt {tokens:.0f})"
    return [
        _shown(
            Row(
                what=f"{what}, {work}",
                measured=_percentiles(figure(own)),
                peer=f"vLLM {_percentiles(figure(theirs))}" if theirs else "",
            )
        )
        for what, figure in (
            ("time to first token", _first),
            ("time per output token", _per_token),
            ("longest wait for a further token", _longest),
        )
    ]


def _percentiles(seconds: list[float]) -> str:
    return f"p50 {percentile(seconds, 50) * 1e3:.0f} ms, p99 {percentile(seconds, 99) * 1e3:.0f} ms"


def _first(times: list[list[float]]) -> list[float]:
    return [item[0] for item in times]


def _per_token(times: list[list[float]]) -> list[float]:
    return [(item[-1] - item[0]) / (len(item) - 1) for item in times if len(item) > 1]


def _longest(times: list[list[float]]) -> list[float]:
    return [max(later - sooner for sooner, later in pairwise(item)) for item in times if len(item) > 1]


def start(setting: Setting) -> list[Row]:
    """Time of starting, in a process of its own; the median of some."""
    runs = [_probe(setting, 0) for _ in range(setting.repeats)]
    run = sorted(runs, key=lambda item: item["import_s"] + item["load_s"])[len(runs) // 2]
    return [
        Row(
            what="start to the first token",
            measured=f"{run['import_s'] + run['load_s'] + run['first_token_s']:.2f} s: import {run['import_s']:.2f} s "
            f"(torch {run['torch_s']:.2f} s), load {run['load_s']:.2f} s, first token {run['first_token_s']:.2f} s",
        )
    ]


def memory(setting: Setting, requests: int) -> list[Row]:
    """Memory of starting, and growth over many requests, in a process of its own."""
    run = _probe(setting, requests)
    mib = 2**20
    peak = (run["load_peak"] - run["import_rss"]) / run["weights"]
    rows = [
        Row(
            what="peak resident size at load, above the import",
            measured=f"{(run['load_peak'] - run['import_rss']) / mib:.0f} MiB: {peak:.2f} of weights and token table "
            f"({run['weights'] / mib:.0f} MiB); import {run['import_rss'] / mib:.0f} MiB",
            goal="<= 1.15",
            verdict=verdict(met=peak <= 1.15),
        ),
    ]
    if requests:
        resident = run["resident"]
        settled = resident[max(1, len(resident) // 10) :]  # the first tenth fills the allocator's pools
        growth = (settled[-1] - settled[0]) / mib / (500 * (len(settled) - 1) / 1000)
        rows.append(
            Row(
                what=f"growth of the resident size over {requests:,} requests",
                measured=f"{growth:+.2f} MiB per 1,000 (from {settled[0] / mib:.0f} to {settled[-1] / mib:.0f} MiB)",
                goal="< 1 MiB per 1,000",
                verdict=verdict(met=growth < 1.0),
            )
        )
    return rows


def _probe(setting: Setting, requests: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.engine.probe", str(setting.model), "--threads", str(setting.threads)]
    done = subprocess.run([*command, "--requests", str(requests)], check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
