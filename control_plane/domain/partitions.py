"""The partition life cycle.

A partition is one worker's place on one compute tray: a process slot, a MIG instance, or whole GPUs. It belongs to one
tenant from the reservation until it is free again::

    reserved -> creating -> attesting -> ready -> draining -> scrubbing -> free

Its states and what is true in them:

- ``reserved``: the place is taken in SQL; nothing was sent to the agent.
- ``creating``: the agent was ordered to start the worker.
- ``attesting``: the worker runs; its first evidence has not been appraised yet.
- ``ready``: sessions are served.
- ``draining``: no new session; running requests may finish.
- ``scrubbing``: the agent ends the process and erases what it held.
- ``free``: the scrub is proven; the place can be used again. Final.
- ``cordoned``: the scrub could not be proven; the place stays taken until an admin's agent restart clears it.
- ``lost``: the agent or the worker went away. The place stays taken until the agent reports it released, because a
  worker that is only unreachable still holds its memory.

Each step raises the version, which is the fence of commands: an agent refuses an older one. Each step is audited by
whoever takes it. A step that is not in :data:`TRANSITIONS` raises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bulkhead.errors import ConflictError
from control_plane.domain.tiers import Tier
from control_plane.placement.place import Placement

__all__ = [
    "HOLDING",
    "JOINABLE",
    "LIVE",
    "TRANSITIONS",
    "Partition",
    "PartitionState",
    "WorkerEndpoint",
    "authority_of",
]

MAX_REASON_CHARS: Final = 255
_AUTHORITY_SUFFIX: Final = ".worker.bulkhead.internal"


class PartitionState(StrEnum):
    """A state of the life cycle; the values are those of the wire and of SQL."""

    RESERVED = "reserved"
    CREATING = "creating"
    ATTESTING = "attesting"
    READY = "ready"
    DRAINING = "draining"
    SCRUBBING = "scrubbing"
    FREE = "free"
    LOST = "lost"
    CORDONED = "cordoned"


_S = PartitionState

TRANSITIONS: Final[Mapping[PartitionState, frozenset[PartitionState]]] = MappingProxyType(
    {
        # A reservation that never reached an agent is simply given back.
        _S.RESERVED: frozenset({_S.CREATING, _S.FREE}),
        # A failed start or a failed first appraisal still has to be scrubbed: the process may have run.
        _S.CREATING: frozenset({_S.ATTESTING, _S.SCRUBBING, _S.LOST}),
        _S.ATTESTING: frozenset({_S.READY, _S.DRAINING, _S.SCRUBBING, _S.LOST}),
        _S.READY: frozenset({_S.DRAINING, _S.SCRUBBING, _S.LOST}),
        _S.DRAINING: frozenset({_S.SCRUBBING, _S.LOST}),
        _S.SCRUBBING: frozenset({_S.FREE, _S.CORDONED, _S.LOST}),
        # The agent came back: its worker still serves, or is being ended, or is proven gone.
        _S.LOST: frozenset({_S.SCRUBBING, _S.FREE, _S.CORDONED}),
        _S.CORDONED: frozenset({_S.FREE}),
        _S.FREE: frozenset(),
    }
)

LIVE: Final = frozenset({_S.RESERVED, _S.CREATING, _S.ATTESTING, _S.READY})
"""States in which a session may be, or may become, served."""

JOINABLE: Final = frozenset({_S.RESERVED, _S.CREATING, _S.ATTESTING, _S.READY})
"""States in which a new session of the same tenant, model, tier and obligations waits for or shares the partition."""

HOLDING: Final = frozenset(PartitionState) - {_S.FREE}
"""States that hold their place: GPU slices, or a process slot."""


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    """What a worker showed when it came up. The keys are vouched for by evidence, not by this record."""

    authority: str
    certificate: bytes
    keyset: bytes


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as the control plane knows it.

    ``share_key`` is equal for sessions that may share the partition; ``version`` counts the steps and is the fence;
    ``reason`` says why the last step was taken; ``tenant_root`` is the fingerprint (32 bytes, or none) of the root
    whose session keys the worker takes, as its tenant's record had it when the place was reserved.
    """

    partition_id: str
    tenant_id: str
    model: str
    model_digest: bytes
    placement: Placement
    region: str
    simulated: bool
    share_key: str
    exclusive: bool
    memory_mib: int
    max_output_tokens: int
    state: PartitionState
    version: int
    created_us: int
    changed_us: int
    reason: str = ""
    endpoint: WorkerEndpoint | None = None
    tenant_root: bytes = b""

    @property
    def tier(self) -> Tier:
        """The tier that the placement gives."""
        return self.placement.tier

    @property
    def agent_id(self) -> str:
        """The agent that runs it."""
        return self.placement.agent_id

    @property
    def slots(self) -> tuple[tuple[str, int], ...]:
        """The (device, slot) pairs that it holds: memory slices of GPUs; a process slot is numbered by the store."""
        first = self.placement.memory_slice_start
        return tuple(
            (gpu, slot)
            for gpu in self.placement.gpu_uuids
            for slot in range(first, first + self.placement.memory_slices)
        )

    def advance(self, state: PartitionState, *, now_us: int, reason: str) -> "Partition":
        """Return the partition after one step.

        Raises:
            ConflictError: the life cycle has no such step.
        """
        if state not in TRANSITIONS[self.state]:
            raise ConflictError(f"a partition that is {self.state.value} cannot become {state.value}")
        return replace(self, state=state, version=self.version + 1, changed_us=now_us, reason=reason[:MAX_REASON_CHARS])


def authority_of(partition_id: str) -> str:
    """Return the TLS server name of the partition's worker: underscores are not legal in DNS names (RFC 1123)."""
    return partition_id.replace("_", "-") + _AUTHORITY_SUFFIX
