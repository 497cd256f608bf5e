"""The worker's side of a sealed request, without I/O (docs/protocol.md section 5).

One :class:`SealedServer` per worker opens envelopes, in this order and no other: size, ticket, key, certificate,
signature, sequence, KEM. Everything the key encapsulation is bound to comes from the verified ticket, nothing from the
request but its id, sequence and method, which the session key signs. A :class:`ServerRequest` then goes through::

    RECEIVING --receive: final request chunk--> STREAMING --send--> STREAMING --end, fail--> ENDED
    ENDED --make_receipt--> RECEIPTED --finish--> FINISHED
    STREAMING, ENDED, RECEIPTED --fill (padding ``strict``)--> as before
    RECEIVING or STREAMING --cancel--> CANCELLED --make_receipt--> FINISHED

Between :meth:`ServerRequest.make_receipt` and :meth:`ServerRequest.finish` the caller makes the receipt's digest
durable; if it cannot, it releases no final chunk, and the client sees a truncated stream.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bulkhead.errors import (
    BulkheadError,
    CertificateError,
    InternalError,
    KeyMismatchError,
    MessageTooLargeError,
    SealError,
    SignatureError,
    StaleKeyError,
    TicketError,
)
from bulkhead.protocol.certificates import verify_certificate
from bulkhead.protocol.context import RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.payloads import MAX_PAYLOAD_BYTES, Content, End, Failure, Usage, encode_record
from bulkhead.protocol.receipts import (
    Commitment,
    Receipt,
    ReceiptNumbers,
    ReceiptStatus,
    SignedReceipt,
    receipt_fetch_message,
    sign_receipt,
)
from bulkhead.protocol.replay import ReplayGuard
from bulkhead.protocol.tickets import TicketClaims, TicketVerifier
from bulkhead.sealing import WorkerKeys
from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.padding import PaddingMode, pad, unpad
from bulkhead.sealing.schedule import WORKER_RANDOM_BYTES, KeySchedule

__all__ = ["SealedServer", "ServerRequest"]


class SealedServer:
    """Opens the sealed requests of one worker. Safe across threads.

    Args:
        authority: the worker's name; tickets name it as audience.
        tenant: the one tenant that the worker serves.
        partition: the worker's partition.
        model_digest: of the model it serves, 32 bytes.
        tickets: verifies tickets.
        keys: the current keys; see :meth:`add_keys`.
        is_revoked: whether the ticket's session was revoked.
        knows_evidence: whether evidence of that digest was issued for this worker; None accepts what the ticket says.
        tenant_root: fingerprint (32 bytes) of the root in the worker's descriptor, which must have certified every
            session key; None where the tenant has none. It never changes, since receipts of one keyset speak for it.
        random_bytes: source of the worker's bytes in responses.
    """

    def __init__(
        self,
        *,
        authority: str,
        tenant: str,
        partition: str,
        model_digest: bytes,
        tickets: TicketVerifier,
        keys: WorkerKeys,
        is_revoked: Callable[[TicketClaims], bool],
        knows_evidence: Callable[[bytes], bool] | None = None,
        tenant_root: bytes | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._authority = authority
        self._tenant = tenant
        self._partition = partition
        self._model_digest = model_digest
        self._tickets = tickets
        self._is_revoked = is_revoked
        self._knows_evidence = knows_evidence
        self._tenant_root = tenant_root
        self._random_bytes = random_bytes
        self._keys = {keys.key_id: keys}
        self._replay = ReplayGuard()
        self._receipts = ReceiptNumbers()
        self._lock = threading.Lock()
        self._latest_s = 0

    def add_keys(self, keys: WorkerKeys) -> None:
        """Take requests to a further generation of keys."""
        self._keys = {**self._keys, keys.key_id: keys}

    def retire_keys(self, key_id: bytes) -> None:
        """Destroy a generation: requests sealed to it are refused as stale, recorded ones cannot be opened again."""
        keys = self._keys.get(key_id)
        self._keys = {known: held for known, held in self._keys.items() if known != key_id}
        if keys is not None:
            keys.destroy()
        self._replay.forget(key_id)

    @property
    def partition(self) -> str:
        """Its partition id."""
        return self._partition

    def next_receipt_number(self, session: str) -> int:
        """Use up a number of a session's receipts, for a total of its usage."""
        return self._receipts.next(session)

    def open(self, envelope: bytes, *, now_s: int) -> "ServerRequest":
        """Open an envelope (untrusted); the request's chunks follow through :meth:`ServerRequest.receive`.

        Obligations, in this order, the cheap and authenticating ones first:
            1. Size and exact layout.
            2. The ticket holds, is not revoked, and names this worker, tenant, partition and model.
            3. It names a keyset that the worker still holds, the one to which the request is sealed.
            4. Where the tenant has a root, it certified the session key in the ticket; else no certificate came.
            5. The session key signed the transcript.
            6. The sequence number is used for the first time.
            7. The request secret opens under exactly that context.

        Args:
            envelope: bytes as received.
            now_s: Unix seconds; a clock that goes backwards is read as its latest value.

        Raises:
            MalformedRequestError, MessageTooLargeError: 1.
            TicketError: 2 (also its subclasses for expiry and revocation).
            StaleKeyError, KeyMismatchError: 3.
            CertificateError: 4; its subclasses say what does not hold.
            SignatureError: 5.
            ReplayError, WindowFullError: 6.
            SealError: 7.
        """
        parsed = Envelope.parse(envelope)  # 1
        now_s = self._monotonic(now_s)
        claims = self._check_ticket(parsed.ticket, now_s=now_s)  # 2
        keys = self._keys.get(claims.keyset_digest)  # 3
        if keys is None or now_s >= keys.keyset.not_after_s:
            raise StaleKeyError("the worker no longer holds that key: renew the session")
        if parsed.key_id != claims.keyset_digest:
            raise KeyMismatchError("the request is sealed to another keyset than its ticket names")
        self._check_certificate(parsed.certificate, claims, now_s=now_s)  # 4
        info = RequestInfo(
            scope=claims.scope, request_id=parsed.request_id, sequence=parsed.sequence, method=parsed.method
        )
        transcript_hash = info.transcript_hash(parsed.sealed_secret)
        _check_signature(claims.cnf, parsed.signature, transcript_hash)  # 5
        self._replay.claim(info.scope, info.sequence)  # 6
        secret = keys.open_request(parsed.sealed_secret, info=info.encoded)  # 7
        return ServerRequest(
            claims=claims,
            info=info,
            keys=keys,
            transcript_hash=transcript_hash,
            schedule=KeySchedule(secret, transcript_hash=transcript_hash),
            worker_random=self._random_bytes(WORKER_RANDOM_BYTES),
            numbers=self._receipts,
        )

    def authorise_receipt_fetch(
        self, *, ticket: str, request_id: str, signature: bytes, now_s: int, certificate: bytes = b""
    ) -> TicketClaims:
        """Return the claims of a caller that may fetch receipts of its session.

        Raises:
            TicketError: the ticket does not hold here.
            CertificateError: the tenant has a root, which does not vouch for the session key.
            SignatureError: the session key did not sign for that request id.
        """
        now_s = self._monotonic(now_s)
        claims = self._check_ticket(ticket, now_s=now_s)
        self._check_certificate(certificate, claims, now_s=now_s)
        message = receipt_fetch_message(tenant=claims.tenant, session=claims.session, request_id=request_id)
        _check_signature(claims.cnf, signature, message)
        return claims

    def _monotonic(self, now_s: int) -> int:
        """Return the latest time seen: a clock that is set back revives no ticket and no key."""
        with self._lock:
            self._latest_s = max(self._latest_s, now_s)
            return self._latest_s

    def _check_ticket(self, ticket: str, *, now_s: int) -> TicketClaims:
        claims = self._tickets.verify(ticket, now_s=now_s, audience=self._authority, is_revoked=self._is_revoked)
        if (claims.tenant, claims.partition) != (self._tenant, self._partition):
            raise TicketError("the ticket is for another tenant or partition")
        if claims.model_digest != self._model_digest:
            raise TicketError("the ticket is for another model")
        if self._knows_evidence is not None and not self._knows_evidence(claims.evidence_digest):
            raise TicketError("the ticket stands on evidence that is not this worker's")
        return claims

    def _check_certificate(self, certificate: bytes, claims: TicketClaims, *, now_s: int) -> None:
        if self._tenant_root is not None:
            verify_certificate(
                certificate, root_fingerprint=self._tenant_root, tenant=self._tenant, cnf=claims.cnf, now_s=now_s
            )
        elif certificate:
            raise CertificateError("this worker was started for a tenant without a root: open a new session")


