"""The worker's side of one sealed request, without I/O (docs/protocol.md section 5).

A request goes through::

    RECEIVING --receive: final request chunk--> STREAMING --send--> STREAMING --end, fail--> ENDED
    ENDED --make_receipt--> RECEIPTED --finish--> FINISHED
    STREAMING, ENDED, RECEIPTED --fill (padding ``strict``)--> as before
    RECEIVING or STREAMING --cancel--> CANCELLED --make_receipt--> FINISHED

Between :meth:`ServerRequest.make_receipt` and :meth:`ServerRequest.finish` the caller makes the receipt's digest
durable; if it cannot, it releases no final chunk, and the client sees a truncated stream.
"""

import hashlib
from enum import Enum, auto
from typing import Final

from bulkhead.errors import BulkheadError, InternalError, MessageTooLargeError, SealError
from bulkhead.protocol.context import RequestInfo
from bulkhead.protocol.payloads import MAX_PAYLOAD_BYTES, Content, End, Failure, Usage, encode_record
from bulkhead.protocol.receipts import (
    Commitment,
    Receipt,
    ReceiptNumbers,
    ReceiptStatus,
    SignedReceipt,
    sign_receipt,
)
from bulkhead.protocol.tickets import TicketClaims
from bulkhead.sealing import WorkerKeys
from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.padding import PaddingMode, pad, unpad
from bulkhead.sealing.schedule import KeySchedule

__all__ = ["ServerRequest"]


class _State(Enum):
    RECEIVING = auto()
    STREAMING = auto()
    ENDED = auto()
    CANCELLED = auto()
    RECEIPTED = auto()
    FINISHED = auto()
    BROKEN = auto()


class ServerRequest:
    """One authenticated request; made by :meth:`bulkhead.protocol.server.SealedServer.open`.

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
