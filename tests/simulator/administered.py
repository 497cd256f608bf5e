"""A control plane's administration over a real database and a real audit log, with a policy that tests script."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from audit.config import AuditConfig
from audit.log import AuditLog
from bulkhead import ids
from bulkhead.errors import BulkheadError
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.v1 import tenancy_pb2, tenancy_pb2_grpc
from control_plane.authz.decision import Decision, Obligation, Reason
from control_plane.authz.input import PlatformFacts, PolicyInput
from control_plane.domain.roles import ROLE_SCOPES, Caller, CredentialKind, Role
from control_plane.domain.tenancy import Tenant, TenantStatus
from control_plane.domain.tiers import Tier
from control_plane.rpc.admission import ApiKeyPresented, CallerAdmission, CertificatePresented
from control_plane.rpc.tenancy import TenancyAdminServicer, TenancyQueryServicer
from control_plane.services.administration import Administration
from control_plane.services.authentication import Authenticator
from control_plane.services.authorisation import AdminCall, Authorisation
from control_plane.services.credentials import CredentialAdmin, CredentialQuery, PrincipalAdmin
from control_plane.services.journal import Journal
from control_plane.services.refusals import RefusalRecorder
from control_plane.services.tenancy import ModelAdmin, TenancyQuery, TenantAdmin
from control_plane.storage.engine import Database
from control_plane.storage.migrate import migrate
from service.server import new_server
from service.tls import (
    Identity,
    LocalAuthority,
    channel_credentials,
    mutual_server_credentials,
    server_credentials,
)

BUNDLE: Final = "ab" * 32
START_US: Final = 1_800_000_000_000_000


@dataclass
class ScriptedPolicy:
    """Allows everything until told otherwise, and keeps the questions."""

    deny: tuple[Reason, ...] = ()
    fail: BulkheadError | None = None
    obligations: tuple[Obligation, ...] = ()
    asked: list[PolicyInput] = field(default_factory=list)

    async def decide(self, request: PolicyInput) -> Decision:
        """Answer as scripted."""
        self.asked.append(request)
        if self.fail is not None:
            raise self.fail
        return Decision(
            allow=not self.deny,
            reasons=self.deny,
            obligations=() if self.deny else self.obligations,
            bundle_digest=BUNDLE,
            input_digest=request.digest(),
        )


@dataclass
class Clock:
    """Unix time in microseconds, moved by the test."""

    us: int = START_US

    def __call__(self) -> int:
        """Return the time."""
        return self.us

    def advance_s(self, seconds: float) -> None:
        """Move the time on."""
        self.us += int(seconds * 1_000_000)


@dataclass
class SeenRevocations:
    """Keeps which credentials were said to be revoked."""

    credentials: list[str] = field(default_factory=list)

    async def credential_revoked(self, credential_id: str) -> None:
        """Note the credential."""
        self.credentials.append(credential_id)


class Administered:
    """Everything that administration consists of."""

    def __init__(self, *, database: Database, audit: AuditLog) -> None:
        self.database = database
        self.audit = audit
        self.journal = Journal(audit=audit)
        self.clock = Clock()
        self.policy = ScriptedPolicy()
        self.revocations = SeenRevocations()
        facts = PlatformFacts(tiers=(Tier.MIG,), regions=("eu-central",), simulated=True)
        self.authorisation = Authorisation(
            database=database, journal=self.journal, policy=self.policy, platform_facts=lambda: facts, now_us=self.clock
        )
        self.administration = Administration(
            database=database, journal=self.journal, authorisation=self.authorisation, now_us=self.clock
        )
        self.tenants = TenantAdmin(administration=self.administration, audit=audit, now_us=self.clock)
        self.models = ModelAdmin(administration=self.administration, now_us=self.clock)
        self.principals = PrincipalAdmin(administration=self.administration, now_us=self.clock)
        self.credentials = CredentialAdmin(
            administration=self.administration,
            revocations=self.revocations,
            now_us=self.clock,
            random_bytes=secrets.token_bytes,
        )
        self.tenancy_query = TenancyQuery(database=database, authorisation=self.authorisation)
        self.credential_query = CredentialQuery(database=database, authorisation=self.authorisation)
        self.authenticator = Authenticator(database=database, now_us=self.clock)
        self.admin = Caller(
            principal_id=ids.new_id(ids.PRINCIPAL),
            subject_id=ids.new_id(ids.SUBJECT),
            tenant_id="",
            role=Role.ADMIN,
            scopes=ROLE_SCOPES[Role.ADMIN],
            credential_id=ids.new_id(ids.CREDENTIAL),
            credential_kind=CredentialKind.API_KEY,
            network="loopback",
        )

    def call(self, request_id: str = "") -> AdminCall:
        """Return a call of the administrator, under a fresh request id unless one is given."""
        return AdminCall(self.admin, request_id or ids.new_id(ids.REQUEST))

    async def tenant(self, name: str = "acme") -> Tenant:
        """Create a tenant."""
        return await self.tenants.create(self.call(), wanted_tenant(name))

    async def api_key(self, *, tenant_id: str = "", role: Role = Role.ADMIN, name: str = "kim") -> tuple[str, str]:
        """Create a principal with an API key; return credential id and key."""
        principal = await self.principals.create(self.call(), tenant_id=tenant_id, name=name, role=role)
        credential, key = await self.credentials.create_api_key(
            self.call(), principal_id=principal.principal_id, scopes=(), lifetime_s=0
        )
        return credential.credential_id, key

    async def records(self, tenant_id: str = "", action: str = "") -> list[LeafFields]:
        """Return the records of a tenant's log (the platform's without one), oldest first."""
        log = self.audit.platform_log if not tenant_id else await self.audit.ensure_log(tenant_id)
        leaves = [
            parse_leaf((await self.audit.receipt(log.log_id, index)).leaf)
            for index in range(self.audit.size(log.log_id))
        ]
        return [fields for fields in leaves if not action or fields.action == action]


@contextlib.asynccontextmanager
async def served(world: Administered, directory: Path) -> AsyncIterator["Served"]:
    """Serve tenancy administration on a key port and a certificate port, with the real admission."""
    authority = LocalAuthority.load_or_create(directory / "ca", name="test")
    identity = authority.issue_server(uri="spiffe://test/control-plane", dns_names=["localhost"], addresses=[])
    refusals = RefusalRecorder(journal=world.journal, monotonic_s=time.monotonic)
    admin = TenancyAdminServicer(
        tenants=world.tenants, principals=world.principals, credentials=world.credentials, models=world.models
    )
    query = TenancyQueryServicer(tenancy=world.tenancy_query, credentials=world.credential_query)
    servers: list[grpc.aio.Server] = []
    ports: list[int] = []
    for presented, credentials in (
        (ApiKeyPresented(authenticator=world.authenticator), server_credentials(identity)),
        (
            CertificatePresented(authenticator=world.authenticator),
            mutual_server_credentials(identity, authority.certificate_pem),
        ),
    ):
        admission = CallerAdmission(presented=presented, refusals=refusals)
        server = new_server(max_call_s=10, admit=admission.admit, on_refusal=admission.on_refusal)
        tenancy_pb2_grpc.add_TenancyAdminServiceServicer_to_server(admin, server)
        tenancy_pb2_grpc.add_TenancyQueryServiceServicer_to_server(query, server)
        ports.append(server.add_secure_port("localhost:0", credentials))
        await server.start()
        servers.append(server)
    try:
        yield Served(world=world, authority=authority, key_port=ports[0], certificate_port=ports[1])
    finally:
        await asyncio.gather(*(server.stop(0) for server in servers))


@dataclass(frozen=True)
class Served:
    """The ports of :func:`served`."""

    world: Administered
    authority: LocalAuthority
    key_port: int
    certificate_port: int

    async def list_tenants(self, *authorization: str) -> tenancy_pb2.ListTenantsResponse:
        """Call ListTenants with those values of the ``authorization`` metadata."""
        credentials = channel_credentials(self.authority.certificate_pem)
        metadata = [("authorization", value) for value in authorization]
        async with grpc.aio.secure_channel(f"localhost:{self.key_port}", credentials) as channel:
            stub = tenancy_pb2_grpc.TenancyQueryServiceStub(channel)
            return await stub.ListTenants(tenancy_pb2.ListTenantsRequest(), metadata=metadata, timeout=5)

    async def list_tenants_as(self, identity: Identity) -> tenancy_pb2.ListTenantsResponse:
        """Call ListTenants with a client certificate."""
        credentials = channel_credentials(self.authority.certificate_pem, identity)
        async with grpc.aio.secure_channel(f"localhost:{self.certificate_port}", credentials) as channel:
            stub = tenancy_pb2_grpc.TenancyQueryServiceStub(channel)
            return await stub.ListTenants(tenancy_pb2.ListTenantsRequest(), timeout=5)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the stable code of a refused call."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return info.reason


def wanted_tenant(name: str = "acme", **changes: object) -> Tenant:
    """Return a tenant as an administrator describes it."""
    fields: dict[str, object] = {
        "tenant_id": "",
        "name": name,
        "status": TenantStatus.ACTIVE,
        "regions": ("eu-central",),
        "packs": ("gdpr",),
        "models": ("tiny",),
        "minimum_tier": Tier.MIG,
        "session_limit": 10,
        "max_output_tokens": 256,
        "revision": 0,
        "log_vkey": "",
        "created_us": 0,
        **changes,
    }
    return Tenant(**fields)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def administered(directory: Path) -> AsyncIterator[Administered]:
    """Open administration over fresh databases in ``directory``."""
    config = AuditConfig(
        database=directory / "audit.db", lock=directory / "audit.lock", keys_dir=directory / "keys", domain="test"
    )
    database = Database(url=f"sqlite:///{directory / 'state.db'}")
    await migrate(database)
    audit = await AuditLog.open(config)
    try:
        yield Administered(database=database, audit=audit)
    finally:
        await audit.close()
        await database.close()
