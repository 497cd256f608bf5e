"""How a response leaves a worker: sealed, padded, paced as its ticket says, receipted (docs/protocol.md section 5).

* ``off``: what is ready is sent; what piles up while the reader is busy is joined and shares the next message.
* ``default``: likewise, but after each message tokens gather for :data:`GATHER_S`, so that a fast engine's tokens
  leave in groups. The first token and the end never wait.
* ``strict``: one message every :data:`TICK_S` from the moment the request is whole, with one chunk each, filling where
  there is nothing to say, until their number is :data:`MIN_TICKS` or a further power of two. An abort (revocation,
  shutdown, the ticket's end) ends the filling early: it comes from outside and tells nothing of the answer.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bulkhead.errors import BulkheadError, InternalError, InvalidRequestError
from bulkhead.protocol.payloads import Content, End, Usage
from bulkhead.protocol.receipts import ReceiptStatus, SignedReceipt
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import PaddingMode
from data_plane.session.answer import AnswerBuffer, DeltaLimits, Outcome
from data_plane.session.receipts import ReceiptDesk

__all__ = ["Response", "SealedPart"]

_log = structlog.get_logger(__name__)

GATHER_S: Final = 0.025  # below what a reader of text notices; at 320 tokens/s a stream's chunks are full
TICK_S: Final = 0.1  # 2,400 characters a second, ten times what a person reads
MIN_TICKS: Final = 16
_READY: Final = DeltaLimits(characters=8_192, tokens=8)  # six bytes of JSON a character at worst: fits a chunk
_TICKED: Final = DeltaLimits(characters=240, tokens=240)  # at worst fits the smallest chunk of strict padding


@dataclass(frozen=True, slots=True)
class SealedPart:
    """One message of a response: sealed chunks, and in the first one the worker's random bytes."""

    worker_random: bytes
    chunks: tuple[bytes, ...]


class Response:
    """The response to one request that is being received.

    Args:
        request: seals it.
        desk: makes its receipt durable.
        wall_s: Unix seconds.
        background: runs a coroutine to its end, whatever becomes of the call.

    Attributes:
        buffer: where the answer comes from.
        prompt_tokens: for the receipt, counted by whoever fills the buffer.
        completion_tokens: likewise.
    """

    def __init__(
        self,
        *,
        request: ServerRequest,
        desk: ReceiptDesk,
        wall_s: Callable[[], float],
        background: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self._request = request
        self._desk = desk
        self._wall_s = wall_s
        self._background = background
        self._padding = request.claims.padding
        self.buffer = AnswerBuffer(_TICKED if self._padding is PaddingMode.STRICT else _READY)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._opened = False
        self._aborted = False
        self._ended: Outcome | None = None
        self._recording: asyncio.Task[None] | None = None

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)

    def abort(self, error: BulkheadError) -> None:
        """End with ``error``, unless the outcome is known; either way without further filling."""
        self._aborted = True
        self.buffer.abort(error)

    def parts(self) -> AsyncGenerator[SealedPart, None]:
        """Yield what is to be sent, in order and in time; call when the request is whole.

        Raises:
            AuditLeaseError: the receipt could not be recorded; no final chunk was given out.
        """
        return self._on_ticks() if self._padding is PaddingMode.STRICT else self._as_ready()

    def settle(self) -> None:
        """Make the receipt of a request that did not come to its regular end; does nothing after one that did."""
        if self._recording is None:
            if self._ended is None:
                self._request.cancel(usage=self.usage)
            self._recording = self._background(self._record_quietly())

    async def _as_ready(self) -> AsyncGenerator[SealedPart, None]:
        clock, gather_s = asyncio.get_running_loop().time, GATHER_S if self._padding is PaddingMode.DEFAULT else 0.0
        outcome: Outcome | None = None
        not_before_s = 0.0
        while outcome is None:
            records, outcome = await self.buffer.take(not_before_s=not_before_s)
            chunks, outcome = self._seal(records, outcome)
            if isinstance(outcome, BulkheadError):  # which a client learns of before its receipt is made
                chunks.append(self._end(outcome))
            if chunks:
                yield self._part(*chunks)
                not_before_s = clock() + gather_s
        closing = [] if self._ended is not None else [self._end(outcome)]
        await asyncio.shield(self._record())
        yield self._part(*closing, self._request.finish())

    async def _on_ticks(self) -> AsyncGenerator[SealedPart, None]:
        clock = asyncio.get_running_loop().time
        due_s = clock()
        for number in itertools.count(1):
            chunk, final = self._tick(number)
            yield self._part(chunk)
            if final:
                return
            late_s = max(clock() - due_s, 0.0)  # a slow reader misses ticks; none are made up for
            due_s += TICK_S * (late_s // TICK_S + 1)
            await asyncio.sleep(due_s - clock())

    def _tick(self, number: int) -> tuple[bytes, bool]:
        """Return the chunk of message ``number`` (from 1), and whether it is the final one."""
        if self._ended is None:
            record, outcome = self.buffer.take_one()
            chunks, outcome = self._seal([] if record is None else [record], outcome)
            if chunks:
                return chunks[0], False
            if outcome is not None:
                chunk = self._end(outcome)
                self._record()
                return chunk, False
        elif self._recording is not None and self._recording.done():
            self._recording.result()
            if self._aborted or (number >= MIN_TICKS and number.bit_count() == 1):
                return self._request.finish(), True
        return self._request.fill(), False

    def _part(self, *chunks: bytes) -> SealedPart:
        random = b"" if self._opened else self._request.worker_random
        self._opened = True
        return SealedPart(random, chunks)

    def _seal(self, records: Sequence[Content], outcome: Outcome | None) -> tuple[list[bytes], Outcome | None]:
        chunks: list[bytes] = []
        try:
            chunks.extend(self._request.send(record) for record in records)
        except InvalidRequestError as error:
            _log.error("worker.unsendable_record", code=error.code)
            outcome = InternalError("the worker could not encode its answer")
        return chunks, outcome

    def _end(self, outcome: Outcome) -> bytes:
        self._ended = outcome
        if isinstance(outcome, End):
            return self._request.end(outcome)
        return self._request.fail(outcome, usage=self.usage)

    def _record(self) -> "asyncio.Task[None]":
        """Make the receipt and start to make it durable."""
        signed = self._request.make_receipt(ts_us=int(self._wall_s() * 1_000_000))
        self._recording = self._background(self._make_durable(signed))
        return self._recording

    async def _record_quietly(self) -> None:
        try:
            signed = self._request.make_receipt(ts_us=int(self._wall_s() * 1_000_000))
            await self._make_durable(signed)
        except BulkheadError as error:
            _log.warning("worker.receipt_not_recorded", code=error.code, request_id=self._request.info.request_id)

    async def _make_durable(self, signed: SignedReceipt) -> None:
        await self._desk.record(
            signed,
            number=self._request.receipt_number,
            info=self._request.info,
            usage=self.usage,
            status=self._status,
            in_total=self._padding is PaddingMode.STRICT,
        )

    @property
    def _status(self) -> ReceiptStatus:
        if self._ended is None:
            return ReceiptStatus.CANCELLED
        return ReceiptStatus.OK if isinstance(self._ended, End) else ReceiptStatus.FAILED
