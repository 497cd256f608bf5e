"""Chooses where a new partition stands. Pure: hosts and demand in, a verdict out.

Hard constraints first: the host is connected, not cordoned, in the demanded region, offers the tier, has a profile or
GPUs large enough and room for them. Every candidate that fails names one reason. The tier is the lowest one at or above
the demanded minimum that any usable host offers: a full tier is a rejection, not a reason to spend whole GPUs.

Among the candidates left the lowest score wins::

    score = fragmentation + SPREAD_WEIGHT * partitions of the same tenant on that tray

Fragmentation is the loss of potential on the GPU (:func:`control_plane.placement.geometry.potential`): best fit. A
tray is the failure domain (one agent, one power shelf feed, one ingress), so a tenant's partitions spread over trays
unless that would break up a GPU. Ties fall to the agent's name, the GPU's index and the start, so that equal inputs
give equal placements.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from bulkhead.errors import AgentUnavailableError, CapacityError
from control_plane.domain.tiers import Tier
from control_plane.placement.geometry import (
    EMPTY,
    KNOWN_GEOMETRY,
    MAX_COMPUTE_SLICES,
    MEMORY_SLICES_PER_GPU,
    MigProfile,
    Occupancy,
    feasible_starts,
    potential,
    smallest_profile,
)

__all__ = ["Demand", "Gpu", "Host", "Placement", "Rejection", "RejectionReason", "Verdict", "choose", "place"]

# A 1g instance costs an empty GPU 11 of its potential of 30, and 1 to 6 beside another 1g. So 4 spreads a tenant's
# partitions over trays whose GPUs are about equally broken up, and opens an empty GPU for it only from the third on.
SPREAD_WEIGHT: Final = 4


class RejectionReason(StrEnum):
    """Why a host or GPU cannot take a partition."""

    DISCONNECTED = "agent-disconnected"
    CORDONED = "agent-cordoned"
    REGION = "region-differs"
    TIER = "tier-not-offered"
    PROFILE = "no-profile-holds-the-model"
    MEMORY = "gpus-too-small"
    FRAGMENTED = "no-free-placement"
    OCCUPIED = "gpu-in-use"
    SLOTS = "no-free-process-slot"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and what stands on it."""

    uuid: str
    index: int
    memory_mib: int
    occupancy: Occupancy = EMPTY


@dataclass(frozen=True, slots=True)
class Host:
    """One compute tray as its agent reports it, with the partitions that the control plane has placed there."""

    agent_id: str
    region: str
    tiers: frozenset[Tier]
    connected: bool = True
    cordoned: bool = False
    gpus: tuple[Gpu, ...] = ()
    profiles: tuple[MigProfile, ...] = ()
    process_slots: int = 0
    process_used: int = 0
    partitions_by_tenant: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a partition must satisfy. No region means any."""

    tenant_id: str
    minimum_tier: Tier
    memory_mib: int
    regions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """A chosen place. ``mig_profile_id`` and the slices are 0 for other tiers than ``mig``; no GPU means `process`."""

    agent_id: str
    tier: Tier
    gpu_uuids: tuple[str, ...] = ()
    mig_profile_id: int = 0
    memory_slice_start: int = 0
    memory_slices: int = 0
    score: int = 0


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one candidate was passed over; an empty GPU means the whole host."""

    agent_id: str
    gpu_uuid: str
    reason: RejectionReason


@dataclass(frozen=True, slots=True)
class Verdict:
    """The placement, if any, and the reason for every candidate that could not be taken."""

    placement: Placement | None
    rejections: tuple[Rejection, ...]


_Ranked = tuple[int, str, int, Placement]


def choose(hosts: Sequence[Host], demand: Demand) -> Placement:
    """Return the best placement.

    Raises:
        AgentUnavailableError: none is possible, but one would be if every agent were connected: waiting helps.
        CapacityError: none is possible on the whole fleet; the message counts the reasons and names no host and no
            other tenant.
    """
    verdict = place(hosts, demand)
    if verdict.placement is not None:
        return verdict.placement
    if place([replace(host, connected=True) for host in hosts], demand).placement is not None:
        raise AgentUnavailableError("the agents that have room for this are not connected: try again in a few seconds")
    counts = Counter(rejection.reason.value for rejection in verdict.rejections)
    told = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items())) or "no agent is registered"
    raise CapacityError(
        f"no place for a partition of tier {demand.minimum_tier.label} or above ({told})",
        details={reason: str(count) for reason, count in sorted(counts.items())},
    )


