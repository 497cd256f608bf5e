import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from bulkhead.errors import (
    CredentialExpiredError,
    CredentialInvalidError,
    CredentialMissingError,
    InvalidRequestError,
    NotFoundError,
    PolicyDeniedError,
    ScopeError,
)
from bulkhead.v1 import (
    audit_pb2,
    fleet_pb2,
    policy_pb2,
    session_pb2,
    tenancy_pb2,
)
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.roles import ROLE_SCOPES, Role, Scope, effective_scopes, parse_scopes
from control_plane.rpc.admission import network_class, scopes_of
from control_plane.rpc.caller import caller_if_any, current_agent, current_caller
from control_plane.services.refusals import RateLimiter, RefusalRecorder
from service.tls import LocalAuthority, parse_certificate
from tests.simulator.administered import Administered, Served, administered, reason_of, served


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Administered]:
    async with administered(tmp_path) as opened:
        yield opened


@pytest.fixture
async def ports(world: Administered, tmp_path: Path) -> AsyncIterator[Served]:
    async with served(world, tmp_path) as opened:
        yield opened


def test_keys_have_one_form() -> None:
    """A key reads back as it was written, and its representation does not show the secret."""
    key = ApiKey.new("cred_01h455vb4pex5vsknk084sn02q", random_bytes=lambda size: b"\xfb" * size)
    assert ApiKey.parse(key.text()) == key
    assert key.text().startswith("bhk_01h455vb4pex5vsknk084sn02q_")
    assert "\\xfb" not in repr(key)
    assert key.matches(key.secret_sha256())
    assert not key.matches(b"\x00" * 32)
    assert not key.matches(None)


def test_credentials_never_exceed_their_role() -> None:
    """Scopes outside the role are refused when asked for, and do not count where they were stored."""
    assert parse_scopes(Role.ADMIN, ()) == ROLE_SCOPES[Role.ADMIN]
    with pytest.raises(InvalidRequestError):
        parse_scopes(Role.DEVELOPER, ("audit:read",))
    assert effective_scopes(Role.DEVELOPER, [Scope.TENANCY_WRITE, Scope.SESSIONS_OPEN]) == {Scope.SESSIONS_OPEN}


def test_every_public_method_has_a_scope() -> None:
    """Each method of each public service is opened by at least one scope, and nothing else is opened at all."""
    files = (audit_pb2, fleet_pb2, policy_pb2, session_pb2, tenancy_pb2)
    methods = [
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) > 25
    assert all(scopes_of(method) for method in methods)
    assert not scopes_of("/bulkhead_fleet.v1.FleetService/Connect")
    assert not scopes_of("/bulkhead.v1.Unheard/Of")


def test_reading_and_writing_are_different_scopes() -> None:
    """No scope opens both an admin service and its query service."""
    for area in ("Tenancy", "Policy", "Fleet"):
        assert not scopes_of(f"/bulkhead.v1.{area}AdminService/X") & scopes_of(f"/bulkhead.v1.{area}QueryService/X")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.1:5000", "loopback"),
        ("ipv6:%5B::1%5D:5000", "loopback"),
        ("ipv6:[::ffff:10.1.2.3]:5000", "private"),
        ("ipv4:192.168.1.5:1", "private"),
        ("ipv4:8.8.8.8:1", "public"),
        ("unix:/run/x", "loopback"),
        ("garbage", "public"),
        ("", "public"),
    ],
)
def test_the_network_class_is_derived(peer: str, expected: str) -> None:
    """A peer's address becomes one of three classes; what cannot be read is the least trusted one."""
    assert network_class(peer) == expected


def test_nobody_is_the_caller_outside_a_call() -> None:
    """Without admission there is no caller and no agent, and asking for one is an error rather than a default."""
    assert caller_if_any() is None
    with pytest.raises(CredentialMissingError):
        current_caller()
    with pytest.raises(CredentialMissingError):
        current_agent()


async def test_a_valid_key_is_its_principal(world: Administered) -> None:
    """A key's verdict is its principal with role, tenant and scopes."""
    tenant = await world.tenant()
    credential_id, key = await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    verdict = await world.authenticator.api_key(key, network="private")
    assert verdict.refusal is None
    assert verdict.caller is not None
    assert (verdict.caller.credential_id, verdict.caller.tenant_id) == (credential_id, tenant.tenant_id)
    assert (verdict.caller.role, verdict.caller.network) == (Role.DEVELOPER, "private")
    assert verdict.caller.scopes == ROLE_SCOPES[Role.DEVELOPER]


async def test_keys_expire_at_their_second(world: Administered) -> None:
    """A key holds until its time, and is CREDENTIAL_EXPIRED from then on."""
    _, key = await world.api_key()
    world.clock.advance_s(90 * 86_400 - 1)
    assert (await world.authenticator.api_key(key, network="public")).refusal is None
    world.clock.advance_s(1)
    verdict = await world.authenticator.api_key(key, network="public")
    assert isinstance(verdict.refusal, CredentialExpiredError)


