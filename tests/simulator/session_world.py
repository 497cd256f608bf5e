"""Sessions and fleet of a control plane over a real database, audit log and gRPC, with a policy that tests script.

Admission alone is replaced: a call names its caller, or its agent, in metadata. Background work does not run by itself;
tests call what they want to happen.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from audit.config import AuditConfig
from audit.log import AuditLog
from bulkhead import ids
from bulkhead.errors import BulkheadError, CredentialInvalidError
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.v1 import audit_pb2_grpc, fleet_pb2_grpc, session_pb2, session_pb2_grpc
from control_plane.authz.decision import Decision, Obligation, Reason
from control_plane.authz.input import PolicyInput
from control_plane.core import Core
from control_plane.domain.roles import ROLE_SCOPES, Caller, CredentialKind, Role, Scope
from control_plane.domain.tenancy import Credential, Model, ModelStatus, Principal, Tenant, TenantStatus
from control_plane.domain.tiers import Tier
from control_plane.keys import TicketIssuerKeys
from control_plane.rpc.audit import AuditServicer
from control_plane.rpc.caller import caller_if_any, set_agent, set_caller
from control_plane.rpc.fleet import FleetServicer
from control_plane.rpc.fleet_admin import FleetAdminServicer, FleetQueryServicer
from control_plane.rpc.session import SessionQueryServicer, SessionServicer
from control_plane.services.administration import Administration
from control_plane.services.audit_reads import AuditReads
from control_plane.services.authorisation import Authorisation
from control_plane.services.fleet_admin import FleetAdmin, FleetQuery
from control_plane.services.hardware import HardwareTrust
from control_plane.services.issuers import IssuerAdmin, IssuerKeys, Issuers
from control_plane.services.journal import Journal
from control_plane.services.refusals import RefusalRecorder
from control_plane.services.settings import FleetSettings, SessionSettings
from control_plane.storage.engine import CALL_TIMEOUT_S, Database, Transaction
from control_plane.storage.migrate import migrate
from control_plane.storage.tenancy import Credentials, Models, Principals, Tenants
from service.bulkhead_fleet.v1 import fleet_pb2_grpc as agents_pb2_grpc
from service.files import make_private_directory
from service.interceptors import current_request_id
from service.server import new_server
from tests.simulator.fake_agent import AGENT_METADATA, FakeAgent

BUNDLE: Final = "cd" * 32
MODEL: Final = "tiny"
MODEL_DIGEST: Final = b"m" * 32
CALLER_METADATA: Final = "x-test-caller"
CALL_S: Final = 25.0  # a call that takes longer hangs
MAX_APPEND_S: Final = 60.0  # what an audit log takes as a limit
FAST: Final = FleetSettings(
    allow_simulated=True,
    heartbeat_timeout_s=60.0,
    agent_grace_s=0.2,
    agent_wait_s=0.3,
    create_timeout_s=5.0,
    attest_timeout_s=5.0,
    drain_s=0.2,
    release_timeout_s=5.0,
)


def now_us() -> int:
    return time.time_ns() // 1_000


@dataclass
class LimitingPolicy:
    """Allows what the tenant's status and session limit allow, until told otherwise; keeps the questions."""

    deny: tuple[Reason, ...] = ()
    fail: BulkheadError | None = None
    obligations: tuple[Obligation, ...] = ()
    bundle: str = BUNDLE
    asked: list[PolicyInput] = field(default_factory=list)

    async def decide(self, request: PolicyInput) -> Decision:
        """Answer as scripted."""
        self.asked.append(request)
        if self.fail is not None:
            raise self.fail
        reasons, tenant = list(self.deny), request.context.tenant
        if request.action == "session.open" and tenant is not None and tenant.sessions_open >= tenant.session_limit:
            reasons.append(Reason("SESSION_LIMIT", "tenancy", "The limit of open sessions is reached."))
        if tenant is not None and tenant.status != "active":
            reasons.append(Reason("TENANT_INACTIVE", "tenancy", "The tenant is not active."))
        return Decision(
            allow=not reasons,
            reasons=tuple(reasons),
            obligations=() if reasons else self.obligations,
            bundle_digest=self.bundle,
            input_digest=request.digest(),
        )


