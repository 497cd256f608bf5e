"""Receipts: what a worker signs about a request, and what remains when keys and tickets are gone.

A receipt names the request, its session and evidence, counts and status, and commits to request and response without
revealing them: HMAC-SHA256 under a key that derives from the request secret, so that a digest in an operator's log
cannot be guessed from a dictionary (docs/protocol.md section 7).
"""

import hashlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bulkhead.attestation import Tier
from bulkhead.encoding import Json, b64url_encode, canonical_json, lp, lp_join
from bulkhead.errors import (
    ReceiptDigestError,
    ReceiptError,
    ReceiptModelError,
    ReceiptTierError,
    SignatureError,
)
from bulkhead.fields import Fields
from bulkhead.protocol.context import Method
from bulkhead.protocol.generate import MAX_TOKENS
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.tickets import TicketClaims

__all__ = [
    "MAX_RECEIPT_BYTES",
    "RECEIPT_VERSION",
    "Commitment",
    "Receipt",
    "ReceiptNumbers",
    "ReceiptStatus",
    "SignedReceipt",
    "check_receipt_claims",
    "read_receipt",
    "receipt_fetch_message",
    "sign_receipt",
    "verify_signed_receipt",
]

RECEIPT_VERSION: Final = 1
MAX_RECEIPT_BYTES: Final = 8_192  # a receipt has about 1,700; names within are bounded
SIGNATURE_BYTES: Final = 64
MAX_CODE_CHARS: Final = 64
_LABEL: Final = b"bulkhead/v1 receipt"
_FETCH_LABEL: Final = b"bulkhead/v1 fetch receipt"


class ReceiptStatus(StrEnum):
    """How the request ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Commitment:
    """A running commitment, HMAC-SHA256 over what is added.

    Args:
        key: 32 bytes of :meth:`bulkhead.sealing.schedule.KeySchedule.commitment`.
    """

    __slots__ = ("_mac",)

    def __init__(self, key: bytes | bytearray) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._mac.update(data)

    def add_record(self, record: bytes) -> None:
        """Append a response record behind its u32 length."""
        self._mac.update(len(record).to_bytes(4, "big") + record)

    def digest(self) -> bytes:
        """Return the commitment (32 bytes) to what was added so far."""
        return self._mac.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker states about one request. Digests have 32 bytes.

    Attributes:
        request_id: the client's id; a resent request has a second receipt under the same one.
        number: of the session's receipts of this partition, counted from 1 by the worker.
        ticket_id: ``jti`` of the ticket.
        tenant: tenant id.
        session: session id.
        cnf: the session's public key, 32 bytes.
        method: what was asked for.
        transcript_hash: ``th`` of the request.
        keyset_digest: key id of the worker's keyset.
        evidence_digest: of the evidence behind the ticket.
        model: model name.
        model_digest: of the model's manifest.
        partition: partition id.
        tier: tier in the ticket.
        simulated: whether any part was simulated.
        usage: token counts.
        status: how it ended.
        code: stable error code of a failed request, else empty.
        ts_us: microseconds since the epoch by the worker's clock.
        request_commitment: over the request's payload.
        response_commitment: over ``lp`` of each response record.
    """

    request_id: str
    number: int
    ticket_id: str
    tenant: str
    session: str
    cnf: bytes
    method: Method
    transcript_hash: bytes
    keyset_digest: bytes
    evidence_digest: bytes
    model: str
    model_digest: bytes
    partition: str
    tier: Tier
    simulated: bool
    usage: Usage
    status: ReceiptStatus
    code: str
    ts_us: int
    request_commitment: bytes
    response_commitment: bytes

    def to_json(self) -> dict[str, Json]:
        """Return the JSON object that is signed (as RFC 8785)."""
        return {
            "version": RECEIPT_VERSION,
            "request_id": self.request_id,
            "number": self.number,
            "ticket_id": self.ticket_id,
            "tenant": self.tenant,
            "session": self.session,
            "cnf": b64url_encode(self.cnf),
            "method": self.method.value,
            "transcript_hash": self.transcript_hash.hex(),
            "keyset_digest": self.keyset_digest.hex(),
            "evidence_digest": self.evidence_digest.hex(),
            "model": self.model,
            "model_digest": self.model_digest.hex(),
            "partition": self.partition,
            "tier": self.tier.value,
            "simulated": self.simulated,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
            "status": self.status.value,
            "code": self.code,
            "ts_us": self.ts_us,
            "request_commitment": self.request_commitment.hex(),
            "response_commitment": self.response_commitment.hex(),
        }


class ReceiptNumbers:
    """Numbers the receipts of each session of a worker from 1; keys come and go meanwhile. Safe across threads.

    Numbers are never used twice, so nothing is forgotten while the worker lives: some 200 bytes a session.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._lock = threading.Lock()

    def next(self, session: str) -> int:
        """Return the number of the session's next receipt."""
        with self._lock:
            self._last[session] = number = self._last.get(session, 0) + 1
            return number


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt:
    """A receipt with its signature; trusted only after :func:`verify_signed_receipt`.

    Attributes:
        receipt: RFC 8785 bytes of the receipt.
        signature: Ed25519, 64 bytes, by the keyset's receipt key.
    """

    receipt: bytes
    signature: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of :meth:`encode`: what goes into the tenant's audit log."""
        return hashlib.sha256(self.encode()).digest()

    def encode(self) -> bytes:
        """Return ``{"receipt": {...}, "signature": "..."}`` as RFC 8785: the final chunk's content, and a file's."""
        return b'{"receipt":' + self.receipt + b',"signature":"' + b64url_encode(self.signature).encode() + b'"}'

    @classmethod
    def parse(cls, data: bytes) -> "SignedReceipt":
        """Return the signed receipt in untrusted bytes.

        Raises:
            ReceiptError: not canonical JSON of that shape.
        """
        with Fields.parse(data, max_bytes=MAX_RECEIPT_BYTES, what="signed receipt", error=ReceiptError) as fields:
            return cls(
                receipt=canonical_json(fields.value("receipt")),
                signature=fields.binary("signature", max_bytes=SIGNATURE_BYTES, size=SIGNATURE_BYTES),
            )


