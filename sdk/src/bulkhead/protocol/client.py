"""The client's side of a sealed request, without I/O (docs/protocol.md section 5).

A :class:`ClientSession` stands on a verified grant and makes requests. A :class:`ClientRequest` goes through::

    SENT --accept(worker random)--> OPEN --receive: deltas--> OPEN --receive: end or error--> ENDED
    OPEN, ENDED --receive: filling (padding ``strict``)--> as before
    ENDED --receive: final chunk with a receipt that holds--> COMPLETE

Anything else breaks it for good: out of order, altered, repeated, or after the end. The answer is whole only in
COMPLETE. A stream that stops earlier is a :class:`~bulkhead.errors.TruncatedError`, or the worker's own error if an
authentic one arrived. A request may be sent again (a new :class:`ClientRequest` under the same request id) only while
:attr:`ClientRequest.resendable`; execution is then at least once.
"""

import hashlib
import itertools
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.descriptor import key_fingerprint
from bulkhead.errors import (
    CertificateError,
    CertificateKeyError,
    CertificateMissingError,
    CertificateRootError,
    ChunkReflectedError,
    MessageTooLargeError,
    ReceiptCountError,
    ReceiptDigestError,
    ReceiptError,
    SealError,
    TicketError,
    TicketExpiredError,
    TruncatedError,
)
from bulkhead.ids import REQUEST, check_id, new_id
from bulkhead.protocol.certificates import read_certificate
from bulkhead.protocol.context import Method, RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.grant import VerifiedGrant
from bulkhead.protocol.payloads import MAX_PAYLOAD_BYTES, Content, Delta, End, Failure, parse_record
from bulkhead.protocol.receipts import (
    Commitment,
    Receipt,
    ReceiptStatus,
    SignedReceipt,
    check_receipt_claims,
    receipt_fetch_message,
    verify_signed_receipt,
)
from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.padding import MAX_RECORD_BYTES, PaddingMode, pad, unpad
from bulkhead.sealing.schedule import SECRET_BYTES, WORKER_RANDOM_BYTES, KeySchedule

