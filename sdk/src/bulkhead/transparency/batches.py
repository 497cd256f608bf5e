"""Batches of usage receipts: the root over them, the path that shows one of them, and the record that holds the root.

A worker numbers the receipts of a session from 1, and a ``receipts`` record covers a range of them: the first number,
how many, token totals, and a root. The tree is RFC 6962's, its leaves the receipts' SHA-256 digests in order of number.
Two records that cover the same number of one session on one partition contradict each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from bulkhead.errors import InclusionError, RecordError
from bulkhead.fields import Fields
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.merkle import HASH_BYTES, inclusion_proof, leaf_hash, tree_root, verify_inclusion

__all__ = ["RECEIPTS_ACTION", "ReceiptBatch", "receipt_path", "receipts_root", "verify_receipt_path"]

RECEIPTS_ACTION: Final = "receipts"
MAX_BATCH: Final = 1_024  # receipts under one root; workers stop at as many unacknowledged ones


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBatch:
    """What a ``receipts`` record says.

    Attributes:
        record_id: of the record.
        session: whose receipts.
        partition: where they were made.
        numbers: which ones.
        root: :func:`receipts_root` over their digests, 32 bytes.
        prompt_tokens: total.
        completion_tokens: total.
        final: whether the session had ended.
    """

    record_id: str
    session: str
    partition: str
    numbers: range
    root: bytes
    prompt_tokens: int
    completion_tokens: int
    final: bool

    @classmethod
    def of(cls, record: LeafFields) -> Self:
        """Return the batch in a record, whose place in a log the caller verified.

        Raises:
            RecordError: it is another record, or malformed.
        """
        if record.action != RECEIPTS_ACTION or not record.session or not record.partition:
            raise RecordError(f"record {record.record_id} is not one of receipts")
        with Fields(record.data, what=f"record {record.record_id}", error=RecordError) as data:
            first, count = data.integer("first", low=1), data.integer("count", low=1, high=MAX_BATCH)
            return cls(
                record_id=record.record_id,
                session=record.session,
                partition=record.partition,
                numbers=range(first, first + count),
                root=data.digest("root"),
                prompt_tokens=data.integer("prompt_tokens"),
                completion_tokens=data.integer("completion_tokens"),
                final=data.boolean("final"),
            )

    def check_path(self, *, number: int, digest: bytes, path: Sequence[bytes]) -> None:
        """Check that the receipt of that number is in the batch (:func:`verify_receipt_path`)."""
        verify_receipt_path(
            digest=digest, index=number - self.numbers.start, count=len(self.numbers), path=path, root=self.root
        )


def _leaf_hashes(digests: Sequence[bytes]) -> list[bytes]:
    if any(len(digest) != HASH_BYTES for digest in digests):
        raise InclusionError("a receipt digest is 32 bytes")
    return [leaf_hash(digest) for digest in digests]
