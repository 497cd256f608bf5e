"""Full tiles of a tree: 256 consecutive hashes of one level, 8 tree levels apart (https://c2sp.org/tlog-tiles)."""

from collections.abc import Iterator

from bulkhead.errors import ProofError
from bulkhead.transparency.merkle import HASH_BYTES
from bulkhead.transparency.tiles import TILE_BYTES, TILE_LEVELS, TILE_WIDTH

__all__ = ["TILE_BYTES", "TILE_LEVELS", "TILE_WIDTH", "completed_tiles", "join_tile", "split_tile"]


def completed_tiles(old_size: int, new_size: int) -> Iterator[tuple[int, int]]:
    """Yield (level, number) of the tiles that become full as a log grows, lower levels first."""
    level = 0
    while (new := new_size >> TILE_LEVELS * (level + 1)) > 0:
        for number in range(old_size >> TILE_LEVELS * (level + 1), new):
            yield level, number
        level += 1


def join_tile(hashes: list[bytes]) -> bytes:
    """Return a full tile's bytes.

    Raises:
        ProofError: there are not exactly 256 hashes.
    """
    if len(hashes) != TILE_WIDTH:
        raise ProofError(f"a full tile has {TILE_WIDTH} hashes, not {len(hashes)}")
    return b"".join(hashes)


def split_tile(data: bytes) -> list[bytes]:
    """Return a full tile's 256 hashes.

    Raises:
        ProofError: ``data`` is not a full tile.
    """
    if len(data) != TILE_BYTES:
        raise ProofError(f"a full tile is {TILE_BYTES} bytes, not {len(data)}")
    return [data[at : at + HASH_BYTES] for at in range(0, TILE_BYTES, HASH_BYTES)]
