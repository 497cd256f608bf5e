"""A simulated compute tray of a GB300 NVL72 rack, made from a capture of a real node (``gb300.json``).

Geometry, ledger and life cycle are the real rules. What is simulated: the GPUs do not exist, their memory is
represented by 4 KiB per memory slice, and a scrub clears and re-reads those stand-ins. Everything that leaves here
says ``simulated``, and an SDK outside development mode refuses it.
"""

import json
import secrets
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from bulkhead.attestation.tiers import Tier
from bulkhead.errors import CapacityError, ConflictError, InvalidRequestError, NotFoundError
from data_plane.partitions.geometry import GpuLedger, Placement
from data_plane.ports import Assignment, Gpu, MigProfile, PartitionSpec, ScrubReport, TrayInventory

__all__ = ["SimulatedRackBackend", "StandInMemory"]

STAND_IN_BYTES: Final = 4096  # per memory slice: enough to tell cleared from not cleared


class StandInMemory:
    """What the simulator keeps in place of one GPU's memory: one small buffer per memory slice."""

    def __init__(self, *, memory_slices: int) -> None:
        self._slices = [bytearray(STAND_IN_BYTES) for _ in range(memory_slices)]

    def fill(self, slices: range, content: bytes) -> None:
        """Put ``content`` (at most one slice of it) into each of ``slices``, as a tenant's worker would."""
        for index in slices:
            self._slices[index][: len(content)] = content

    def clear(self, slices: range) -> None:
        """Overwrite ``slices`` with zeros."""
        for index in slices:
            self._slices[index][:] = bytes(STAND_IN_BYTES)

    def is_clear(self, slices: range) -> bool:
        """Read ``slices`` back and tell whether they hold zeros only."""
        return not any(any(self._slices[index]) for index in slices)


