"""A session that goes on while everything under it is exchanged: keys, tickets, issuer, control plane, worker.

What the caller sees is an answer or a typed error that says what to do again. Keys live 20 s and tickets 10 s here, so
that both are renewed within the test.
"""

import asyncio
import os
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.client import AsyncBulkhead, AsyncSession
from bulkhead.client.config import Profile, load_profile
from bulkhead.errors import AuditLeaseError, BulkheadError
from bulkhead.protocol.receipts import Receipt
from scripts.local_platform import LocalPlatform
from tests.conftest import start_platform, stop_platform
from tests.simulator import live
from tests.simulator.relay import RecordingRelay

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(240)]

LEASE_S = 4
TICKET_S = 10
CONTROL = f"""
heartbeat_timeout_s = 2
agent_grace_s = 20
lease_s = {LEASE_S}
lease_interval_s = 0.5
receipts_interval_s = 1

[sessions]
ticket_s = {TICKET_S}
"""
AGENT = """
[worker]
key_life_s = 20
"""
# What may be said of a request that a fault met: each says what to do again, and none is an answer.
TRY_AGAIN = {
    "AGENT_UNAVAILABLE",
    "AUDIT_LEASE_EXPIRED",
    "UNAVAILABLE",
    "CONNECTION_FAILED",
    "SHUTTING_DOWN",
    "STREAM_TRUNCATED",
    "TICKET_EXPIRED",  # of a stream that ran while there was nobody to renew with
}
OPEN_AGAIN = {"WORKER_LOST", "SESSION_CLOSED"}


@pytest.fixture(scope="module")
def relay() -> Iterator[RecordingRelay]:
    with RecordingRelay() as opened:
        yield opened


@pytest.fixture(scope="module")
def to_worker() -> Iterator[RecordingRelay]:
    with RecordingRelay() as opened:
        yield opened


@pytest.fixture(scope="module")
def turning(tiny_model: Path, relay: RecordingRelay, to_worker: RecordingRelay) -> Iterator[LocalPlatform]:
    """A platform of one tray behind relays, to the control plane and to its workers, with everything short-lived."""
    platform = start_platform(tiny_model, control=CONTROL, agent=AGENT, trays=1, internal=relay, ingress=to_worker)
    yield platform
    stop_platform(platform)


class Caller:
    """Somebody who asks all the time; what came of it is kept."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.receipts: list[Receipt] = []
        self.errors: list[BulkheadError] = []

    async def ask_for_ever(self) -> None:
        """Stream answer after answer, whatever happens to one."""
        while True:
            generation = self.session.generate("Tell me of rotating things.", max_tokens=12)
            try:
                async for _ in generation:
                    pass
            except BulkheadError as error:
                live.check_text(error.message)
                self.errors.append(error)
                await asyncio.sleep(0.1)
            else:
                self.receipts.append(generation.receipt)

    @property
    def codes(self) -> Counter[str]:
        """Codes of the errors so far."""
        return Counter(error.code for error in self.errors)

    async def until(self, holds: Callable[[], object], what: str, *, timeout_s: float = 40.0) -> None:
        """Wait until something holds of what came."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain until {what}: {self.codes}"
            await asyncio.sleep(0.05)

    async def answered(self, what: str) -> None:
        """Wait for answers to requests that were sent from now on."""
        wanted = len(self.receipts) + 2
        await self.until(lambda: len(self.receipts) >= wanted, f"it is answered {what}")


@asynccontextmanager
async def calling(client: AsyncBulkhead) -> AsyncIterator[Caller]:
    """A caller with a session, asking in the background."""
    async with client.open_session() as session:
        caller = Caller(session)
        asking = asyncio.create_task(caller.ask_for_ever())
        try:
            yield caller
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def admin(platform: LocalPlatform, *arguments: str) -> dict[str, str]:
    """Run ``bulkhead-admin`` beside the event loop."""
    return await asyncio.to_thread(platform.admin, *arguments)  # type: ignore[no-any-return]


def trusting(platform: LocalPlatform, issuers: Any) -> Profile:
    """Return the tenant's profile with every ticket issuer there is pinned."""
    profile = load_profile("acme", path=platform.client_config)
    assert profile.ticket_issuer is not None
    return replace(profile, ticket_issuer=profile.ticket_issuer.also([item["fingerprint"] for item in issuers]))


