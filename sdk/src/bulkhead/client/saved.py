"""Receipts kept for later: one JSON file with everything that was verified when the answer came.

The file is RFC 8785 JSON, binary fields unpadded base64url::

    {"version":1, "receipt":…, "signature":…, "ticket":…, "ticket_issuer":…, "evidence":…, "nonce":…,
     "worker_certificate":…, "model_digest":…, "policy_digest":…,
     "decision":{"leaf":…, "index":0, "proof":[…], "checkpoint":"…"}}

``receipt`` and ``decision.leaf`` are the exact signed and logged bytes. Keys, ticket and evidence have expired when the
file is read: it shows what held at the receipt's time, not what holds now.
"""

import os
from pathlib import Path
from typing import Final

from bulkhead.client.link import Link
from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import InvalidRequestError
from bulkhead.protocol.receipts import SignedReceipt

__all__ = ["saved_receipt", "write_receipt"]

SAVED_RECEIPT_VERSION: Final = 1


def saved_receipt(link: Link, signed: SignedReceipt) -> bytes:
    """Return the file's bytes for a receipt that was verified under ``link``'s grant."""
    offer = link.received.offer
    return canonical_json(
        {
            "version": SAVED_RECEIPT_VERSION,
            "receipt": b64url_encode(signed.receipt),
            "signature": b64url_encode(signed.signature),
            "ticket": offer.ticket,
            "ticket_issuer": b64url_encode(link.received.ticket_issuer),
            "evidence": b64url_encode(offer.evidence),
            "nonce": b64url_encode(link.nonce),
            "worker_certificate": b64url_encode(offer.worker_certificate),
            "model_digest": b64url_encode(offer.model_digest),
            "policy_digest": b64url_encode(offer.policy_digest),
            "decision": {
                "leaf": b64url_encode(offer.decision.leaf),
                "index": offer.decision.index,
                "proof": [b64url_encode(node) for node in offer.decision.proof],
                "checkpoint": offer.decision.checkpoint,
            },
        }
    )


def write_receipt(path: Path, data: bytes) -> None:
    """Write a saved receipt to a new or existing file that its owner alone can read (it holds a ticket).

    Raises:
        InvalidRequestError: the file cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {path}: {error.strerror}") from error
