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
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from bulkhead.errors import (
    BulkheadError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    MalformedRequestError,
    TicketExpiredError,
)
from bulkhead.idle import IdleWatch
from bulkhead.protocol.context import Method
from bulkhead.protocol.generate import MAX_TOKENS
from bulkhead.protocol.payloads import EmbedResult, End, parse_embed_request, parse_generate_request
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import PaddingMode
from data_plane.inference.port import EmbedRequest, Engine, EngineRequest, TokenDelta
from data_plane.session.answer import Outcome
from data_plane.session.asking import answer_deltas, answer_end, engine_request, sharing_scope
from data_plane.session.receipts import ReceiptDesk
from data_plane.session.response import Response, SealedPart

__all__ = ["Exchange", "ExchangePorts"]

_log = structlog.get_logger(__name__)

STALL_S: Final = 30.0
MIN_TIMEOUT_S: Final = 0.001  # what is left of a request's time when its prompt has just been cut into tokens in time


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
        self._response = Response(request=request, desk=ports.desk, wall_s=ports.wall_s, background=ports.background)
        self._call: asyncio.Task[Any] | None = None

    @property
    def session_id(self) -> str:
        """The session of the ticket."""
        return self._request.claims.session

    @property
    def produced(self) -> bool:
        """Whether a token was produced."""
        return self._response.completion_tokens > 0

    def abort(self, error: BulkheadError) -> None:
        """End the response with ``error`` as soon as its reader takes that; cut the call if it never does."""
        self._response.abort(error)
        if self._call is not None:
            asyncio.get_running_loop().call_later(STALL_S, self._cut)

    def _cut(self) -> None:
        if self._call is not None:
            self._call.cancel()

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
            async with self._producing(method) as watch, contextlib.aclosing(self._response.parts()) as parts:
                async for part in parts:
                    with watch:
                        yield part
        finally:
            self._response.settle()

    def _receive(self, chunks: Sequence[bytes]) -> None:
        whole = False
        for chunk in chunks:
            whole = self._request.receive(chunk)
        if not whole:
            raise MalformedRequestError("the request ends before its final chunk")

    @contextlib.asynccontextmanager
    async def _producing(self, method: Method) -> AsyncGenerator[IdleWatch, None]:
        """Fill the response until the ticket expires; the watch cuts a call whose reader takes nothing."""
        producing = asyncio.create_task(self._produce(method))
        rest_s = self._request.claims.expires_at_s - self._ports.wall_s()
        expiry = asyncio.get_running_loop().call_later(
            max(0.0, rest_s), self.abort, TicketExpiredError("the ticket expired: renew the session in time")
        )
        watch = IdleWatch(self._cut, idle_s=STALL_S)
        try:
            yield watch
        finally:
            expiry.cancel()
            watch.stop()
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)

    async def _produce(self, method: Method) -> None:
        try:
            outcome: Outcome = await self._serve(method)
        except BulkheadError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001  the request's boundary: a defect must not take other requests with it
            _log.exception("worker.request_failed", exc_info=error)
            outcome = InternalError("the worker failed on this request; its log has the details")
        self._response.buffer.close(outcome)

    async def _serve(self, method: Method) -> End:
        if self._request.info.method is not method:
            raise InvalidRequestError(f"the sealed request asks for {self._request.info.method}, not {method}")
        return await (self._generate() if method is Method.GENERATE else self._embed())

    async def _generate(self) -> End:
        asked = parse_generate_request(self._request.payload)
        wide = asked.profile or (asked.logprobs, asked.prompt_logprobs) != (None, None)
        if wide and self._request.claims.padding is PaddingMode.STRICT:
            raise InvalidRequestError("neither log probabilities nor a profile fit the records of strict padding")
        request = engine_request(
            asked,
            request_id=f"{self._request.info.request_id}/{self._request.info.sequence}",
            scope=sharing_scope(self._ports.scope, session=self._request.claims.session, cache_salt=asked.cache_salt),
            defaults=self._ports.engine.describe().defaults,
        )
        request = await self._limited(request, named=asked.max_tokens is not None)
        ends: dict[int, TokenDelta] = {}
        async with contextlib.aclosing(self._ports.engine.generate(request)) as deltas:
            async for delta in deltas:
                self._response.completion_tokens += len(delta.token_ids)
                for record in answer_deltas(delta):
                    await self._response.buffer.put(record)
                if delta.finish_reason is not None:
                    ends[delta.index] = delta
                if delta.usage is not None:
                    return answer_end(ends, usage=self._response.usage, cached_tokens=delta.usage.cached_tokens)
        raise InternalError("the engine ended a request without saying why")

    async def _limited(self, request: EngineRequest, *, named: bool) -> EngineRequest:
        """Count the prompt's tokens and return the request with each answer's limit, and the time that is left for it.

        The limit is what is asked for, or the model's own default, within ticket and partition, which bound all of a
        request's answers together. Only one that the request itself names may be more than the context leaves; that is
        the engine's to refuse.
        """
        asked, engine, clock = request.sampling, self._ports.engine, asyncio.get_running_loop().time
        most = min(self._request.claims.limits.max_tokens, self._ports.max_output_tokens or MAX_TOKENS) // asked.n
        if asked.max_tokens != 0 and most < max(1, asked.min_tokens):
            raise InvalidRequestError("the session's limit of tokens is below the least that is asked for")
        most = most if asked.max_tokens is None else min(most, asked.max_tokens)
        if asked.max_tokens is not None:  # as it is to run, for a prompt may be cut to what its answer leaves
            request = replace(request, sampling=replace(asked, max_tokens=most))
        began_s = clock()
        try:
            async with asyncio.timeout(request.timeout_s):
                prompt = await engine.tokenize(request)
        except TimeoutError as error:
            raise DeadlineError(f"the request was not done within {request.timeout_s:g} s") from error
        self._response.prompt_tokens = len(prompt)
        request = replace(request, messages=(), prompt="", prompt_token_ids=prompt)
        if request.timeout_s is not None:
            request = replace(request, timeout_s=max(request.timeout_s - (clock() - began_s), MIN_TIMEOUT_S))
        if named:
            return request
        rest = engine.describe().context_tokens - self._response.prompt_tokens
        return replace(request, sampling=replace(asked, max_tokens=max(1, asked.min_tokens, min(most, rest))))

    async def _embed(self) -> End:
        asked = parse_embed_request(self._request.payload)
        name = f"{self._request.info.request_id}/{self._request.info.sequence}"
        result = await self._ports.engine.embed(
            EmbedRequest(request_id=name, texts=asked.inputs, scope=self._ports.scope)
        )
        self._response.prompt_tokens = result.usage.prompt_tokens
        for index, vector in enumerate(result.vectors):
            await self._response.buffer.put(EmbedResult(index=index, vector=vector))
        return End(finish_reason="stop", usage=self._response.usage)
