"""When requests are over: a heap of moments, from which what ended before its time is cleared away now and then."""

import heapq
from collections.abc import Collection
from typing import Final

from data_plane.engine.job import Job

__all__ = ["Deadlines"]

_SLACK: Final = 64  # entries of ended answers that are not worth clearing away


class Deadlines:
    """Moments of the monotonic clock; used on the engine's thread only."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Job]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, job: Job, *, live: Collection[Job]) -> None:
        """Remember when ``job`` is over, if ever; most of what is remembered may have ended: ``live`` has not."""
        if job.timeout_s is None:
            return
        heapq.heappush(self._heap, (job.queued + job.timeout_s, id(job), job))
        if len(self._heap) > 2 * len(live) + _SLACK:
            kept = set(map(id, live))
            self._heap = [item for item in self._heap if item[1] in kept]
            heapq.heapify(self._heap)

    def passed(self, now: float) -> list[Job]:
        """Return, once, the answers whose time is over; some may have ended before."""
        over: list[Job] = []
        while self._heap and self._heap[0][0] <= now:
            over.append(heapq.heappop(self._heap)[2])
        return over
