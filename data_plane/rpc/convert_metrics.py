"""Between the metrics message of the worker channel and the engine's own type."""

from dataclasses import fields
from typing import Any, Final

from data_plane.inference.metrics import EngineCounters, EngineMetrics, Histogram
from service.bulkhead_fleet.v1 import worker_pb2 as pb

__all__ = ["metrics_from", "metrics_message"]

_HISTOGRAMS: Final = ("first_token", "per_token", "queue", "whole")
_OWN: Final = ("kv_use", "prompt_tokens", "stopped", "cut")
_OF_A_MOMENT: Final = frozenset({"running", "waiting"})  # never sent
_COUNTERS: Final = tuple(item.name for item in fields(EngineCounters) if item.name not in _OF_A_MOMENT)


def metrics_message(metrics: EngineMetrics) -> pb.WorkerMetrics:
    """Return the message of a snapshot."""
    values: dict[str, Any] = {name: getattr(metrics.counters, name) for name in _COUNTERS}
    values |= {name: getattr(metrics, name) for name in _OWN}
    for name in _HISTOGRAMS:
        histogram: Histogram = getattr(metrics, name)
        values[name] = pb.WorkerHistogram(counts=histogram.counts, total_s=histogram.total_s)
    return pb.WorkerMetrics(**values)


def metrics_from(message: pb.WorkerMetrics) -> EngineMetrics:
    """Return the snapshot in a message; whether it is sound is the caller's to check."""
    values: dict[str, Any] = {name: getattr(message, name) for name in _OWN}
    for name in _HISTOGRAMS:
        histogram: pb.WorkerHistogram = getattr(message, name)
        values[name] = Histogram(tuple(histogram.counts), histogram.total_s)
    counters = EngineCounters(**{name: getattr(message, name) for name in _COUNTERS})
    return EngineMetrics(counters=counters, **values)
