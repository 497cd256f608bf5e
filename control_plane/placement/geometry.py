"""Exact MIG geometry: which instances may stand on a GPU together, and whether an agent's table is the known one.

Positions are in memory slices (eight per GPU), never in compute slices: a placement ``{start, size}`` is what
``nvmlDeviceCreateGpuInstanceWithPlacement`` takes. Instances may not overlap, and their compute slices sum to at most
seven. Profiles are keyed by the id that ``nvidia-smi mig -lgip`` prints; names drift between drivers and NVML's own
enumeration (0, 1, 2, ...) is another numbering.

The table is that of every seven-slice board (A100, H100, H200, B200, GB200, GB300). Sources: NVIDIA MIG User Guide,
``nvidia-smi mig -lgipp`` (A100 and H100 NVL print the same starts and sizes); NVIDIA/k8s-test-infra
``mig_placements.go`` for GB200 and GB300, where no hardware capture is published: hence an inventory that departs from
the table is refused instead of planned with. The starts in NVIDIA/go-nvml's h100.go, h200.go and b200.go mocks are
wrong for hardware (a 7g of size 7) and are not used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from bulkhead.errors import UnsupportedError

__all__ = [
    "BASE_PROFILE_IDS",
    "EMPTY",
    "KNOWN_GEOMETRY",
    "MAX_COMPUTE_SLICES",
    "MEDIA_PROFILE_ID",
    "MEMORY_SLICES_PER_GPU",
    "WHOLE_GPU_MASK",
    "Geometry",
    "MigProfile",
    "Occupancy",
    "check_profiles",
    "feasible_starts",
    "potential",
    "smallest_profile",
]

MEMORY_SLICES_PER_GPU: Final = 8
MAX_COMPUTE_SLICES: Final = 7
WHOLE_GPU_MASK: Final = (1 << MEMORY_SLICES_PER_GPU) - 1
MEDIA_PROFILE_ID: Final = 20  # 1g+me: one per GPU, with the media engines; inference never needs them
BASE_PROFILE_IDS: Final = frozenset({19, 14, 9, 5, 0})  # 1g 2g 3g 4g 7g: every MIG board has these
# Published sizes are rounded up to whole megabytes per slice: GB300 lists 8 x 35,584 MiB on 284,208 MiB, H200 8 x
# 18,432 on 143,771 (2.6% over). More than 5% over is another board's table.
MEMORY_TOLERANCE: Final = 1.05


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is fixed about a profile on every seven-slice board."""

    compute_slices: int
    memory_slices: int
    max_instances: int
    starts: tuple[int, ...]


KNOWN_GEOMETRY: Final[Mapping[int, Geometry]] = MappingProxyType(
    {
        19: Geometry(1, 1, 7, (0, 1, 2, 3, 4, 5, 6)),
        20: Geometry(1, 1, 1, (0, 1, 2, 3, 4, 5, 6)),
        15: Geometry(1, 2, 4, (0, 2, 4, 6)),
        14: Geometry(2, 2, 3, (0, 2, 4)),
        9: Geometry(3, 4, 2, (0, 4)),
        5: Geometry(4, 4, 1, (0,)),
        0: Geometry(7, 8, 1, (0,)),
    }
)


@dataclass(frozen=True, slots=True)
class MigProfile:
    """A profile as an agent reports it. Untrusted until :func:`check_profiles` has passed."""

    profile_id: int
    compute_slices: int
    memory_slices: int
    memory_mib: int
    max_instances: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What stands on one GPU: a bit per occupied memory slice, and the sum of compute slices.

    A cordoned slice counts as occupied. No count per profile is needed: without the media profile, ``max_instances``
    follows from the starts and the two fields here.
    """

    mask: int = 0
    compute_slices: int = 0

    def adding(self, geometry: Geometry, start: int) -> "Occupancy":
        """Return the occupancy with one more instance; legality is :func:`feasible_starts`'s to say."""
        return Occupancy(self.mask | _mask(geometry, start), self.compute_slices + geometry.compute_slices)


EMPTY: Final = Occupancy()


def check_profiles(profiles: Iterable[MigProfile], *, gpu_memory_mib: int) -> tuple[MigProfile, ...]:
    """Return the profiles of an inventory if they are the known table's.

    Args:
        profiles: as reported by an agent (untrusted).
        gpu_memory_mib: framebuffer of the smallest GPU of the tray.

    Raises:
        UnsupportedError: an unknown or repeated id, other slices or starts than the table's, a missing base profile,
            or memory that no such slice of this GPU can have.
    """
    seen: dict[int, MigProfile] = {}
    for profile in profiles:
        known = KNOWN_GEOMETRY.get(profile.profile_id)
        reported = Geometry(
            profile.compute_slices, profile.memory_slices, profile.max_instances, tuple(sorted(profile.starts))
        )
        if known is None or reported != known or profile.profile_id in seen:
            raise UnsupportedError(
                f"MIG profile {profile.profile_id}: the reported geometry is not the known one; nothing is planned here"
            )
        share_mib = gpu_memory_mib * known.memory_slices / MEMORY_SLICES_PER_GPU
        if not 0 < profile.memory_mib <= share_mib * MEMORY_TOLERANCE:
            raise UnsupportedError(f"MIG profile {profile.profile_id}: its memory does not fit the reported GPU")
        seen[profile.profile_id] = profile
    if missing := sorted(BASE_PROFILE_IDS - seen.keys()):
        raise UnsupportedError(f"MIG geometry without the base profiles {missing}; nothing is planned here")
    return tuple(seen.values())


def smallest_profile(profiles: Iterable[MigProfile], memory_mib: int) -> MigProfile | None:
    """Return the profile with the fewest memory, then compute slices whose memory holds ``memory_mib``.

    No larger profile needs to be tried when it has no room: wherever a larger instance of this table can stand, so can
    every smaller one that starts at the same slice.
    """
    fitting = [p for p in profiles if p.memory_mib >= memory_mib and p.profile_id != MEDIA_PROFILE_ID]
    return min(fitting, key=lambda p: (p.memory_slices, p.compute_slices, p.profile_id), default=None)


@cache
def feasible_starts(occupancy: Occupancy, profile_id: int) -> tuple[int, ...]:
    """Return the memory slices at which an instance of a known profile may still start, ascending."""
    geometry = KNOWN_GEOMETRY[profile_id]
    if occupancy.compute_slices + geometry.compute_slices > MAX_COMPUTE_SLICES:
        return ()
    return tuple(start for start in geometry.starts if not occupancy.mask & _mask(geometry, start))


@cache
def potential(occupancy: Occupancy) -> int:
    """Return how much a GPU can still take: over the base profiles, feasible starts weighted by compute slices.

    The loss of potential that a placement causes is its fragmentation: it is small beside what already stands, and
    large where it breaks up room for bigger instances.
    """
    return sum(
        len(feasible_starts(occupancy, profile_id)) * KNOWN_GEOMETRY[profile_id].compute_slices
        for profile_id in BASE_PROFILE_IDS
    )


def _mask(geometry: Geometry, start: int) -> int:
    return ((1 << geometry.memory_slices) - 1) << start
