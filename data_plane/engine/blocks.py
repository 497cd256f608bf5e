"""Which blocks of attention state are free: bookkeeping only, the state itself lies in :mod:`.cache`.

States of a block and what moves it::

    FREE --allocate--> LIVE --last release, not named--> scrubbed, FREE
    LIVE --last release, named--> KEPT --share, by that name--> LIVE
    KEPT --allocate, when nothing is free: longest unused first--> scrubbed, LIVE

A name says what a block holds and for whom (:mod:`.prefix`); only who can say the name is given the block. A live block
may have several owners; a named one is whole and never written again. Blocks are handed out lowest number first, so
live ones stay low and little memory is ever touched. What is handed out by :meth:`allocate` was overwritten since
anybody else held it: no request can read what another one left.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence

from bulkhead.errors import InternalError

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out blocks numbered 0 to ``total - 1``.

    Args:
        total: blocks in the pool.
        scrub: overwrites the content of the blocks given, before they can be handed out again. If it raises, the
            blocks stay unusable.
    """

    def __init__(self, *, total: int, scrub: Callable[[Sequence[int]], None]) -> None:
        self.total = total
        self._scrub = scrub
        self._free = list(range(total))  # a sorted list is a heap
        self._owners: dict[int, int] = {}  # of live blocks
        self._kept: OrderedDict[int, None] = OrderedDict()  # longest unused first
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be handed out, kept ones included."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks in use."""
        return len(self._owners)

    @property
    def kept(self) -> int:
        """Blocks that nobody uses but somebody may name."""
        return len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """Return ``count`` clear blocks, lowest numbers first.

        Raises:
            InternalError: fewer are free; callers compare with :attr:`free` first.
        """
        if count > self.free:
            raise InternalError("more blocks were asked for than are free")
        if count > len(self._free):
            self._forget(count - len(self._free))
        blocks = [heapq.heappop(self._free) for _ in range(count)]
        self._owners.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, name: bytes) -> int | None:
        """Return the block of that name, with one owner more; None if there is none."""
        block = self._named.get(name)
        if block is None:
            return None
        self._kept.pop(block, None)
        self._owners[block] = self._owners.get(block, 0) + 1
        return block

    def name(self, block: int, name: bytes) -> None:
        """Let a live, whole block be shared by ``name``; nothing changes if the block or the name is taken.

        Raises:
            InternalError: the block is not in use.
        """
        if block not in self._owners:
            raise InternalError("a block was named that is not in use")
        if block not in self._names and name not in self._named:
            self._names[block] = name
            self._named[name] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give ``blocks`` back: each has one owner less, and without any it is kept by name or scrubbed and free.

        Raises:
            InternalError: one of them is not in use, so it may be somebody else's.
        """
        if len(set(blocks)) != len(blocks) or not self._owners.keys() >= set(blocks):
            raise InternalError("a block was given back that is not in use")
        unused = []
        # The last blocks of a prefix are of least use without those before them: they are to go first.
        for block in reversed(blocks):
            if self._owners[block] > 1:
                self._owners[block] -= 1
            elif block in self._names:
                del self._owners[block]
                self._kept[block] = None
            else:
                unused.append(block)
        self._clear(unused[::-1])
        for block in unused:
            del self._owners[block]

    def forget(self) -> None:
        """Scrub and free every kept block."""
        self._forget(len(self._kept))

    def _forget(self, count: int) -> None:
        blocks = [self._kept.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            del self._named[self._names.pop(block)]
        self._clear(blocks)

    def _clear(self, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        self._scrub(blocks)
        for block in blocks:
            heapq.heappush(self._free, block)
