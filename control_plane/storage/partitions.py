"""Agents, partitions and their places in SQL. Every write of a partition compares the fence that was read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from bulkhead.encoding import Json
from bulkhead.errors import CapacityError, ConflictError, NotFoundError
from control_plane.domain.partitions import HOLDING, Partition, PartitionState, WorkerEndpoint
from control_plane.domain.tiers import Tier, tier_from_label
from control_plane.placement.place import Placement
from control_plane.storage.schema import agent_spools, agents, partition_slots, partitions, sessions

__all__ = ["AgentRow", "Agents", "Partitions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """An agent as SQL remembers it; the inventory is the one last reported, as JSON."""

    agent_id: str
    boot_id: str
    rack: str
    tray: int
    region: str
    simulated: bool
    evidence_kind: str
    evidence_public_key: bytes
    ingress_address: str
    inventory: Mapping[str, Json]
    cordoned: bool
    first_seen_us: int
    last_seen_us: int


class Agents:
    """Agents and how far their spools are committed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, agent_id: str) -> AgentRow | None:
        """Return the agent, or None if it never connected."""
        row = self._connection.execute(select(agents).where(agents.c.agent_id == agent_id)).mappings().first()
        return None if row is None else AgentRow(**row)

    def all(self) -> tuple[AgentRow, ...]:
        """Return every agent that ever connected, by name."""
        rows = self._connection.execute(select(agents).order_by(agents.c.agent_id)).mappings()
        return tuple(AgentRow(**row) for row in rows)

    def put(self, agent: AgentRow) -> AgentRow:
        """Store what an agent reported; an existing row keeps ``cordoned`` and ``first_seen_us``. Return the row."""
        known = self.get(agent.agent_id)
        values = {name: getattr(agent, name) for name in AgentRow.__slots__}
        values["inventory"] = dict(agent.inventory)
        if known is None:
            self._connection.execute(insert(agents).values(values))
            return agent
        values |= {"cordoned": known.cordoned, "first_seen_us": known.first_seen_us}
        self._connection.execute(update(agents).where(agents.c.agent_id == agent.agent_id).values(values))
        return AgentRow(**values)

    def set_cordoned(self, agent_id: str, *, cordoned: bool) -> None:
        """Cordon or uncordon.

        Raises:
            NotFoundError: no such agent ever connected.
        """
        done = self._connection.execute(update(agents).where(agents.c.agent_id == agent_id).values(cordoned=cordoned))
        if done.rowcount != 1:
            raise NotFoundError("no such agent")

    def touch(self, last_seen_us: Mapping[str, int]) -> None:
        """Store when agents were last heard of."""
        for agent_id, seen_us in last_seen_us.items():
            self._connection.execute(update(agents).where(agents.c.agent_id == agent_id).values(last_seen_us=seen_us))

    def committed_seq(self, agent_id: str, spool_id: str) -> int:
        """Return the highest event of the spool up to which all are in the audit log; 0 for a new spool."""
        found = self._connection.execute(
            select(agent_spools.c.committed_seq).where(
                agent_spools.c.agent_id == agent_id, agent_spools.c.spool_id == spool_id
            )
        ).scalar()
        return int(found or 0)

    def set_committed_seq(self, agent_id: str, spool_id: str, seq: int) -> None:
        """Move the spool's mark forward; it never moves back."""
        key = (agent_spools.c.agent_id == agent_id, agent_spools.c.spool_id == spool_id)
        moved = self._connection.execute(
            update(agent_spools).where(*key, agent_spools.c.committed_seq < seq).values(committed_seq=seq)
        )
        exists = moved.rowcount or self._connection.execute(select(agent_spools.c.committed_seq).where(*key)).first()
        if not exists:
            self._connection.execute(
                insert(agent_spools).values(agent_id=agent_id, spool_id=spool_id, committed_seq=seq)
            )


