"""Which blocks of attention state are free: bookkeeping only, the state itself lies in :mod:`.cache`.

A block is handed out lowest number first, so live blocks stay low and dense and attention may run over one slice of the
pool. A block that is given back is overwritten before it is free again: no request can read what another one left.
"""

import heapq
from collections.abc import Callable, Sequence

from bulkhead.errors import InternalError

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out blocks numbered 0 to ``total - 1``.

    Args:
        total: blocks in the pool.
        scrub: overwrites the content of the blocks given; called with every block that is given back, before it can be
            handed out again. If it raises, the blocks stay unusable.
    """

    def __init__(self, *, total: int, scrub: Callable[[Sequence[int]], None]) -> None:
        self.total = total
        self._scrub = scrub
        self._free = list(range(total))  # a sorted list is a heap
        self._live: set[int] = set()

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks in use."""
        return len(self._live)

    def allocate(self, count: int) -> list[int]:
        """Return ``count`` blocks, lowest numbers first.

        Raises:
            InternalError: fewer are free; callers compare with :attr:`free` first.
        """
        if count > len(self._free):
            raise InternalError("more blocks were asked for than are free")
        blocks = [heapq.heappop(self._free) for _ in range(count)]
        self._live.update(blocks)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Scrub ``blocks`` and make them free.

        Raises:
            InternalError: one of them is not in use, so it may be somebody else's.
        """
        if len(set(blocks)) != len(blocks) or not self._live.issuperset(blocks):
            raise InternalError("a block was given back that is not in use")
        if not blocks:
            return
        self._scrub(blocks)
        self._live.difference_update(blocks)
        for block in blocks:
            heapq.heappush(self._free, block)
