"""When an engine's metrics may leave their worker.

Whoever runs the host already knows how many requests run (each second), and how many tokens each had (receipts).
Metrics read often would tell more: token by token what padding hides, and of a single prompt whether it began like an
earlier one. So a worker gives out a snapshot

1. at most every ``PERIOD_S``, and
2. only when ``MIN_ANSWERED`` further requests have been answered since the last one, so that no difference of two
   snapshots speaks of fewer. Requests that were refused or produced nothing do not count.

Totals and histograms are those of all requests so far; the use of memory, which is of a moment, is rounded to
twentieths. Both numbers are constants of the measured worker, no configuration: in a confidential partition they hold
against the operator too. docs/threat-model.md says what is left.
"""

import math
from dataclasses import replace
from typing import Final

from data_plane.inference.metrics import FIRST_TOKEN_S, TOKEN_S, WHOLE_S, EngineMetrics

__all__ = ["MIN_ANSWERED", "PERIOD_S", "Observation", "coarse", "sound"]

PERIOD_S: Final = 30.0  # two to Prometheus' usual evaluation interval
MIN_ANSWERED: Final = 16
KV_STEPS: Final = 20


class Observation:
    """Decides about one worker's snapshots.

    Args:
        now_s: monotonic seconds at the start.
    """

    def __init__(self, *, now_s: float) -> None:
        self._taken_s = now_s
        self._answered = 0

    def due(self, *, now_s: float, answered: int) -> bool:
        """Whether a snapshot may be given out now; if so it counts as given.

        Args:
            now_s: monotonic seconds.
            answered: requests since the start that produced a token and have ended.
        """
        if now_s - self._taken_s < PERIOD_S or answered - self._answered < MIN_ANSWERED:
            return False
        self._taken_s, self._answered = now_s, answered
        return True


def coarse(metrics: EngineMetrics) -> EngineMetrics:
    """Return a snapshot without what is of one moment and finer than it may be."""
    counters = replace(metrics.counters, running=0, waiting=0)
    return replace(metrics, counters=counters, kv_use=round(metrics.kv_use * KV_STEPS) / KV_STEPS)


def sound(metrics: EngineMetrics) -> bool:
    """Whether a snapshot can be an engine's: for the agent, which got it from a process that it does not trust."""
    bounds_of = (
        (metrics.first_token, FIRST_TOKEN_S),
        (metrics.per_token, TOKEN_S),
        (metrics.queue, WHOLE_S),
        (metrics.whole, WHOLE_S),
    )
    histograms = all(
        len(item.counts) == len(bounds) + 1 and min(item.counts) >= 0 and math.isfinite(item.total_s)
        for item, bounds in bounds_of
    )
    return histograms and math.isfinite(metrics.counters.busy_s) and 0.0 <= metrics.kv_use <= 1.0
