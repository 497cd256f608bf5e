"""Tenant against tenant on real processes: what is another's is useless, says so with a code, and leaves a record."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bulkhead.client import AsyncBulkhead, AsyncSession, AuditLog, RecordFilter, TenancyAdmin, TenantSettings
from bulkhead.client.fleet import FleetAdmin
from bulkhead.client.link import Link
from bulkhead.client.opening import SessionControl
from bulkhead.client.status import Peer, error_from_rpc
from bulkhead.client.views import TenantView
from bulkhead.errors import (
    BulkheadError,
    ConnectionFailedError,
    CredentialInvalidError,
    CredentialRevokedError,
    NotFoundError,
    PolicyDeniedError,
    ScopeError,
    SessionClosedError,
    ShuttingDownError,
    TicketError,
    TicketRevokedError,
    WorkerLostError,
)
from bulkhead.ids import SESSION, new_id
from bulkhead.protocol.client import ClientRequest, ClientSession
from bulkhead.protocol.context import Method
from bulkhead.protocol.grant import VerifiedGrant
from bulkhead.protocol.payloads import GenerateRequest, Message, encode_generate_request
from bulkhead.transparency import LeafFields
from bulkhead.v1 import inference_pb2, inference_pb2_grpc
from scripts.local_platform import LocalPlatform
from service.bulkhead_fleet.v1 import fleet_pb2, fleet_pb2_grpc
from service.tls import Identity, channel_credentials
from tests.conftest import start_platform, stop_platform
from tests.simulator.live import ONCE, cli, profile_of, refusal

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

REVOKED_WITHIN_S = 5.0
RECORDED_WITHIN_S = 10.0
PLATFORM = "platform"
UNAUTHENTICATED = "access.unauthenticated"


@dataclass
class Person:
    """A principal of its own for one test: what it is refused is limited and recorded for it alone."""

    client: AsyncBulkhead
    tenant: TenantView | None
    subject: str
    credential: str
    api_key: str


@dataclass
class Estate:
    """The platform, an admin's calls, and a platform officer who reads every log."""

    platform: LocalPlatform
    tenancy: TenancyAdmin
    fleet: FleetAdmin
    logs: AuditLog
    acme: TenantView
    mercy: TenantView
    closing: AsyncExitStack

    async def person(self, tenant: TenantView | None, role: str = "developer") -> Person:
        """Create a principal with an API key, and a client that repeats nothing."""
        name = f"person-{time.monotonic_ns()}"
        made = await self.tenancy.create_principal(tenant_id=tenant.tenant_id if tenant else "", name=name, role=role)
        issued = await self.tenancy.create_api_key(made.principal_id)
        like = "mercy" if tenant is not None and tenant.name == "mercy-hospital" else "acme"
        own = {} if tenant is None else {"tenant_id": tenant.tenant_id, "log_vkey": tenant.log_vkey}
        profile = profile_of(self.platform, like, api_key=issued.api_key, role=role, **own)
        client = await self.closing.enter_async_context(AsyncBulkhead(profile=profile, retry=ONCE))
        return Person(client, tenant, made.subject_id, issued.credential.credential_id, issued.api_key)

    async def records(self, log: str, **wanted: str) -> list[LeafFields]:
        """Return the matching records of a tenant's log, or of the platform's, oldest first."""
        query = RecordFilter(tenant_id=log, **wanted)
        found = [record async for record in self.logs.records(query)]
        return [record.fields for record in sorted(found, key=lambda record: record.index)]

    async def listed(self, log: str, number: int, **wanted: str) -> list[LeafFields]:
        """Return the matching records once there are ``number``: lists follow the log a moment later."""
        deadline = time.monotonic() + RECORDED_WITHIN_S
        while len(found := await self.records(log, **wanted)) < number:
            assert time.monotonic() < deadline, f"{len(found)} of {number} records"
            await asyncio.sleep(0.1)
        return found

    async def refused(self, log: str, person: Person, code: str, *methods: str) -> None:
        """Check that the log holds one refusal of the person for each method, in order, and no other."""
        found = await self.listed(log, len(methods), action="access.denied", subject=person.subject)
        assert [(record.decision, record.reasons[0]["code"]) for record in found] == [("deny", code)] * len(methods)
        assert [record.resource.id for record in found] == [f"/bulkhead.v1.{method}" for method in methods]

    async def recorded(
        self, log: str, holds: Callable[[LeafFields], bool] = lambda _: True, **wanted: str
    ) -> LeafFields:
        """Wait for a record: what a worker refuses reaches the log through its agent's spool."""
        deadline = time.monotonic() + RECORDED_WITHIN_S
        while time.monotonic() < deadline:
            for record in await self.records(log, **wanted):
                if holds(record):
                    return record
            await asyncio.sleep(0.2)
        raise AssertionError("no such record came")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def estate(tiny_model: Path) -> AsyncIterator[Estate]:
    """A platform of this module's own: tests suspend tenants and revoke keys."""
    platform = await asyncio.to_thread(start_platform, tiny_model)
    try:
        async with AsyncExitStack() as closing:
            admin = await closing.enter_async_context(AsyncBulkhead(profile=profile_of(platform, "admin")))
            tenancy = TenancyAdmin(admin.channel)
            made = await tenancy.create_principal(tenant_id="", name="auditor", role="officer")
            key = (await tenancy.create_api_key(made.principal_id)).api_key
            profile = profile_of(platform, "officer", api_key=key, tenant_id=None)
            auditor = await closing.enter_async_context(AsyncBulkhead(profile=profile))
            yield Estate(
                platform=platform,
                tenancy=tenancy,
                fleet=FleetAdmin(admin.channel),
                logs=auditor.audit,
                acme=await tenancy.tenant("acme"),
                mercy=await tenancy.tenant("mercy-hospital"),
                closing=closing,
            )
    finally:
        await asyncio.to_thread(stop_platform, platform)


