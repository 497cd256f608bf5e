"""A verified session: sends sealed requests, gives out what was verified, and closes."""

import logging
from types import TracebackType
from typing import Final, Self, Unpack

from bulkhead.attestation import AppraisedWorker, Tier
from bulkhead.client.generation import (
    Answer,
    Completion,
    Embeddings,
    Generation,
    Messages,
    check_messages,
    embeddings,
)
from bulkhead.client.keeper import GrantKeeper
from bulkhead.client.link import Link
from bulkhead.client.opening import SessionControl
from bulkhead.errors import BulkheadError, SessionClosedError, WorkerLostError
from bulkhead.protocol.context import Method
from bulkhead.protocol.generate import GenerateOptions
from bulkhead.protocol.payloads import (
    EmbedRequest,
    GenerateRequest,
    encode_embed_request,
    encode_generate_request,
)
from bulkhead.protocol.receipts import Receipt, SignedReceipt, read_receipt
from bulkhead.transparency import VerifiedLeaf
from bulkhead.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["AsyncSession"]

STALL_S: Final = 120.0  # a long prompt on a busy worker; token after token comes far sooner

_log = logging.getLogger("bulkhead.client")


class AsyncSession:
    """A session with a worker that was verified before anything was sent to it.

    Safe for concurrent use by tasks of one event loop: each request has its own sequence number and keys. Made by
    :meth:`bulkhead.client.AsyncBulkhead.open_session`.

    Args:
        keeper: holds the verified grant.
        control: closes the session.
        stall_s: longest wait for one message of the worker.
    """

    def __init__(self, *, keeper: GrantKeeper, control: SessionControl, stall_s: float = STALL_S) -> None:
        self._keeper = keeper
        self._control = control
        self._stall_s = stall_s
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def session_id(self) -> str:
        """Session id."""
        return self._keeper.current.grant.claims.session

    @property
    def worker(self) -> AppraisedWorker:
        """The worker as last verified: a `VerifiedWorker`, or a `SimulatedWorker`, which proves nothing."""
        return self._keeper.current.grant.worker

    @property
    def tier(self) -> Tier:
        """Isolation tier that the evidence shows (of a simulated worker: simulates)."""
        return self._keeper.current.grant.worker.tier

    @property
    def simulated(self) -> bool:
        """Whether any part of the worker is simulated."""
        return self._keeper.current.grant.simulated

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._keeper.current.grant.claims.model

    @property
    def model_digest(self) -> bytes:
        """SHA-256 of the model's manifest, computed by the worker and covered by its evidence."""
        return self._keeper.current.grant.claims.model_digest

    @property
    def expires_unix_s(self) -> int:
        """When the present ticket ends; it is renewed before."""
        return self._keeper.current.grant.claims.expires_at_s

    @property
    def decision(self) -> VerifiedLeaf:
        """The audit record of the decision that allowed the session, verified under the pinned log key."""
        return self._keeper.current.grant.decision

    @property
    def obligations(self) -> tuple[str, ...]:
        """What the decision imposed, JSON, as the control plane says (for display)."""
        return self._keeper.current.received.obligations

    @property
    def link(self) -> Link:
        """Everything that was received and verified for the present grant."""
        return self._keeper.current

    def generate(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        prompt: str = "",
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Return an answer to iterate over; nothing is sent before the iteration begins.

        Args:
            messages: a conversation, or one user turn as a string; empty to continue ``prompt``.
            max_tokens: most completion tokens; None for as many as ticket and context allow; 0 with ``echo`` or
                ``prompt_logprobs``.
            temperature: 0 is greedy; None takes the model's own default, as vLLM's server does.
            top_p: above 0, at most 1; None likewise.
            top_k: 0 or -1 for all tokens; None likewise.
            seed: makes sampling repeatable.
            stop: texts that end the answer.
            prompt: text to continue without a chat template.
            options: the further fields of :class:`bulkhead.protocol.payloads.GenerateRequest`.

        Raises:
            InvalidRequestError: a value out of bounds; nothing was sent.
        """
        request = GenerateRequest(
            messages=check_messages(messages) if messages or not prompt else (),
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=tuple(stop),
            **options,
        )
        return Generation(self._answer(Method.GENERATE, encode_generate_request(request)))

    async def generate_text(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        prompt: str = "",
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Return the whole answer, or raise; arguments as :meth:`generate`."""
        generation = self.generate(
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            prompt=prompt,
            **options,
        )
        async with generation:
            return await generation.completion()

    async def embed(self, inputs: tuple[str, ...] | list[str]) -> Embeddings:
        """Return one vector for each text.

        Raises:
            InvalidRequestError: no text, too many, or an empty one.
            BulkheadError: the answer is not whole.
        """
        payload = encode_embed_request(EmbedRequest(inputs=tuple(inputs)))
        return await embeddings(self._answer(Method.EMBED, payload), count=len(inputs))

    async def fetch_receipt(self, request_id: str) -> tuple[Receipt, SignedReceipt]:
        """Return the worker's receipt of a request of this session, also of a cancelled or failed one.

        Raises:
            NotFoundError: the worker has none under that id.
            SignatureError, ReceiptError: what it sent is not this session's receipt.
        """
        link = await self._keeper.link()
        try:
            signed = await _fetch_receipt(link, request_id)
        except WorkerLostError:
            await self._keeper.renew_after(link, reconnect=True)
            signed = await _fetch_receipt(self._keeper.current, request_id)
        made_under = self._keeper.of_keyset(read_receipt(signed.receipt).keyset_digest)
        return made_under.sealing.check_fetched_receipt(signed, request_id=request_id), signed

    async def renew(self) -> None:
        """Renew now, with a fresh nonce and full verification; happens by itself at half of the grant's life.

        Raises:
            BulkheadError: see :meth:`bulkhead.client.keeper.GrantKeeper.renew_after`.
        """
        await self._keeper.renew_after(self._keeper.current)

    async def close(self) -> None:
        """End the session here and at the control plane. Repeating it does nothing.

        Raises:
            BulkheadError: the control plane could not be told; the session ends there with its ticket.
        """
        if self._closed:
            return
        self._closed = True
        await self._keeper.close()
        await self._control.close(self.session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except BulkheadError as error:  # the body's outcome counts; the session ends by itself with its ticket
            _log.warning("session %s: close was not acknowledged: %s", self.session_id, error.code)

    def _answer(self, method: Method, payload: bytes) -> Answer:
        if self._closed:
            raise SessionClosedError("the session has been closed")
        return Answer(keeper=self._keeper, method=method, payload=payload, stall_s=self._stall_s)


async def _fetch_receipt(link: Link, request_id: str) -> SignedReceipt:
    request = inference_pb2.GetReceiptRequest(
        ticket=link.grant.ticket,
        request_id=request_id,
        signature=link.sealing.sign_receipt_fetch(request_id),
        certificate=link.sealing.certificate,
    )
    stub = inference_pb2_grpc.InferenceServiceStub(link.channel.raw)
    reply = await link.channel.unary(stub.GetReceipt, request, idempotent=True)
    return SignedReceipt(receipt=reply.receipt, signature=reply.signature)