__all__ = ["ClientEvent", "ClientRequest", "ClientSession", "Complete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The response is whole and its receipt holds.

    Attributes:
        receipt: verified.
        signed: the same as signed, to be kept.
    """

    receipt: Receipt
    signed: SignedReceipt


ClientEvent: TypeAlias = Content | End | Failure | Complete


class ClientSession:
    """Makes requests under one grant; a renewed grant gives a new one, with its own sequence. Safe across threads.

    Args:
        grant: verified.
        session_key: private half of the key in the grant's ticket.
        certificate: of the session key, by the root in the worker's descriptor; empty where that names none.
        random_bytes: source of request secrets.

    Raises:
        TicketError: the ticket is for another session key.
        CertificateError: the certificate is not one for this session's worker.
    """

    def __init__(
        self,
        *,
        grant: VerifiedGrant,
        session_key: Ed25519PrivateKey,
        certificate: bytes = b"",
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        if session_key.public_key().public_bytes_raw() != grant.claims.cnf:
            raise TicketError("the ticket is for another session key")
        self._grant = grant
        self._key = session_key
        self._certificate = certificate
        self._not_after_s = _usable_until_s(grant, certificate)
        self._random_bytes = random_bytes
        self._kem = grant.keyset.request_kem
        self._sequence = itertools.count()
        self._lock = threading.Lock()

    @property
    def grant(self) -> VerifiedGrant:
        """The grant that the session stands on."""
        return self._grant

    @property
    def certificate(self) -> bytes:
        """The session key's certificate; empty where the tenant has no root."""
        return self._certificate

    @property
    def not_after_s(self) -> int:
        """Unix seconds; the earlier end of grant and certificate."""
        return self._not_after_s

    def begin(self, method: Method, payload: bytes, *, now_s: int, request_id: str | None = None) -> "ClientRequest":
        """Seal a request.

        Args:
            method: what is asked for.
            payload: as ``encode_generate_request`` or ``encode_embed_request`` make it; at most 2 MiB.
            now_s: Unix seconds.
            request_id: None for a fresh one; an earlier one to send that request again.

        Raises:
            TicketExpiredError: the grant or the session key's certificate has ended: renew the session first.
            MessageTooLargeError: the payload is too long.
            InvalidRequestError: ``request_id`` is not one.
        """
        if now_s >= self._not_after_s:
            raise TicketExpiredError("the session's ticket, keys, certificate or evidence have expired: renew it")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise MessageTooLargeError(f"a request has at most {MAX_PAYLOAD_BYTES} bytes")
        with self._lock:
            sequence = next(self._sequence)
        info = RequestInfo(
            scope=self._grant.claims.scope,
            request_id=check_id(request_id, REQUEST) if request_id is not None else new_id(REQUEST),
            sequence=sequence,
            method=method,
        )
        secret = self._random_bytes(SECRET_BYTES)
        sealed_secret = self._kem.seal(secret, info=info.encoded)
        transcript_hash = info.transcript_hash(sealed_secret)
        envelope = Envelope(
            ticket=self._grant.ticket,
            key_id=info.scope.key_id,
            sequence=sequence,
            request_id=info.request_id,
            method=method,
            sealed_secret=sealed_secret,
            signature=self._key.sign(transcript_hash),
            certificate=self._certificate,
        )
        return ClientRequest(
            grant=self._grant,
            info=info,
            envelope=envelope.encode(),
            payload=payload,
            transcript_hash=transcript_hash,
            schedule=KeySchedule(secret, transcript_hash=transcript_hash),
        )

    def sign_receipt_fetch(self, request_id: str) -> bytes:
        """Return the signature (64 bytes) that fetches the receipt of ``request_id``."""
        claims = self._grant.claims
        return self._key.sign(
            receipt_fetch_message(tenant=claims.tenant, session=claims.session, request_id=request_id)
        )

    def check_fetched_receipt(self, signed: SignedReceipt, *, request_id: str) -> Receipt:
        """Return a fetched receipt if this worker made it for ``request_id`` of this session.

        Its commitments are checked only by the :class:`ClientRequest` that still has the request's secret
        (:meth:`ClientRequest.check_receipt`).

        Raises:
            SignatureError, ReceiptError: as :func:`bulkhead.protocol.receipts.verify_signed_receipt`, or it is of
                another request.
        """
        receipt = verify_signed_receipt(signed, key=self._grant.keyset.receipt_key)
        claims = self._grant.claims
        if (receipt.request_id, receipt.session, receipt.cnf) != (request_id, claims.session, claims.cnf):
            raise ReceiptError("the receipt is of another request")
        return receipt


def _usable_until_s(grant: VerifiedGrant, certificate: bytes) -> int:
    """Return the end of grant and certificate; the worker judges the latter, this spares a request in vain."""
    root = grant.worker.descriptor.tenant_root
    if root is None:
        if certificate:
            raise CertificateError("the worker was started for a tenant without a root")
        return grant.not_after_s
    if not certificate:
        raise CertificateMissingError("the worker takes session keys that the tenant's root certified, and no others")
    found = read_certificate(certificate)
    if key_fingerprint(found.root) != root:
        raise CertificateRootError("the session key is certified by another root than the worker's descriptor names")
    if (found.tenant, found.cnf) != (grant.claims.tenant, grant.claims.cnf):
        raise CertificateKeyError("the certificate is of another tenant or session key")
    return min(grant.not_after_s, found.not_after_s)


class _State(Enum):
    SENT = auto()
    OPEN = auto()
    ENDED = auto()
    COMPLETE = auto()
    BROKEN = auto()


class ClientRequest:
    """One request on its way; made by :meth:`ClientSession.begin`.

    Attributes:
        request_id: names it in both logs and receipts.
        envelope: first part of the message to the worker.
        chunks: the sealed request chunks, in order, that follow it.
    """

    def __init__(
        self,
        *,
        grant: VerifiedGrant,
        info: RequestInfo,
        envelope: bytes,
        payload: bytes,
        transcript_hash: bytes,
        schedule: KeySchedule,
    ) -> None:
        self.request_id: Final = info.request_id
        self.envelope: Final = envelope
        self._grant = grant
        self._info = info
        self._transcript_hash = transcript_hash
        self._schedule = schedule
        sealer = ChunkSealer(schedule.client_to_server(), Direction.CLIENT_TO_SERVER)
        self._padding = grant.claims.padding
        pieces = [payload[at : at + MAX_RECORD_BYTES] for at in range(0, max(len(payload), 1), MAX_RECORD_BYTES)]
        self.chunks: Final = tuple(
            sealer.seal(pad(piece, self._padding, Direction.CLIENT_TO_SERVER), final=place == len(pieces))
            for place, piece in enumerate(pieces, start=1)
        )
        key = schedule.commitment()
        request_commitment = Commitment(key)
        request_commitment.add(payload)
        self._request_commitment = request_commitment.digest()
        self._response_commitment = Commitment(key)
        self._opener: ChunkOpener | None = None
        self._received_tokens = 0
        self._ended: End | Failure | None = None
        self._signed: SignedReceipt | None = None
        self._state = _State.SENT

    @property
    def resendable(self) -> bool:
        """Whether nothing of a response was accepted yet, so that the request may be sent again."""
        return self._state is _State.SENT

    @property
    def complete(self) -> bool:
        """Whether the whole response and its receipt were received and hold."""
        return self._state is _State.COMPLETE

    def accept(self, worker_random: bytes) -> None:
        """Take the 32 bytes that open the response.

        Raises:
            SealError: of another length, or the response was opened before.
        """
        if self._state is not _State.SENT or len(worker_random) != WORKER_RANDOM_BYTES:
            self._state = _State.BROKEN
            raise SealError(f"a response opens once, with {WORKER_RANDOM_BYTES} bytes")
        digest = hashlib.sha256()
        for chunk in self.chunks:
            digest.update(len(chunk).to_bytes(4, "big"))
            digest.update(chunk)
        key_material = self._schedule.server_to_client(request_digest=digest.digest(), worker_random=worker_random)
        self._opener = ChunkOpener(key_material, Direction.SERVER_TO_CLIENT)
        self._schedule.wipe()  # every key of this request is made
        self._state = _State.OPEN

    def receive(self, chunk: bytes) -> ClientEvent | None:
        """Open the next chunk and return what it says.

        Returns:
            A delta or embedding to use, the end or error record, or :class:`Complete`; None for one that only fills
            its place in time.

        Raises:
            ChunkReflectedError: it is one of the request's own.
            SealError: it does not open, is out of order, or says something out of order; as
                :meth:`bulkhead.sealing.chunks.ChunkOpener.open`.
            ReceiptError, SignatureError: the final chunk's receipt does not hold.
        """
        state, self._state = self._state, _State.BROKEN
        if self._opener is None or state not in {_State.OPEN, _State.ENDED}:
            raise SealError("a chunk before the response was opened, or after its end")
        if chunk in self.chunks:
            raise ChunkReflectedError("a chunk of the request came back as one of the response")
        plaintext, final = self._opener.open(chunk)
        record = unpad(plaintext, self._padding, Direction.SERVER_TO_CLIENT)
        if not record and not final and self._padding is PaddingMode.STRICT:
            self._state = state
            return None
        if final != (state is _State.ENDED):
            raise SealError("the final chunk holds the receipt, and only the one after the last record does")
        if final:
            event: ClientEvent = self._complete(record)
            self._state = _State.COMPLETE
            return event
        event = parse_record(record)
        self._response_commitment.add_record(record)
        if isinstance(event, End | Failure):
            self._ended = event
            self._state = _State.ENDED
        else:
            self._received_tokens += event.tokens if isinstance(event, Delta) else 0
            self._state = _State.OPEN
        return event

    def end_of_stream(self) -> SignedReceipt:
        """Return the verified receipt after the transport said that the stream is over.

        Raises:
            BulkheadError: the worker's own, if its error record arrived and the receipt did not.
            TruncatedError: the final chunk never came; what arrived must not pass for an answer.
        """
        if self._signed is not None and self._state is _State.COMPLETE:
            return self._signed
        if self._state is _State.ENDED and isinstance(self._ended, Failure):
            raise self._ended.error()
        self._state = _State.BROKEN
        raise TruncatedError(
            "the response ended before its final chunk: what arrived is not a whole answer",
            details={"request_id": self.request_id},
        )

    def check_receipt(self, signed: SignedReceipt) -> Receipt:
        """Return a receipt of this request, fetched later, if it is signed and speaks of what was sent and received.

        The response commitment of a request that was cut short may cover records that never arrived, so it and the
        status are checked by :meth:`receive` only.

        Raises:
            SignatureError: not by the worker's receipt key.
            ReceiptError: of something else; its subclasses say of what.
        """
        receipt = verify_signed_receipt(signed, key=self._grant.keyset.receipt_key)
        if (receipt.request_id, receipt.method) != (self.request_id, self._info.method):
            raise ReceiptError("the receipt is of another request or method")
        check_receipt_claims(receipt, self._grant.claims)
        if receipt.transcript_hash != self._transcript_hash:
            raise ReceiptDigestError("the receipt is of another transcript")
        if receipt.request_commitment != self._request_commitment:
            raise ReceiptDigestError("the receipt is of another request")
        return receipt

    def _complete(self, record: bytes) -> Complete:
        signed = SignedReceipt.parse(record)
        receipt = self.check_receipt(signed)
        if receipt.response_commitment != self._response_commitment.digest():
            raise ReceiptDigestError("the receipt is of another response")
        match self._ended:
            case End(usage=usage):
                holds = (receipt.status, receipt.code) == (ReceiptStatus.OK, "")
                if receipt.usage != usage or (
                    self._info.method is Method.GENERATE and usage.completion_tokens != self._received_tokens
                ):
                    raise ReceiptCountError("the receipt tells other token counts than the response had")
            case Failure(code=code):
                holds = (receipt.status, receipt.code) == (ReceiptStatus.FAILED, code)
            case None:
                holds = False
        if not holds:
            raise ReceiptError("the receipt tells another end than the response")
        self._signed = signed
        return Complete(receipt=receipt, signed=signed)