def place(hosts: Sequence[Host], demand: Demand) -> Verdict:
    """Return the best placement of ``demand`` on ``hosts``, with all rejections."""
    rejections: list[Rejection] = []
    usable: list[Host] = []
    for host in hosts:
        if (reason := _host_rejection(host, demand)) is not None:
            rejections.append(Rejection(host.agent_id, "", reason))
        else:
            usable.append(host)
    offered = frozenset[Tier]().union(*(host.tiers for host in usable))
    tier = min((t for t in offered if t >= demand.minimum_tier), default=None)
    ranked: list[_Ranked] = []
    for host in usable:
        if tier is None or tier not in host.tiers:
            rejections.append(Rejection(host.agent_id, "", RejectionReason.TIER))
        elif tier is Tier.PROCESS:
            _rank_process(host, demand, ranked, rejections)
        elif tier is Tier.MIG:
            _rank_mig(host, demand, ranked, rejections)
        else:
            _rank_whole(host, demand, tier, ranked, rejections)
    best = min(ranked, key=lambda candidate: candidate[:3], default=None)
    return Verdict(placement=best[3] if best else None, rejections=tuple(rejections))


def _host_rejection(host: Host, demand: Demand) -> RejectionReason | None:
    if not host.connected:
        return RejectionReason.DISCONNECTED
    if host.cordoned:
        return RejectionReason.CORDONED
    if demand.regions and host.region not in demand.regions:
        return RejectionReason.REGION
    return None


def _spread(host: Host, demand: Demand) -> int:
    return SPREAD_WEIGHT * host.partitions_by_tenant.get(demand.tenant_id, 0)


def _rank_process(host: Host, demand: Demand, ranked: list[_Ranked], rejections: list[Rejection]) -> None:
    if host.process_used >= host.process_slots:
        rejections.append(Rejection(host.agent_id, "", RejectionReason.SLOTS))
        return
    score = host.process_used + _spread(host, demand)
    ranked.append((score, host.agent_id, 0, Placement(agent_id=host.agent_id, tier=Tier.PROCESS, score=score)))


def _rank_mig(host: Host, demand: Demand, ranked: list[_Ranked], rejections: list[Rejection]) -> None:
    profile = smallest_profile(host.profiles, demand.memory_mib)
    if profile is None:
        rejections.append(Rejection(host.agent_id, "", RejectionReason.PROFILE))
        return
    spread = _spread(host, demand)
    best: tuple[int, Gpu, int] | None = None
    for gpu in host.gpus:
        fit = _best_start(gpu.occupancy, profile.profile_id)
        if fit is None:
            rejections.append(Rejection(host.agent_id, gpu.uuid, RejectionReason.FRAGMENTED))
        elif best is None or (fit[0], gpu.index) < (best[0], best[1].index):
            best = (fit[0], gpu, fit[1])
    if best is not None:
        score = best[0] + spread
        placement = Placement(
            agent_id=host.agent_id,
            tier=Tier.MIG,
            gpu_uuids=(best[1].uuid,),
            mig_profile_id=profile.profile_id,
            memory_slice_start=best[2],
            memory_slices=profile.memory_slices,
            score=score,
        )
        ranked.append((score, host.agent_id, best[1].index, placement))


def _best_start(occupancy: Occupancy, profile_id: int) -> tuple[int, int] | None:
    """Return (loss of potential, start) of the best position on one GPU; the geometry functions remember."""
    geometry = KNOWN_GEOMETRY[profile_id]
    before = potential(occupancy)
    losses = (
        (before - potential(occupancy.adding(geometry, start)), start)
        for start in feasible_starts(occupancy, profile_id)
    )
    return min(losses, default=None)


def _rank_whole(host: Host, demand: Demand, tier: Tier, ranked: list[_Ranked], rejections: list[Rejection]) -> None:
    """Whole GPUs: as few as hold the model, all on one tray, since one worker process serves them."""
    free: list[Gpu] = []
    for gpu in host.gpus:
        if gpu.occupancy == EMPTY:
            free.append(gpu)
        else:
            rejections.append(Rejection(host.agent_id, gpu.uuid, RejectionReason.OCCUPIED))
    total_mib = sum(gpu.memory_mib for gpu in host.gpus)
    if not host.gpus or total_mib < demand.memory_mib:
        rejections.append(Rejection(host.agent_id, "", RejectionReason.MEMORY))
        return
    chosen: list[Gpu] = []
    for gpu in sorted(free, key=lambda candidate: candidate.index):
        chosen.append(gpu)
        if sum(member.memory_mib for member in chosen) >= demand.memory_mib:
            break
    else:
        rejections.extend(Rejection(host.agent_id, gpu.uuid, RejectionReason.OCCUPIED) for gpu in free)
        return
    # Best fit at the granularity of trays: prefer the tray whose remaining free GPUs are fewest.
    score = (len(free) - len(chosen)) * MAX_COMPUTE_SLICES + _spread(host, demand)
    placement = Placement(
        agent_id=host.agent_id,
        tier=tier,
        gpu_uuids=tuple(gpu.uuid for gpu in chosen),
        memory_slices=MEMORY_SLICES_PER_GPU,
        score=score,
    )
    ranked.append((score, host.agent_id, chosen[0].index, placement))
