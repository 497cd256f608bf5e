"""MIG geometry: which placements exist on a GPU, and which of them are free.

A placement is a profile and a start, in memory slices (8 on every current board). Rules, from the MIG user guide
(docs.nvidia.com/datacenter/tesla/mig-user-guide, "MIG device profiles"):

1. an instance starts at one of its profile's legal starts and covers the profile's memory slices;
2. instances do not overlap;
3. the compute slices of all instances sum to at most the GPU's;
4. a profile has at most its own number of instances on one GPU.
"""

from dataclasses import dataclass, field

from bulkhead.errors import ConflictError, InvalidRequestError
from data_plane.ports import Gpu, MigProfile, PartitionSpec

__all__ = ["GpuLedger", "Placement"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Memory slices ``[start, start + size)`` of one GPU; ``profile`` is None for the whole GPU."""

    start: int
    size: int
    profile: MigProfile | None

    def overlaps(self, other: "Placement") -> bool:
        """Tell whether both use one memory slice."""
        return self.start < other.start + other.size and other.start < self.start + self.size

    @property
    def slices(self) -> range:
        """The memory slices it covers."""
        return range(self.start, self.start + self.size)


@dataclass(slots=True)
class GpuLedger:
    """Who has which memory slices of one GPU. A cordoned holder keeps its place for good."""

    gpu: Gpu
    profiles: dict[int, MigProfile]
    _taken: dict[str, Placement] = field(default_factory=dict)

    def place_whole(self) -> Placement:
        """Return the placement that is the whole GPU."""
        return Placement(0, self.gpu.memory_slices, None)

    def place_mig(self, spec: PartitionSpec) -> Placement:
        """Return the placement that ``spec`` names, by rule 1.

        Raises:
            InvalidRequestError: no such profile, start or size, or an amount of memory that differs from the table.
        """
        profile = self.profiles.get(spec.mig_profile_id)
        if profile is None:
            raise InvalidRequestError(f"unknown MIG profile id {spec.mig_profile_id}")
        if spec.memory_slices != profile.memory_slices:
            raise InvalidRequestError(
                f"MIG profile {profile.profile_id} covers {profile.memory_slices} memory slices, not "
                f"{spec.memory_slices}"
            )
        if spec.memory_slice_start not in profile.starts:
            raise InvalidRequestError(
                f"MIG profile {profile.profile_id} does not start at memory slice {spec.memory_slice_start}"
            )
        if spec.memory_mib > profile.memory_mib:
            raise InvalidRequestError(
                f"MIG profile {profile.profile_id} has {profile.memory_mib} MiB, the model needs {spec.memory_mib}"
            )
        return Placement(spec.memory_slice_start, profile.memory_slices, profile)

    def check_free(self, wanted: Placement) -> None:
        """Check rules 2 to 4 for one more placement.

        Raises:
            ConflictError: it does not fit beside those taken.
        """
        if any(wanted.overlaps(taken) for taken in self._taken.values()):
            raise ConflictError(f"memory slices of GPU {self.gpu.index} are taken or cordoned")
        if wanted.profile is None:
            return
        profiles = [taken.profile for taken in self._taken.values() if taken.profile is not None]
        if sum(profile.compute_slices for profile in profiles) + wanted.profile.compute_slices > (
            self.gpu.compute_slices
        ):
            raise ConflictError(f"GPU {self.gpu.index} has too few compute slices left")
        if profiles.count(wanted.profile) >= wanted.profile.max_instances:
            raise ConflictError(
                f"GPU {self.gpu.index} takes at most {wanted.profile.max_instances} instances of MIG profile "
                f"{wanted.profile.profile_id}"
            )

    def take(self, holder: str, placement: Placement) -> None:
        """Record a placement that :meth:`check_free` allowed."""
        self._taken[holder] = placement

    def held_by(self, holder: str) -> Placement | None:
        """Return the placement of ``holder`` on this GPU, if it has one."""
        return self._taken.get(holder)

    def free(self, holder: str) -> None:
        """Give the placement of ``holder`` back."""
        self._taken.pop(holder, None)
