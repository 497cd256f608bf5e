"""The node agent's configuration: one TOML file, read by :func:`service.config.load_config`.

A worker has none: its agent tells it everything over the socket pair.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from bulkhead.ids import check_name
from bulkhead.sealing.keyset import MAX_KEYSET_LIFE_S
from data_plane.ingress import IngressLimits
from data_plane.sandbox import SandboxConfig
from service.config import require_between
from service.logging import LogFormat

__all__ = [
    "AgentConfig",
    "ControlPlaneConfig",
    "IngressConfig",
    "InventoryConfig",
    "LogConfig",
    "MetricsConfig",
    "TlsConfig",
    "WorkerConfig",
]

MAX_CONTROL_PLANES: Final = 16
MAX_PROCESS_SLOTS: Final = 128  # the control plane refuses more
MAX_PORT: Final = 65_535
MIN_KEY_LIFE_S: Final = 20  # half of it must outlive a ticket's shortest life


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneConfig:
    """The replicas to dial.

    Attributes:
        addresses: host:port of every replica's internal port.
        server_name: DNS name that each replica's certificate must carry; empty takes the host of its address.
        connect_timeout_s: for connection, handshake and welcome.
        retry_min_s: first pause after a lost stream; doubled each time, with jitter, up to ``retry_max_s``.
    """

    addresses: tuple[str, ...]
    server_name: str = ""
    connect_timeout_s: float = 10.0
    retry_min_s: float = 0.2
    retry_max_s: float = 5.0

    def __post_init__(self) -> None:
        require_between(len(self.addresses), 1, MAX_CONTROL_PLANES)
        if any(":" not in address for address in self.addresses):
            raise ValueError("an address is host:port")
        require_between(self.connect_timeout_s, 0.1, 120)
        require_between(self.retry_min_s, 0.01, 60)
        require_between(self.retry_max_s, self.retry_min_s, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """The agent's identity (``spiffe://<trust domain>/agent/<agent_id>``) and the authority it trusts; PEM files."""

    certificate: Path
    private_key: Path
    authority: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryConfig:
    """What the agent divides.

    Attributes:
        backend: ``simulated`` for a GB300 tray that does not exist, ``host`` for processes on this machine.
        rack: name of the rack.
        tray: index of the compute tray in it.
        region: region that policy places by.
        process_slots: most partitions of tier ``process``.
    """

    backend: Literal["simulated", "host"]
    rack: str
    tray: int = 0
    region: str
    process_slots: int = 8

    def __post_init__(self) -> None:
        check_name(self.rack, "rack")
        check_name(self.region, "region")
        require_between(self.tray, 0, 10_000)
        require_between(self.process_slots, 0, MAX_PROCESS_SLOTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressConfig:
    """The tray's ingress.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        advertise: host:port that tenants dial; empty for ``host`` and the port taken.
        limits: see :class:`~data_plane.ingress.IngressLimits`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    limits: IngressLimits = field(default_factory=IngressLimits)

    def __post_init__(self) -> None:
        require_between(self.port, 0, MAX_PORT)
        if self.advertise and ":" not in self.advertise:
            raise ValueError("ingress.advertise is host:port")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Limits of each worker.

    Attributes:
        start_timeout_s: from spawn to ready: importing torch, hashing and loading the model.
        stop_timeout_s: from the end of a drain until a worker that has not exited is killed.
        max_running_requests: requests in the engine's batch.
        max_queued_requests: requests that wait for it; one more gets QueueFullError.
        kv_cache_mib: memory for attention state.
        weights: number format of the weights in memory.
        threads: intra-operation threads; 0 divides the cores among the live partitions.
        key_life_s: life of a worker's keys; they are renewed at half of it. At most 24 hours.
    """

    start_timeout_s: float = 180.0
    stop_timeout_s: float = 5.0
    max_running_requests: int = 16
    max_queued_requests: int = 64
    kv_cache_mib: int = 512
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    threads: int = 0
    key_life_s: int = MAX_KEYSET_LIFE_S

    def __post_init__(self) -> None:
        require_between(self.key_life_s, MIN_KEY_LIFE_S, MAX_KEYSET_LIFE_S)
        require_between(self.start_timeout_s, 1, 86_400)
        require_between(self.stop_timeout_s, 0.1, 600)
        require_between(self.max_running_requests, 1, 4096)
        require_between(self.max_queued_requests, 0, 65_536)
        require_between(self.kv_cache_mib, 1, 1 << 24)
        require_between(self.threads, 0, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Prometheus metrics of the partitions, for a scraper on this host.

    Attributes:
        enabled: whether they are served at all.
        host: a loopback address: what serves them has no encryption.
        port: TCP port; 0 takes a free one, which ``python -m data_plane metrics`` finds.
    """

    enabled: bool = False
    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        require_between(self.port, 0, MAX_PORT)
        if not ip_address(self.host).is_loopback:
            raise ValueError("metrics.host is a loopback address")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How the agent and its workers log."""

    format: LogFormat = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One node agent.

    Attributes:
        agent_id: name of the agent, equal to the one in its certificate.
        state_directory: spool and cordoned places; durable and private.
        run_directory: sockets and pid files of workers; a short path, for Unix sockets take 107 bytes.
        model_directory: models, one directory each, readable to workers.
        evidence_key: Ed25519 private key (PEM) by which the control plane knows the agent's evidence; made if it does
            not exist.
        evidence: ``key`` signs evidence with it; ``hardware`` has the processor (configfs-tsm) and the GPUs (NVML)
            quote, in a confidential guest.
        drain_s: time that running requests get when the agent stops.
        heartbeat_s: pause between heartbeats, and between lease grants to workers.
    """

    agent_id: str
    state_directory: Path
    run_directory: Path
    model_directory: Path
    evidence_key: Path
    control_plane: ControlPlaneConfig
    tls: TlsConfig
    inventory: InventoryConfig
    ingress: IngressConfig = field(default_factory=IngressConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evidence: Literal["key", "hardware"] = "key"
    drain_s: float = 20.0
    heartbeat_s: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.agent_id, "agent_id")
        require_between(self.drain_s, 0, 3600)
        require_between(self.heartbeat_s, 0.05, 5)