async def test_a_session_streams_through_every_rotation(turning: LocalPlatform) -> None:
    """Keys, tickets, issuer and control plane change under one session; then its worker dies, and it says so."""
    (first,) = await admin(turning, "issuer", "list")  # type: ignore[misc]
    added = await admin(turning, "issuer", "add")
    profile = load_profile("acme", path=turning.client_config)
    assert profile.ticket_issuer is not None
    both = replace(profile, ticket_issuer=profile.ticket_issuer.also([added["fingerprint"]]))
    async with AsyncBulkhead(profile=both) as client, calling(client) as caller:
        await caller.answered("at first")
        started = caller.session.link.grant
        await admin(turning, "issuer", "activate", added["issuer_id"])
        activated_s = time.monotonic()

        def issuer() -> str:
            return caller.session.link.received.ticket_issuer.hex()

        await caller.until(lambda: issuer() == added["public_key"], "the new issuer signs")
        await caller.until(lambda: len({r.keyset_digest for r in caller.receipts}) >= 2, "keys were renewed")
        await caller.until(lambda: time.monotonic() - activated_s > TICKET_S + 1, "old tickets have expired")
        assert len({receipt.ticket_id for receipt in caller.receipts}) >= 3
        assert caller.errors == []  # so far nobody noticed
        await admin(turning, "issuer", "retire", first["issuer_id"])
        await caller.answered("after the old issuer is gone")
        assert caller.errors == []

        await asyncio.to_thread(turning.processes.kill, "control-plane")
        await asyncio.to_thread(turning.start_control_plane)
        await asyncio.to_thread(turning.wait_for_agents)
        await caller.answered("after the control plane's restart")
        assert caller.codes.keys() <= TRY_AGAIN, caller.codes
        grant = caller.session.link.grant
        assert (grant.claims.session, grant.claims.partition) == (started.claims.session, started.claims.partition)
        numbers = [receipt.number for receipt in caller.receipts]
        assert numbers == sorted(numbers)

        before = len(caller.errors)
        (worker,) = live.workers(turning)
        os.kill(worker, signal.SIGKILL)
        await caller.until(lambda: caller.codes.keys() & OPEN_AGAIN, "the caller is told to open another session")
        met = {error.code for error in caller.errors[before:]}
        assert met <= TRY_AGAIN | OPEN_AGAIN, met
        async with client.open_session() as another:
            assert (await another.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2


def shown_certificate(address: str, authority: str) -> bytes:
    """Return the certificate (DER) that a worker shows to a new connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=authority) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


async def test_a_connection_that_breaks_after_the_keys_were_renewed(
    turning: LocalPlatform, to_worker: RecordingRelay
) -> None:
    """A client on an older grant finds newer keys when it connects again: it renews at once, and nobody notices."""
    async with (
        AsyncBulkhead(profile=trusting(turning, await admin(turning, "issuer", "list"))) as client,
        client.open_session() as session,
    ):
        before = await session.generate_text("hello", max_tokens=2)
        deadline = time.monotonic() + 30
        while True:
            link = session.link
            shown = await asyncio.to_thread(shown_certificate, to_worker.address, link.grant.claims.audience)
            if session.link is link and shown != link.grant.worker_certificate:
                break  # the worker has newer keys, and the session has not been renewed yet
            assert time.monotonic() < deadline, "the worker's keys were never renewed"
            await asyncio.sleep(0.05)
        await asyncio.to_thread(to_worker.cut)
        to_worker.mend()
        after = await session.generate_text("hello", max_tokens=2)
        assert after.receipt.keyset_digest != before.receipt.keyset_digest
        assert session.link.grant.worker_certificate != link.grant.worker_certificate
        assert (await session.fetch_receipt(before.request_id))[0] == before.receipt


async def test_a_revocation_that_cannot_arrive_holds_within_the_lease(
    turning: LocalPlatform, relay: RecordingRelay
) -> None:
    """With the tray cut off the worker stops with its lease, and the control plane refuses the key all the time.

    So what the caller hears after the lease's end is the control plane's CREDENTIAL_REVOKED as soon as its ticket has
    to be renewed, and until then, if the tray is back before, the worker's TICKET_REVOKED.
    """
    made = await admin(turning, "principal", "create", "leaver", "--tenant", "acme", "--role", "developer")
    out = turning.root / "client" / "leaver.key"
    key = await admin(turning, "key", "create", made["principal_id"], "--out", str(out))
    profile = replace(trusting(turning, await admin(turning, "issuer", "list")), api_key=out.read_text().strip())
    async with AsyncBulkhead(profile=profile, retry=live.ONCE) as client, calling(client) as caller:
        await caller.answered("before")
        relay.cut()
        try:
            await admin(turning, "key", "revoke", key["credential_id"])
            cut_s = time.monotonic()
            await caller.until(lambda: "AUDIT_LEASE_EXPIRED" in caller.codes, "the lease ends", timeout_s=LEASE_S + 3)
            assert time.monotonic() - cut_s < LEASE_S + 2
            error = next(error for error in caller.errors if isinstance(error, AuditLeaseError))
            assert "no new requests" in error.message
        finally:
            relay.mend()
        error, _ = await live.refusal(caller.session.renew())
        assert error.code == "CREDENTIAL_REVOKED"
        await caller.until(lambda: caller.errors[-1].code == "CREDENTIAL_REVOKED", "the ticket has to be renewed")
        after = {error.code for error in caller.errors}
        assert after <= {"AUDIT_LEASE_EXPIRED", "TICKET_REVOKED", "CREDENTIAL_REVOKED"}, after
        served = len(caller.receipts)
        await asyncio.sleep(1)
        assert len(caller.receipts) == served
