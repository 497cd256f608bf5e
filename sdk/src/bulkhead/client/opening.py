"""The control plane's side of a session: open, renew, close, list. What it hands out is verified elsewhere."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias

from bulkhead.attestation import Tier
from bulkhead.client import convert
from bulkhead.client.paging import pages
from bulkhead.client.status import printable
from bulkhead.client.transport import Channel, check_address
from bulkhead.client.views import SessionView
from bulkhead.errors import BulkheadError, EvidenceError, TruncatedError
from bulkhead.ids import SESSION, check_id
from bulkhead.protocol.grant import SessionOffer
from bulkhead.sealing import PaddingMode
from bulkhead.v1 import common_pb2, session_pb2, session_pb2_grpc

__all__ = ["OnProgress", "Progress", "ReceivedGrant", "SessionControl", "SessionRequest"]

OPEN_DEADLINE_S: Final = 180.0  # a cold worker imports its engine and loads a model from disk
OPEN_IDLE_S: Final = 90.0  # the longest single step is loading
RENEW_DEADLINE_S: Final = 20.0
MAX_OBLIGATIONS: Final = 64
MAX_OBLIGATION_CHARS: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What a session is asked for; empty fields leave the choice to policy.

    Attributes:
        model: registered name.
        minimum_tier: the weakest isolation accepted; None leaves it to policy (and to the trust policy).
        region: required region.
        purpose: purpose of use, e.g. `treatment`; policy packs may demand one.
        data_classes: what prompts may hold, e.g. `phi`.
        max_output_tokens: largest number that a request of the session may ask for; 0 for the model's limit.
        padding: of sealed chunks.
    """

    model: str
    minimum_tier: Tier | None = None
    region: str = ""
    purpose: str = ""
    data_classes: tuple[str, ...] = ()
    max_output_tokens: int = 0
    padding: PaddingMode = PaddingMode.DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the control plane is doing for an open.

    Attributes:
        phase: `decided`, `placing`, `creating`, `loading` or `attesting`; empty for one that this build does not know.
        message: for a person.
    """

    phase: str
    message: str


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedGrant:
    """A grant as received: nothing in it is verified.

    Attributes:
        offer: what :func:`bulkhead.protocol.grant.verify_grant` verifies.
        address: where the worker's ingress listens, ``host:port``.
        ticket_issuer: public key of the ticket's issuer (32 bytes), to be compared with the pinned one.
        obligations: what the decision imposed, JSON, for display.
    """

    offer: SessionOffer
    address: str
    ticket_issuer: bytes
    obligations: tuple[str, ...]


class SessionControl:
    """Calls ``SessionService`` and ``SessionQueryService``.

    Args:
        channel: to the control plane, with a developer's credential.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stub = session_pb2_grpc.SessionServiceStub(channel.raw)
        self._query = session_pb2_grpc.SessionQueryServiceStub(channel.raw)

    async def open(
        self,
        request: SessionRequest,
        *,
        request_id: str,
        session_public_key: bytes,
        nonce: bytes,
        on_progress: OnProgress | None = None,
        deadline_s: float = OPEN_DEADLINE_S,
    ) -> ReceivedGrant:
        """Ask for a session and wait until it is ready.

        Args:
            request: what is asked for.
            request_id: makes a repetition return the same session.
            session_public_key: Ed25519, 32 bytes.
            nonce: 32 fresh random bytes.
            on_progress: called with each step.
            deadline_s: for the whole open.

        Raises:
            PolicyDeniedError: policy refused; ``details["reasons"]`` says why.
            TruncatedError: the server ended the stream without an answer.
            BulkheadError: see :meth:`Channel.stream`.
        """
        message = session_pb2.OpenSessionRequest(
            request_id=request_id,
            model=request.model,
            minimum_tier=convert.tier_value(request.minimum_tier.value if request.minimum_tier else ""),
            region=request.region,
            purpose=request.purpose,
            data_classes=request.data_classes,
            max_output_tokens=request.max_output_tokens,
            session_public_key=session_public_key,
            nonce=nonce,
            padding=request.padding.value,
        )
        events = self._channel.stream(
            self._stub.OpenSession, message, deadline_s=deadline_s, idle_s=min(OPEN_IDLE_S, deadline_s), idempotent=True
        )
        async with aclosing(events) as stream:
            async for event in stream:
                if event.HasField("ready"):
                    return _received(event.ready)
                if on_progress is not None and event.HasField("progress"):
                    on_progress(_progress(event.progress))
        raise TruncatedError("the control plane ended the open without an answer")

    async def renew(self, session_id: str, *, nonce: bytes) -> ReceivedGrant:
        """Return a new grant for an open session.

        Raises:
            SessionClosedError, NotFoundError: there is nothing to renew.
            EvidenceError: the server answered for another session.
            BulkheadError: see :meth:`Channel.unary`.
        """
        request = session_pb2.RenewSessionRequest(session_id=session_id, nonce=nonce)
        reply = await self._channel.unary(
            self._stub.RenewSession, request, idempotent=True, deadline_s=RENEW_DEADLINE_S
        )
        received = _received(reply.grant)
        if received.offer.session != session_id:
            raise EvidenceError("the control plane renewed another session than the one asked for")
        return received

    async def close(self, session_id: str) -> None:
        """End a session; repeating it does nothing."""
        request = session_pb2.CloseSessionRequest(session_id=session_id)
        await self._channel.unary(self._stub.CloseSession, request, idempotent=True)

    async def get(self, session_id: str) -> SessionView:
        """Return a session of the caller's tenant.

        Raises:
            NotFoundError: no such session, or another tenant's.
        """
        request = session_pb2.GetSessionRequest(session_id=session_id)
        reply = await self._channel.unary(self._query.GetSession, request, idempotent=True)
        return convert.session_view(reply.session)

    def sessions(self, *, open_only: bool = False) -> AsyncGenerator[SessionView, None]:
        """Yield the sessions of the caller's tenant."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[SessionView], str]:
            request = session_pb2.ListSessionsRequest(page=page, open_only=open_only)
            reply = await self._channel.unary(self._query.ListSessions, request, idempotent=True)
            return map(convert.session_view, reply.sessions), reply.next_page_token

        return pages(fetch)


def _progress(message: session_pb2.OpenProgress) -> Progress:
    known = message.phase in session_pb2.OpenPhase.values()
    phase = session_pb2.OpenPhase.Name(message.phase).removeprefix("OPEN_PHASE_").lower() if known else ""
    return Progress(phase=phase, message=printable(message.message))


def _received(message: session_pb2.SessionGrant) -> ReceivedGrant:
    """Return the grant if its parts have the form of what they claim to be.

    Raises:
        EvidenceError: malformed.
    """
    try:
        session = check_id(message.session_id, SESSION)
        address = check_address(message.endpoint.address, "worker endpoint")
    except BulkheadError as error:
        raise EvidenceError(f"the grant is malformed: {error.message}") from error
    return ReceivedGrant(
        offer=SessionOffer(
            session=session,
            ticket=message.ticket,
            authority=message.endpoint.authority,
            worker_certificate=message.worker_certificate,
            evidence=message.evidence,
            decision=convert.audit_receipt(message.decision),
            model_digest=message.model_digest,
            policy_digest=message.policy_digest,
        ),
        address=address,
        ticket_issuer=message.ticket_issuer,
        obligations=tuple(printable(text, max_chars=MAX_OBLIGATION_CHARS) for text in message.obligations)[
            :MAX_OBLIGATIONS
        ],
    )
