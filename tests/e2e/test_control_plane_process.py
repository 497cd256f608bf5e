"""The control plane as a process of its own: initialised, started, killed, stopped."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from audit.sql import open_reader
from bulkhead import ids
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.v1 import (
    common_pb2,
    fleet_pb2,
    fleet_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    tenancy_pb2,
    tenancy_pb2_grpc,
)
from control_plane.authz.sources import read_sources
from control_plane.config import ControlPlaneConfig
from service.config import load_config
from service.tls import Identity, channel_credentials
from tests.simulator.administered import reason_of

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 40.0
PUBLIC = (
    "bulkhead.v1.AuditService",
    "bulkhead.v1.FleetAdminService",
    "bulkhead.v1.FleetQueryService",
    "bulkhead.v1.PolicyAdminService",
    "bulkhead.v1.PolicyQueryService",
    "bulkhead.v1.SessionQueryService",
    "bulkhead.v1.SessionService",
    "bulkhead.v1.TenancyAdminService",
    "bulkhead.v1.TenancyQueryService",
)
COMMON = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "control_plane", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@dataclass
class ControlPlane:
    """A control-plane process and how to reach it."""

    root: Path
    made: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.root / "control.toml"

    def start(self) -> None:
        """Start the process and wait until it says where it listens."""
        command = [sys.executable, "-m", "control_plane", "--config", str(self.config)]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.root / "control" / "ports.json").exists():
            assert self.process.poll() is None, (self.root / "log").read_text()[-4_000:]
            assert time.monotonic() < deadline, (self.root / "log").read_text()[-4_000:]
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        assert self.process is not None
        if number is signal.SIGKILL:  # takes the ports file along only if the next start removes it
            (self.root / "control" / "ports.json").unlink(missing_ok=True)
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def key(self, number: int = 0) -> str:
        """Return the API key of an administrator that the initialisation made."""
        return Path(self.made["admins"][number]["api_key_file"]).read_text().strip()

    def channel(self, port: str = "public", identity: Identity | None = None) -> grpc.aio.Channel:
        """Return a channel to one of the ports."""
        ports = json.loads((self.root / "control" / "ports.json").read_text())
        credentials = channel_credentials(Path(self.made["authority"]).read_bytes(), identity)
        return grpc.aio.secure_channel(f"localhost:{ports[port]}", credentials)


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """An initialised, running control plane; the tests of this file share it and may restart it."""
    root = Path(tempfile.mkdtemp(prefix="bh-"))
    (root / "control.toml").write_text(
        'state_directory = "control"\n[limits]\ndrain_s = 2\n[fleet]\nallow_simulated = true\n'
    )
    done = _run("init", "--config", str(root / "control.toml"))
    assert done.returncode == 0, done.stderr
    plane = ControlPlane(root=root, made=json.loads(done.stdout))
    plane.start()
    yield plane
    if plane.process is not None and plane.process.poll() is None:
        plane.process.terminate()
        plane.process.wait(timeout=60)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
async def public(control_plane: ControlPlane) -> AsyncIterator[grpc.aio.Channel]:
    async with control_plane.channel() as channel:
        yield channel


def _bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def _services(channel: grpc.aio.Channel) -> tuple[str, ...]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for reply in stub.ServerReflectionInfo(iter([request]), timeout=10):
        return tuple(service.name for service in reply.list_services_response.service)
    raise AssertionError("no reply")


async def _create_tenant(channel: grpc.aio.Channel, key: str, name: str) -> tenancy_pb2.Tenant:
    request = tenancy_pb2.CreateTenantRequest(
        request_id=ids.new_id(ids.REQUEST),
        tenant=tenancy_pb2.Tenant(
            name=name,
            regions=["us-east"],
            models=["tiny"],
            minimum_tier=common_pb2.TIER_MIG,
            session_limit=3,
            max_output_tokens=64,
        ),
    )
    stub = tenancy_pb2_grpc.TenancyAdminServiceStub(channel)
    return (await stub.CreateTenant(request, metadata=_bearer(key), timeout=20)).tenant


async def test_the_public_ports_list_their_services(control_plane: ControlPlane, public: grpc.aio.Channel) -> None:
    """Reflection on the key port lists every public service, health and itself, and no internal one; health serves."""
    assert await _services(public) == PUBLIC + COMMON
    health = health_pb2_grpc.HealthStub(public)  # type: ignore[no-untyped-call]
    for name in ("", *PUBLIC):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_internal_port_lists_the_agents_service_only(control_plane: ControlPlane) -> None:
    """An agent's certificate reaches the internal port, which offers nothing but the fleet's stream."""
    out = control_plane.root / "agent"
    done = _run("issue-agent", "--config", str(control_plane.config), "--agent-id", "rack1-tray01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["uri"] == "spiffe://bulkhead.internal/agent/rack1-tray01"
    identity = Identity.load(out / "agent.pem", out / "agent.key")
    assert list(control_plane.root.rglob("issuances/*")) == []
    async with control_plane.channel("internal", identity) as channel:
        assert await _services(channel) == ("bulkhead_fleet.v1.FleetService", *COMMON)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with control_plane.channel("internal") as channel:
            await _services(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_without_a_credential_every_method_is_unauthenticated(public: grpc.aio.Channel) -> None:
    """Each method that reflection tells of, but health and reflection, refuses a call without a credential."""
    stub = reflection_pb2_grpc.ServerReflectionStub(public)  # type: ignore[no-untyped-call]
    from google.protobuf import descriptor_pb2

    methods: list[str] = []
    for service in PUBLIC:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
        async for reply in stub.ServerReflectionInfo(iter([request]), timeout=10):
            for data in reply.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(data)
                methods += [
                    f"/{service}/{method.name}"
                    for found in file.service
                    if f"{file.package}.{found.name}" == service
                    for method in found.method
                ]
    assert len(methods) > 25
    for method in methods:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await public.unary_unary(method)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
        assert reason_of(caught.value) == "CREDENTIAL_MISSING"


async def test_an_administrator_makes_a_tenant(control_plane: ControlPlane, public: grpc.aio.Channel) -> None:
    """The key that the initialisation wrote creates a tenant under the real policies, with a log of its own."""
    tenant = await _create_tenant(public, control_plane.key(), "acme")
    assert tenant.status == "active"
    assert "/t/" in tenant.log_vkey
    agents = await fleet_pb2_grpc.FleetQueryServiceStub(public).ListAgents(
        fleet_pb2.ListAgentsRequest(), metadata=_bearer(control_plane.key()), timeout=10
    )
    assert list(agents.agents) == []


async def test_policies_change_by_two_persons(control_plane: ControlPlane, public: grpc.aio.Channel) -> None:
    """A published bundle is activated by the other administrator only, decides from then on, and rolls back."""
    admin, query = policy_pb2_grpc.PolicyAdminServiceStub(public), policy_pb2_grpc.PolicyQueryServiceStub(public)
    first, second = _bearer(control_plane.key(0)), _bearer(control_plane.key(1))
    sources = read_sources(ROOT / "policies")
    sources["data.json"] = sources["data.json"].replace(
        b'"ap-northeast": "jp"', b'"ap-northeast": "jp", "ap-east": "hk"'
    )
    files = [policy_pb2.PolicyFile(path=path, content=content) for path, content in sources.items()]
    publish = policy_pb2.PublishBundleRequest(request_id=ids.new_id(ids.REQUEST), files=files)
    bundle = (await admin.PublishBundle(publish, metadata=first, timeout=60)).bundle
    assert (bundle.status, bundle.revision) == ("candidate", 2)

    def activate() -> policy_pb2.ActivateBundleRequest:
        return policy_pb2.ActivateBundleRequest(request_id=ids.new_id(ids.REQUEST), bundle_id=bundle.bundle_id)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin.ActivateBundle(activate(), metadata=first, timeout=20)
    assert reason_of(caught.value) == "POLICY_DENIED"
    assert (await admin.ActivateBundle(activate(), metadata=second, timeout=20)).bundle.status == "active"
    rollback = policy_pb2.RollbackBundleRequest(request_id=ids.new_id(ids.REQUEST))
    assert (await admin.RollbackBundle(rollback, metadata=first, timeout=20)).bundle.revision == 1
    listed = (await query.ListBundles(policy_pb2.ListBundlesRequest(), metadata=first, timeout=10)).bundles
    assert [(found.revision, found.status) for found in listed] == [(1, "active"), (2, "superseded")]


async def test_policies_that_fail_their_checks_are_not_stored(
    control_plane: ControlPlane, public: grpc.aio.Channel
) -> None:
    """Sources whose tests fail are refused with the reason, and no candidate remains."""
    admin, query = policy_pb2_grpc.PolicyAdminServiceStub(public), policy_pb2_grpc.PolicyQueryServiceStub(public)
    key = _bearer(control_plane.key())
    before = len((await query.ListBundles(policy_pb2.ListBundlesRequest(), metadata=key, timeout=10)).bundles)
    sources = read_sources(ROOT / "policies") | {
        "broken_test.rego": b"package bulkhead.broken_test\n\ntest_no if false\n"
    }
    files = [policy_pb2.PolicyFile(path=path, content=content) for path, content in sources.items()]
    publish = policy_pb2.PublishBundleRequest(request_id=ids.new_id(ids.REQUEST), files=files)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin.PublishBundle(publish, metadata=key, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    after = (await query.ListBundles(policy_pb2.ListBundlesRequest(), metadata=key, timeout=10)).bundles
    assert len(after) == before


async def test_a_killed_control_plane_comes_up_again(control_plane: ControlPlane) -> None:
    """After SIGKILL a start needs nothing: tenants and keys are there, and the log takes records again."""
    async with control_plane.channel() as channel:
        await _create_tenant(channel, control_plane.key(), "before")
    assert control_plane.end(signal.SIGKILL) == -signal.SIGKILL
    control_plane.start()
    async with control_plane.channel() as channel:
        await _create_tenant(channel, control_plane.key(), "after")
        query = tenancy_pb2_grpc.TenancyQueryServiceStub(channel)
        request = tenancy_pb2.ListTenantsRequest()
        listed = await query.ListTenants(request, metadata=_bearer(control_plane.key()), timeout=10)
    assert {"before", "after"} <= {tenant.name for tenant in listed.tenants}


async def test_a_second_process_stays_out(control_plane: ControlPlane) -> None:
    """A second process on the same state directory ends with status 1 and leaves the first one serving."""
    done = _run("--config", str(control_plane.config))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    async with control_plane.channel() as channel:
        assert await _services(channel) == PUBLIC + COMMON


async def test_sigterm_drains(control_plane: ControlPlane) -> None:
    """SIGTERM ends the process in order: exit status 0, its ports file gone, OPA gone with it."""
    async with control_plane.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        ended = asyncio.create_task(asyncio.to_thread(control_plane.end, signal.SIGTERM))
        assert (await asyncio.wait_for(watch.read(), 10)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert await ended == 0
    assert not (control_plane.root / "control" / "ports.json").exists()
    control_plane.start()


def _platform_actions(control_plane: ControlPlane) -> list[str]:
    reader = open_reader(load_config(ControlPlaneConfig, control_plane.config).audit_config().database)
    try:
        (log,) = [info for info in reader.logs() if info.tenant is None]
        actions = [parse_leaf(stored.leaf).action for stored in reader.leaves(log.log_id, 0, 4_096)]
    finally:
        reader.close()
    return [action for action in actions if action.startswith("platform.")]


async def test_start_stop_and_configuration_are_recorded(control_plane: ControlPlane) -> None:
    """A start and an orderly stop are in the platform's log, and the configuration whenever it is another."""
    before = len(_platform_actions(control_plane))
    control_plane.end(signal.SIGTERM)
    control_plane.start()
    control_plane.end(signal.SIGTERM)
    text = control_plane.config.read_text()
    control_plane.config.write_text(text.replace("drain_s = 2", "drain_s = 3"))
    control_plane.start()
    assert _platform_actions(control_plane)[before:] == [
        "platform.stop",
        "platform.start",
        "platform.stop",
        "platform.configured",
        "platform.start",
    ]
