"""What the node agent asks of the hardware that it divides, and the facts that it reports about it.

:class:`PartitionBackend` has two implementations in :mod:`data_plane.partitions`: the simulated rack and the plain
host. Each knows where a partition may lie, keeps the ledger of what is taken, and scrubs device memory afterwards; the
process that serves a partition is the supervisor's business.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from bulkhead.attestation.tiers import Tier

__all__ = [
    "Assignment",
    "Gpu",
    "MigProfile",
    "PartitionBackend",
    "PartitionSpec",
    "PartitionState",
    "ScrubReport",
    "TrayInventory",
]


class PartitionState(StrEnum):
    """Where a partition is in its life.

    ``reserved -> creating -> attesting -> ready -> draining -> scrubbing -> free``. From ``creating`` on a worker may
    die: ``lost``, then ``scrubbing``. A scrub that cannot be proven ends in ``cordoned``: the place is not used again.
    ``reserved`` is known to the control plane only.
    """

    RESERVED = "reserved"
    CREATING = "creating"
    ATTESTING = "attesting"
    READY = "ready"
    DRAINING = "draining"
    SCRUBBING = "scrubbing"
    FREE = "free"
    LOST = "lost"
    CORDONED = "cordoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the tray; ``nvlink_domain`` is ``cluster uuid/clique id``, empty where unknown."""

    uuid: str
    index: int
    product: str
    memory_mib: int
    memory_slices: int
    compute_slices: int
    power_limit_w: int
    nvlink_domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One row of the MIG geometry table.

    Attributes:
        profile_id: the id that ``nvidia-smi mig -lgip`` prints; names drift between drivers, ids do not.
        compute_slices: SM slices of an instance.
        memory_slices: memory slices of an instance: the size of every placement.
        memory_mib: device memory of an instance.
        max_instances: most instances of this profile on one GPU.
        starts: legal starts, in memory slices.
    """

    profile_id: int
    compute_slices: int
    memory_slices: int
    memory_mib: int
    max_instances: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrayInventory:
    """What a compute tray offers. ``simulated`` is true if any part of it is."""

    rack: str
    tray: int
    region: str
    simulated: bool
    tiers: tuple[Tier, ...]
    gpus: tuple[Gpu, ...]
    mig_profiles: tuple[MigProfile, ...]
    process_slots: int
    driver_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """Where a partition shall lie, exactly, and whose it is.

    Attributes:
        gpu_uuids: none for ``process``, one for ``mig``, one or more for ``gpu``.
        mig_profile_id: for ``mig`` only, else 0; so are the two fields after it.
        memory_slice_start: first memory slice of the instance.
        memory_slices: size of the instance; must be the profile's.
        memory_mib: device memory that the model needs; a smaller place is refused.
    """

    partition_id: str
    tenant_id: str
    tier: Tier
    gpu_uuids: tuple[str, ...] = ()
    mig_profile_id: int = 0
    memory_slice_start: int = 0
    memory_slices: int = 0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a partition got: UUIDs of its GPUs or of its MIG instance, and its memory in MiB (0 where unlimited)."""

    device_uuids: tuple[str, ...]
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """Outcome of a scrub.

    Attributes:
        proven: the memory was read back and holds nothing; otherwise the place is cordoned.
        simulated: the memory that was cleared stands in for device memory.
        detail: one sentence for the audit record.
    """

    proven: bool
    simulated: bool
    detail: str


class PartitionBackend(Protocol):
    """Divides one tray. Called from the agent's event loop, one call at a time."""

    def inventory(self) -> TrayInventory:
        """Return what the tray offers; constant while the process lives."""
        ...

    async def create(self, spec: PartitionSpec) -> Assignment:
        """Take the place that ``spec`` names, all of it or nothing, and return what it is.

        Raises:
            InvalidRequestError: geometry that the tray does not have: unknown GPU or profile, illegal start, a size
                or an amount of memory that differs from the table.
            ConflictError: the place, or a part of it, is taken or cordoned, or the id is in use.
            CapacityError: no process slot is free.
        """
        ...

    async def adopt(self, spec: PartitionSpec) -> None:
        """Take the place of a partition that an earlier agent process left behind, content unknown, to scrub it.

        Raises:
            InvalidRequestError, ConflictError, CapacityError: as :meth:`create`.
        """
        ...

    async def scrub(self, partition_id: str) -> ScrubReport:
        """Clear the partition's device memory, read it back, and free the place, or cordon it if that fails.

        The caller has verified that no process of the partition is alive.

        Raises:
            NotFoundError: no such partition.
        """
        ...

    async def cordon(self, partition_id: str) -> None:
        """Never use the partition's place again while this process lives.

        Raises:
            NotFoundError: no such partition.
        """
        ...
