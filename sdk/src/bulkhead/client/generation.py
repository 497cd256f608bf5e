"""Answers: a stream of deltas that is whole only when its receipt has been verified.

A :class:`Generation` ends its iteration normally in one case only: the final chunk arrived and its receipt holds.
Everything else raises, so that a cut answer never looks like a short one. A request is sent a second time only if the
worker (or the clock) said that the session must be renewed, or the connection broke, and no byte of a response was
accepted; execution is then at least once, and both receipts carry the same request id.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeAlias

from bulkhead.client.keeper import GrantKeeper
from bulkhead.client.link import Link
from bulkhead.errors import (
    BulkheadError,
    CertificateExpiredError,
    InvalidRequestError,
    SealError,
    StaleKeyError,
    TicketExpiredError,
    WindowFullError,
    WorkerLostError,
)
from bulkhead.ids import REQUEST, new_id
from bulkhead.protocol.client import ClientEvent, ClientRequest, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import (
    Content,
    Delta,
    EmbedResult,
    End,
    Failure,
    Message,
    TokenLogprob,
    Trace,
    Usage,
)
from bulkhead.protocol.receipts import Receipt, SignedReceipt
from bulkhead.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["Answer", "Completion", "Embeddings", "Generation", "Messages", "check_messages", "embeddings"]

EXPIRY_GRACE_S: Final = 5.0  # a worker ends its streams when the ticket expires; the client waits a little longer
MAX_TRACE_TOTAL_BYTES: Final = 16 * 1024 * 1024  # a step of the largest models takes some hundred kilobytes
FAREWELL_S: Final = 1.0  # after the receipt nothing is awaited but the transport's own end
Messages: TypeAlias = "str | Iterable[Message | Mapping[str, str]]"


class Answer:
    """One sealed request and its response, as events.

    Args:
        keeper: gives links and renews.
        method: what is asked for.
        payload: encoded request.
        stall_s: longest wait for one message of the worker.
    """

    def __init__(self, *, keeper: GrantKeeper, method: Method, payload: bytes, stall_s: float) -> None:
        self.request_id: Final = new_id(REQUEST)
        self._keeper = keeper
        self._method = method
        self._payload = payload
        self._stall_s = stall_s
        self.complete: Complete | None = None
        self.link: Link | None = None

    async def events(self) -> AsyncGenerator[Content | End, None]:
        """Send the request and yield what the worker says; a normal end means that the answer is whole.

        Raises:
            BulkheadError: the worker's own error, authentic; or why the answer is not whole.
        """
        for healed in (False, True):
            link = self.link = await self._keeper.link()
            request: ClientRequest | None = None
            await link.channel.turn()
            try:
                request = link.sealing.begin(
                    self._method, self._payload, now_s=self._keeper.now_s(), request_id=self.request_id
                )
                async with aclosing(self._exchange(link, request)) as events:
                    async for event in events:
                        yield event
            except (
                CertificateExpiredError, StaleKeyError, TicketExpiredError, WindowFullError, WorkerLostError,
            ) as error:  # fmt: skip
                if healed or (request is not None and not request.resendable):
                    raise
                await self._keeper.renew_after(link, reconnect=isinstance(error, WorkerLostError))
            else:
                return

    async def _exchange(self, link: Link, request: ClientRequest) -> AsyncGenerator[Content | End, None]:
        # One generator from the stream's messages to the events: every token of an answer comes by here.
        failure: Failure | None = None
        try:
            async with aclosing(self._send(link, request)) as messages:
                async for message in messages:
                    for event in _opened(message, request):
                        if isinstance(event, Complete):
                            self.complete = event
                        elif isinstance(event, Failure):
                            failure = event
                        else:
                            yield event
                    if request.complete:
                        await _farewell(messages)
                        break
        except SealError:
            raise
        except BulkheadError as error:
            if failure is not None:  # authentic, unlike the status that broke the stream after it
                raise failure.error() from error
            raise
        request.end_of_stream()
        if failure is not None:
            raise failure.error()

    def _send(self, link: Link, request: ClientRequest) -> AsyncGenerator[inference_pb2.SealedChunks, None]:
        remaining_s = link.grant.claims.expires_at_s - self._keeper.now_s() + EXPIRY_GRACE_S
        stub = inference_pb2_grpc.InferenceServiceStub(link.channel.raw)
        return link.channel.stream(
            stub.Embed if self._method is Method.EMBED else stub.Generate,
            inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks),
            deadline_s=max(remaining_s, 1.0),
            idle_s=self._stall_s,
        )


def _opened(message: inference_pb2.SealedChunks, request: ClientRequest) -> Iterator[ClientEvent]:
    if message.worker_nonce:
        request.accept(message.worker_nonce)
    for chunk in message.chunk:
        if (event := request.receive(chunk)) is not None:
            yield event


async def _farewell(messages: AsyncGenerator[inference_pb2.SealedChunks, None]) -> None:
    """Wait a little for the stream's end. Statuses outside the seal are hints: the answer stands whatever comes."""
    with suppress(BulkheadError, StopAsyncIteration, TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await anext(messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several answers to a prompt: its text, why it ended, and its tokens' log probabilities if asked for."""

    text: str
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer.

    Attributes:
        text: all of it; of the first of several.
        finish_reason: `stop` or `length`; likewise.
        usage: tokens, of all answers.
        choices: each answer.
        prompt_logprobs: of the prompt's tokens from the second on, if asked for.
        cached_tokens: tokens of the prompt that were not computed again.
        trace: of the step that was to be profiled: a gzipped Chrome trace; empty where none was asked for, or where the
            answer has one token.
        request_id: names it in receipts and logs.
        receipt: verified.
        signed_receipt: the same as the worker signed it, to be kept.
    """

    text: str
    finish_reason: str
    usage: Usage
    request_id: str
    receipt: Receipt
    signed_receipt: SignedReceipt
    choices: tuple[Choice, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    trace: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Embeddings in the order of the inputs, with the receipt as in :class:`Completion`."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    request_id: str
    receipt: Receipt
    signed_receipt: SignedReceipt


class Generation:
    """An answer as it comes: iterate over it once, for :class:`Delta` with ``text`` and ``tokens``.

    ``async for delta in generation``; leaving early (``break``) should be followed by :meth:`aclose`, or use it as
    ``async with``. :attr:`receipt`, :attr:`usage` and :attr:`finish_reason` are there after a normal end, the receipt
    also after an error that the worker reported under the seal.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._end: End | None = None
        self._trace = bytearray()
        self._deltas = self._iterate()

    @property
    def request_id(self) -> str:
        """Names the request in receipts and logs."""
        return self._answer.request_id

    @property
    def link(self) -> Link:
        """The verified grant under which the request was sent.

        Raises:
            InvalidRequestError: it was not sent yet.
        """
        if self._answer.link is None:
            raise InvalidRequestError("the request was not sent yet: iterate over the answer")
        return self._answer.link

    @property
    def receipt(self) -> Receipt:
        """The verified receipt.

        Raises:
            InvalidRequestError: the answer is not whole (yet).
        """
        return self._complete().receipt

    @property
    def signed_receipt(self) -> SignedReceipt:
        """The receipt as the worker signed it; raises as :attr:`receipt`."""
        return self._complete().signed

    @property
    def usage(self) -> Usage:
        """Token counts that the receipt confirms; raises as :attr:`receipt`."""
        return self._complete().receipt.usage

    @property
    def finish_reason(self) -> str:
        """`stop` or `length`; raises as :attr:`receipt`."""
        self._complete()
        return self._end.finish_reason if self._end is not None else ""

    @property
    def trace(self) -> bytes:
        """What was received of a profile; see :attr:`Completion.trace`."""
        return bytes(self._trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def aclose(self) -> None:
        """Cancel what is still running: the worker stops generating."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def completion(self) -> Completion:
        """Read the rest and return the whole answer.

        Raises:
            BulkheadError: it is not whole.
        """
        deltas = [delta async for delta in self]
        choices = self._choices(deltas)
        return Completion(
            text=choices[0].text,
            choices=choices,
            prompt_logprobs=tuple(entry for delta in deltas for entry in delta.prompt_logprobs),
            cached_tokens=self._end.cached_tokens if self._end is not None else 0,
            trace=self.trace,
            finish_reason=self.finish_reason,
            usage=self.usage,
            request_id=self.request_id,
            receipt=self.receipt,
            signed_receipt=self.signed_receipt,
        )

    async def _iterate(self) -> AsyncGenerator[Delta, None]:
        async with aclosing(self._answer.events()) as events:
            async for event in events:
                match event:
                    case Delta():
                        yield event
                    case End():
                        self._end = event
                    case Trace(data=data):
                        if len(self._trace) + len(data) > MAX_TRACE_TOTAL_BYTES:
                            raise SealError("the worker sent a trace beyond its bound")
                        self._trace += data
                    case EmbedResult():
                        raise SealError("the worker answered a prompt with an embedding")

    def _choices(self, deltas: Sequence[Delta]) -> tuple[Choice, ...]:
        end = self._end
        reasons = [] if end is None else [(end.finish_reason, end.stop_reason), *end.others]
        if any(delta.index >= len(reasons) for delta in deltas):
            raise SealError("the worker sent an answer whose end it did not tell")
        return tuple(
            Choice(
                text="".join(delta.text for delta in deltas if delta.index == index),
                logprobs=tuple(entry for delta in deltas if delta.index == index for entry in delta.logprobs),
                finish_reason=finish,
                stop_reason=stop,
            )
            for index, (finish, stop) in enumerate(reasons or [("", None)])
        )

    def _complete(self) -> Complete:
        if self._answer.complete is None:
            raise InvalidRequestError("the answer is not whole: iterate over it to its end first")
        return self._answer.complete


async def embeddings(answer: Answer, *, count: int) -> Embeddings:
    """Return the answer to ``count`` inputs.

    Raises:
        SealError: the worker embedded something else than what was asked for.
        BulkheadError: the answer is not whole.
    """
    vectors: dict[int, tuple[float, ...]] = {}
    async with aclosing(answer.events()) as events:
        async for event in events:
            match event:
                case EmbedResult(index=index, vector=vector):
                    if index in vectors:
                        raise SealError("the worker embedded one input twice")
                    vectors[index] = vector
                case Delta() | Trace():
                    raise SealError("the worker answered an embedding request with text")
                case End():
                    pass
    if answer.complete is None or sorted(vectors) != list(range(count)):
        raise SealError("the worker did not embed every input once")
    return Embeddings(
        vectors=tuple(vectors[index] for index in range(count)),
        usage=answer.complete.receipt.usage,
        request_id=answer.request_id,
        receipt=answer.complete.receipt,
        signed_receipt=answer.complete.signed,
    )


def check_messages(messages: Messages) -> tuple[Message, ...]:
    """Return a conversation: a plain string is one user turn; mappings have `role` and `content`.

    Raises:
        InvalidRequestError: something else.
    """
    if isinstance(messages, str):
        return (Message(role="user", content=messages),)
    return tuple(map(_message, messages))


def _message(item: Message | Mapping[str, str]) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping) or set(item) != {"role", "content"}:
        raise InvalidRequestError("a message has exactly `role` and `content`")
    return Message(role=item["role"], content=item["content"])
