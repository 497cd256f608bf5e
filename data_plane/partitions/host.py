"""A real host that offers tier ``process`` only: one sandboxed worker process per partition, no device of its own."""

from typing import Final

from bulkhead.attestation.tiers import Tier
from bulkhead.errors import CapacityError, ConflictError, InvalidRequestError, NotFoundError
from data_plane.ports import Assignment, PartitionSpec, ScrubReport, TrayInventory

__all__ = ["HostBackend"]


class HostBackend:
    """Process slots behind :class:`~data_plane.ports.PartitionBackend`; nothing in it is simulated."""

    def __init__(self, *, rack: str, tray: int, region: str, process_slots: int) -> None:
        self._inventory: Final = TrayInventory(
            rack=rack,
            tray=tray,
            region=region,
            simulated=False,
            tiers=(Tier.PROCESS,),
            gpus=(),
            mig_profiles=(),
            process_slots=process_slots,
            driver_version="",
        )
        self._partitions: dict[str, PartitionSpec] = {}
        self._cordoned: set[str] = set()

    def inventory(self) -> TrayInventory:
        """Return the slots of the host."""
        return self._inventory

    async def create(self, spec: PartitionSpec) -> Assignment:
        """Take a process slot; see the port."""
        if spec.tier is not Tier.PROCESS:
            raise InvalidRequestError(f"this host offers tier process only, not {spec.tier.value}")
        if spec.gpu_uuids or spec.mig_profile_id or spec.memory_slice_start or spec.memory_slices:
            raise InvalidRequestError("a partition of tier process names no GPU and no MIG placement")
        if spec.partition_id in self._partitions:
            raise ConflictError("this partition id is in use on the host")
        if len(self._partitions) >= self._inventory.process_slots:
            raise CapacityError(f"all {self._inventory.process_slots} process slots of the host are taken")
        self._partitions[spec.partition_id] = spec
        return Assignment(device_uuids=(), memory_mib=spec.memory_mib)

    async def adopt(self, spec: PartitionSpec) -> None:
        """Take a slot for a partition that an earlier agent left behind; see the port."""
        await self.create(spec)

    async def scrub(self, partition_id: str) -> ScrubReport:
        """Free the slot: the kernel cleared the process's memory when it ended, which the caller has verified."""
        if partition_id not in self._partitions:
            raise NotFoundError("no such partition on this host")
        if partition_id in self._cordoned:
            return ScrubReport(proven=False, simulated=False, detail="the slot is cordoned")
        del self._partitions[partition_id]
        return ScrubReport(proven=True, simulated=False, detail="no device memory")

    async def cordon(self, partition_id: str) -> None:
        """Keep the slot out of use; see the port."""
        if partition_id not in self._partitions:
            raise NotFoundError("no such partition on this host")
        self._cordoned.add(partition_id)
