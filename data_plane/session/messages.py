"""What an agent and its worker say to each other over the inherited socket pair.

The agent trusts its worker with nothing but the worker's own tenant: whatever a worker says is bounded, and names only
its own sessions. The worker trusts its agent, which made it.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from data_plane.inference.metrics import EngineMetrics

__all__ = [
    "AgentLink",
    "Drain",
    "FromWorker",
    "LeaseGrant",
    "ModelKey",
    "NamedEvidence",
    "ReceiptDurable",
    "ReceiptReady",
    "StartWorker",
    "ToWorker",
    "WorkerBooted",
    "WorkerFailed",
    "WorkerLoad",
    "WorkerLoading",
    "WorkerMetrics",
    "WorkerReady",
    "WorkerRefused",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """First message: what to serve, for whom, and within which limits.

    Attributes:
        tier: name of the isolation tier.
        model_directory: absolute path, readable to the worker.
        model_digest: 32 bytes; another digest of the directory is a failure.
        socket_path: where to listen.
        authority: the worker's name at the ingress, and the audience of its tickets.
        ticket_issuers: raw Ed25519 public keys.
        threads: intra-operation threads of the engine.
        max_output_tokens: most tokens of one answer; 0 leaves it to the model.
        weights: number format of the weights in memory, ``fp32``, ``bf16`` or ``int8``.
        key_life_s: seconds that a generation of keys lives.
        manifest_digest: of a sealed model, 32 bytes; empty for a plain one.
        manifest_version: of a sealed model; an older one is a rollback.
        tenant_root: fingerprint of the root that certifies session keys, 32 bytes; empty where the tenant has none.
    """

    partition_id: str
    tenant_id: str
    tier: str
    simulated: bool
    model_name: str
    model_directory: str
    model_digest: bytes
    socket_path: str
    authority: str
    ticket_issuers: tuple[bytes, ...]
    threads: int
    max_output_tokens: int
    max_running_requests: int
    max_queued_requests: int
    kv_cache_mib: int
    weights: str
    key_life_s: int
    manifest_digest: bytes = b""
    manifest_version: int = 0
    tenant_root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedEvidence:
    """Evidence that tickets may name.

    Attributes:
        digest: SHA-256 of the encoded evidence.
        not_after_s: Unix seconds; known until then.
    """

    digest: bytes
    not_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """Replaces the grant before it, but for evidence, which adds to what grants before it named.

    Attributes:
        valid_until_ms: Unix milliseconds; no request begins afterwards.
        revoked_sessions: ids of sessions that are served no more.
        unacknowledged_receipts: in the agent's spool.
        ticket_issuers: raw Ed25519 public keys whose tickets count from now on; empty leaves them as they were.
        evidence: what was made since the last grant: the others are known, so that an open costs the same however many
            sessions live.
    """

    valid_until_ms: int
    revoked_sessions: frozenset[str]
    unacknowledged_receipts: int
    ticket_issuers: tuple[bytes, ...] = ()
    evidence: tuple[NamedEvidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take nothing new, end what runs by ``until_ms`` (Unix milliseconds), destroy the keys, exit."""

    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptDurable:
    """Answer to :class:`ReceiptReady`: whether the receipt's event is durable; if not the request fails."""

    receipt_number: int
    durable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKey:
    """Answer to :class:`WorkerBooted`: the model's key, sealed to the worker, and what it is bound to."""

    sealed_key: bytes
    nonce: bytes
    evidence_digest: bytes
    decision_leaf_hash: bytes


ToWorker: TypeAlias = StartWorker | LeaseGrant | Drain | ReceiptDurable | ModelKey


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoading:
    """Progress in words, for the caller who waits for a session."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBooted:
    """The worker has its keys and waits for the key of its sealed model.

    Attributes:
        keyset: RFC 8785 bytes.
        certificate: TLS certificate, PEM.
        model_digest: 32 bytes, as the manifest says; the worker computes it when the model is open.
        sandbox: names of the confinements that hold.
    """

    keyset: bytes
    certificate: bytes
    model_digest: bytes
    sandbox: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """The worker listens.

    Attributes:
        keyset: RFC 8785 bytes.
        certificate: TLS certificate, PEM.
        model_digest: 32 bytes, as computed by the worker.
        context_length: tokens of prompt and answer together.
        sandbox: names of the confinements that hold.
    """

    keyset: bytes
    certificate: bytes
    model_digest: bytes
    context_length: int
    sandbox: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailed:
    """The worker cannot serve; ``code`` is of the error tree. It exits afterwards."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReady:
    """A receipt whose final chunk waits for :class:`ReceiptDurable`.

    Attributes:
        receipt_number: of the worker's receipts, counted from 1.
        session_number: of the session's, counted from 1; it stands in the receipt.
    """

    receipt_number: int
    session_id: str
    session_number: int
    request_id: str
    receipt_digest: bytes
    prompt_tokens: int
    completion_tokens: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """How busy the worker is; sent every second."""

    running_requests: int
    queued_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMetrics:
    """A snapshot of what the engine counts, as far as it may leave the worker (:mod:`.observing`)."""

    metrics: EngineMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRefused:
    """A request was refused; session and tenant are those of its ticket, empty unless that is authentic."""

    code: str
    session_id: str
    tenant_id: str


FromWorker: TypeAlias = (
    WorkerLoading
    | WorkerBooted
    | WorkerReady
    | WorkerFailed
    | ReceiptReady
    | WorkerLoad
    | WorkerMetrics
    | WorkerRefused
)


class AgentLink(Protocol):
    """The worker's end of the socket pair, and in tests a recording of it."""

    async def send(self, message: FromWorker) -> None:
        """Send one message.

        Raises:
            AgentUnavailableError: the agent is gone or does not read.
        """
        ...

    async def receive(self) -> ToWorker | None:
        """Return the next message, or None when the agent is gone.

        Raises:
            MalformedRequestError: a frame that is none.
        """
        ...
