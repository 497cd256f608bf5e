"""What is counted of an engine's requests, with vLLM's meanings: counts and times, no name, no prompt, no answer.

How often and how coarsely it leaves the worker is decided in :mod:`data_plane.session.observing`; its Prometheus form
is made by the agent (:mod:`data_plane.session.exposition`).
https://docs.vllm.ai/en/latest/usage/metrics.html
"""

import bisect
import math
import threading
from dataclasses import dataclass
from typing import Final

__all__ = ["FIRST_TOKEN_S", "TOKEN_S", "WHOLE_S", "EngineCounters", "EngineMetrics", "Histogram", "Meter", "Timing"]

# vLLM's buckets, in seconds.
FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
)
TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
WHOLE_S: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Totals since start, and what is going on now. Reveals nothing of any prompt.

    Attributes:
        steps: steps computed.
        computed_tokens: tokens that went through the model, prompts included.
        produced_tokens: tokens of answers.
        finished: requests that ended by themselves.
        cancelled: requests whose caller went away.
        preemptions: how often a request's state was given up and computed anew.
        expired: requests that ended because their time was over.
        guessed: tokens guessed ahead, and ``guessed_right`` of them.
        queried_tokens: tokens of prompts looked for among cached prefixes; ``cached_tokens`` of them were found.
        busy_s: time spent in steps, in seconds.
        running: requests in the batch now.
        waiting: requests queued now.
        kv_blocks_used: blocks of attention state in use now.
    """

    steps: int = 0
    computed_tokens: int = 0
    produced_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    preemptions: int = 0
    expired: int = 0
    guessed: int = 0
    guessed_right: int = 0
    queried_tokens: int = 0
    cached_tokens: int = 0
    busy_s: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations lay at or below each bound, those above all bounds last, and the sum of all."""

    counts: tuple[int, ...]
    total_s: float = 0.0

    def fits(self, bounds: tuple[float, ...]) -> bool:
        """Whether it can be one over ``bounds``."""
        return len(self.counts) == len(bounds) + 1 and min(self.counts) >= 0 and math.isfinite(self.total_s)


_NO_FIRST, _NO_TOKEN, _NO_WHOLE = (Histogram((0,) * (len(bounds) + 1)) for bounds in (FIRST_TOKEN_S, TOKEN_S, WHOLE_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """A snapshot.

    Attributes:
        counters: the engine's totals.
        kv_use: share of the memory for attention state that is in use, 0 to 1.
        prompt_tokens: of answers that ended by themselves; so are all that follow.
        stopped: how many of them ended by themselves, ``cut`` how many at their most tokens.
        first_token: from the queue to the first token; bounds are ``FIRST_TOKEN_S``.
        per_token: mean time between an answer's tokens; ``TOKEN_S``.
        queue: from the queue to the batch; ``WHOLE_S``.
        whole: from the queue to the last token; ``WHOLE_S``.
    """

    counters: EngineCounters = EngineCounters()
    kv_use: float = 0.0
    prompt_tokens: int = 0
    stopped: int = 0
    cut: int = 0
    first_token: Histogram = _NO_FIRST
    per_token: Histogram = _NO_TOKEN
    queue: Histogram = _NO_WHOLE
    whole: Histogram = _NO_WHOLE

    @property
    def sound(self) -> bool:
        """Whether it can be an engine's: for who got it from a process that it does not trust."""
        shares = math.isfinite(self.counters.busy_s) and 0.0 <= self.kv_use <= 1.0
        histograms = (self.first_token, FIRST_TOKEN_S), (self.per_token, TOKEN_S), (self.queue, WHOLE_S)
        return shares and all(item.fits(bounds) for item, bounds in (*histograms, (self.whole, WHOLE_S)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One answer that ended by itself: seconds on one monotonic clock, and tokens."""

    queued: float
    started: float
    first: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    stopped: bool


class _Series:
    """A histogram that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._total_s += seconds

    def taken(self) -> Histogram:
        return Histogram(tuple(self._counts), self._total_s)


class Meter:
    """Counts answers on the engine's thread and is read on the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first, self._token = _Series(FIRST_TOKEN_S), _Series(TOKEN_S)
        self._queue, self._whole = _Series(WHOLE_S), _Series(WHOLE_S)
        self._prompt_tokens = self._stopped = self._cut = 0

    def observe(self, timing: Timing) -> None:
        """Count one answer that ended by itself."""
        with self._lock:
            self._first.add(timing.first - timing.queued)
            self._queue.add(timing.started - timing.queued)
            self._whole.add(timing.ended - timing.queued)
            if timing.completion_tokens > 1:
                self._token.add((timing.ended - timing.first) / (timing.completion_tokens - 1))
            self._prompt_tokens += timing.prompt_tokens
            self._stopped += timing.stopped
            self._cut += not timing.stopped

    def snapshot(self, counters: EngineCounters, *, kv_blocks: int) -> EngineMetrics:
        """Return what was counted, beside the engine's totals of the same moment."""
        with self._lock:
            return EngineMetrics(
                counters=counters,
                kv_use=counters.kv_blocks_used / kv_blocks,
                prompt_tokens=self._prompt_tokens,
                stopped=self._stopped,
                cut=self._cut,
                first_token=self._first.taken(),
                per_token=self._token.taken(),
                queue=self._queue.taken(),
                whole=self._whole.taken(),
            )