class SessionWorld:
    """A control plane's sessions and fleet, with callers by name."""

    def __init__(
        self,
        *,
        database: Database,
        audit: AuditLog,
        policy: LimitingPolicy,
        issuer_keys: IssuerKeys,
        session_settings: SessionSettings,
        fleet_settings: FleetSettings,
        hardware: HardwareTrust | None = None,
        call_s: float = CALL_S,
    ) -> None:
        self.call_s = call_s
        self.database = database
        self.audit = audit
        self.journal = Journal(audit=audit)
        self.policy = policy
        self.issuer = issuer_keys.first()
        self.issuers = Issuers(database=database, keys=issuer_keys, now_us=now_us)
        self.core = Core(
            database=database,
            journal=self.journal,
            policy=policy,
            issuers=self.issuers,
            session_settings=session_settings,
            fleet_settings=fleet_settings,
            now_us=now_us,
            hardware=hardware,
        )
        self.callers: dict[str, Caller] = {}
        self.refusals = RefusalRecorder(journal=self.journal, monotonic_s=time.monotonic)
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None
        self._agents: list[FakeAgent] = []

    async def serve(self) -> None:
        """Start as the process does: load, then listen."""
        await self.core.load()
        asks = Authorisation(
            database=self.database,
            journal=self.journal,
            policy=self.policy,
            platform_facts=self.core.fleet.platform_facts,
            now_us=now_us,
        )
        changes = Administration(database=self.database, journal=self.journal, authorisation=asks, now_us=now_us)
        core = self.core
        issuers = IssuerAdmin(
            administration=changes,
            authorisation=asks,
            database=self.database,
            issuers=self.issuers,
            ticket_s=2,
            now_us=now_us,
        )
        server = new_server(
            max_call_s=self.call_s + 5,
            admit=self._admit,
            on_refusal=self._on_refusal,
            unlimited=frozenset({"/bulkhead_fleet.v1.FleetService/Connect"}),
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(sessions=core.sessions), server)
        session_pb2_grpc.add_SessionQueryServiceServicer_to_server(SessionQueryServicer(sessions=core.sessions), server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditServicer(reads=AuditReads(journal=self.journal, database=self.database, authorisation=asks)), server
        )
        fleet_pb2_grpc.add_FleetAdminServiceServicer_to_server(
            FleetAdminServicer(
                fleet=FleetAdmin(administration=changes, fleet=core.fleet, book=core.book, releaser=core.releaser),
                issuers=issuers,
            ),
            server,
        )
        fleet_pb2_grpc.add_FleetQueryServiceServicer_to_server(
            FleetQueryServicer(
                fleet=FleetQuery(database=self.database, authorisation=asks, fleet=core.fleet, book=core.book),
                issuers=issuers,
            ),
            server,
        )
        agents_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(fleet=core.fleet), server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._server = server
        self._channel = grpc.aio.insecure_channel(self.address)

    async def close(self) -> None:
        """Stop as the process does; agents first, since they would reconnect."""
        for agent in self._agents:
            await agent.stop()
        if self._channel is not None:
            await self._channel.close(None)
        if self._server is not None:
            await self._server.stop(0.2)
        await self.core.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel of every caller."""
        assert self._channel is not None
        return self._channel

    async def agent(self, tray: int = 1, **conduct: Any) -> FakeAgent:
        """Return a connected agent."""
        agent = FakeAgent(address=self.address, tray=tray, **conduct)
        self._agents.append(agent)
        await agent.start()
        return agent

    def adopt(self, agent: FakeAgent) -> FakeAgent:
        """Stop an agent that a test made with the world."""
        self._agents.append(agent)
        return agent

    async def tenant(self, name: str, *, session_limit: int = 10, **changes: Any) -> Caller:
        """Create a tenant with a developer and an officer, ``name`` and ``name-officer``; return the developer."""
        fields: dict[str, Any] = {
            "tenant_id": ids.new_id(ids.TENANT),
            "name": name,
            "status": TenantStatus.ACTIVE,
            "regions": ("eu-central",),
            "packs": (),
            "models": (MODEL,),
            "minimum_tier": Tier.MIG,
            "session_limit": session_limit,
            "max_output_tokens": 256,
            "revision": 1,
            "log_vkey": "",
            "created_us": now_us(),
        }
        tenant = Tenant(**(fields | changes))
        log = await self.audit.ensure_log(tenant.tenant_id)
        vkey = self.audit.vkey(log.log_id)
        await self.database.write(lambda tx: _insert_tenant(tx, tenant, vkey))
        await self.person(f"{name}-officer", Role.OFFICER, tenant.tenant_id)
        return await self.person(name, Role.DEVELOPER, tenant.tenant_id)

    async def person(self, name: str, role: Role, tenant_id: str = "") -> Caller:
        """Create a principal with a credential, and let calls name it."""
        caller = Caller(
            principal_id=ids.new_id(ids.PRINCIPAL),
            subject_id=ids.new_id(ids.SUBJECT),
            tenant_id=tenant_id,
            role=role,
            scopes=ROLE_SCOPES[role],
            credential_id=ids.new_id(ids.CREDENTIAL),
            credential_kind=CredentialKind.API_KEY,
            network="loopback",
        )
        await self.database.write(lambda tx: _insert_person(tx, name, caller))
        self.callers[name] = caller
        return caller

    async def eventually(self, holds: Callable[[], Awaitable[object]], *, timeout_s: float = 10.0) -> Any:
        """Wait until ``holds`` returns something true, and return that."""
        async with asyncio.timeout(timeout_s):
            while not (found := await holds()):  # noqa: ASYNC110  what happens in the service tells nobody
                await asyncio.sleep(0.02)
        return found

    async def records(self, tenant_id: str = "", *actions: str) -> list[LeafFields]:
        """Return the records of a tenant's log (the platform's without one), oldest first."""
        log = self.audit.platform_log if not tenant_id else await self.audit.ensure_log(tenant_id)
        found = [
            parse_leaf((await self.audit.receipt(log.log_id, index)).leaf)
            for index in range(self.audit.size(log.log_id))
        ]
        return [fields for fields in found if not actions or fields.action in actions]

    async def open(self, name: str, request: session_pb2.OpenSessionRequest) -> "Opened":
        """Open a session as ``name`` and return what the stream said."""
        stub = session_pb2_grpc.SessionServiceStub(self.channel)
        opened = Opened()
        async for event in stub.OpenSession(request, metadata=as_caller(name), timeout=self.call_s):
            if event.HasField("progress"):
                opened.phases.append(event.progress.phase)
            else:
                opened.grant = event.ready
        return opened

    async def renew(self, name: str, session_id: str, *, nonce: bytes | None = None) -> session_pb2.SessionGrant:
        """Renew a session as ``name``."""
        stub = session_pb2_grpc.SessionServiceStub(self.channel)
        request = session_pb2.RenewSessionRequest(session_id=session_id, nonce=nonce or secrets.token_bytes(32))
        return (await stub.RenewSession(request, metadata=as_caller(name), timeout=self.call_s)).grant

    async def close_session(self, name: str, session_id: str) -> None:
        """Close a session as ``name``."""
        stub = session_pb2_grpc.SessionServiceStub(self.channel)
        await stub.CloseSession(
            session_pb2.CloseSessionRequest(session_id=session_id), metadata=as_caller(name), timeout=self.call_s
        )

    async def session(self, name: str, session_id: str) -> session_pb2.Session:
        """Return a session as ``name`` sees it."""
        stub = session_pb2_grpc.SessionQueryServiceStub(self.channel)
        request = session_pb2.GetSessionRequest(session_id=session_id)
        return (await stub.GetSession(request, metadata=as_caller(name), timeout=self.call_s)).session

    async def _admit(self, method: str, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        if method == "/bulkhead_fleet.v1.FleetService/Connect":
            set_agent(metadata[AGENT_METADATA])
            return
        caller = self.callers.get(metadata.get(CALLER_METADATA, ""))
        if caller is None:
            raise CredentialInvalidError("no such caller")
        set_caller(caller)

    async def _on_refusal(self, method: str, error: BulkheadError) -> None:
        caller = caller_if_any()
        if caller is not None:
            await self.refusals.denied(method=method, error=error, caller=caller, request_id=current_request_id())


@dataclass
class Opened:
    """What an open's stream said."""

    phases: list[int] = field(default_factory=list)
    grant: session_pb2.SessionGrant = field(default_factory=session_pb2.SessionGrant)


