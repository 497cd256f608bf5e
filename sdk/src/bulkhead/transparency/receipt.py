"""Audit receipts: a record, the proof that it is in a log, and the log's signed checkpoint."""

from dataclasses import dataclass

from bulkhead.errors import InclusionError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.transparency.merkle import MAX_PROOF_HASHES, leaf_hash, verify_inclusion

__all__ = ["AuditReceipt", "VerifiedLeaf", "verify_receipt", "verify_record"]


@dataclass(frozen=True, slots=True)
class AuditReceipt:
    """A record with its proof, as a server hands it out; nothing in it is verified yet.

    Attributes:
        leaf: the record's exact bytes.
        index: its place in the log, from 0.
        proof: inclusion proof (RFC 6962), 32-byte hashes, the leaf's sibling first.
        checkpoint: C2SP signed note of the tree that the proof leads to.
    """

    leaf: bytes
    index: int
    proof: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """A record that a log with a pinned key has committed to. Made by :func:`verify_record` only.

    Attributes:
        leaf: the record's exact bytes.
        leaf_hash: its RFC 6962 leaf hash.
        index: its place in the log.
        fields: what the record says.
        size: the tree size of the checkpoint that was verified.
        root: the root of that checkpoint.
    """

    leaf: bytes
    leaf_hash: bytes
    index: int
    fields: LeafFields
    size: int
    root: bytes


def verify_receipt(receipt: AuditReceipt, *, vkey: str, origin: str) -> VerifiedLeaf:
    """Verify an audit receipt against a pinned log key.

    1. The checkpoint is signed by ``vkey`` and is of the log ``origin``.
    2. The leaf stands at ``index`` in the checkpoint's tree.
    3. The leaf is a well-formed record.

    With the caller: that the record speaks of the caller's tenant, model and tier; that the checkpoint is not older
    than, nor inconsistent with, one seen before.

    Raises:
        CheckpointError: 1 fails.
        InclusionError: 2 fails.
        RecordError: 3 fails.
    """
    return verify_record(receipt, open_checkpoint(receipt.checkpoint, vkey=vkey, origin=origin))  # 1


def verify_record(receipt: AuditReceipt, checkpoint: Checkpoint) -> VerifiedLeaf:
    """Verify 2 and 3 of :func:`verify_receipt`, where many receipts are under one checkpoint.

    With the caller: that ``checkpoint`` is what the receipt's note says, and 1 of that note.

    Raises:
        InclusionError: 2 fails.
        RecordError: 3 fails.
    """
    if len(receipt.proof) > MAX_PROOF_HASHES:
        raise InclusionError("the proof is longer than any tree needs")
    digest = leaf_hash(receipt.leaf)
    verify_inclusion(
        index=receipt.index, size=checkpoint.size, leaf=digest, proof=receipt.proof, root=checkpoint.root
    )  # 2
    fields = parse_leaf(receipt.leaf)  # 3
    return VerifiedLeaf(receipt.leaf, digest, receipt.index, fields, checkpoint.size, checkpoint.root)
