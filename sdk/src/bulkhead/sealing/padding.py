"""Records inside a chunk: a u32 big-endian length, the record, zeros (docs/protocol.md section 5).

How many zeros is the ticket's to say. Mode ``off`` adds none; ``default`` and ``strict`` fill up to the next of a few
sizes, so that an observer of the wire learns only the bucket. Sizes are half of the side channel of streamed answers
("Whisper Leak", arXiv 2511.03675); when chunks are sent is the other half, and the worker's writer sees to it.
"""

from bisect import bisect_left
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

from bulkhead.errors import SealError

__all__ = ["BUCKETS", "FRAME_BYTES", "MAX_CHUNK_BYTES", "MAX_RECORD_BYTES", "Direction", "PaddingMode", "pad", "unpad"]

MAX_CHUNK_BYTES: Final = 65_536  # plaintext of one chunk, frame and zeros included
FRAME_BYTES: Final = 4
MAX_RECORD_BYTES: Final = MAX_CHUNK_BYTES - FRAME_BYTES
BUCKETS: Final = (256, 1_536, 4_096, 16_384, MAX_CHUNK_BYTES)  # 256: eight tokens in any script; 1,536: a receipt


class Direction(IntEnum):
    """Which way a stream runs; first byte of each chunk's AAD."""

    CLIENT_TO_SERVER = 1
    SERVER_TO_CLIENT = 2


class PaddingMode(StrEnum):
    """How records are padded, named by the ticket; members are ordered, the weakest first."""

    OFF = "off"
    DEFAULT = "default"
    STRICT = "strict"

    def covers(self, other: "PaddingMode") -> bool:
        """Return whether this mode hides at least as much as ``other``."""
        order = tuple(PaddingMode)
        return order.index(self) >= order.index(other)


_SIZES: Final[Mapping[tuple[PaddingMode, Direction], tuple[int, ...]]] = MappingProxyType(
    {
        (PaddingMode.DEFAULT, Direction.CLIENT_TO_SERVER): BUCKETS,
        (PaddingMode.DEFAULT, Direction.SERVER_TO_CLIENT): BUCKETS,
        (PaddingMode.STRICT, Direction.CLIENT_TO_SERVER): BUCKETS[3:],
        (PaddingMode.STRICT, Direction.SERVER_TO_CLIENT): BUCKETS[1:],
    }
)


def pad(record: bytes, mode: PaddingMode, direction: Direction) -> bytes:
    """Return the plaintext of a chunk that carries ``record``.

    Raises:
        SealError: the record is longer than a chunk holds (65,532 bytes).
    """
    size = FRAME_BYTES + len(record)
    if size > MAX_CHUNK_BYTES:
        raise SealError(f"a record is at most {MAX_RECORD_BYTES} bytes")
    return (len(record).to_bytes(FRAME_BYTES, "big") + record).ljust(_padded(size, mode, direction), b"\0")


def unpad(plaintext: bytes, mode: PaddingMode, direction: Direction) -> bytes:
    """Return the record in ``plaintext``, which has exactly the size that :func:`pad` gives it.

    Raises:
        SealError: the length does not fit, a byte of the filling is not zero, or the size is not the mode's.
    """
    end = FRAME_BYTES + int.from_bytes(plaintext[:FRAME_BYTES], "big")
    size = len(plaintext)
    if end > size or plaintext.count(0, end) != size - end or size != _padded(end, mode, direction):
        raise SealError("a chunk's padding is not that of its session")
    return plaintext[FRAME_BYTES:end]


def _padded(size: int, mode: PaddingMode, direction: Direction) -> int:
    if mode is PaddingMode.OFF:
        return size
    sizes = _SIZES[mode, direction]
    return sizes[bisect_left(sizes, size)]