def as_caller(name: str) -> Sequence[tuple[str, str]]:
    """Return the metadata of a call by ``name``."""
    return ((CALLER_METADATA, name),)


def request(**changes: Any) -> session_pb2.OpenSessionRequest:
    """Return a request to open a session."""
    fields = {
        "request_id": ids.new_id(ids.REQUEST),
        "model": MODEL,
        "purpose": "support",
        "session_public_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
        "nonce": secrets.token_bytes(32),
    }
    return session_pb2.OpenSessionRequest(**(fields | changes))


def code_of(error: grpc.aio.AioRpcError) -> str:
    """Return our stable code of an error status."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            status.details[0].Unpack(info)
            return str(info.reason)
    return ""


@contextlib.asynccontextmanager
async def session_world(
    directory: Path,
    *,
    sessions: SessionSettings | None = None,
    fleet: FleetSettings = FAST,
    audit: AuditConfig | None = None,
    hardware: HardwareTrust | None = None,
    policy: LimitingPolicy | None = None,
    limit_s: float = 0.0,
) -> AsyncIterator[SessionWorld]:
    """Open a control plane over the databases in ``directory``, new or left by an earlier one.

    With ``limit_s`` calls, appends, agents and the state may take that long each, in place of their own limits: for
    bursts, in which whoever comes last waits for all others, on a slow machine for longer than any service should.
    """
    config = audit or AuditConfig(
        database=directory / "audit.db", lock=directory / "audit.lock", keys_dir=directory / "keys", domain="test"
    )
    if limit_s:
        config = replace(config, append_timeout_s=min(limit_s, MAX_APPEND_S))
        fleet = replace(fleet, attest_timeout_s=limit_s, create_timeout_s=limit_s, heartbeat_timeout_s=limit_s)
    await _state_file(directory)
    database = Database(url=f"sqlite:///{directory / 'state.db'}", timeout_s=limit_s or CALL_TIMEOUT_S)
    log = await AuditLog.open(config)
    world = SessionWorld(
        database=database,
        audit=log,
        policy=policy or LimitingPolicy(),
        issuer_keys=TicketIssuerKeys(make_private_directory(directory / "issuers")),
        session_settings=sessions or SessionSettings(),
        fleet_settings=fleet,
        hardware=hardware,
        call_s=limit_s or CALL_S,
    )
    try:
        await database.write(_insert_model)
        await world.serve()
        yield world
    finally:
        await world.close()
        await log.close()
        await database.close()


_EMPTY_STATE: list[bytes] = []  # migrated once: migrations have tests of their own, and take longer than a session


async def _state_file(directory: Path) -> None:
    path = directory / "state.db"
    if not path.exists() and _EMPTY_STATE:
        path.write_bytes(_EMPTY_STATE[0])
    elif not path.exists():
        database = Database(url=f"sqlite:///{path}")
        await migrate(database)
        await database.close()
        _EMPTY_STATE.append(path.read_bytes())


def _insert_tenant(tx: Transaction, tenant: Tenant, vkey: str) -> None:
    Tenants.of(tx).insert(dataclasses.replace(tenant, log_vkey=vkey))


def _insert_person(tx: Transaction, name: str, caller: Caller) -> None:
    Principals.of(tx).insert(
        Principal(
            principal_id=caller.principal_id,
            tenant_id=caller.tenant_id,
            name=name,
            role=caller.role,
            subject_id=caller.subject_id,
            created_us=now_us(),
        )
    )
    credential = Credential(
        credential_id=caller.credential_id,
        principal_id=caller.principal_id,
        kind=caller.credential_kind,
        scopes=frozenset(Scope(scope) for scope in caller.scopes),
        created_us=now_us(),
        expires_us=now_us() + 10**12,
        revoked_us=0,
    )
    Credentials.of(tx).insert(credential, secret_sha256=secrets.token_bytes(32))


def _insert_model(tx: Transaction) -> None:
    if Models.of(tx).find(MODEL) is None:
        Models.of(tx).insert(
            Model(
                name=MODEL,
                digest=MODEL_DIGEST,
                path="tiny",
                status=ModelStatus.ACTIVE,
                context_length=8_192,
                memory_mib=1_500,
                created_us=now_us(),
            )
        )
