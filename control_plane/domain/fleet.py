"""What node agents say and are told, as values: greetings, commands, results, events.

Everything an agent sends is untrusted until it is checked here or by the service that receives it; counts are bounded
so that one broken tray cannot fill the control plane's memory.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from bulkhead import ids
from bulkhead.errors import InvalidRequestError
from control_plane.domain.inventory import Inventory
from control_plane.domain.tiers import Tier

__all__ = [
    "AgentReport",
    "AttestOrder",
    "Attested",
    "Command",
    "CommandProgress",
    "CommandResult",
    "ControlNotice",
    "CreateOrder",
    "EventAck",
    "Failure",
    "Heartbeat",
    "Hello",
    "LeaseGrant",
    "LoadOrder",
    "Order",
    "Outcome",
    "PartitionBooted",
    "PartitionCreated",
    "PartitionReport",
    "PartitionStep",
    "ReceiptReported",
    "RefusalReported",
    "ReleaseOrder",
    "Released",
    "SpooledEvent",
    "Welcome",
]

MAX_PARTITIONS: Final = 256  # 16 GPUs of 7 instances, and process slots
EVIDENCE_KEY_BYTES: Final = 32  # Ed25519


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReport:
    """What an agent says of one partition that it runs. ``fence`` is the version it was created under."""

    partition_id: str
    fence: int
    state: str
    running_requests: int = 0
    unacknowledged_receipts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First message of an agent's stream. The identity in it is compared with the peer certificate's."""

    agent_id: str
    boot_id: str
    spool_id: str
    last_event_seq: int
    inventory: Inventory
    partitions: tuple[PartitionReport, ...]
    evidence_public_key: bytes

    def check(self) -> None:
        """Refuse a malformed greeting.

        Raises:
            InvalidRequestError: a field is out of bounds.
            UnsupportedError: as :meth:`Inventory.check`.
        """
        ids.check_name(self.agent_id, "agent_id")
        for name, value in (("boot_id", self.boot_id), ("spool_id", self.spool_id)):
            if not 0 < len(value) <= ids.MAX_ID_LENGTH:
                raise InvalidRequestError(f"{name}: 1 to {ids.MAX_ID_LENGTH} characters")
        if len(self.evidence_public_key) != EVIDENCE_KEY_BYTES:
            raise InvalidRequestError(f"evidence_public_key: an Ed25519 public key of {EVIDENCE_KEY_BYTES} bytes")
        if len(self.partitions) > MAX_PARTITIONS:
            raise InvalidRequestError(f"partitions: at most {MAX_PARTITIONS}")
        self.inventory.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOrder:
    """Start a worker on a place; of a sealed model, ``manifest_digest`` and version, and it answers when it boots."""

    tenant_id: str
    tier: Tier
    gpu_uuids: tuple[str, ...]
    mig_profile_id: int
    memory_slice_start: int
    memory_slices: int
    model_name: str
    model_path: str
    model_digest: bytes
    memory_mib: int
    max_output_tokens: int
    manifest_digest: bytes = b""
    manifest_version: int = 0
    tenant_root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestOrder:
    """Fresh evidence for one open, no longer valid than ``not_after_unix_s``; with ``boot`` for one key release."""

    nonce: bytes
    session_context: bytes
    not_after_unix_s: int
    boot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """The key that a booted partition waits for, sealed to its worker, and what it is bound to."""

    sealed_key: bytes
    nonce: bytes
    evidence_digest: bytes
    decision_leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOrder:
    """End the worker, scrub, give the place back. Running requests may finish until ``drain_until_unix_ms``."""

    reason: str
    drain_until_unix_ms: int


Order: TypeAlias = CreateOrder | LoadOrder | AttestOrder | ReleaseOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionBooted:
    """The worker of a sealed model has its keys and waits for the model's."""

    keyset: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCreated:
    """The worker runs; its keys are unproven until evidence is appraised."""

    authority: str
    worker_certificate: bytes
    keyset: bytes
    context_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Evidence, to be appraised."""

    evidence: bytes
    keyset: bytes
    worker_certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The worker is gone; ``scrubbed`` says whether its memory is proven clean."""

    scrubbed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The agent could not; ``code`` is of the error tree."""

    code: str
    message: str


Outcome: TypeAlias = PartitionBooted | PartitionCreated | Attested | Released | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReported:
    """Digest and counts of one served request; ``session_number`` counts the session's on its partition from 1."""

    session_id: str
    session_number: int
    tenant_id: str
    request_id: str
    receipt_digest: bytes
    prompt_tokens: int
    completion_tokens: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStep:
    """A step of the life cycle that the agent took or saw by itself."""

    tenant_id: str
    from_state: str
    to_state: str
    reason: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalReported:
    """A request that a worker refused. Session and tenant are empty where the ticket was not readable."""

    code: str
    session_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledEvent:
    """One numbered event of an agent's spool; it is acknowledged once it is in the audit log."""

    spool_id: str
    seq: int
    partition_id: str
    ts_us: int
    event: ReceiptReported | PartitionStep | RefusalReported


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The agent lives, and what it runs."""

    partitions: tuple[PartitionReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended."""

    command_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandProgress:
    """How far a command is: ``creating`` or ``loading``, and a sentence for the person who waits."""

    command_id: str
    phase: str
    text: str


AgentReport: TypeAlias = Hello | Heartbeat | CommandResult | CommandProgress | SpooledEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Answer to a hello: what of its spool is committed, and whose tickets its workers may take."""

    committed_event_seq: int
    ticket_issuers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An order with its identity, fence and deadline. Sent again after a reconnect; the agent answers from memory."""

    command_id: str
    partition_id: str
    fence: int
    deadline_unix_ms: int
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAck:
    """Every event up to and including ``seq`` is in the audit log."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """The control plane vouches for its acknowledgements and this revocation list until ``valid_until_unix_ms``.

    Workers take tickets of ``ticket_issuers`` (raw public keys) from now on, and of no others.
    """

    valid_until_unix_ms: int
    committed_event_seq: int
    revoked_sessions: tuple[str, ...]
    ticket_issuers: tuple[bytes, ...] = ()


ControlNotice: TypeAlias = Welcome | Command | EventAck | LeaseGrant
