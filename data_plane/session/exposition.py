"""What an agent tells Prometheus of its partitions: vLLM's names under this project's prefix.

Labels are the partition and its model, nothing that a request could choose. Numbers of running and waiting requests are
those of the last second, as the control plane has them; everything else is of the worker's last snapshot
(:mod:`data_plane.session.observing`), whose time is told beside it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.inference.metrics import FIRST_TOKEN_S, TOKEN_S, WHOLE_S, EngineCounters, EngineMetrics, Histogram
from data_plane.session.messages import WorkerLoad

__all__ = ["Exposition", "Observed"]

PREFIX: Final = "bulkhead:"
_LABELS: Final = ("partition", "model_name")

# vLLM's name, its help, and where it comes from; all of them only grow
_COUNTERS: Final[tuple[tuple[str, str, Callable[[EngineCounters], int]], ...]] = (
    ("num_preemptions", "Requests whose state was given up for another.", lambda c: c.preemptions),
    ("prefix_cache_queries", "Tokens of prompts looked for in the prefix cache.", lambda c: c.queried_tokens),
    ("prefix_cache_hits", "Tokens of prompts found in the prefix cache.", lambda c: c.cached_tokens),
    ("generation_tokens", "Tokens of answers.", lambda c: c.produced_tokens),
    ("computed_tokens", "Tokens that went through the model.", lambda c: c.computed_tokens),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead.", lambda c: c.guessed),
    ("spec_decode_num_accepted_tokens", "Tokens guessed rightly.", lambda c: c.guessed_right),
)
_HISTOGRAMS: Final[tuple[tuple[str, str, tuple[float, ...], Callable[[EngineMetrics], Histogram]], ...]] = (
    ("time_to_first_token_seconds", "From the queue to the first token.", FIRST_TOKEN_S, lambda m: m.first_token),
    ("request_time_per_output_token_seconds", "Mean of a request.", TOKEN_S, lambda m: m.per_token),
    ("request_queue_time_seconds", "From the queue to the batch.", WHOLE_S, lambda m: m.queue),
    ("e2e_request_latency_seconds", "From the queue to the last token.", WHOLE_S, lambda m: m.whole),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is known of one partition; ``metrics`` is None before the first snapshot, taken at ``taken_s`` (Unix)."""

    partition_id: str
    model_name: str
    load: WorkerLoad
    metrics: EngineMetrics | None
    taken_s: float


class Exposition(Collector):
    """Renders what is known now.

    Args:
        observe: gives the partitions that serve.
    """

    def __init__(self, observe: Callable[[], Iterable[Observed]]) -> None:
        self._observe = observe
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of every partition."""
        observed = list(self._observe())
        told = [(_labels(item), item.metrics) for item in observed if item.metrics is not None]
        yield from _loads(observed)
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(f"{PREFIX}{name}", text, labels=_LABELS)
            for labels, metrics in told:
                counter.add_metric(labels, count(metrics.counters))
            yield counter
        for name, text, bounds, take in _HISTOGRAMS:
            histogram = HistogramMetricFamily(f"{PREFIX}{name}", text, labels=_LABELS)
            for labels, metrics in told:
                histogram.add_metric(labels, _buckets(take(metrics), bounds), take(metrics).total_s)
            yield histogram
        yield from _answers(told)


def _labels(item: Observed) -> list[str]:
    return [item.partition_id, item.model_name]


def _loads(observed: Iterable[Observed]) -> Iterator[Metric]:
    running = GaugeMetricFamily(f"{PREFIX}num_requests_running", "Requests being answered.", labels=_LABELS)
    waiting = GaugeMetricFamily(f"{PREFIX}num_requests_waiting", "Requests that wait for memory.", labels=_LABELS)
    usage = GaugeMetricFamily(f"{PREFIX}kv_cache_usage_perc", "Attention memory in use, 0 to 1.", labels=_LABELS)
    taken = GaugeMetricFamily(f"{PREFIX}snapshot_timestamp_seconds", "When the others were taken.", labels=_LABELS)
    for item in observed:
        labels = _labels(item)
        running.add_metric(labels, max(0, item.load.running_requests - item.load.queued_requests))
        waiting.add_metric(labels, item.load.queued_requests)
        if item.metrics is not None:
            usage.add_metric(labels, item.metrics.kv_use)
            taken.add_metric(labels, item.taken_s)
    yield from (running, waiting, usage, taken)


def _answers(told: Iterable[tuple[list[str], EngineMetrics]]) -> Iterator[Metric]:
    prompts = CounterMetricFamily(f"{PREFIX}prompt_tokens", "Tokens of prompts.", labels=_LABELS)
    success = CounterMetricFamily(f"{PREFIX}request_success", "Requests done.", labels=(*_LABELS, "finished_reason"))
    for labels, metrics in told:
        prompts.add_metric(labels, metrics.prompt_tokens)
        success.add_metric([*labels, "stop"], metrics.stopped)
        success.add_metric([*labels, "length"], metrics.cut)
    yield from (prompts, success)


def _buckets(histogram: Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    edges = [*map(str, bounds), "+Inf"]
    return list(zip(edges, map(float, accumulate(histogram.counts)), strict=True))
