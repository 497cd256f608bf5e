from collections.abc import Sequence as Sequences

import pytest

from bulkhead.errors import InternalError
from data_plane.engine.blocks import BlockPool


def test_the_lowest_free_blocks_are_handed_out_first() -> None:
    """Live blocks stay low and dense: a hole is filled before the pool grows."""
    pool = BlockPool(total=8, scrub=lambda _: None)
    assert pool.allocate(4) == [0, 1, 2, 3]
    pool.release([2, 0])
    assert pool.allocate(3) == [0, 2, 4]


def test_blocks_are_scrubbed_before_they_are_free_again() -> None:
    """At the moment of scrubbing a block cannot be handed out, and one whose scrubbing failed never is."""
    seen: list[tuple[list[int], int]] = []

    def scrub(blocks: Sequences[int]) -> None:
        seen.append((list(blocks), pool.free))
        if 3 in blocks:
            raise RuntimeError("memory is gone")

    pool = BlockPool(total=4, scrub=scrub)
    held = pool.allocate(4)
    pool.release(held[:2])
    assert seen == [([0, 1], 0)]
    with pytest.raises(RuntimeError):
        pool.release(held[2:])
    assert pool.free == 2
    assert pool.allocate(2) == [0, 1]


@pytest.mark.parametrize("blocks", [[2], [0, 0], [0, 3]])
def test_giving_back_what_is_not_held_is_refused(blocks: list[int]) -> None:
    """A block that is not in use, or named twice, is a defect: nothing is freed."""
    pool = BlockPool(total=4, scrub=lambda _: None)
    pool.allocate(2)
    with pytest.raises(InternalError):
        pool.release(blocks)
    assert pool.free == 2


def test_more_than_is_free_is_refused() -> None:
    """Asking for more blocks than are free changes nothing."""
    pool = BlockPool(total=2, scrub=lambda _: None)
    with pytest.raises(InternalError):
        pool.allocate(3)
    assert pool.free == 2


def test_a_named_block_is_shared_kept_and_found_again() -> None:
    """Who says the name owns the block too; without owners it is kept as it is, and no name is given twice."""
    scrubbed: list[int] = []
    pool = BlockPool(total=3, scrub=scrubbed.extend)
    first, second = pool.allocate(2)
    pool.name(first, b"prefix")
    pool.name(second, b"prefix")  # taken: this one stays without
    assert pool.share(b"prefix") == first
    pool.release([first, second])
    assert scrubbed == [second]
    assert pool.used == 1
    pool.release([first])
    assert (pool.used, pool.kept, pool.free) == (0, 1, 3)
    assert scrubbed == [second]
    assert pool.share(b"prefix") == first
    assert pool.share(b"other") is None
    pool.release([first])
    pool.forget()
    assert scrubbed == [second, first]
    assert pool.share(b"prefix") is None


def test_a_block_that_is_not_in_use_cannot_be_named() -> None:
    """A name for a free block would hand out what somebody else may be given."""
    pool = BlockPool(total=2, scrub=lambda _: None)
    with pytest.raises(InternalError):
        pool.name(0, b"prefix")