@asynccontextmanager
async def session_of(person: Person) -> AsyncGenerator[AsyncSession, None]:
    """Open a session that works."""
    async with person.client.open_session() as session:
        assert (await session.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
        yield session


async def send(link: Link, request: ClientRequest) -> None:
    """Send a request to the worker of ``link``; the worker must not begin an answer."""
    stub = inference_pb2_grpc.InferenceServiceStub(link.channel.raw)
    message = inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks)
    async for _ in link.channel.stream(stub.Generate, message, deadline_s=20, idle_s=20):
        raise AssertionError("the worker answered")


def sealed(grant: VerifiedGrant, session: AsyncSession) -> ClientRequest:
    """Return a request under ``grant``, signed with the session's key."""
    key = session._keeper._key
    payload = encode_generate_request(GenerateRequest(messages=(Message(role="user", content="hello"),), max_tokens=2))
    return ClientSession(grant=grant, session_key=key).begin(Method.GENERATE, payload, now_s=int(time.time()))


async def refused_within(
    session: AsyncSession, *, timeout_s: float, passing: tuple[type[BulkheadError], ...] = ()
) -> tuple[BulkheadError, float]:
    """Use a session until it is refused; return the error, none of ``passing``, and after how many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        try:
            await session.generate_text("hello", max_tokens=1)
        except passing:
            pass
        except BulkheadError as error:
            return error, time.monotonic() - began
        await asyncio.sleep(0.05)
    raise AssertionError(f"still served after {timeout_s} s")


@pytest.mark.parametrize("sealed_to", ["its own worker", "the other worker"])
async def test_a_ticket_opens_nothing_on_another_tenants_worker(estate: Estate, sealed_to: str) -> None:
    """With its session key, through the other's ingress and TLS name: TICKET_INVALID, recorded in both logs."""
    acme, mercy = await estate.person(estate.acme), await estate.person(estate.mercy)
    async with session_of(acme) as stolen, session_of(mercy) as target:
        grant = stolen.link.grant
        if sealed_to == "the other worker":
            keyset = target.link.grant.keyset
            grant = replace(grant, keyset=keyset, claims=replace(grant.claims, keyset_digest=keyset.key_id))
        with pytest.raises(TicketError) as caught:
            await send(target.link, sealed(grant, stolen))
        assert caught.value.code == "TICKET_INVALID"
        at_target = await estate.recorded(
            estate.mercy.tenant_id, lambda r: "not this tenant's" in r.reasons[0]["message"], action="access.denied"
        )
        assert (at_target.reasons[0]["code"], at_target.session) == ("TICKET_INVALID", "")
        assert estate.acme.tenant_id not in str(at_target)
        at_owner = await estate.recorded(estate.acme.tenant_id, action="access.denied", session_id=stolen.session_id)
        assert (at_owner.tenant, at_owner.reasons[0]["code"]) == (estate.acme.tenant_id, "TICKET_INVALID")
        assert estate.mercy.tenant_id not in str(at_owner)
        assert (await target.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2


async def test_a_receipt_is_fetched_by_its_own_session_only(estate: Estate) -> None:
    """Another tenant's ticket is TICKET_INVALID; a colleague's session finds nothing under the request's id."""
    acme, colleague = await estate.person(estate.acme), await estate.person(estate.acme)
    mercy = await estate.person(estate.mercy)
    async with session_of(acme) as mine, session_of(colleague) as theirs, session_of(mercy) as target:
        answer = await target.generate_text("hello", max_tokens=2)
        stub = inference_pb2_grpc.InferenceServiceStub(target.link.channel.raw)
        signature = mine.link.sealing.sign_receipt_fetch(answer.request_id)
        request = inference_pb2.GetReceiptRequest(
            ticket=mine.link.grant.ticket, request_id=answer.request_id, signature=signature
        )
        error, _ = await refusal(target.link.channel.unary(stub.GetReceipt, request, idempotent=True))
        assert error.code == "TICKET_INVALID"
        own = await mine.generate_text("hello", max_tokens=2)
        assert (await mine.fetch_receipt(own.request_id))[1].digest == own.signed_receipt.digest
        assert theirs.worker.descriptor.partition == mine.worker.descriptor.partition
        assert isinstance((await refusal(theirs.fetch_receipt(own.request_id)))[0], NotFoundError)


async def test_another_tenants_session_id_is_nobodys(estate: Estate) -> None:
    """Get, renew and close are NOT_FOUND as for a session that never was; it goes on; the asker's log holds it."""
    acme, mercy = await estate.person(estate.acme), await estate.person(estate.mercy)
    async with session_of(mercy) as session:
        control = SessionControl(acme.client.channel)
        for session_id in (session.session_id, new_id(SESSION)):
            for call in (control.get(session_id), control.renew(session_id, nonce=bytes(32))):
                assert isinstance((await refusal(call))[0], NotFoundError)
        assert isinstance((await refusal(control.close(session.session_id)))[0], NotFoundError)
        shown = [view.session_id async for view in acme.client.sessions()]
        assert session.session_id not in shown
        assert (await mercy.client.session(session.session_id)).state == "open"
        await session.renew()
        assert (await session.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
    both = ("SessionQueryService/GetSession", "SessionService/RenewSession")
    await estate.refused(estate.acme.tenant_id, acme, "NOT_FOUND", *both, *both, "SessionService/CloseSession")
    assert await estate.records(estate.mercy.tenant_id, action="access.denied", subject=acme.subject) == []


async def test_another_tenants_log_is_nobodys(estate: Estate, tmp_path: Path) -> None:
    """An officer lists, exports, proves and reads checkpoints of the own log only; each try is in the officer's log."""
    officer = await estate.person(estate.acme, "officer")
    mercy = estate.mercy.tenant_id
    log = officer.client.audit

    async def read(tenant_id: str) -> list[str]:
        return [record.fields.tenant or "" async for record in log.records(RecordFilter(tenant_id=tenant_id))]

    async def export(tenant_id: str) -> bytes:
        return b"".join([chunk async for chunk in log.export(tenant_id=tenant_id)])

    tries: list[Awaitable[Any]] = [
        read(mercy),
        export(mercy),
        log.prove(0, vkey=estate.mercy.log_vkey, tenant_id=mercy),
        log.checkpoint(tenant_id=mercy),
        log.checkpoint(tenant_id=PLATFORM),
    ]
    for attempt in tries:
        assert isinstance((await refusal(attempt))[0], NotFoundError)
    methods = ("ListRecords", "ExportLog", "GetRecord", "GetCheckpoint", "GetCheckpoint")
    await estate.refused(estate.acme.tenant_id, officer, "NOT_FOUND", *(f"AuditService/{method}" for method in methods))
    assert set(await read("")) == {estate.acme.tenant_id}
    assert mercy.encode() not in await export("")
    told = cli(estate.platform, "officer", "bulkhead", "audit", "list", "--tenant", mercy)
    assert (told.returncode, told.stdout) == (1, "")
    assert "NOT_FOUND" in told.stderr
    told = cli(estate.platform, "officer", "bulkhead", "audit", "export", str(tmp_path / "e"), "--tenant", mercy)
    assert told.returncode == 1
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []
    assert await estate.records(mercy, subject=officer.subject) == []


async def test_a_role_reaches_its_own_methods_only(estate: Estate) -> None:
    """A developer's key is no officer's, an officer's no developer's, neither an admin's: SCOPE_MISSING, recorded."""

    async def first(rows: AsyncIterator[Any]) -> None:
        await anext(aiter(rows))

    def reads(person: Person) -> Awaitable[None]:
        return first(person.client.audit.records())

    def administers(person: Person) -> Awaitable[Any]:
        return TenancyAdmin(person.client.channel).update_tenant(
            estate.mercy.tenant_id, TenantSettings(session_limit=1)
        )

    async def opens(person: Person) -> None:
        await person.client.open_session()

    def closes(person: Person) -> Awaitable[None]:
        return SessionControl(person.client.channel).close(new_id(SESSION))

    developer = await estate.person(estate.acme)
    officer = await estate.person(estate.acme, "officer")
    admin = await estate.person(None, "admin")
    tries = {
        "developer": (developer, (reads, administers), estate.acme.tenant_id),
        "officer": (officer, (opens, closes, administers), estate.acme.tenant_id),
        "admin": (admin, (opens, reads), PLATFORM),
    }
    methods = {
        "developer": ("AuditService/ListRecords", "TenancyAdminService/UpdateTenant"),
        "officer": ("SessionService/OpenSession", "SessionService/CloseSession", "TenancyAdminService/UpdateTenant"),
        "admin": ("SessionService/OpenSession", "AuditService/ListRecords"),
    }
    for role, (person, attempts, log) in tries.items():
        for attempt in attempts:
            assert isinstance((await refusal(attempt(person)))[0], ScopeError), role
        await estate.refused(log, person, "SCOPE_MISSING", *methods[role])
    assert (await estate.tenancy.tenant("mercy-hospital")).session_limit == estate.mercy.session_limit


async def test_an_admin_reads_no_tenants_log(estate: Estate) -> None:
    """Whoever administers tenants cannot look at what they do: neither records, proofs, exports nor checkpoints."""
    admin = await estate.person(None, "admin")
    log, acme = admin.client.audit, estate.acme.tenant_id

    async def listed() -> None:
        await anext(log.records(RecordFilter(tenant_id=acme)))

    async def exported() -> None:
        await anext(log.export(tenant_id=acme))

    for attempt in (listed(), exported(), log.receipt(0, tenant_id=acme), log.checkpoint(tenant_id=acme)):
        assert isinstance((await refusal(attempt))[0], ScopeError)
    methods = ("ListRecords", "ExportLog", "GetRecord", "GetCheckpoint")
    await estate.refused(PLATFORM, admin, "SCOPE_MISSING", *(f"AuditService/{method}" for method in methods))


async def test_a_revoked_key_and_its_open_session_are_useless(estate: Estate) -> None:
    """New calls are CREDENTIAL_REVOKED at once, the open session TICKET_REVOKED within 5 s; a colleague goes on."""
    leaver, colleague = await estate.person(estate.acme), await estate.person(estate.acme)
    async with session_of(colleague) as other:
        session = await leaver.client.open_session()
        assert (await session.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
        await estate.tenancy.revoke_credential(leaver.credential)
        error, waited_s = await refused_within(session, timeout_s=REVOKED_WITHIN_S)
        assert isinstance(error, TicketRevokedError), error
        assert waited_s < REVOKED_WITHIN_S
        for attempt in (leaver.client.session(session.session_id), session.renew()):
            assert isinstance((await refusal(attempt))[0], CredentialRevokedError)
        assert (await other.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
    acme = estate.acme.tenant_id
    for method in ("SessionQueryService/GetSession", "SessionService/RenewSession"):
        wanted = ("CREDENTIAL_REVOKED", leaver.credential, f"/bulkhead.v1.{method}")
        await estate.recorded(acme, lambda r, wanted=wanted: _unauthenticated(r) == wanted, action=UNAUTHENTICATED)
    await estate.recorded(
        acme, lambda r: r.reasons[0]["code"] == error.code, action="access.denied", session_id=session.session_id
    )
    closed = await estate.recorded(acme, action="session.closed", session_id=session.session_id)
    assert closed.data["code"] == "CREDENTIAL_REVOKED"


async def test_a_closed_sessions_ticket_is_refused(estate: Estate) -> None:
    """The ticket has minutes to live and the worker runs on for a colleague: TICKET_REVOKED within 5 s, recorded."""
    mine, colleague = await estate.person(estate.acme), await estate.person(estate.acme)
    async with session_of(colleague) as other:
        session = await mine.client.open_session()
        grant = session.link.grant
        assert grant.claims.partition == other.link.grant.claims.partition
        assert grant.claims.expires_at_s > time.time() + 60
        await session.close()
        deadline = time.monotonic() + REVOKED_WITHIN_S
        while True:
            try:
                await send(other.link, sealed(grant, session))
            except TicketRevokedError:
                break
            except AssertionError:  # served: its lease has not come yet
                assert time.monotonic() < deadline
        renewed, _ = await refusal(SessionControl(mine.client.channel).renew(grant.claims.session, nonce=bytes(32)))
        assert isinstance(renewed, SessionClosedError)
    await estate.recorded(
        estate.acme.tenant_id,
        lambda r: r.reasons[0]["code"] == "TICKET_REVOKED" and r.resource.id == "/bulkhead.v1.InferenceService",
        action="access.denied",
        session_id=grant.claims.session,
    )
    await estate.recorded(
        estate.acme.tenant_id,
        lambda r: r.reasons[0]["code"] == "SESSION_CLOSED",
        action="access.denied",
        subject=mine.subject,
    )


async def test_a_suspended_tenant_is_served_no_more(estate: Estate) -> None:
    """Its open session ends within 5 s, its worker too, new opens are denied by policy; others do not notice."""
    settings = TenantSettings(
        regions=("us-east",), models=("tiny",), minimum_tier="mig", session_limit=5, max_output_tokens=64
    )
    initech = await estate.tenancy.create_tenant("initech", settings)
    person, neighbour = await estate.person(initech), await estate.person(estate.acme)
    async with session_of(neighbour) as other:
        session = await person.client.open_session()
        assert (await session.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
        await estate.tenancy.update_tenant(initech.tenant_id, TenantSettings(status="suspended"))
        error, _ = await refused_within(session, timeout_s=REVOKED_WITHIN_S, passing=(ShuttingDownError,))
        # Its worker says TICKET_REVOKED, or shuts down and is gone: then a connection broke, or the renewal for a new
        # one was refused.
        assert isinstance(error, TicketRevokedError | SessionClosedError | WorkerLostError), error
        denied, _ = await refusal(_opened(person))
        assert isinstance(denied, PolicyDeniedError)
        assert "TENANT_INACTIVE" in {reason["code"] for reason in json.loads(denied.details["reasons"])}
        assert (await other.generate_text("hello", max_tokens=2)).usage.completion_tokens == 2
    closed = await estate.recorded(initech.tenant_id, action="session.closed", session_id=session.session_id)
    assert closed.cause.kind == "platform"
    decision = await estate.recorded(initech.tenant_id, action="decision", decision="deny")
    assert decision.subject == person.subject
    assert decision.reasons[0]["code"] == "TENANT_INACTIVE"
    await estate.recorded(initech.tenant_id, action="partition.freed")
    await estate.tenancy.update_tenant(initech.tenant_id, TenantSettings(status="active"))
    async with session_of(person):
        pass


def _unauthenticated(record: LeafFields) -> tuple[str, str, str]:
    """Return code, credential and method of a record of a caller who was not admitted."""
    return record.reasons[0]["code"], record.cause.credential or "", record.resource.id


async def _opened(person: Person) -> None:
    await person.client.open_session()


async def test_certificates_are_good_for_their_own_port_only(estate: Estate, tmp_path: Path) -> None:
    """An agent is no tenant and a tenant no agent: CREDENTIAL_INVALID, recorded; without one there is no handshake."""
    platform = estate.platform
    tenant = await asyncio.to_thread(issue, platform, tmp_path, "issue-client-certificate", "--name", "acme-batch")
    agent = Identity.load(platform.root / "rack1-tray01" / "agent.pem", platform.root / "rack1-tray01" / "agent.key")
    person = await estate.person(estate.acme)
    principals = [view async for view in estate.tenancy.principals(estate.acme.tenant_id)]
    owner = next(view.principal_id for view in principals if view.subject_id == person.subject)
    await estate.tenancy.register_certificate(owner, tenant.certificate_pem)
    before = len(await estate.records(PLATFORM, action=UNAUTHENTICATED))

    async with certified(estate, tenant) as mine:
        assert {view.tenant_id async for view in mine.sessions()} <= {estate.acme.tenant_id}
    async with certified(estate, agent) as stranger:
        error, _ = await refusal(anext(stranger.sessions()))
        assert isinstance(error, CredentialInvalidError)
    async with certified(estate, None, api_key=person.api_key) as bare:
        assert isinstance((await refusal(anext(bare.sessions())))[0], ConnectionFailedError)
    assert isinstance(await greeted(platform, tenant, "rack1-tray01"), CredentialInvalidError)

    refused = (await estate.listed(PLATFORM, before + 2, action=UNAUTHENTICATED))[before:]
    assert [_unauthenticated(record) for record in refused] == [
        ("CREDENTIAL_INVALID", "", "/bulkhead.v1.SessionQueryService/ListSessions"),
        ("CREDENTIAL_INVALID", "", "/bulkhead_fleet.v1.FleetService/Connect"),
    ]


async def test_an_agent_cannot_greet_as_another(estate: Estate) -> None:
    """The certificate's name counts: CREDENTIAL_INVALID, recorded in the platform's log; the true agent serves on."""
    directory = estate.platform.root / "rack1-tray01"
    liar = Identity.load(directory / "agent.pem", directory / "agent.key")
    before = len(await estate.records(PLATFORM, action="access.denied"))
    assert isinstance(await greeted(estate.platform, liar, "rack1-tray02"), CredentialInvalidError)
    record = (await estate.listed(PLATFORM, before + 1, action="access.denied"))[before]
    assert (record.resource.type, record.resource.id) == ("agent", "rack1-tray01")
    assert record.reasons[0]["code"] == "CREDENTIAL_INVALID"
    agents = await estate.fleet.agents()
    assert {view.agent_id for view in agents if view.connected} == {"rack1-tray01", "rack1-tray02"}


def issue(platform: LocalPlatform, out: Path, *command: str) -> Identity:
    """Let the platform's authority issue an identity."""
    platform.run(
        [sys.executable, "-m", "control_plane", command[0], "--config", str(platform.root / "control.toml"),
         *command[1:], "--out", str(out)]
    )  # fmt: skip
    return Identity.load(next(out.glob("*.pem")), next(out.glob("*.key")))


@asynccontextmanager
async def certified(
    estate: Estate, identity: Identity | None, *, api_key: str | None = None
) -> AsyncGenerator[AsyncBulkhead, None]:
    """A client of the port that wants client certificates."""
    port = estate.platform.ports_wanted()["public_mtls"]
    profile = profile_of(
        estate.platform,
        "acme",
        address=f"127.0.0.1:{port}",
        api_key=api_key,
        client_certificate_pem=identity.certificate_pem if identity else None,
        client_key_pem=identity.private_key_pem if identity else None,
    )
    async with AsyncBulkhead(profile=profile, retry=ONCE) as client:
        yield client


async def greeted(platform: LocalPlatform, identity: Identity, agent_id: str) -> BulkheadError:
    """Say hello on the internal port under a name; return the error that ends the stream."""
    return await asyncio.to_thread(_greeted, platform, identity, agent_id)


def _greeted(platform: LocalPlatform, identity: Identity, agent_id: str) -> BulkheadError:
    # Not by grpc.aio: where the stream ends before the hello is written it may show an INTERNAL of its own in place of
    # the server's status (grpc issue 36066).
    over = threading.Event()

    def messages() -> Iterator[fleet_pb2.AgentMessage]:
        yield fleet_pb2.AgentMessage(hello=fleet_pb2.Hello(agent_id=agent_id, boot_id="0" * 32))
        over.wait(20)  # an agent does not hang up

    credentials = channel_credentials(profile_of(platform, "admin").ca_pem, identity)
    address = f"localhost:{platform.ports_wanted()['internal']}"
    with grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            for _ in fleet_pb2_grpc.FleetServiceStub(channel).Connect(messages(), timeout=10):
                raise AssertionError("the agent was welcomed")
        except grpc.RpcError as error:
            trailing = grpc.aio.Metadata(*error.trailing_metadata())
            status = grpc.aio.AioRpcError(error.code(), grpc.aio.Metadata(), trailing, details=error.details())
            return error_from_rpc(status, Peer.CONTROL_PLANE)
        finally:
            over.set()
    raise AssertionError("the stream ended without a status")
