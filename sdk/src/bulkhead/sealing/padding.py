"""Records inside a chunk: a u32 big-endian length, the record, zeros (docs/protocol.md section 5).

Mode ``off`` adds no zeros. Mode ``default`` fills up to the next of a few sizes, so that an observer of the wire
learns only the bucket; together with coalescing of tokens it blunts the packet-size side channel of streamed
answers ("Whisper Leak", arXiv 2511.03675).
"""

from bisect import bisect_left
from enum import StrEnum
from typing import Final

from bulkhead.errors import SealError

__all__ = ["BUCKETS", "FRAME_BYTES", "MAX_CHUNK_BYTES", "MAX_RECORD_BYTES", "PaddingMode", "pad", "unpad"]

MAX_CHUNK_BYTES: Final = 65_536  # plaintext of one chunk, frame and zeros included
FRAME_BYTES: Final = 4
MAX_RECORD_BYTES: Final = MAX_CHUNK_BYTES - FRAME_BYTES
BUCKETS: Final = (256, 1_024, 4_096, 16_384, MAX_CHUNK_BYTES)  # 256 holds eight tokens of text in any script


class PaddingMode(StrEnum):
    """How records are padded; named by the ticket, the same in both directions."""

    OFF = "off"
    DEFAULT = "default"


def pad(record: bytes, mode: PaddingMode) -> bytes:
    """Return the plaintext of a chunk that carries ``record``.

    Raises:
        SealError: the record is longer than a chunk holds (65,532 bytes).
    """
    size = FRAME_BYTES + len(record)
    if size > MAX_CHUNK_BYTES:
        raise SealError(f"a record is at most {MAX_RECORD_BYTES} bytes")
    framed = len(record).to_bytes(FRAME_BYTES, "big") + record
    if mode is PaddingMode.OFF:
        return framed
    return framed.ljust(BUCKETS[bisect_left(BUCKETS, size)], b"\0")


def unpad(plaintext: bytes) -> bytes:
    """Return the record in ``plaintext``.

    Raises:
        SealError: the length does not fit, or a byte of the filling is not zero.
    """
    end = FRAME_BYTES + int.from_bytes(plaintext[:FRAME_BYTES], "big")
    if len(plaintext) < end or plaintext.count(0, end) != len(plaintext) - end:
        raise SealError("a chunk's padding is malformed")
    return plaintext[FRAME_BYTES:end]
