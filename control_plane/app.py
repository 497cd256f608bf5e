"""A control-plane process: opens its resources, starts its ports, and stops in an orderly way.

Start: resources (:mod:`control_plane.resources`), services, background work, then the ports, then health SERVING.
Stop: health NOT_SERVING, no new call, running calls end within ``limits.drain_s``, background work ends, the stop is
recorded, resources close. A process that was killed instead needs nothing of this: what it had acknowledged is in its
databases, and the next start takes up from there.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Final

import grpc
import structlog

from audit.model import Page, RecordFilter
from audit.records import Action, PlatformReason, platform_event
from bulkhead.errors import BulkheadError, ConfigError
from control_plane.assembly import Admissions, Offered, admissions
from control_plane.config import ControlPlaneConfig
from control_plane.resources import Resources, open_resources
from control_plane.runtime import Runtime, build_runtime
from service.files import PUBLIC, write_file
from service.interceptors import Admit, OnRefusal
from service.lifecycle import TaskSet
from service.server import Health, add_health, add_reflection, new_server
from service.tls import mutual_server_credentials, server_credentials

__all__ = ["App", "Ports"]

STREAM_GRACE_S: Final = 0.5  # of the agents' streams: they reconnect

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """TCP ports that were taken."""

    public: int
    public_mtls: int
    internal: int


class App:
    """One control-plane process.

    Args:
        config: its configuration.
    """

    def __init__(self, *, config: ControlPlaneConfig) -> None:
        self._config = config
        self._stack = contextlib.AsyncExitStack()
        self._tasks = TaskSet()
        self._health: list[Health] = []
        self._public_servers: list[grpc.aio.Server] = []
        self._internal_servers: list[grpc.aio.Server] = []
        self._ports: Ports | None = None

    @property
    def ports(self) -> Ports:
        """The ports that were taken.

        Raises:
            ConfigError: not started.
        """
        if self._ports is None:
            raise ConfigError("the control plane has not been started")
        return self._ports

    async def start(self) -> None:
        """Come up completely, or raise; ``stop`` closes what was opened by then.

        Raises:
            BulkheadError: what could not be opened, started or listened on.
        """
        config = self._config
        resources = await open_resources(config, self._stack)  # from here on no other process has this directory
        config.ports_file.unlink(missing_ok=True)  # of a process that was killed
        runtime = build_runtime(resources)
        await runtime.load()
        self._stack.push_async_callback(runtime.close)
        await self._record_configuration(resources)
        await self._record(resources, Action.PLATFORM_START, PlatformReason.STARTUP)
        self._stack.push_async_callback(self._record_stop, resources)
        for name, work in runtime.background():
            self._tasks.start(work, name=name)
        self._stack.push_async_callback(self._tasks.stop)
        self._stack.push_async_callback(self._stop_servers)
        self._ports = await self._listen(resources, runtime, admissions(resources))
        ports = json.dumps(asdict(self._ports)).encode("ascii")
        write_file(config.ports_file, ports, mode=PUBLIC)
        for health in self._health:
            await health.set_serving(serving=True)
        log.info("control_plane.serving", **asdict(self._ports))

    async def failed(self) -> None:
        """Raise when background work that must run has failed."""
        await self._tasks.failed()

    async def stop(self) -> None:
        """Drain and close. Safe to call after a failed start, and twice."""
        for health in self._health:
            await health.drain()
        if self._ports is not None:
            self._config.ports_file.unlink(missing_ok=True)
        await self._stack.aclose()

    async def _listen(self, resources: Resources, runtime: Runtime, who: Admissions) -> Ports:
        keys, listen = resources.keys, self._config.listen
        roots = keys.authority.certificate_pem
        clients = roots if listen.client_roots is None else roots + b"\n" + _read_roots(self._config)
        public = runtime.public_services()
        internal, internal_port = await self._serve(
            address=listen.internal,
            credentials=mutual_server_credentials(keys.server, roots),
            offered=runtime.internal_services(),
            admit=who.agent.admit,
            on_refusal=who.agent.on_refusal,
            unlimited=runtime.unlimited_methods,
        )
        self._internal_servers.append(internal)
        ports: list[int] = []
        for address, credentials, admission in (
            (listen.public, server_credentials(keys.server), who.api_key),
            (listen.public_mtls, mutual_server_credentials(keys.server, clients), who.certificate),
        ):
            server, port = await self._serve(
                address=address,
                credentials=credentials,
                offered=public,
                admit=admission.admit,
                on_refusal=admission.on_refusal,
            )
            self._public_servers.append(server)
            ports.append(port)
        return Ports(public=ports[0], public_mtls=ports[1], internal=internal_port)

    async def _serve(
        self,
        *,
        address: str,
        credentials: grpc.ServerCredentials,
        offered: Sequence[Offered],
        admit: Admit,
        on_refusal: OnRefusal,
        unlimited: frozenset[str] = frozenset(),
    ) -> tuple[grpc.aio.Server, int]:
        limits = self._config.limits
        server = new_server(
            max_call_s=limits.max_call_s,
            max_concurrent_calls=limits.max_concurrent_calls,
            admit=admit,
            on_refusal=on_refusal,
            unlimited=unlimited,
        )
        for service in offered:
            service.register(service.servicer, server)
        names = [service.name for service in offered]
        self._health.append(await add_health(server, names))
        add_reflection(server, names)
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: it is in use, or not this machine's") from error
        await server.start()
        return server, port

    async def _stop_servers(self) -> None:
        """Let tenants' calls finish, for which agents are needed; then end the agents' streams, which never finish."""
        drain_s = self._config.limits.drain_s
        await asyncio.gather(*(server.stop(drain_s) for server in self._public_servers))
        await asyncio.gather(*(server.stop(STREAM_GRACE_S) for server in self._internal_servers))

    async def _record_stop(self, resources: Resources) -> None:
        try:
            await self._record(resources, Action.PLATFORM_STOP, PlatformReason.SHUTDOWN)
        except BulkheadError as error:
            log.warning("stop.unrecorded", code=error.code)

    async def _record_configuration(self, resources: Resources) -> None:
        """Record the configuration if it is another than the one recorded last."""
        audit = resources.journal.audit
        query = RecordFilter(log_id=audit.platform_log.log_id, action=Action.PLATFORM_CONFIGURED.value)
        last = (await audit.records(query, Page(limit=1))).records
        if not last or last[0].fields.data.get("configuration") != self._config.digest():
            await self._record(resources, Action.PLATFORM_CONFIGURED, PlatformReason.STARTUP)

    async def _record(self, resources: Resources, action: Action, reason: PlatformReason) -> None:
        details = {
            "policy": resources.supervisor.active.digest,
            "configuration": self._config.digest(),
            "version": version("bulkhead-platform"),
        }
        journal = resources.journal
        await journal.write(platform_event(journal.stamp(), action=action, reason=reason, details=details))


def _read_roots(config: ControlPlaneConfig) -> bytes:
    path = config.listen.client_roots
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"listen.client_roots: cannot read {path}: {error.strerror}") from error