class SimulatedRackBackend:
    """One simulated tray behind :class:`~data_plane.ports.PartitionBackend`.

    Args:
        rack: name of the rack; GPU uuids derive from it and ``tray``, so they are the same after a restart.
        tray: index of the compute tray, from 0.
        region: region that policy places by.
        process_slots: most ``process`` partitions.
        random_bytes: fills the stand-in memory of a new partition.
        memory: makes the stand-in memory of a GPU.
    """

    def __init__(
        self,
        *,
        rack: str,
        tray: int,
        region: str,
        process_slots: int,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        memory: Callable[..., StandInMemory] = StandInMemory,
    ) -> None:
        facts = json.loads(files("data_plane.partitions").joinpath("gb300.json").read_text("utf-8"))
        gpus = _gpus(facts, rack=rack, tray=tray)
        profiles = tuple(_profile(row) for row in facts["mig_profiles"])
        self._inventory: Final = TrayInventory(
            rack=rack,
            tray=tray,
            region=region,
            simulated=True,
            tiers=(Tier.PROCESS, Tier.MIG, Tier.GPU),
            gpus=gpus,
            mig_profiles=profiles,
            process_slots=process_slots,
            driver_version=f"{facts['driver_version']} (simulated)",
        )
        table = {profile.profile_id: profile for profile in profiles}
        self._ledgers: Final = {gpu.uuid: GpuLedger(gpu, table) for gpu in gpus}
        self._memory: Final = {gpu.uuid: memory(memory_slices=gpu.memory_slices) for gpu in gpus}
        self._random_bytes = random_bytes
        self._partitions: dict[str, PartitionSpec] = {}
        self._cordoned: set[str] = set()

    def inventory(self) -> TrayInventory:
        """Return the tray's GPUs, geometry and tiers, with ``simulated`` set."""
        return self._inventory

    async def create(self, spec: PartitionSpec) -> Assignment:
        """Take the place of ``spec``; see the port."""
        placements = self._placements(spec)
        if spec.partition_id in self._partitions:
            raise ConflictError("this partition id is in use on the tray")
        for uuid, placement in placements.items():
            self._ledgers[uuid].check_free(placement)
        for uuid, placement in placements.items():
            self._ledgers[uuid].take(spec.partition_id, placement)
            self._memory[uuid].fill(placement.slices, self._random_bytes(STAND_IN_BYTES))
        self._partitions[spec.partition_id] = spec
        return self._assignment(spec, placements)

    async def adopt(self, spec: PartitionSpec) -> None:
        """Take the place of ``spec`` again after a restart of the agent; the stand-in memory did not survive it."""
        await self.create(spec)

    async def scrub(self, partition_id: str) -> ScrubReport:
        """Clear and re-read the stand-in memory of the partition, and free or cordon its place; see the port."""
        spec = self._known(partition_id)
        if partition_id in self._cordoned:
            return ScrubReport(proven=False, simulated=True, detail="the place is cordoned")
        for uuid in spec.gpu_uuids:
            placement = self._ledgers[uuid].held_by(partition_id)
            if placement is None:
                continue
            self._memory[uuid].clear(placement.slices)
            if not self._memory[uuid].is_clear(placement.slices):
                await self.cordon(partition_id)
                return ScrubReport(
                    proven=False,
                    simulated=True,
                    detail=f"simulated memory of GPU {self._ledgers[uuid].gpu.index} still holds data: cordoned",
                )
        for uuid in spec.gpu_uuids:
            self._ledgers[uuid].free(partition_id)
        del self._partitions[partition_id]
        what = "simulated device memory cleared and read back" if spec.gpu_uuids else "no device memory"
        return ScrubReport(proven=True, simulated=True, detail=what)

    async def cordon(self, partition_id: str) -> None:
        """Keep the place of the partition out of use; see the port."""
        self._known(partition_id)
        self._cordoned.add(partition_id)

    def _known(self, partition_id: str) -> PartitionSpec:
        spec = self._partitions.get(partition_id)
        if spec is None:
            raise NotFoundError("no such partition on this tray")
        return spec

    def _placements(self, spec: PartitionSpec) -> dict[str, Placement]:
        """Return GPU uuid -> placement, having checked that such geometry exists here."""
        if len(set(spec.gpu_uuids)) != len(spec.gpu_uuids):
            raise InvalidRequestError("one GPU is named twice")
        unknown = [uuid for uuid in spec.gpu_uuids if uuid not in self._ledgers]
        if unknown:
            raise InvalidRequestError("a GPU is not one of this tray")
        if spec.tier is Tier.MIG:
            if len(spec.gpu_uuids) != 1:
                raise InvalidRequestError("a MIG partition lies on exactly one GPU: MIG has no peer-to-peer")
            uuid = spec.gpu_uuids[0]
            return {uuid: self._ledgers[uuid].place_mig(spec)}
        if spec.mig_profile_id or spec.memory_slice_start or spec.memory_slices:
            raise InvalidRequestError(f"a partition of tier {spec.tier.value} has no MIG placement")
        if spec.tier is Tier.GPU:
            return self._whole(spec)
        if spec.tier is Tier.PROCESS:
            return self._process(spec)
        raise InvalidRequestError(f"this tray does not offer tier {spec.tier.value}")

    def _assignment(self, spec: PartitionSpec, placements: dict[str, Placement]) -> Assignment:
        if spec.tier is Tier.PROCESS:
            return Assignment(device_uuids=(), memory_mib=spec.memory_mib)
        if spec.tier is Tier.GPU:
            return Assignment(
                device_uuids=spec.gpu_uuids,
                memory_mib=sum(self._ledgers[uuid].gpu.memory_mib for uuid in spec.gpu_uuids),
            )
        ((uuid, placement),) = placements.items()
        instance = uuid5(NAMESPACE_URL, f"{uuid}/{spec.mig_profile_id}/{placement.start}:{placement.size}")
        memory_mib = placement.profile.memory_mib if placement.profile is not None else 0
        return Assignment(device_uuids=(f"MIG-{instance}",), memory_mib=memory_mib)

    def _whole(self, spec: PartitionSpec) -> dict[str, Placement]:
        if not spec.gpu_uuids:
            raise InvalidRequestError("a partition of tier gpu names its GPUs")
        total_mib = sum(self._ledgers[uuid].gpu.memory_mib for uuid in spec.gpu_uuids)
        if spec.memory_mib > total_mib:
            raise InvalidRequestError(f"these GPUs have {total_mib} MiB, and the model needs {spec.memory_mib}")
        return {uuid: self._ledgers[uuid].place_whole() for uuid in spec.gpu_uuids}

    def _process(self, spec: PartitionSpec) -> dict[str, Placement]:
        if spec.gpu_uuids:
            raise InvalidRequestError("a partition of tier process names no GPU")
        used = sum(other.tier is Tier.PROCESS for other in self._partitions.values())
        if used >= self._inventory.process_slots:
            raise CapacityError(f"all {self._inventory.process_slots} process slots of the tray are taken")
        return {}


def _gpus(facts: dict[str, Any], *, rack: str, tray: int) -> tuple[Gpu, ...]:
    gpu = facts["gpu"]
    cluster = uuid5(NAMESPACE_URL, f"bulkhead-simulated-rack/{rack}")
    return tuple(
        Gpu(
            uuid=f"GPU-{uuid5(cluster, f'tray {tray} gpu {index}')}",
            index=index,
            product=f"{gpu['product']} (simulated)",
            memory_mib=gpu["memory_mib"],
            memory_slices=gpu["memory_slices"],
            compute_slices=gpu["compute_slices"],
            power_limit_w=gpu["power_limit_w"],
            nvlink_domain=f"{cluster}/{gpu['clique_id']}",
        )
        for index in range(facts["gpus_per_tray"])
    )


def _profile(row: dict[str, Any]) -> MigProfile:
    return MigProfile(
        profile_id=row["profile_id"],
        compute_slices=row["compute_slices"],
        memory_slices=row["memory_slices"],
        memory_mib=row["memory_mib"],
        max_instances=row["max_instances"],
        starts=tuple(row["starts"]),
    )