class _State(Enum):
    RECEIVING = auto()
    STREAMING = auto()
    ENDED = auto()
    CANCELLED = auto()
    RECEIPTED = auto()
    FINISHED = auto()
    BROKEN = auto()


class ServerRequest:
    """One authenticated request; made by :meth:`SealedServer.open`.

    Attributes:
        claims: of the verified ticket.
        info: request id, sequence and method.
        worker_random: the 32 bytes that open the response; send them before the first chunk.
    """

    def __init__(
        self,
        *,
        claims: TicketClaims,
        info: RequestInfo,
        keys: WorkerKeys,
        transcript_hash: bytes,
        schedule: KeySchedule,
        worker_random: bytes,
        numbers: ReceiptNumbers,
    ) -> None:
        self.claims: Final = claims
        self.info: Final = info
        self._numbers = numbers
        self.worker_random: Final = worker_random
        self._keys = keys
        self._transcript_hash = transcript_hash
        self._schedule = schedule
        self._opener = ChunkOpener(schedule.client_to_server(), Direction.CLIENT_TO_SERVER)
        self._sealer: ChunkSealer | None = None
        self._request_digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._size = 0
        key = schedule.commitment()
        self._request_commitment = Commitment(key)
        self._response_commitment = Commitment(key)
        self._usage = Usage()
        self._status = ReceiptStatus.OK
        self._code = ""
        self._signed: SignedReceipt | None = None
        self._receipt_number = 0
        self._state = _State.RECEIVING

    def receive(self, chunk: bytes) -> bool:
        """Open the next request chunk; return whether the request is whole.

        Raises:
            SealError: it does not open, or follows the final one; the request is over.
            MessageTooLargeError: the payload is above 2 MiB; the request is over.
        """
        state, self._state = self._state, _State.BROKEN
        if state is not _State.RECEIVING:
            raise SealError("a request chunk after the end of the request")
        plaintext, final = self._opener.open(chunk)
        part = unpad(plaintext, self.claims.padding, Direction.CLIENT_TO_SERVER)
        if not part and not final:
            raise SealError("an empty request chunk before the final one")  # would let a request never end
        self._size += len(part)
        if self._size > MAX_PAYLOAD_BYTES:
            raise MessageTooLargeError(f"a request has at most {MAX_PAYLOAD_BYTES} bytes")
        self._request_digest.update(len(chunk).to_bytes(4, "big"))
        self._request_digest.update(chunk)
        self._request_commitment.add(part)
        self._parts.append(part)
        if not final:
            self._state = _State.RECEIVING
            return False
        key_material = self._schedule.server_to_client(
            request_digest=self._request_digest.digest(), worker_random=self.worker_random
        )
        self._sealer = ChunkSealer(key_material, Direction.SERVER_TO_CLIENT)
        self._schedule.wipe()  # every key of this request is made
        self._state = _State.STREAMING
        return True

    @property
    def payload(self) -> bytes:
        """The opened payload, authentic but not yet parsed; empty before the request is whole."""
        return b"" if self._sealer is None else b"".join(self._parts)

    @property
    def receipt_number(self) -> int:
        """The receipt's number in its session; 0 before it was made."""
        return self._receipt_number

    def send(self, record: Content) -> bytes:
        """Return the next response chunk.

        Raises:
            InternalError: called before the request is whole or after the response ended.
            InvalidRequestError: the record cannot be encoded or is too long for a chunk.
        """
        return self._seal(record)

    def end(self, end: End) -> bytes:
        """Return the chunk that says the answer is whole; the receipt follows. Errors as :meth:`send`."""
        chunk = self._seal(end)
        self._usage = end.usage
        self._state = _State.ENDED
        return chunk

    def fail(self, error: BulkheadError, *, usage: Usage | None = None) -> bytes:
        """Return the chunk that reports ``error`` under the seal; the receipt follows.

        Args:
            error: what the client shall see; a defect is an :class:`~bulkhead.errors.InternalError` without inner text.
            usage: tokens that were processed before.
        """
        chunk = self._seal(Failure.of(error))
        self._usage = usage if usage is not None else Usage()
        self._status, self._code = ReceiptStatus.FAILED, error.code
        self._state = _State.ENDED
        return chunk

    def cancel(self, *, usage: Usage | None = None) -> None:
        """Record that the client went away or the request broke; only the receipt remains to be made.

        Raises:
            InternalError: the response has ended already.
        """
        if self._state not in {_State.RECEIVING, _State.STREAMING, _State.BROKEN}:
            raise InternalError("a request that has ended cannot be cancelled")
        self._usage = usage if usage is not None else Usage()
        self._status = ReceiptStatus.CANCELLED
        self._state = _State.CANCELLED

    def make_receipt(self, *, ts_us: int) -> SignedReceipt:
        """Return the signed receipt; make its digest durable before :meth:`finish`.

        Args:
            ts_us: microseconds since the epoch.

        Raises:
            InternalError: the response has not ended, or the receipt was made.
            StaleKeyError: the keys were destroyed meanwhile.
        """
        if self._state not in {_State.ENDED, _State.CANCELLED}:
            raise InternalError("a receipt is made once, after the end of the response")
        self._receipt_number = self._numbers.next(self.claims.session)
        self._signed = sign_receipt(self._receipt(ts_us), sign=self._keys.sign_receipt)
        self._state = _State.RECEIPTED if self._state is _State.ENDED else _State.FINISHED
        return self._signed

    def finish(self) -> bytes:
        """Return the final chunk, which holds the receipt; call when the receipt's digest is durable.

        Raises:
            InternalError: no receipt was made, the request was cancelled, or the final chunk was released.
        """
        if self._state is not _State.RECEIPTED or self._signed is None or self._sealer is None:
            raise InternalError("the final chunk is released once, after the receipt")
        self._state = _State.FINISHED
        return self._sealer.seal(self._padded(self._signed.encode()), final=True)

    def fill(self) -> bytes:
        """Return a chunk that says nothing, for a place in time where there is nothing to say.

        Raises:
            InternalError: the padding is not ``strict``, or the response is not open.
        """
        streams = self._state in {_State.STREAMING, _State.ENDED, _State.RECEIPTED}
        if not streams or self._sealer is None or self.claims.padding is not PaddingMode.STRICT:
            raise InternalError("only a response under strict padding is filled, and only while it is open")
        return self._sealer.seal(self._padded(b""))

    def _padded(self, record: bytes) -> bytes:
        return pad(record, self.claims.padding, Direction.SERVER_TO_CLIENT)

    def _seal(self, record: Content | End | Failure) -> bytes:
        if self._state is not _State.STREAMING or self._sealer is None:
            raise InternalError("a response is sent after the whole request and before its end")
        encoded = encode_record(record)
        chunk = self._sealer.seal(self._padded(encoded))
        self._response_commitment.add_record(encoded)
        return chunk

    def _receipt(self, ts_us: int) -> Receipt:
        claims = self.claims
        return Receipt(
            request_id=self.info.request_id,
            number=self._receipt_number,
            ticket_id=claims.ticket_id,
            tenant=claims.tenant,
            session=claims.session,
            cnf=claims.cnf,
            method=self.info.method,
            transcript_hash=self._transcript_hash,
            keyset_digest=claims.keyset_digest,
            evidence_digest=claims.evidence_digest,
            model=claims.model,
            model_digest=claims.model_digest,
            partition=claims.partition,
            tier=claims.tier,
            simulated=claims.simulated,
            usage=self._usage,
            status=self._status,
            code=self._code,
            ts_us=ts_us,
            request_commitment=self._request_commitment.digest(),
            response_commitment=self._response_commitment.digest(),
        )


def _check_signature(public_key: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("the session key of the ticket did not sign this request") from error
