"""Partitions that hold a place, and who uses them, in memory: what placement and the warm path read.

SQL is the truth; this is this process's view of it, loaded at the start and kept by every step it takes. A step that
another replica took shows as a conflict of fences, after which the view is loaded again.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from control_plane.domain.inventory import Inventory
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.domain.tiers import Tier
from control_plane.placement.geometry import KNOWN_GEOMETRY, MAX_COMPUTE_SLICES, WHOLE_GPU_MASK, Occupancy
from control_plane.placement.place import Gpu, Host

__all__ = ["AgentView", "PartitionBook"]

_RUNNING = (PartitionState.READY, PartitionState.ATTESTING)


class AgentView(Protocol):
    """What placement needs to know of an agent."""

    @property
    def agent_id(self) -> str:
        """Its name."""

    @property
    def inventory(self) -> Inventory:
        """What it reported last."""

    @property
    def connected(self) -> bool:
        """Whether commands reach it."""

    @property
    def cordoned(self) -> bool:
        """Whether it may take anything new."""


class PartitionBook:
    """Partitions by identifier, agent and share key, with their open sessions."""

    def __init__(self) -> None:
        self._partitions: dict[str, Partition] = {}
        self._by_agent: defaultdict[str, set[str]] = defaultdict(set)
        self._by_key: defaultdict[str, set[str]] = defaultdict(set)
        self._sessions: defaultdict[str, set[str]] = defaultdict(set)

    def load(self, partitions: Iterable[Partition]) -> None:
        """Replace the partitions; who uses them stays."""
        for partition in tuple(self._partitions.values()):
            self._forget(partition)
        for partition in partitions:
            self.put(partition)

    def put(self, partition: Partition) -> None:
        """Note a partition's newest state; a free one is forgotten."""
        known = self._partitions.get(partition.partition_id)
        if known is not None and known.version > partition.version:
            return  # a later step was noted already
        if partition.state is PartitionState.FREE:
            self._forget(partition)
            self._sessions.pop(partition.partition_id, None)
            return
        self._partitions[partition.partition_id] = partition
        self._by_agent[partition.agent_id].add(partition.partition_id)
        self._by_key[partition.share_key].add(partition.partition_id)

    def get(self, partition_id: str) -> Partition | None:
        """Return a partition that holds a place, or None."""
        return self._partitions.get(partition_id)

    def all(self) -> tuple[Partition, ...]:
        """Return every partition that holds a place."""
        return tuple(self._partitions.values())

    def of_agent(self, agent_id: str) -> tuple[Partition, ...]:
        """Return the partitions that hold a place of that agent."""
        return tuple(self._partitions[partition_id] for partition_id in self._by_agent.get(agent_id, ()))

    def running(self, share_key: str) -> tuple[Partition, ...]:
        """Return partitions with that share key whose worker runs, ready ones first."""
        found = [self._partitions[partition_id] for partition_id in self._by_key.get(share_key, ())]
        return tuple(
            sorted(
                (partition for partition in found if partition.state in _RUNNING),
                key=lambda partition: (_RUNNING.index(partition.state), partition.partition_id),
            )
        )

    def join(self, partition_id: str, session_id: str) -> None:
        """Note that a session uses the partition."""
        self._sessions[partition_id].add(session_id)

    def leave(self, partition_id: str, session_id: str) -> None:
        """Note that a session no longer uses the partition."""
        self._sessions[partition_id].discard(session_id)

    def used_by(self, session_id: str) -> tuple[str, ...]:
        """Return the partitions that a session is noted to use."""
        return tuple(partition_id for partition_id, users in self._sessions.items() if session_id in users)

    def users(self, partition_id: str) -> int:
        """Return how many sessions use the partition."""
        return len(self._sessions.get(partition_id, ()))

    def hosts(self, agents: Iterable[AgentView]) -> tuple[Host, ...]:
        """Return what placement chooses from."""
        return tuple(self._host(agent) for agent in agents)

    def _host(self, agent: AgentView) -> Host:
        inventory = agent.inventory
        occupancy = {gpu.uuid: Occupancy() for gpu in inventory.gpus}
        tenants: defaultdict[str, int] = defaultdict(int)
        process_used = 0
        for partition in self.of_agent(agent.agent_id):
            tenants[partition.tenant_id] += 1
            process_used += partition.tier is Tier.PROCESS
            for uuid in partition.placement.gpu_uuids:
                if uuid in occupancy:
                    occupancy[uuid] = _occupied(occupancy[uuid], partition)
        return Host(
            agent_id=agent.agent_id,
            region=inventory.region,
            tiers=inventory.tiers,
            connected=agent.connected,
            cordoned=agent.cordoned,
            gpus=tuple(
                Gpu(uuid=gpu.uuid, index=gpu.index, memory_mib=gpu.memory_mib, occupancy=occupancy[gpu.uuid])
                for gpu in inventory.gpus
            ),
            profiles=inventory.profiles,
            process_slots=inventory.process_slots,
            process_used=process_used,
            partitions_by_tenant=tenants,
        )

    def _forget(self, partition: Partition) -> None:
        self._partitions.pop(partition.partition_id, None)
        self._by_agent[partition.agent_id].discard(partition.partition_id)
        self._by_key[partition.share_key].discard(partition.partition_id)
        if not self._by_key[partition.share_key]:
            del self._by_key[partition.share_key]


def _occupied(occupancy: Occupancy, partition: Partition) -> Occupancy:
    if partition.tier is not Tier.MIG:
        return Occupancy(WHOLE_GPU_MASK, MAX_COMPUTE_SLICES)
    return occupancy.adding(KNOWN_GEOMETRY[partition.placement.mig_profile_id], partition.placement.memory_slice_start)
