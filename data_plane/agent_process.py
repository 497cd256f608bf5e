"""The node agent as a process: its parts, put together from its configuration, and the order of start and stop."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import grpc
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation import EvidenceIssuer, EvidenceKind
from bulkhead.errors import ConfigError
from data_plane.config import AgentConfig, InventoryConfig
from data_plane.evidence.issuing import EvidencePort, HardwareEvidence, SignedEvidence
from data_plane.evidence.nvml import GpuQuotes
from data_plane.evidence.tsm import TsmQuotes
from data_plane.ingress import Ingress
from data_plane.partitions import HostBackend, SimulatedRackBackend
from data_plane.ports import PartitionBackend
from data_plane.rpc.control_channel import WorkerChannel
from data_plane.rpc.fleet_client import FleetClient, FleetPorts, TicketIssuers
from data_plane.rpc.metrics_server import MetricsServer, metrics_token
from data_plane.sandbox import Step, plan_for
from data_plane.session.agent import Agent, AgentFacts
from data_plane.session.commands import Greeting
from data_plane.session.exposition import Exposition
from data_plane.session.lease import AgentLease
from data_plane.session.partition import PartitionPorts
from data_plane.session.rundir import RunDirectory
from data_plane.session.scrubbing import Scrubber
from data_plane.session.spool import Spool
from data_plane.session.starting import WorkerStarter, needed_paths
from service.files import make_private_directory, read_private, write_file
from service.lifecycle import TaskSet
from service.tls import Identity, channel_credentials

__all__ = ["AgentProcess", "check_config"]

_log = structlog.get_logger(__name__)

FLUSH_S: Final = 3.0  # for the last events to be acknowledged when the agent stops; what is left waits in the spool
SPOOL_FILE: Final = "events.spool"


def check_config(config: AgentConfig) -> None:
    """Check what can be checked without starting anything.

    Raises:
        ConfigError: a file cannot be read, a path is too long, or confinement that is required is not possible.
    """
    Identity.load(config.tls.certificate, config.tls.private_key)
    _read_roots(config)
    if config.evidence_key.exists():
        _load_evidence_key(config)
    if not config.model_directory.is_dir():
        raise ConfigError(f"model_directory: {config.model_directory} is not a directory")
    _check_sandbox(config)


def _check_sandbox(config: AgentConfig) -> None:
    plan_for(config.sandbox, slot=0, keep_fd=-1, needed=(*needed_paths(), config.model_directory))


class AgentProcess:
    """One node agent; driven by :func:`service.lifecycle.run_process`."""

    def __init__(self, config: AgentConfig, *, wall_s: Callable[[], float] = time.time) -> None:
        self._config = config
        self._wall_s = wall_s
        self._boot_id = secrets.token_hex(16)
        self._tasks = TaskSet()
        self._backend = _backend(config.inventory)
        self._ingress = Ingress(host=config.ingress.host, port=config.ingress.port, limits=config.ingress.limits)
        self._agent: Agent | None = None
        self._spool: Spool | None = None
        self._metrics: MetricsServer | None = None

    async def start(self) -> None:
        """Scrub what an earlier process left, then listen and dial.

        Raises:
            ConfigError: the configuration does not hold on this host.
            StateUnavailableError: the spool cannot be used.
        """
        config = self._config
        check_config(config)
        make_private_directory(config.state_directory)
        run = RunDirectory(config.run_directory, shared=config.sandbox.user is not Step.OFF)
        evidence = _evidence(config, simulated=self._backend.inventory().simulated)
        spool = Spool(path=config.state_directory / SPOOL_FILE, new_id=lambda: secrets.token_hex(16))
        await spool.open()
        self._spool = spool
        lease = AgentLease(wall_s=self._wall_s, monotonic_s=time.monotonic)
        issuers = TicketIssuers()
        self._agent = agent = self._make_agent(evidence, spool, lease, run, issuers)
        await agent.recover()
        try:
            await self._ingress.start()
        except OSError as error:
            raise ConfigError(f"ingress: cannot listen on {config.ingress.host}: {error.strerror}") from error
        if config.metrics.enabled:
            self._metrics = MetricsServer(
                render=Exposition(agent.observed).render, token=metrics_token(config.state_directory)
            )
            where = config.metrics
            await self._metrics.start(host=where.host, port=where.port, directory=config.state_directory)
        self._tasks.start(agent.keep_leases(every_s=config.heartbeat_s), name="leases")
        ports = FleetPorts(
            agent=agent,
            spool=spool,
            lease=lease,
            issuers=issuers,
            greeting=lambda: self._greeting(agent, spool, evidence),
            credentials=self._credentials,
            heartbeat_s=config.heartbeat_s,
            wall_s=self._wall_s,
            events=asyncio.Lock(),
        )
        for address in config.control_plane.addresses:
            client = FleetClient(address=address, config=config.control_plane, ports=ports)
            self._tasks.start(client.run(), name=f"fleet {address}")
        _log.info("agent.listening", ingress=self._ingress_address(), simulated=self._backend.inventory().simulated)

    async def failed(self) -> None:
        """Raise when a part that must run has failed."""
        await self._tasks.failed()

    async def stop(self) -> None:
        """Drain workers, scrub their partitions, hand over the last events."""
        if self._agent is not None:
            await self._agent.stop(drain_s=self._config.drain_s)
        if self._spool is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._spool.wait_acknowledged(self._spool.last_seq)
        if self._metrics is not None:
            await self._metrics.aclose()
        await self._tasks.stop()
        await self._ingress.aclose()
        if self._spool is not None:
            await self._spool.aclose()

    def _make_agent(
        self, evidence: EvidencePort, spool: Spool, lease: AgentLease, run: RunDirectory, issuers: TicketIssuers
    ) -> Agent:
        config = self._config
        return Agent(
            facts=AgentFacts(agent_id=config.agent_id, software=f"bulkhead-platform {version('bulkhead-platform')}"),
            backend=self._backend,
            scrubber=Scrubber(backend=self._backend, run=run, spool=spool, wall_s=self._wall_s),
            evidence=evidence,
            starter=WorkerStarter(
                worker=config.worker,
                sandbox=config.sandbox,
                model_directory=config.model_directory,
                run=run,
                simulated=self._backend.inventory().simulated,
                ticket_issuers=issuers.current,
                log_arguments=("--log-format", config.log.format, "--log-level", config.log.level),
            ),
            ports=PartitionPorts(
                spool=spool,
                open_link=WorkerChannel.open,
                now_us=lambda: int(self._wall_s() * 1_000_000),
                stop_timeout_s=config.worker.stop_timeout_s,
            ),
            spool=spool,
            lease=lease,
            ingress=self._ingress,
            run=run,
            wall_s=self._wall_s,
        )

    def _greeting(self, agent: Agent, spool: Spool, evidence: EvidencePort) -> Greeting:
        inventory = self._backend.inventory()
        return Greeting(
            agent_id=self._config.agent_id,
            boot_id=self._boot_id,
            spool_id=spool.spool_id,
            last_event_seq=spool.last_seq,
            inventory=inventory,
            ingress_address=self._ingress_address(),
            evidence_kind=evidence.kind.value,
            evidence_public_key=evidence.public_key,
            partitions=agent.statuses(),
        )

    def _ingress_address(self) -> str:
        return self._config.ingress.advertise or f"{self._config.ingress.host}:{self._ingress.port}"

    def _credentials(self) -> grpc.ChannelCredentials:
        tls = self._config.tls
        return channel_credentials(_read_roots(self._config), Identity.load(tls.certificate, tls.private_key))


def _backend(config: InventoryConfig) -> PartitionBackend:
    kind = SimulatedRackBackend if config.backend == "simulated" else HostBackend
    return kind(rack=config.rack, tray=config.tray, region=config.region, process_slots=config.process_slots)


def _kind(*, simulated: bool) -> EvidenceKind:
    return EvidenceKind.SIMULATED if simulated else EvidenceKind.OPERATOR


def _evidence(config: AgentConfig, *, simulated: bool) -> EvidencePort:
    if not config.evidence_key.exists():
        make_private_directory(config.evidence_key.parent)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_file(config.evidence_key, pem, replace=False)
    key = _load_evidence_key(config)
    if config.evidence == "hardware":
        if simulated:
            raise ConfigError("evidence: a simulated rack has no hardware that could vouch for it")
        return HardwareEvidence(processor=TsmQuotes(), gpus=GpuQuotes(), public_key=key.public_key().public_bytes_raw())
    kind = _kind(simulated=simulated)
    return SignedEvidence(EvidenceIssuer(kind=kind, key=key), kind=kind)


def _load_evidence_key(config: AgentConfig) -> Ed25519PrivateKey:
    pem = read_private(config.evidence_key, what="evidence_key")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"evidence_key: {config.evidence_key} is not a PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"evidence_key: {config.evidence_key} is not an Ed25519 key")
    return key


def _read_roots(config: AgentConfig) -> bytes:
    try:
        return config.tls.authority.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls.authority: cannot read {config.tls.authority}: {error.strerror}") from error