async def test_certificates_are_known_by_fingerprint(world: Administered, tmp_path: Path) -> None:
    """A registered certificate is its principal until it expires; another of the same authority is nobody."""
    authority = LocalAuthority.load_or_create(tmp_path / "ca", name="t")
    world.clock.us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
    principal = await world.principals.create(world.call(), tenant_id="", name="kim", role=Role.ADMIN)
    identity = authority.issue_client(uri="spiffe://test/client/kim", lifetime_s=3_600)
    await world.credentials.register_certificate(
        world.call(), principal_id=principal.principal_id, certificate=identity.certificate_pem, scopes=()
    )
    peer = parse_certificate(identity.certificate_pem)
    verdict = await world.authenticator.certificate(peer, network="public")
    assert verdict.caller is not None
    assert verdict.caller.principal_id == principal.principal_id
    stranger = parse_certificate(authority.issue_client(uri="spiffe://test/client/kim").certificate_pem)
    assert isinstance(
        (await world.authenticator.certificate(stranger, network="public")).refusal, CredentialInvalidError
    )
    world.clock.advance_s(3_601)
    assert isinstance((await world.authenticator.certificate(peer, network="public")).refusal, CredentialExpiredError)
    with pytest.raises(InvalidRequestError, match="expired"):
        await world.credentials.register_certificate(
            world.call(), principal_id=principal.principal_id, certificate=identity.certificate_pem, scopes=()
        )


async def test_a_call_with_a_key_is_served(ports: Served) -> None:
    """A key in the metadata opens what its scopes open."""
    await ports.world.tenant()
    _, key = await ports.world.api_key()
    reply = await ports.list_tenants(f"Bearer {key}")
    assert [tenant.name for tenant in reply.tenants] == ["acme"]


async def test_a_call_with_a_certificate_is_served(ports: Served) -> None:
    """A registered client certificate opens the certificate port; an unregistered one is CREDENTIAL_INVALID."""
    ports.world.clock.us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
    principal = await ports.world.principals.create(ports.world.call(), tenant_id="", name="kim", role=Role.ADMIN)
    identity = ports.authority.issue_client(uri="spiffe://test/client/kim")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants_as(identity)
    assert reason_of(caught.value) == "CREDENTIAL_INVALID"
    await ports.world.credentials.register_certificate(
        ports.world.call(), principal_id=principal.principal_id, certificate=identity.certificate_pem, scopes=()
    )
    assert (await ports.list_tenants_as(identity)).tenants == []


async def test_a_scope_that_does_not_reach_is_told_and_recorded(ports: Served) -> None:
    """A developer at an admin's service is SCOPE_MISSING, with a record in their own tenant's log."""
    tenant = await ports.world.tenant()
    _, key = await ports.world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants(f"Bearer {key}")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(caught.value) == "SCOPE_MISSING"
    (record,) = await ports.world.records(tenant.tenant_id, "access.denied")
    assert record.reasons[0]["code"] == "SCOPE_MISSING"
    assert record.resource is not None
    assert record.resource.id == "/bulkhead.v1.TenancyQueryService/ListTenants"


class _Ticking:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_limiter_forgets_and_refills() -> None:
    """A bucket refills with time, is its key's own, and the least recently used is forgotten first."""
    clock = _Ticking()
    limiter = RateLimiter(burst=2, per_s=1.0, max_keys=2, monotonic_s=clock)
    assert [limiter.take("a") for _ in range(3)] == [True, True, False]
    assert limiter.take("b")
    clock.now_s = 1.0
    assert limiter.take("a")
    assert not limiter.take("a")
    limiter.take("c")
    limiter.take("d")
    assert limiter.take("a")


async def test_refusals_do_not_flood_the_log(world: Administered) -> None:
    """A source's refusals are recorded up to its burst, then at its rate, whatever it sends."""
    clock = _Ticking()
    recorder = RefusalRecorder(journal=world.journal, monotonic_s=clock)
    for _ in range(50):
        await recorder.unauthenticated(
            method="/x/Y", error=CredentialInvalidError("no"), caller=None, source="10.0.0.1"
        )
    first = len(await world.records(action="access.unauthenticated"))
    assert 1 <= first <= 10
    clock.now_s = 3_600.0
    await recorder.unauthenticated(method="/x/Y", error=CredentialInvalidError("no"), caller=None, source="10.0.0.1")
    assert len(await world.records(action="access.unauthenticated")) == first + 1


async def test_only_refusals_are_recorded_as_such(world: Administered) -> None:
    """Policy's denials have their decision's record, and bad input is none; a missing or foreign thing is recorded."""
    recorder = RefusalRecorder(journal=world.journal, monotonic_s=_Ticking())
    for error in (PolicyDeniedError("no"), InvalidRequestError("bad")):
        await recorder.denied(method="/x/Y", error=error, caller=world.admin, request_id="")
    assert await world.records(action="access.denied") == []
    for error in (NotFoundError("no such session"), ScopeError("no")):
        await recorder.denied(method="/x/Y", error=error, caller=world.admin, request_id="")
    codes = [record.reasons[0]["code"] for record in await world.records(action="access.denied")]
    assert codes == ["NOT_FOUND", "SCOPE_MISSING"]