class Partitions:
    """Partitions and the places they hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, partition_id: str) -> Partition:
        """Return the partition.

        Raises:
            NotFoundError: there is none.
        """
        row = self._connection.execute(select(partitions).where(partitions.c.partition_id == partition_id)).mappings()
        found = row.first()
        if found is None:
            raise NotFoundError("no such partition")
        return _partition(found)

    def holding(self, agent_id: str | None = None) -> tuple[Partition, ...]:
        """Return the partitions that hold a place, of one agent or of all."""
        query = select(partitions).where(partitions.c.state.in_([state.value for state in HOLDING]))
        if agent_id is not None:
            query = query.where(partitions.c.agent_id == agent_id)
        return tuple(_partition(row) for row in self._connection.execute(query).mappings())

    def page(
        self, *, tenant_id: str, states: Collection[PartitionState] | None, after: str, limit: int
    ) -> tuple[Partition, ...]:
        """Return partitions by descending id (newest first) before the id ``after``; empty fields match all."""
        query = select(partitions).order_by(partitions.c.partition_id.desc()).limit(limit)
        if tenant_id:
            query = query.where(partitions.c.tenant_id == tenant_id)
        if states is not None:
            query = query.where(partitions.c.state.in_([state.value for state in states]))
        if after:
            query = query.where(partitions.c.partition_id < after)
        return tuple(_partition(row) for row in self._connection.execute(query).mappings())

    def session_counts(self, partition_ids: Sequence[str]) -> dict[str, int]:
        """Return how many sessions are open on each of the partitions; those with none are missing."""
        rows = self._connection.execute(
            select(sessions.c.partition_id, func.count())
            .where(sessions.c.partition_id.in_(partition_ids), sessions.c.state == "open")
            .group_by(sessions.c.partition_id)
        )
        return {partition_id: int(count) for partition_id, count in rows}

    def shared(self, share_key: str) -> Partition | None:
        """Return a partition with that share key whose worker runs, if there is one."""
        running = [PartitionState.ATTESTING.value, PartitionState.READY.value]
        query = select(partitions).where(partitions.c.sharing_key == share_key, partitions.c.state.in_(running))
        row = self._connection.execute(query.order_by(partitions.c.partition_id)).mappings().first()
        return None if row is None else _partition(row)

    def reserve(self, partition: Partition, *, process_slots: int) -> None:
        """Store a new partition together with its place.

        Raises:
            ConflictError: another partition holds part of the place: look again.
            CapacityError: no process slot of the agent is free.
        """
        self._connection.execute(insert(partitions).values(_columns(partition)))
        slots = partition.slots or (self._process_slot(partition.agent_id, process_slots),)
        try:
            self._connection.execute(
                insert(partition_slots),
                [{"device": device, "slot": slot, "partition_id": partition.partition_id} for device, slot in slots],
            )
        except IntegrityError as error:
            raise ConflictError("another partition was placed there meanwhile") from error

    def _process_slot(self, agent_id: str, process_slots: int) -> tuple[str, int]:
        device = f"process:{agent_id}"
        rows = self._connection.execute(select(partition_slots.c.slot).where(partition_slots.c.device == device))
        taken = {slot for (slot,) in rows}
        free = next((slot for slot in range(process_slots) if slot not in taken), None)
        if free is None:
            raise CapacityError("no process slot of the agent is free")
        return device, free

    def replace(self, before: Partition, after: Partition) -> None:
        """Store ``after`` where the row still has the fence of ``before``; a free partition gives up its place.

        Raises:
            ConflictError: somebody else has taken a step since ``before`` was read.
        """
        done = self._connection.execute(
            update(partitions)
            .where(partitions.c.partition_id == before.partition_id, partitions.c.fence == before.version)
            .values(_columns(after))
        )
        if done.rowcount != 1:
            raise ConflictError("the partition has moved on meanwhile")
        if after.state is PartitionState.FREE:
            self._connection.execute(
                delete(partition_slots).where(partition_slots.c.partition_id == after.partition_id)
            )


def _columns(partition: Partition) -> dict[str, Any]:
    place, endpoint = partition.placement, partition.endpoint
    mig = partition.tier is Tier.MIG
    return {
        "partition_id": partition.partition_id,
        "tenant_id": partition.tenant_id,
        "model": partition.model,
        "model_digest": partition.model_digest,
        "agent_id": place.agent_id,
        "tier": place.tier.label,
        "region": partition.region,
        "simulated": partition.simulated,
        "state": partition.state.value,
        "fence": partition.version,
        "sharing_key": partition.share_key,
        "exclusive": partition.exclusive,
        "gpu_uuids": list(place.gpu_uuids),
        "mig_profile_id": place.mig_profile_id if mig else None,
        "memory_slice_start": place.memory_slice_start if place.gpu_uuids else None,
        "memory_slices": place.memory_slices if place.gpu_uuids else None,
        "memory_mib": partition.memory_mib,
        "max_output_tokens": partition.max_output_tokens,
        "authority": endpoint.authority if endpoint else None,
        "worker_certificate": endpoint.certificate if endpoint else None,
        "keyset": endpoint.keyset if endpoint else None,
        "reason": partition.reason,
        "created_us": partition.created_us,
        "updated_us": partition.changed_us,
        "tenant_root": partition.tenant_root or None,
    }


def _partition(row: RowMapping) -> Partition:
    endpoint = None
    if row["authority"] is not None:
        endpoint = WorkerEndpoint(
            authority=row["authority"], certificate=row["worker_certificate"], keyset=row["keyset"]
        )
    return Partition(
        partition_id=row["partition_id"],
        tenant_id=row["tenant_id"],
        model=row["model"],
        model_digest=row["model_digest"],
        placement=Placement(
            agent_id=row["agent_id"],
            tier=tier_from_label(row["tier"]),
            gpu_uuids=tuple(row["gpu_uuids"]),
            mig_profile_id=row["mig_profile_id"] or 0,
            memory_slice_start=row["memory_slice_start"] or 0,
            memory_slices=row["memory_slices"] or 0,
        ),
        region=row["region"],
        simulated=row["simulated"],
        share_key=row["sharing_key"],
        exclusive=row["exclusive"],
        memory_mib=row["memory_mib"],
        max_output_tokens=row["max_output_tokens"],
        state=PartitionState(row["state"]),
        version=row["fence"],
        created_us=row["created_us"],
        changed_us=row["updated_us"],
        reason=row["reason"],
        endpoint=endpoint,
        tenant_root=row["tenant_root"] or b"",
    )
