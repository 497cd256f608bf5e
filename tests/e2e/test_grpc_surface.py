"""What standard tools see of a running platform: reflection, health, and no door open without a credential."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scripts.local_platform import LocalPlatform
from tests.e2e.test_control_plane_process import COMMON, PUBLIC

pytestmark = pytest.mark.e2e


def _roots(platform: LocalPlatform) -> bytes:
    return (platform.root / "control" / "keys" / "ca" / "ca.pem").read_bytes()


@pytest.fixture
def public(platform: LocalPlatform) -> Iterator[grpc.Channel]:
    """A channel to the public port, without any credential."""
    address = f"localhost:{platform.ports_wanted()['public']}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(_roots(platform))) as channel:
        yield channel


def _reflect(channel: grpc.Channel, **asked: str) -> reflection_pb2.ServerReflectionResponse:
    request = reflection_pb2.ServerReflectionRequest(**asked)
    return next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10))


def _methods(channel: grpc.Channel, service: str) -> list[tuple[str, bool]]:
    """Return (full method name, whether the client streams) of a service, as reflection describes it."""
    found = []
    for encoded in _reflect(channel, file_containing_symbol=service).file_descriptor_response.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
        for described in file.service:
            if f"{file.package}.{described.name}" == service:
                found += [(f"/{service}/{method.name}", method.client_streaming) for method in described.method]
    return found


def test_the_public_port_lists_exactly_its_services(public: grpc.Channel) -> None:
    """Reflection names the public services, health and itself; the fleet's protocol is not there."""
    listed = {service.name for service in _reflect(public, list_services="").list_services_response.service}
    assert listed == {*PUBLIC, *COMMON}
    missing = _reflect(public, file_containing_symbol="bulkhead_fleet.v1.FleetService")
    assert missing.HasField("error_response")


def test_health_is_serving_without_a_credential(public: grpc.Channel) -> None:
    """Load balancers ask without a key, for the server and for each service."""
    for service in ("", "bulkhead.v1.SessionService"):
        answer = health_pb2_grpc.HealthStub(public).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_every_other_method_needs_a_credential(public: grpc.Channel) -> None:
    """Each method that reflection describes is UNAUTHENTICATED without one."""
    tried = 0
    for service in PUBLIC:
        for method, streams in _methods(public, service):
            assert not streams
            call = public.unary_stream(method)(b"", timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
            tried += 1
    assert tried >= 30


def test_the_fleet_is_not_served_in_public_and_not_without_a_certificate(
    platform: LocalPlatform, public: grpc.Channel
) -> None:
    """The agents' stream is unknown on the public port, and the internal port refuses strangers' handshakes."""
    for method in ("/bulkhead_fleet.v1.FleetService/Connect", "/bulkhead.v1.InferenceService/Generate"):
        with pytest.raises(grpc.RpcError) as caught:
            list(public.stream_stream(method)(iter([b""]), timeout=10))
        assert caught.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED}
    address = f"localhost:{platform.ports_wanted()['internal']}"
    with (
        grpc.secure_channel(address, grpc.ssl_channel_credentials(_roots(platform))) as stranger,
        pytest.raises(grpc.RpcError) as caught,
    ):
        health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
