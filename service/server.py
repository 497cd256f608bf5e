"""A gRPC server as every process of the platform runs it: limits, health, reflection of its own port only."""

import math
from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from service.interceptors import Admit, CallInterceptor, OnRefusal

__all__ = ["OPEN_METHODS", "UNLIMITED_METHODS", "Health", "add_health", "add_reflection", "new_server"]

REFLECTION_METHOD: Final = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
OPEN_METHODS: Final = frozenset({f"/{HEALTH_SERVICE}/Check", f"/{HEALTH_SERVICE}/Watch", REFLECTION_METHOD})
"""Methods that need no credential anywhere."""
UNLIMITED_METHODS: Final = frozenset({f"/{HEALTH_SERVICE}/Watch"})
"""Methods of this module that live as long as their connection."""

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # the largest legitimate message is a policy upload or a sealed prompt
MAX_CONCURRENT_CALLS: Final = 4_096

# Above about 1,000 pending calls core rejects at random with CANCELLED, which reaches no handler; with these a burst of
# 3,000 calls on one channel is accepted or refused by us. The names are private to core: a test pins them.
_BACKLOG_OPTIONS: Final = (
    ("grpc.server.max_pending_requests", 8_192),
    ("grpc.server.max_pending_requests_hard_limit", 16_384),
)


def new_server(
    *,
    max_call_s: float,
    admit: Admit | None = None,
    on_refusal: OnRefusal | None = None,
    unlimited: frozenset[str] = frozenset(),
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
) -> grpc.aio.Server:
    """Return a server with interceptor and limits, without port or service.

    Args:
        max_call_s: longest a call may take; a call without a deadline gets this one.
        admit: authenticates calls; see :data:`service.interceptors.Admit`.
        on_refusal: told of refused calls; see :data:`service.interceptors.OnRefusal`.
        unlimited: full names of methods without a longest time.
        max_message_bytes: larger messages are RESOURCE_EXHAUSTED, said by core.
        max_concurrent_calls: more calls at once are RESOURCE_EXHAUSTED, said by core.
    """
    hooks: dict[str, Any] = {"admit": admit, "on_refusal": on_refusal}
    interceptor = CallInterceptor(
        max_call_s=max_call_s,
        unlimited=unlimited | UNLIMITED_METHODS,
        **{name: hook for name, hook in hooks.items() if hook is not None},
    )
    return grpc.aio.server(
        interceptors=[interceptor],
        options=[
            *_BACKLOG_OPTIONS,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Core cancels calls that nobody took for 30 s, untyped; they end by their own deadline instead.
            ("grpc.server_max_unrequested_time_in_server", math.ceil(max_call_s)),
            ("grpc.so_reuseport", 0),  # a second process on the same port must fail, not share it
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
        maximum_concurrent_rpcs=max_concurrent_calls,
    )


class Health:
    """The standard health service (grpc.health.v1) of one server; NOT_SERVING until told otherwise."""

    def __init__(self, *, services: Sequence[str]) -> None:
        self.servicer = health_aio.HealthServicer()
        self._names = ("", *services)

    async def set_serving(self, *, serving: bool) -> None:
        """Report every service of the server, and the server as a whole, as SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self.servicer.set(name, status)

    async def drain(self) -> None:
        """Report NOT_SERVING for good: load balancers look elsewhere while running calls finish."""
        await self.servicer.enter_graceful_shutdown()


async def add_health(server: grpc.aio.Server, services: Sequence[str]) -> Health:
    """Add the health service to ``server`` and return its switch, set to NOT_SERVING."""
    health = Health(services=services)
    await health.set_serving(serving=False)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    return health


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Add server reflection that knows ``services``, health and itself, and no other protocol of this process.

    Args:
        server: not started yet.
        services: full names whose generated modules are imported.
    """
    names = (*services, HEALTH_SERVICE, reflection.SERVICE_NAME)
    default: Any = descriptor_pool.Default()
    pool = descriptor_pool.DescriptorPool()
    seen: set[str] = set()
    for name in names:
        _copy(default.FindServiceByName(name).file, pool, seen)
    _copy(error_details_pb2.DESCRIPTOR, pool, seen)  # tools then show the ErrorInfo of a refusal in words
    reflection.enable_server_reflection(names, server, pool)


def _copy(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, seen: set[str]) -> None:
    if file.name in seen:
        return
    seen.add(file.name)
    for dependency in file.dependencies:
        _copy(dependency, pool, seen)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)
