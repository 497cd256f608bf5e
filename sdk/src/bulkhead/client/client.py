"""The asynchronous client."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bulkhead.attestation import Tier
from bulkhead.attestation.statement import NONCE_BYTES
from bulkhead.client.audit import AuditLog
from bulkhead.client.config import Profile, load_profile
from bulkhead.client.connect import control_plane_channel
from bulkhead.client.keeper import GrantKeeper
from bulkhead.client.opening import OPEN_DEADLINE_S, OnProgress, SessionControl, SessionRequest
from bulkhead.client.roots import RootSigner, session_keys_of
from bulkhead.client.session import AsyncSession
from bulkhead.client.transport import Channel, RetryPolicy
from bulkhead.client.trust import Trust
from bulkhead.client.views import SessionView
from bulkhead.errors import BulkheadError, InvalidRequestError, TenantRootRequiredError
from bulkhead.ids import REQUEST, new_id
from bulkhead.protocol.grant import Expectation
from bulkhead.sealing import PaddingMode

__all__ = ["AsyncBulkhead", "SessionOpening"]


class AsyncBulkhead:
    """A tenant's or officer's client. Use as ``async with``, inside one event loop.

    Args:
        profile: address, credential and pins (:func:`bulkhead.client.config.load_profile`).
        development_mode: whether simulated evidence is accepted; None takes the profile's. No server can set it.
        retry: of idempotent calls.
        root_signer: the tenant's root, where its key is not in the profile; certifies each session key.
        clock: Unix seconds.
        random_bytes: source of session keys, nonces and request secrets.

    Raises:
        InvalidRequestError: the profile's address is not host:port.
        ConfigError: the root signer is not the root that the profile pins.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        development_mode: bool | None = None,
        retry: RetryPolicy | None = None,
        root_signer: RootSigner | None = None,
        clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._profile = profile
        self._development_mode = development_mode
        self._clock = clock
        self._random_bytes = random_bytes
        self._keys = session_keys_of(
            profile.root, tenant=profile.tenant_id, signer=root_signer, random_bytes=random_bytes
        )
        self._channel = control_plane_channel(profile, retry=retry)
        self._control = SessionControl(self._channel)
        self._sessions: list[AsyncSession] = []

    @classmethod
    def from_profile(
        cls, name: str | None = None, *, path: Path | None = None, development_mode: bool | None = None
    ) -> Self:
        """Return a client for a profile of the configuration file.

        Raises:
            ConfigError: see :func:`bulkhead.client.config.load_profile`.
        """
        return cls(profile=load_profile(name, path=path), development_mode=development_mode)

    @property
    def profile(self) -> Profile:
        """The profile that the client was made with."""
        return self._profile

    @property
    def channel(self) -> Channel:
        """The channel to the control plane, for the administration clients of this package."""
        return self._channel

    @property
    def audit(self) -> AuditLog:
        """The audit log, as the profile's role may read it."""
        return AuditLog(self._channel)

    def open_session(
        self,
        *,
        model: str | None = None,
        tier: str | Tier | None = None,
        region: str | None = None,
        purpose: str | None = None,
        data_classes: Iterable[str] | None = None,
        max_output_tokens: int = 0,
        padding: str | PaddingMode = PaddingMode.DEFAULT,
        on_progress: OnProgress | None = None,
        timeout_s: float = OPEN_DEADLINE_S,
    ) -> "SessionOpening":
        """Open a session: ``async with client.open_session(...) as session``, or ``await`` it and close it yourself.

        The worker is verified before the session is handed out. What is None is taken from the profile's defaults.

        Args:
            model: registered name.
            tier: the weakest isolation accepted: `process`, `mig`, `gpu` or `confidential`.
            region: required region.
            purpose: purpose of use; policy packs may demand one.
            data_classes: what prompts may hold, e.g. `phi`.
            max_output_tokens: largest number that a request may ask for; 0 for the model's limit.
            padding: `off`, `default` or `strict` (docs/protocol.md section 5); policy may demand more.
            on_progress: called with each :class:`bulkhead.client.opening.Progress`.
            timeout_s: for the whole open; a cold worker needs seconds to minutes.

        Raises:
            InvalidRequestError: no model, or an unknown tier or padding. Everything else when it is awaited:
            PolicyDeniedError: policy refused, ``details["reasons"]`` says why.
            EvidenceError, ProofError, TicketError: the worker could not be verified; nothing was sent to it.
            TenantRootRequiredError: tier confidential is asked for, or the worker demands a tenant root, and none is
            configured.
            BulkheadError: see :meth:`bulkhead.client.opening.SessionControl.open`.
        """
        defaults = self._profile.defaults
        try:
            minimum_tier = Tier(tier if tier is not None else defaults.tier) if tier or defaults.tier else None
            mode = PaddingMode(padding)
        except ValueError as error:
            raise InvalidRequestError(
                "tier is process, mig, gpu or confidential, and padding is off, default or strict"
            ) from error
        request = SessionRequest(
            model=model or defaults.model,
            minimum_tier=minimum_tier,
            region=region if region is not None else defaults.region,
            purpose=purpose if purpose is not None else defaults.purpose,
            data_classes=tuple(data_classes if data_classes is not None else defaults.data_classes),
            max_output_tokens=max_output_tokens,
            padding=mode,
        )
        if not request.model:
            raise InvalidRequestError("no model was named, and the profile has no default")
        if not 0 <= max_output_tokens < 2**32:
            raise InvalidRequestError("max_output_tokens is a number from 0 to 4294967295")
        return SessionOpening(self, request, on_progress=on_progress, timeout_s=timeout_s)

    async def session(self, session_id: str) -> SessionView:
        """Return a session of the caller's tenant, as the control plane knows it."""
        return await self._control.get(session_id)

    def sessions(self, *, open_only: bool = False) -> AsyncGenerator[SessionView, None]:
        """Yield the sessions of the caller's tenant, as the control plane knows them."""
        return self._control.sessions(open_only=open_only)

    async def close(self) -> None:
        """Close every session opened here, then the connection. Repeating it does nothing."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            await session.__aexit__(None, None, None)
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self, request: SessionRequest, *, on_progress: OnProgress | None, timeout_s: float) -> AsyncSession:
        keys = self._keys
        trust = replace(
            Trust.from_profile(self._profile, development_mode=self._development_mode), tenant_roots=keys.tenant_roots
        )
        weakest = max(request.minimum_tier or Tier.PROCESS, trust.trust_policy.minimum_tier)
        if weakest is Tier.CONFIDENTIAL and not keys.tenant_roots:
            raise TenantRootRequiredError("tier confidential needs a tenant root, and the profile has none")
        session_key = keys.session_key()
        expectation = Expectation(
            tenant=trust.tenant_id,
            request_id=new_id(REQUEST),
            model=request.model,
            minimum_tier=request.minimum_tier or Tier.PROCESS,
            nonce=self._random_bytes(NONCE_BYTES),
            cnf=session_key.public_key().public_bytes_raw(),
            model_digest=trust.model_digests.get(request.model),
            padding=request.padding,
        )
        certificate = await keys.certify(expectation.cnf, now_s=int(self._clock()))
        received = await self._control.open(
            request,
            request_id=expectation.request_id,
            session_public_key=expectation.cnf,
            nonce=expectation.nonce,
            on_progress=on_progress,
            deadline_s=timeout_s,
        )
        try:
            await trust.prepare(received)
            keeper = GrantKeeper(
                control=self._control,
                trust=trust,
                session_key=session_key,
                keys=keys,
                certificate=certificate,
                expectation=expectation,
                received=received,
                clock=self._clock,
                random_bytes=self._random_bytes,
            )
        except BulkheadError:
            await self._abandon(received.offer.session)
            raise
        session = AsyncSession(keeper=keeper, control=self._control)
        self._sessions = [*(other for other in self._sessions if not other.closed), session]
        return session

    async def _abandon(self, session_id: str) -> None:
        """Close a session that did not verify; it is not used either way, so a failure to close changes nothing."""
        try:
            await self._control.close(session_id)
        except BulkheadError:
            return


class SessionOpening:
    """A session about to be opened: await it, or use it as ``async with``."""

    def __init__(
        self, client: AsyncBulkhead, request: SessionRequest, *, on_progress: OnProgress | None, timeout_s: float
    ) -> None:
        self._client = client
        self._request = request
        self._on_progress = on_progress
        self._timeout_s = timeout_s
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._client._open(  # noqa: SLF001 -- the two are one object in two steps
            self._request, on_progress=self._on_progress, timeout_s=self._timeout_s
        ).__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self
        return self._session

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(exc_type, exc, traceback)
