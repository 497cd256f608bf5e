"""One sealed request in a worker, from its opened envelope to its receipt.

Rules:

1. Once the request's last chunk is open, every outcome is a sealed record, padded like success.
2. Every authenticated request gets a receipt, also one that failed or whose client went away.
3. The final chunk is released when the receipt's digest is durable, and never otherwise.
4. A reader who takes nothing for :data:`STALL_S` is cut; so is one who does not take the end of an aborted response.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bulkhead.errors import (
    BulkheadError,
    InternalError,
    InvalidRequestError,
    MalformedRequestError,
    TicketExpiredError,
)
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import (
    Delta,
    EmbedResult,
    End,
    GenerateRequest,
    Usage,
    parse_embed_request,
    parse_generate_request,
)
from bulkhead.protocol.receipts import ReceiptStatus
from bulkhead.protocol.server import ServerRequest
from data_plane.engine.port import ChatMessage, EmbedRequest, Engine, EngineRequest, SamplingParams
from data_plane.session.answer import AnswerBuffer, Outcome
from data_plane.session.receipts import ReceiptDesk

__all__ = ["Exchange", "ExchangePorts", "SealedPart"]

_log = structlog.get_logger(__name__)

STALL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class SealedPart:
    """One message of a response: sealed chunks, and in the first one the worker's random bytes."""

    worker_random: bytes
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangePorts:
    """What an exchange works with; the same for all of a worker.

    Attributes:
        engine: serves the model.
        desk: makes receipts durable.
        wall_s: Unix seconds.
        scope: secret of this worker's tenant that bounds reuse of cached prompt prefixes.
        max_output_tokens: most tokens of one answer; 0 leaves it to ticket and model.
        background: runs a coroutine to its end, whatever becomes of the call.
    """

    engine: Engine
    desk: ReceiptDesk
    wall_s: Callable[[], float]
    scope: bytes
    max_output_tokens: int
    background: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Exchange:
    """One authenticated request.

    Args:
        request: opened by the sealed server; its chunks have not been received.
        ports: of the worker.
    """

    def __init__(self, *, request: ServerRequest, ports: ExchangePorts) -> None:
        self._request = request
        self._ports = ports
        self._buffer = AnswerBuffer()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._ended: Outcome | None = None
        self._recording: asyncio.Task[None] | None = None
        self._call: asyncio.Task[Any] | None = None
        self._opened = False

    @property
    def session_id(self) -> str:
        """The session of the ticket."""
        return self._request.claims.session

    def abort(self, error: BulkheadError) -> None:
        """End the response with ``error`` as soon as its reader takes that; cut the call if it never does."""
        self._buffer.abort(error)
        if self._call is not None:
            asyncio.get_running_loop().call_later(STALL_S, self._call.cancel)

    async def run(self, chunks: Sequence[bytes], *, method: Method) -> AsyncGenerator[SealedPart, None]:
        """Open ``chunks`` (untrusted), answer, and yield what is to be sent, in order.

        Raises:
            SealError, MessageTooLargeError: a chunk does not open; nothing was answered.
            MalformedRequestError: the request's chunks end before its final one.
            AuditLeaseError: the receipt could not be recorded; no final chunk was given out.
        """
        self._call = asyncio.current_task()
        try:
            self._receive(chunks)
            async with contextlib.aclosing(self._answer(method)) as parts:
                async for part in parts:
                    yield part
        finally:
            if self._recording is None:
                self._settle()

    def _receive(self, chunks: Sequence[bytes]) -> None:
        whole = False
        for chunk in chunks:
            whole = self._request.receive(chunk)
        if not whole:
            raise MalformedRequestError("the request ends before its final chunk")

    async def _answer(self, method: Method) -> AsyncGenerator[SealedPart, None]:
        producing = asyncio.create_task(self._produce(method))
        rest_s = self._request.claims.expires_at_s - self._ports.wall_s()
        expiry = asyncio.get_running_loop().call_later(
            max(0.0, rest_s), self.abort, TicketExpiredError("the ticket expired: renew the session in time")
        )
        watch = _StallWatch(self._call)
        try:
            outcome: Outcome | None = None
            while outcome is None:
                records, outcome = await self._buffer.take()
                chunks, outcome = self._seal(records, outcome)
                if chunks:
                    with watch:
                        yield self._part(*chunks)
            expiry.cancel()
            closing = self._close(outcome)
            await self._record()
            with watch:
                yield self._part(*closing, self._request.finish())
        finally:
            expiry.cancel()
            watch.stop()
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)

    def _part(self, *chunks: bytes) -> SealedPart:
        random = b"" if self._opened else self._request.worker_random
        self._opened = True
        return SealedPart(random, chunks)

    def _seal(
        self, records: Sequence[Delta | EmbedResult], outcome: Outcome | None
    ) -> tuple[list[bytes], Outcome | None]:
        """Return the chunks of ``records`` and of a failure, which a client learns of before its receipt is made."""
        chunks: list[bytes] = []
        try:
            chunks.extend(self._request.send(record) for record in records)
        except InvalidRequestError as error:
            _log.error("worker.unsendable_record", code=error.code)
            outcome = InternalError("the worker could not encode its answer")
        if isinstance(outcome, BulkheadError):
            chunks.append(self._request.fail(outcome, usage=self._usage))
            self._ended = outcome
        return chunks, outcome

    def _close(self, outcome: Outcome) -> list[bytes]:
        """Return the chunk that ends a success; it travels with the receipt."""
        if isinstance(outcome, BulkheadError):
            return []
        self._ended = outcome
        return [self._request.end(outcome)]

    async def _record(self) -> None:
        signed = self._request.make_receipt(ts_us=int(self._ports.wall_s() * 1_000_000))
        self._recording = self._ports.background(
            self._ports.desk.record(signed, info=self._request.info, usage=self._usage, status=self._status)
        )
        await asyncio.shield(self._recording)

    def _settle(self) -> None:
        """Make the receipt of a request that did not come to its regular end."""
        if self._ended is None:
            self._request.cancel(usage=self._usage)
        self._recording = self._ports.background(self._record_quietly())

    async def _record_quietly(self) -> None:
        try:
            signed = self._request.make_receipt(ts_us=int(self._ports.wall_s() * 1_000_000))
            await self._ports.desk.record(signed, info=self._request.info, usage=self._usage, status=self._status)
        except BulkheadError as error:
            _log.warning("worker.receipt_not_recorded", code=error.code, request_id=self._request.info.request_id)

    @property
    def _status(self) -> ReceiptStatus:
        if self._ended is None:
            return ReceiptStatus.CANCELLED
        return ReceiptStatus.FAILED if isinstance(self._ended, BulkheadError) else ReceiptStatus.OK

    @property
    def _usage(self) -> Usage:
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)

    async def _produce(self, method: Method) -> None:
        try:
            outcome: Outcome = await self._serve(method)
        except BulkheadError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001  the request's boundary: a defect must not take other requests with it
            _log.exception("worker.request_failed", exc_info=error)
            outcome = InternalError("the worker failed on this request; its log has the details")
        self._buffer.close(outcome)

    async def _serve(self, method: Method) -> End:
        if self._request.info.method is not method:
            raise InvalidRequestError(f"the sealed request asks for {self._request.info.method}, not {method}")
        return await (self._generate() if method is Method.GENERATE else self._embed())

    async def _generate(self) -> End:
        asked = parse_generate_request(self._request.payload)
        messages = tuple(ChatMessage(role=item.role, content=item.content) for item in asked.messages)
        self._prompt_tokens = await self._ports.engine.count_tokens(messages)
        request = EngineRequest(
            request_id=f"{self._request.info.request_id}/{self._request.info.sequence}",
            messages=messages,
            sampling=SamplingParams(
                max_tokens=self._max_tokens(asked),
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                seed=asked.seed,
                stop=asked.stop,
            ),
            scope=self._ports.scope,
        )
        async with contextlib.aclosing(self._ports.engine.generate(request)) as deltas:
            async for delta in deltas:
                self._completion_tokens += len(delta.token_ids)
                if delta.text or delta.token_ids:
                    await self._buffer.put(Delta(text=delta.text, tokens=len(delta.token_ids)))
                if delta.finish_reason is not None:
                    return End(finish_reason=delta.finish_reason.value, usage=self._usage)
        raise InternalError("the engine ended a request without saying why")

    def _max_tokens(self, asked: GenerateRequest) -> int | None:
        """Return the answer's limit: what is asked for, within ticket and partition; the rest of the context if less.

        A request that names more than the context leaves is the engine's to refuse.
        """
        limits = [self._request.claims.limits.max_tokens, self._ports.max_output_tokens or None, asked.max_tokens]
        limit = min(value for value in limits if value is not None)
        if asked.max_tokens is not None:
            return limit
        rest = self._ports.engine.describe().context_tokens - self._prompt_tokens
        return max(1, min(limit, rest))

    async def _embed(self) -> End:
        asked = parse_embed_request(self._request.payload)
        name = f"{self._request.info.request_id}/{self._request.info.sequence}"
        result = await self._ports.engine.embed(
            EmbedRequest(request_id=name, texts=asked.inputs, scope=self._ports.scope)
        )
        self._prompt_tokens = result.usage.prompt_tokens
        for index, vector in enumerate(result.vectors):
            await self._buffer.put(EmbedResult(index=index, vector=vector))
        return End(finish_reason="stop", usage=self._usage)


class _StallWatch:
    """Cancels a call whose reader has taken nothing for :data:`STALL_S` while a part waits for it."""

    def __init__(self, call: "asyncio.Task[Any] | None") -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._call is not None:
            self._timer = asyncio.get_running_loop().call_later(STALL_S, self._call.cancel)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