def receipt_fetch_message(*, tenant: str, session: str, request_id: str) -> bytes:
    """Return what the session key signs to fetch a receipt (docs/protocol.md section 7)."""
    return _FETCH_LABEL + lp_join(tenant.encode(), session.encode(), request_id.encode())


def sign_receipt(receipt: Receipt, *, sign: Callable[[bytes], bytes]) -> SignedReceipt:
    """Return ``receipt`` signed by ``sign`` (:meth:`bulkhead.sealing.WorkerKeys.sign_receipt`)."""
    encoded = canonical_json(receipt.to_json())
    return SignedReceipt(receipt=encoded, signature=sign(_message(encoded)))


def verify_signed_receipt(signed: SignedReceipt, *, key: Ed25519PublicKey) -> Receipt:
    """Return the receipt that the keyset's receipt key signed.

    The caller checks: that ``key`` comes from a verified keyset, and that the receipt is of its own request.

    Raises:
        SignatureError: another key signed it, or it was altered.
        ReceiptError: it is signed and yet no receipt of version 1.
    """
    try:
        key.verify(signed.signature, _message(signed.receipt))
    except InvalidSignature as error:
        raise SignatureError("the receipt is not signed by the worker's receipt key") from error
    return read_receipt(signed.receipt)


def check_receipt_claims(receipt: Receipt, claims: TicketClaims) -> None:
    """Return if a receipt speaks of the session, worker and model of a verified ticket.

    Raises:
        ReceiptModelError, ReceiptTierError, ReceiptDigestError, ReceiptError: of another one; the class says of what.
    """
    expected: tuple[tuple[type[ReceiptError], str, object, object], ...] = (
        (ReceiptModelError, "model", receipt.model, claims.model),
        (ReceiptTierError, "tier", receipt.tier, claims.tier),
        (ReceiptTierError, "simulated flag", receipt.simulated, claims.simulated),
        (ReceiptDigestError, "model digest", receipt.model_digest, claims.model_digest),
        (ReceiptDigestError, "keyset", receipt.keyset_digest, claims.keyset_digest),
        (ReceiptDigestError, "evidence", receipt.evidence_digest, claims.evidence_digest),
        (ReceiptError, "ticket", receipt.ticket_id, claims.ticket_id),
        (ReceiptError, "tenant", receipt.tenant, claims.tenant),
        (ReceiptError, "session", receipt.session, claims.session),
        (ReceiptError, "session key", receipt.cnf, claims.cnf),
        (ReceiptError, "partition", receipt.partition, claims.partition),
    )
    for error, name, stated, wanted in expected:
        if stated != wanted:
            raise error(f"the receipt is of another {name}")


def _message(encoded: bytes) -> bytes:
    return _LABEL + lp(encoded)


def read_receipt(encoded: bytes) -> Receipt:
    """Return what a receipt says, signed or not; for naming what does not fit before the signature is checked.

    Raises:
        ReceiptError: not a receipt of version 1.
    """
    with Fields.parse(encoded, max_bytes=MAX_RECEIPT_BYTES, what="receipt", error=ReceiptError) as fields:
        fields.integer("version", low=RECEIPT_VERSION, high=RECEIPT_VERSION)
        try:
            tier, method = Tier(fields.text("tier")), Method(fields.text("method"))
            status = ReceiptStatus(fields.text("status"))
        except ValueError as error:
            raise ReceiptError("receipt: unknown tier, method or status") from error
        return Receipt(
            request_id=fields.text("request_id"),
            number=fields.integer("number", low=1),
            ticket_id=fields.text("ticket_id"),
            tenant=fields.text("tenant"),
            session=fields.text("session"),
            cnf=fields.binary("cnf", max_bytes=32, size=32),
            method=method,
            transcript_hash=fields.digest("transcript_hash"),
            keyset_digest=fields.digest("keyset_digest"),
            evidence_digest=fields.digest("evidence_digest"),
            model=fields.text("model"),
            model_digest=fields.digest("model_digest"),
            partition=fields.text("partition"),
            tier=tier,
            simulated=fields.boolean("simulated"),
            usage=_read_usage(fields),
            status=status,
            code=fields.text("code", max_chars=MAX_CODE_CHARS, empty=True),
            ts_us=fields.integer("ts_us"),
            request_commitment=fields.digest("request_commitment"),
            response_commitment=fields.digest("response_commitment"),
        )


def _read_usage(fields: Fields) -> Usage:
    with fields.nested("usage") as usage:
        return Usage(
            prompt_tokens=usage.integer("prompt_tokens", high=MAX_TOKENS),
            completion_tokens=usage.integer("completion_tokens", high=MAX_TOKENS),
        )
