"""The root over a batch of usage receipts, and the path that shows one receipt in it.

A ``receipts`` record holds the count and this root. The tree is RFC 6962's, its leaves the receipts' SHA-256 digests
in the order of the batch.
"""

from collections.abc import Sequence

from bulkhead.errors import InclusionError
from bulkhead.transparency.merkle import HASH_BYTES, inclusion_proof, leaf_hash, tree_root, verify_inclusion

__all__ = ["receipt_path", "receipts_root", "verify_receipt_path"]


def receipts_root(digests: Sequence[bytes]) -> bytes:
    """Return the Merkle root over receipt digests (32 bytes each), in order.

    Raises:
        InclusionError: a digest is not 32 bytes.
    """
    return tree_root(_leaf_hashes(digests))


def receipt_path(digests: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the path of the receipt at ``index`` of the batch.

    Raises:
        InclusionError: a digest is not 32 bytes.
        ProofError: there is no such receipt.
    """
    hashes = _leaf_hashes(digests)
    return inclusion_proof(index, len(hashes), lambda level, at: tree_root(hashes[at << level : (at + 1) << level]))


def verify_receipt_path(*, digest: bytes, index: int, count: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that a receipt is in the batch that a verified ``receipts`` record (``count``, ``root``) speaks of.

    Raises:
        InclusionError: it is not, or the path is malformed.
    """
    verify_inclusion(index=index, size=count, leaf=_leaf_hashes([digest])[0], proof=path, root=root)


def _leaf_hashes(digests: Sequence[bytes]) -> list[bytes]:
    if any(len(digest) != HASH_BYTES for digest in digests):
        raise InclusionError("a receipt digest is 32 bytes")
    return [leaf_hash(digest) for digest in digests]
