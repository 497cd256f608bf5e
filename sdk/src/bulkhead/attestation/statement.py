"""What evidence signs: one 64-byte statement over batch root, keys, devices, descriptor and end of validity.

SHA-512 fills REPORT_DATA of SEV-SNP and TDX exactly; operator and simulated evidence sign the same 64 bytes, so that
the kinds differ in who vouches and in nothing else. One statement serves a batch of callers: each one's nonce and
session context is a leaf of a Merkle tree (RFC 9162 section 2.1, with SHA-256) whose root is signed.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from bulkhead.encoding import lp_join
from bulkhead.errors import EvidenceBindingError, EvidenceError

__all__ = [
    "MAX_BATCH",
    "MAX_PATH",
    "NONCE_BYTES",
    "batch_leaf",
    "batch_path",
    "batch_root",
    "gpu_nonce",
    "root_from_path",
    "statement",
]

MAX_PATH: Final = 16
MAX_BATCH: Final = 2**MAX_PATH  # more callers than one agent ever has waiting
NONCE_BYTES: Final = 32
_STATEMENT_LABEL: Final = b"bulkhead/v1 evidence"
_GPU_LABEL: Final = b"bulkhead/v1 gpu"


def statement(
    *, batch_root: bytes, keyset_digest: bytes, device_digest: bytes, descriptor: bytes, not_after_s: int
) -> bytes:
    """Return the 64 bytes that evidence signs.

    Args:
        batch_root: 32 bytes.
        keyset_digest: SHA-256 of the keyset's encoding.
        device_digest: SHA-256 of the device evidence (of no bytes where there is none).
        descriptor: RFC 8785 bytes of the partition descriptor.
        not_after_s: Unix seconds, u64.
    """
    fields = lp_join(batch_root, keyset_digest, device_digest, descriptor, not_after_s.to_bytes(8, "big"))
    return hashlib.sha512(_STATEMENT_LABEL + fields).digest()


def gpu_nonce(*, batch_root: bytes, keyset_digest: bytes) -> bytes:
    """Return the 32-byte nonce for GPU reports: ties them to the same callers and keys as the CPU's quote."""
    return hashlib.sha256(_GPU_LABEL + lp_join(batch_root, keyset_digest)).digest()


def batch_leaf(nonce: bytes, context: bytes) -> bytes:
    """Return the leaf hash of one caller.

    Args:
        nonce: 32 fresh random bytes of the client.
        context: the session context (docs/protocol.md section 3).

    Raises:
        EvidenceBindingError: the nonce is not 32 bytes long.
    """
    if len(nonce) != NONCE_BYTES:
        raise EvidenceBindingError(f"a client nonce is {NONCE_BYTES} bytes")
    return hashlib.sha256(b"\x00" + lp_join(nonce, context)).digest()


def batch_root(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash of 1 to 65,536 leaf hashes (RFC 9162 section 2.1.1)."""
    if not 0 < len(leaves) <= MAX_BATCH:
        raise EvidenceError(f"an evidence batch has 1 to {MAX_BATCH} leaves")
    if len(leaves) == 1:
        return leaves[0]
    split = _split(len(leaves))
    return _node(batch_root(leaves[:split]), batch_root(leaves[split:]))


def batch_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the inclusion path of leaf ``index``, from the leaf up (RFC 9162 section 2.1.3.1)."""
    if not 0 <= index < len(leaves) <= MAX_BATCH:
        raise EvidenceError("no such leaf in the evidence batch")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*batch_path(leaves[:split], index), batch_root(leaves[split:]))
    return (*batch_path(leaves[split:], index - split), batch_root(leaves[:split]))


def root_from_path(leaf: bytes, *, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that ``path`` leads to (RFC 9162 section 2.1.3.2); it is compared through the statement.

    Args:
        leaf: leaf hash of the caller, recomputed from its own nonce and context.
        index: position of the leaf (untrusted).
        size: leaves in the batch (untrusted).
        path: hashes from the leaf up (untrusted), at most 16.

    Raises:
        EvidenceBindingError: the path has not exactly the length that index and size demand.
    """
    if not 0 <= index < size <= MAX_BATCH or len(path) > MAX_PATH:
        raise EvidenceBindingError("the evidence's batch path is malformed")
    node, position, last = leaf, index, size - 1
    for sibling in path:
        if last == 0:
            raise EvidenceBindingError("the evidence's batch path is too long")
        if position & 1 or position == last:
            node = _node(sibling, node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = _node(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise EvidenceBindingError("the evidence's batch path is too short")
    return node


def _split(size: int) -> int:
    """Return the largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
