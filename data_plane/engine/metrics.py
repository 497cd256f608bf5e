"""What an operator may know of an engine: Prometheus metrics with vLLM's meanings, under this project's prefix.

Counts and times only, without labels that a tenant's request could choose; nothing here reveals a prompt or an answer.
https://docs.vllm.ai/en/latest/usage/metrics.html
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.engine.port import EngineCounters

__all__ = ["EngineMetrics", "Timing"]

PREFIX: Final = "bulkhead:"
_FIRST_S: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_WHOLE_S: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)

# vLLM's name, its help, whether it only grows, and where it comes from
_SOURCES: Final[tuple[tuple[str, str, bool, Callable[[EngineCounters], int]], ...]] = (
    ("num_requests_running", "Requests in the batch.", False, lambda c: c.running),
    ("num_requests_waiting", "Requests that wait for memory or a place.", False, lambda c: c.waiting),
    ("num_preemptions", "Requests whose state was given up for another.", True, lambda c: c.preemptions),
    ("prefix_cache_queries", "Tokens of prompts looked for in the prefix cache.", True, lambda c: c.queried_tokens),
    ("prefix_cache_hits", "Tokens of prompts found in the prefix cache.", True, lambda c: c.cached_tokens),
    ("generation_tokens", "Tokens of answers.", True, lambda c: c.produced_tokens),
    ("computed_tokens", "Tokens that went through the model.", True, lambda c: c.computed_tokens),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead.", True, lambda c: c.guessed),
    ("spec_decode_num_accepted_tokens", "Tokens guessed rightly.", True, lambda c: c.guessed_right),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request that ended by itself: seconds on one monotonic clock, and tokens."""

    queued: float
    started: float
    first: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class EngineMetrics(Collector):
    """The metrics of one engine.

    Args:
        counters: gives the engine's totals.
        blocks: blocks of attention state that there are.
    """

    def __init__(self, *, counters: Callable[[], EngineCounters], blocks: int) -> None:
        self._counters = counters
        self._blocks = blocks
        self._registry = CollectorRegistry()
        self._registry.register(self)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}{name}", text, buckets=buckets, registry=self._registry)

        self._first = histogram("time_to_first_token_seconds", "From the queue to the first token.", _FIRST_S)
        self._token = histogram("request_time_per_output_token_seconds", "Mean of a request.", _TOKEN_S)
        self._queue = histogram("request_queue_time_seconds", "From the queue to the batch.", _WHOLE_S)
        self._whole = histogram("e2e_request_latency_seconds", "From the queue to the last token.", _WHOLE_S)
        self._prompt = Counter(f"{PREFIX}prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._success = Counter(
            f"{PREFIX}request_success", "Requests done.", ["finished_reason"], registry=self._registry
        )

    def collect(self) -> Iterator[Metric]:
        """Give what the counters say now."""
        counters = self._counters()
        for name, text, grows, source in _SOURCES:
            family = CounterMetricFamily if grows else GaugeMetricFamily
            yield family(f"{PREFIX}{name}", text, value=source(counters))
        used = counters.kv_blocks_used / self._blocks
        yield GaugeMetricFamily(f"{PREFIX}kv_cache_usage_perc", "Share of attention memory in use, 0 to 1.", value=used)

    def observe(self, timing: Timing) -> None:
        """Count one request that ended by itself."""
        self._first.observe(timing.first - timing.queued)
        self._queue.observe(timing.started - timing.queued)
        self._whole.observe(timing.ended - timing.queued)
        if timing.completion_tokens > 1:
            self._token.observe((timing.ended - timing.first) / (timing.completion_tokens - 1))
        self._prompt.inc(timing.prompt_tokens)
        self._success.labels(timing.finish_reason).inc()

    def render(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)
