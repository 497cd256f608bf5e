"""Sealing: key encapsulation, worker keys, chunk streams and padding (docs/protocol.md sections 1, 2 and 5).

Nothing here does I/O or knows about sessions; :mod:`bulkhead.protocol` puts these parts together.
"""

from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.hpke import KemPrivateKey, KemPublicKey
from bulkhead.sealing.keyset import Keyset, PublicKeys
from bulkhead.sealing.padding import PaddingMode
from bulkhead.sealing.worker_keys import WorkerKeys

__all__ = [
    "ChunkOpener",
    "ChunkSealer",
    "Direction",
    "KemPrivateKey",
    "KemPublicKey",
    "Keyset",
    "PaddingMode",
    "PublicKeys",
    "WorkerKeys",
]
