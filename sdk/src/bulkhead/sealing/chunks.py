"""Chunk streams: AES-256-GCM under per-direction keys with counter nonces (docs/protocol.md section 5).

A chunk on the wire is one byte (1 if final, else 0), then ciphertext and tag. The nonce is the direction's 12-byte
base XOR the counter (u96, from 0); the AAD is direction (u8), counter (u32) and final flag (u8). So a chunk opens
only in its direction, at its place and as final as it was sealed. The states: open until the final chunk, then
closed; the first chunk that does not open closes an opener for good.

An opener says which kind of attack or fault it met where the chunk itself shows it: one that would have opened at a
place near by was reordered or repeated. Everything else is one error, since its causes look alike.
"""

import contextlib
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bulkhead.errors import ChunkReorderedError, ChunkRepeatedError, SealError
from bulkhead.sealing.hpke import TAG_BYTES
from bulkhead.sealing.padding import MAX_CHUNK_BYTES, Direction

__all__ = [
    "KEY_MATERIAL_BYTES",
    "MAX_CHUNKS",
    "MAX_CHUNK_WIRE_BYTES",
    "ChunkOpener",
    "ChunkSealer",
    "Direction",
]

MAX_CHUNKS: Final = 2**20  # with 64 KiB each far below GCM's limits for one key (NIST SP 800-38D section 8.3)
MAX_CHUNK_WIRE_BYTES: Final = 1 + MAX_CHUNK_BYTES + TAG_BYTES
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
KEY_MATERIAL_BYTES: Final = _KEY_BYTES + _NONCE_BYTES
_NEAR: Final = 64  # places on either side; a stream ends at its first bad chunk, so they are tried once
_MIN_WIRE_BYTES: Final = 1 + TAG_BYTES
_AAD: Final = struct.Struct(">BIB")
_FLAG: Final = (b"\0", b"\1")


class _Stream:
    __slots__ = ("_aead", "_base", "_closed", "_counter", "_direction")

    def __init__(self, key_material: bytes | bytearray, direction: Direction) -> None:
        if len(key_material) != KEY_MATERIAL_BYTES:
            raise SealError(f"chunk key material is {KEY_MATERIAL_BYTES} bytes")
        self._aead = AESGCM(memoryview(key_material)[:_KEY_BYTES])
        self._base = int.from_bytes(memoryview(key_material)[_KEY_BYTES:], "big")
        if isinstance(key_material, bytearray):  # OpenSSL has its own copy now, and clears it
            key_material[:] = bytes(KEY_MATERIAL_BYTES)
        self._direction = int(direction)
        self._counter = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no further chunk is possible."""
        return self._closed

    @property
    def count(self) -> int:
        """Chunks sealed or opened so far."""
        return self._counter


class ChunkSealer(_Stream):
    """Seals one direction of one request.

    Args:
        key_material: 44 bytes, AES-256 key and nonce base; used for this stream only. A byte array is overwritten.
        direction: of the stream.
    """

    __slots__ = ()

    def seal(self, plaintext: bytes, *, final: bool = False) -> bytes:
        """Return the next chunk as it goes on the wire.

        Args:
            plaintext: at most 65,536 bytes, as :func:`bulkhead.sealing.padding.pad` makes them.
            final: closes the stream.

        Raises:
            SealError: the stream is closed, has 2^20 chunks (the last must be final), or the plaintext is too long.
        """
        counter = self._counter
        if self._closed or counter >= MAX_CHUNKS or (counter == MAX_CHUNKS - 1 and not final):
            raise SealError("no further chunk fits in this stream")
        if len(plaintext) > MAX_CHUNK_BYTES:
            raise SealError(f"a chunk is at most {MAX_CHUNK_BYTES} bytes")
        nonce = (self._base ^ counter).to_bytes(_NONCE_BYTES, "big")
        sealed = self._aead.encrypt(nonce, plaintext, _AAD.pack(self._direction, counter, final))
        self._counter = counter + 1
        self._closed = final
        return _FLAG[final] + sealed


class ChunkOpener(_Stream):
    """Opens one direction of one request.

    Args:
        key_material: 44 bytes, AES-256 key and nonce base; used for this stream only. A byte array is overwritten.
        direction: of the stream.
    """

    __slots__ = ()

    def open(self, chunk: bytes) -> tuple[bytes, bool]:
        """Return plaintext and final flag of the next chunk (untrusted bytes).

        Raises:
            ChunkReorderedError, ChunkRepeatedError: of this stream, at most 64 places later or earlier.
            SealError: altered, cut, from another stream, further out of place, or after the end. Whatever is raised,
                the stream is closed then and nothing more opens.
        """
        counter = self._counter
        closed, self._closed = self._closed, True
        if closed or counter >= MAX_CHUNKS:
            raise SealError("a chunk after the end of its stream")
        if not _MIN_WIRE_BYTES <= len(chunk) <= MAX_CHUNK_WIRE_BYTES or chunk[0] > 1:
            raise SealError("a chunk is malformed")
        try:
            plaintext = self._decrypt(chunk, counter)
        except InvalidTag as error:
            raise self._misplaced(chunk) from error
        final = chunk[0] == 1
        self._counter = counter + 1
        self._closed = final
        return plaintext, final

    def _decrypt(self, chunk: bytes, counter: int) -> bytes:
        nonce = (self._base ^ counter).to_bytes(_NONCE_BYTES, "big")
        return self._aead.decrypt(nonce, memoryview(chunk)[1:], _AAD.pack(self._direction, counter, chunk[0]))

    def _misplaced(self, chunk: bytes) -> SealError:
        """Return (for raising) why a chunk does not open at its place."""
        for counter in range(max(0, self._counter - _NEAR), self._counter + _NEAR + 1):
            with contextlib.suppress(InvalidTag):
                self._decrypt(chunk, counter)
                if counter < self._counter:
                    return ChunkRepeatedError("an earlier chunk of the stream came again")
                return ChunkReorderedError("a later chunk of the stream came first")
        return SealError("a chunk was altered, or taken from another stream")
