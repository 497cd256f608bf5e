"""Receipts kept for later, as files; what is in one, and how it is verified: :mod:`bulkhead.protocol.saved`."""

import os
from pathlib import Path

from bulkhead.client.link import Link
from bulkhead.errors import InvalidRequestError
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import SignedReceipt
from bulkhead.protocol.saved import MAX_SAVED_BYTES, SavedReceipt

__all__ = ["read_receipt_file", "saved_receipt", "write_receipt"]


def saved_receipt(link: Link, signed: SignedReceipt, *, answer: Usage | None = None) -> bytes:
    """Return the file's bytes for a receipt that was verified under ``link``'s grant.

    Args:
        link: the grant that the request was sent under.
        signed: the receipt.
        answer: tokens that the client counted in a whole answer.
    """
    return SavedReceipt(
        signed=signed,
        answer=answer,
        offer=link.received.offer,
        ticket_issuer=link.received.ticket_issuer,
        nonce=link.nonce,
        collateral=link.collateral,
    ).encode()


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


def read_receipt_file(path: Path) -> SavedReceipt:
    """Return the saved receipt in a file, parsed and not verified.

    Raises:
        InvalidRequestError: the file cannot be read.
        ReceiptError: it is no saved receipt.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SAVED_BYTES + 1)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    return SavedReceipt.parse(data)
