"""What a tenant needs to check the audit log, offline: proofs, signed checkpoints, records, exports.

Nothing here trusts a server: keys are pinned by the caller, and every ``verify_*`` function returns a value that
carries what was proven or raises a :class:`~bulkhead.errors.ProofError`.
"""

from bulkhead.transparency.batches import ReceiptBatch, receipt_path, receipts_root, verify_receipt_path
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.transparency.merkle import verify_consistency, verify_inclusion
from bulkhead.transparency.receipt import AuditReceipt, VerifiedLeaf, verify_receipt
from bulkhead.transparency.rounds import (
    RoundPage,
    RoundPath,
    RoundsSeen,
    VerifiedRound,
    verify_round_page,
    verify_round_path,
)
from bulkhead.transparency.usage import ReceiptEntry, UsageReport, check_usage

__all__ = [
    "AuditReceipt",
    "Checkpoint",
    "LeafFields",
    "ReceiptBatch",
    "ReceiptEntry",
    "RoundPage",
    "RoundPath",
    "RoundsSeen",
    "UsageReport",
    "VerifiedLeaf",
    "VerifiedRound",
    "check_usage",
    "open_checkpoint",
    "parse_leaf",
    "receipt_path",
    "receipts_root",
    "sign_checkpoint",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
    "verify_receipt_path",
    "verify_round_page",
    "verify_round_path",
]
