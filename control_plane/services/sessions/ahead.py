"""What is begun before it is needed: evidence asked for while the decision's record is being made durable.

Only of a partition that runs already, so that nothing is placed; and what comes of it can be used by nobody. A worker
serves under a piece of evidence whoever holds a ticket that names it, and no ticket is signed before the decision's
record is durable. If that fails, or the partition is not the one that is taken, the evidence lapses with its time.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from control_plane.domain.fleet import Attested
from control_plane.domain.partitions import Partition

__all__ = ["AskedAhead", "begin"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAhead:
    """A question that an agent was asked.

    Attributes:
        partition: as it was then.
        not_after_s: Unix seconds; the evidence need not hold longer.
        answer: evidence for the session, to be appraised.
    """

    partition: Partition
    not_after_s: int
    answer: asyncio.Task[Attested]

    def concerns(self, partition: Partition) -> bool:
        """Return whether the partition is still the one that was asked about."""
        asked = self.partition
        return (asked.partition_id, asked.version) == (partition.partition_id, partition.version)

    def drop(self) -> None:
        """Wait no longer; nothing if the answer has come."""
        self.answer.cancel()


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work whose failure matters only to whoever waits for it."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return task
