"""What the control plane orders and what an agent answers. The codes of failures are those of the error tree."""

from dataclasses import dataclass
from typing import TypeAlias

from bulkhead.errors import BulkheadError
from data_plane.ports import TrayInventory

__all__ = [
    "Attest",
    "Attested",
    "Command",
    "CreatePartition",
    "Failed",
    "Greeting",
    "LoadModel",
    "PartitionBooted",
    "PartitionCreated",
    "PartitionStatus",
    "Release",
    "Released",
    "Result",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePartition:
    """Take a place and start a worker in it; fields as :class:`~data_plane.ports.PartitionSpec` and the wire have them.

    Attributes:
        tier: name of the tier.
        model_path: below the agent's model directory.
        max_output_tokens: most tokens of one answer; 0 leaves it to the model.
        manifest_digest: of a sealed model, else empty; the partition is then booted, and served after LoadModel.
        manifest_version: version in that manifest.
        tenant_root: fingerprint of the tenant's root, 32 bytes; empty where it has none.
    """

    tenant_id: str
    tier: str
    gpu_uuids: tuple[str, ...]
    mig_profile_id: int
    memory_slice_start: int
    memory_slices: int
    memory_mib: int
    model_name: str
    model_path: str
    model_digest: bytes
    max_output_tokens: int
    manifest_digest: bytes = b""
    manifest_version: int = 0
    tenant_root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """Fresh evidence for one open; with ``boot`` of a worker that waits for its model's key."""

    nonce: bytes
    session_context: bytes
    not_after_s: int
    boot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """The key that a booted partition waits for, sealed to its worker, and what it is bound to."""

    sealed_key: bytes
    nonce: bytes
    evidence_digest: bytes
    decision_leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """End the worker and give the place back; what runs may finish until ``drain_until_ms`` (Unix milliseconds)."""

    reason: str
    drain_until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One order.

    Attributes:
        command_id: an order that is repeated under it gets the same result.
        fence: the partition's version in the control plane's state; an older one than seen is refused.
        deadline_ms: Unix milliseconds; nothing is begun after it, and a creation that takes longer is undone.
    """

    command_id: str
    partition_id: str
    fence: int
    deadline_ms: int
    order: CreatePartition | LoadModel | Attest | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCreated:
    """The worker listens; ``certificate`` is DER."""

    authority: str
    certificate: bytes
    keyset: bytes
    context_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionBooted:
    """The worker of a sealed model has its keys and waits for the model's."""

    keyset: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Encoded evidence, with the keyset and certificate it speaks of."""

    evidence: bytes
    keyset: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The worker is gone; ``scrubbed`` if that and the clearing of its memory are proven."""

    scrubbed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The order could not be carried out."""

    code: str
    message: str

    @classmethod
    def of(cls, error: BulkheadError) -> "Failed":
        """Return the answer that reports ``error``."""
        return cls(code=error.code, message=error.message)


Result: TypeAlias = PartitionBooted | PartitionCreated | Attested | Released | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStatus:
    """One partition in a greeting or heartbeat."""

    partition_id: str
    fence: int
    state: str
    running_requests: int
    unacknowledged_receipts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """First message of a stream to the control plane.

    Attributes:
        boot_id: new at each start of the agent.
        evidence_kind: ``operator`` or ``simulated``.
        evidence_public_key: raw Ed25519 public key.
    """

    agent_id: str
    boot_id: str
    spool_id: str
    last_event_seq: int
    inventory: TrayInventory
    ingress_address: str
    evidence_kind: str
    evidence_public_key: bytes
    partitions: tuple[PartitionStatus, ...]
