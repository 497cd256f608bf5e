"""What is counted of an engine's requests, with vLLM's meanings: counts and times, no name, no prompt, no answer.

How often and how coarsely it leaves the worker is decided in :mod:`data_plane.session.observing`; its Prometheus form
is made by the agent (:mod:`data_plane.session.exposition`).
https://docs.vllm.ai/en/latest/usage/metrics.html
"""

import bisect
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["FIRST_TOKEN_S", "TOKEN_S", "WHOLE_S", "EngineCounters", "EngineMetrics", "Histogram", "Timing"]

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
        steps: steps computed; one that stands still while ``running`` > 0 is a hang.
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


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations lay at or below each bound, those above all bounds last, and the sum of all."""

    counts: tuple[int, ...]
    total_s: float = 0.0

    def adding(self, seconds: float, bounds: tuple[float, ...]) -> "Histogram":
        """Return this one, which is over ``bounds``, with an observation more."""
        counts = list(self.counts)
        counts[bisect.bisect_left(bounds, seconds)] += 1
        return Histogram(tuple(counts), self.total_s + seconds)


@dataclass(slots=True, kw_only=True)
class Timing:
    """Moments of one answer on one monotonic clock, in seconds, filled in as they come; 0 until then.

    Attributes:
        queued: it was queued.
        started: its first step began.
        first: its first token was there.
        ended: its last token was there.
    """

    queued: float = 0.0
    started: float = 0.0
    first: float = 0.0
    ended: float = 0.0


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

    def answered(self, timing: Timing, *, prompt_tokens: int, completion_tokens: int, stopped: bool) -> "EngineMetrics":
        """Return the snapshot with one more answer, which ended by itself: ``stopped``, or at its most tokens."""
        per_token = self.per_token
        if completion_tokens > 1:
            per_token = per_token.adding((timing.ended - timing.first) / (completion_tokens - 1), TOKEN_S)
        return replace(
            self,
            prompt_tokens=self.prompt_tokens + prompt_tokens,
            stopped=self.stopped + stopped,
            cut=self.cut + (not stopped),
            first_token=self.first_token.adding(timing.first - timing.queued, FIRST_TOKEN_S),
            per_token=per_token,
            queue=self.queue.adding(timing.started - timing.queued, WHOLE_S),
            whole=self.whole.adding(timing.ended - timing.queued, WHOLE_S),
        )
