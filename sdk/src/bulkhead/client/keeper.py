"""Keeps a session's grant: verified at the open, renewed in time, and never weakened.

Every grant goes through :meth:`bulkhead.client.trust.Trust.verify` before a :class:`Link` is made of it, and each
renewal also through :func:`bulkhead.protocol.grant.verify_renewal`. A renewal that does not verify is an error to
whoever needs it; the grant before it stays in use until it expires.

A worker shows the certificate of its latest keys only, so a connection that breaks under an older grant cannot be made
again with that grant's pin: whoever finds it broken renews, which brings the new certificate, verified like the first.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.statement import NONCE_BYTES
from bulkhead.client.link import Link, worker_channel
from bulkhead.client.opening import ReceivedGrant, SessionControl
from bulkhead.client.roots import SessionKeys
from bulkhead.client.transport import Channel
from bulkhead.client.trust import Trust
from bulkhead.errors import BulkheadError, DeadlineError, SessionClosedError, UnavailableError
from bulkhead.protocol.client import ClientSession
from bulkhead.protocol.grant import Expectation, VerifiedGrant, verify_renewal

__all__ = ["GrantKeeper"]

RETRY_S: Final = 5.0  # between attempts of the background renewal while the control plane is away
CHANNEL_GRACE_S: Final = 30.0  # a connection outlives its grant by this: streams end within seconds of their ticket
MAX_KEYSETS: Final = 4  # whose receipts can be checked: workers keep receipts for 15 minutes, and keys for hours
MIN_WAIT_S: Final = 1.0  # a grant that is past its half-life when it arrives must not make a busy loop

_log = logging.getLogger("bulkhead.client")


class GrantKeeper:
    """One session's present link to its worker. Construct inside the event loop that uses it.

    Args:
        control: calls the control plane.
        trust: what the client believes.
        session_key: signs requests; lives in this process only.
        keys: certify it again at each renewal, where the tenant has a root.
        certificate: of the session key for the open; empty where the tenant has no root.
        expectation: of the open; a renewal changes the nonce alone.
        received: grant as received at the open.
        clock: Unix seconds.
        random_bytes: source of nonces and request secrets.

    Raises:
        BulkheadError: the grant does not verify; nothing was sent to the worker.
    """

    def __init__(
        self,
        *,
        control: SessionControl,
        trust: Trust,
        session_key: Ed25519PrivateKey,
        keys: SessionKeys,
        certificate: bytes,
        expectation: Expectation,
        received: ReceivedGrant,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._control = control
        self._trust = trust
        self._key = session_key
        self._keys = keys
        self._expectation = expectation
        self._clock = clock
        self._random_bytes = random_bytes
        self._lock = asyncio.Lock()
        self._renewed = asyncio.Event()
        self._channels: dict[Channel, float] = {}  # Unix seconds until which a grant of it holds
        self._by_keyset: dict[bytes, Link] = {}
        self._closed = False
        grant = trust.verify(received, expectation=expectation, now_s=self.now_s())
        self._current = self._link(received, grant, expectation.nonce, worker_channel(received, grant), certificate)
        self._task = asyncio.get_running_loop().create_task(self._keep_fresh())

    @property
    def current(self) -> Link:
        """The present link; its grant may have expired."""
        return self._current

    def now_s(self) -> int:
        """Return Unix seconds."""
        return int(self._clock())

    def of_keyset(self, key_id: bytes) -> Link:
        """Return the latest link that was verified with a keyset, to check what was signed under it; else the present.

        Args:
            key_id: as a receipt names it (untrusted).
        """
        return self._by_keyset.get(key_id, self._current)

    async def link(self) -> Link:
        """Return a link whose grant has not expired.

        Raises:
            SessionClosedError: the session was closed here.
            BulkheadError: the grant has expired and could not be renewed.
        """
        if self._closed:
            raise SessionClosedError("the session has been closed")
        if self.now_s() >= self._current.sealing.not_after_s:
            await self.renew_after(self._current)
        return self._current

    async def renew_after(self, used: Link, *, reconnect: bool = False) -> None:
        """Renew unless that has happened since ``used`` was current: of many waiting requests one renews.

        Args:
            used: the link that will not do any more.
            reconnect: its connection is broken: make a new one, also where the worker's certificate is the same.

        Raises:
            EvidenceError, ProofError, TicketError: what the control plane offered does not verify or is weaker.
            CertificateError, ConfigError: the session key could not be certified again.
            BulkheadError: it could not be asked, or refuses.
        """
        async with self._lock:
            if self._closed:
                raise SessionClosedError("the session has been closed")
            if self._current is not used:
                return
            nonce = self._random_bytes(NONCE_BYTES)
            received = await self._control.renew(used.grant.claims.session, nonce=nonce)
            expectation = replace(self._expectation, nonce=nonce)
            await self._trust.prepare(received)
            renewed = self._trust.verify(received, expectation=expectation, now_s=self.now_s())
            grant = verify_renewal(used.grant, renewed)
            keep = used.reaches(received, grant) and not reconnect
            channel = used.channel if keep else worker_channel(received, grant)
            certificate = await self._keys.certify(grant.claims.cnf, now_s=self.now_s())
            self._current = self._link(received, grant, nonce, channel, certificate)
            self._renewed.set()
            await self._close_outlived()

    async def close(self) -> None:
        """Stop renewing and end every request in flight. Repeating it does nothing."""
        self._closed = True
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for channel in self._channels:
            await channel.close()

    def _link(
        self, received: ReceivedGrant, grant: VerifiedGrant, nonce: bytes, channel: Channel, certificate: bytes
    ) -> Link:
        # The connection before still serves requests in flight: it ends when no ticket of it can hold any more.
        self._channels[channel] = max(self._channels.get(channel, 0.0), float(grant.not_after_s))
        sealing = ClientSession(
            grant=grant, session_key=self._key, certificate=certificate, random_bytes=self._random_bytes
        )
        link = Link(
            sealing=sealing,
            grant=grant,
            received=received,
            nonce=nonce,
            collateral=self._trust.collateral_for(received),
            channel=channel,
        )
        self._by_keyset.pop(grant.keyset.key_id, None)
        self._by_keyset[grant.keyset.key_id] = link
        while len(self._by_keyset) > MAX_KEYSETS:
            del self._by_keyset[next(iter(self._by_keyset))]
        return link

    async def _close_outlived(self) -> None:
        for channel, until_s in tuple(self._channels.items()):
            if channel is not self._current.channel and until_s + CHANNEL_GRACE_S < self._clock():
                del self._channels[channel]
                await channel.close()

    async def _keep_fresh(self) -> None:
        while True:
            used = self._current
            self._renewed.clear()
            await asyncio.sleep(max(used.half_life_s - self._clock(), MIN_WAIT_S))
            try:
                await self.renew_after(used)
            except (UnavailableError, DeadlineError) as error:
                _log.warning("session %s: renewal is waiting: %s", used.grant.claims.session, error.code)
                await asyncio.sleep(RETRY_S)
            except BulkheadError as error:
                # Told to whoever needs the session next: a request renews by itself once the grant has expired.
                _log.warning("session %s: cannot be renewed: %s", used.grant.claims.session, error.code)
                await self._renewed.wait()
