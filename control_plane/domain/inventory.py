"""What a compute tray has, as its agent reports it: the checks that make it fit to plan with, and its form in SQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bulkhead import ids
from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError, StateUnavailableError, UnsupportedError
from bulkhead.fields import Fields
from control_plane.domain.tiers import Tier, tier_from_label
from control_plane.placement.geometry import (
    MAX_COMPUTE_SLICES,
    MEMORY_SLICES_PER_GPU,
    MigProfile,
    check_profiles,
)

__all__ = ["GpuInfo", "Inventory"]

MAX_GPUS: Final = 16  # a GB300 compute tray has 4, an HGX board 8
MAX_PROFILES: Final = 32  # NVML knows 18 GPU-instance profiles
MAX_STARTS: Final = 8  # one per memory slice
MAX_PROCESS_SLOTS: Final = 128
MAX_TEXT_CHARS: Final = 255
EVIDENCE_KINDS: Final = ("hardware", "operator", "simulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInfo:
    """One GPU of a tray."""

    uuid: str
    index: int
    product: str
    memory_mib: int
    memory_slices: int
    compute_slices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a compute tray has, as its agent reports it.

    Attributes:
        tiers: tiers that the agent can serve; never ``confidential``, which no backend of this build can place.
        profiles: MIG geometry of all GPUs of the tray.
        ingress_address: host:port of the tray's ingress.
        evidence_kind: ``hardware``, ``operator`` or ``simulated``.
        process_slots: largest number of ``process`` partitions.
    """

    rack: str
    tray: int
    region: str
    simulated: bool
    tiers: frozenset[Tier]
    gpus: tuple[GpuInfo, ...]
    profiles: tuple[MigProfile, ...]
    ingress_address: str
    evidence_kind: str
    process_slots: int
    driver_version: str

    def check(self) -> None:
        """Refuse an inventory that nothing may be planned with.

        Raises:
            InvalidRequestError: a field is out of bounds, two GPUs share a UUID or index, or simulation is hidden.
            UnsupportedError: tier ``confidential``, or MIG geometry that is not the known one.
        """
        ids.check_name(self.rack, "inventory.rack")
        ids.check_name(self.region, "inventory.region")
        if not self.tiers or Tier.CONFIDENTIAL in self.tiers:
            raise UnsupportedError("inventory.tiers: this build places no confidential partitions, or no tier is named")
        if self.evidence_kind not in EVIDENCE_KINDS or self.simulated != (self.evidence_kind == "simulated"):
            raise InvalidRequestError("inventory.evidence_kind: simulated exactly when the tray is")
        if not 0 <= self.process_slots <= MAX_PROCESS_SLOTS or len(self.gpus) > MAX_GPUS:
            raise InvalidRequestError(f"inventory: at most {MAX_PROCESS_SLOTS} process slots and {MAX_GPUS} GPUs")
        if not 0 < len(self.ingress_address) <= MAX_TEXT_CHARS or ":" not in self.ingress_address:
            raise InvalidRequestError("inventory.ingress_address: host:port")
        self._check_gpus()
        if Tier.MIG in self.tiers:
            self._check_mig()

    def _check_gpus(self) -> None:
        if (self.tiers & {Tier.MIG, Tier.GPU}) and not self.gpus:
            raise InvalidRequestError("inventory.gpus: tiers mig and gpu need some")
        if len({gpu.uuid for gpu in self.gpus}) != len(self.gpus) or len({g.index for g in self.gpus}) != len(
            self.gpus
        ):
            raise InvalidRequestError("inventory.gpus: a UUID or index stands twice")
        for gpu in self.gpus:
            if not 0 < len(gpu.uuid) <= MAX_TEXT_CHARS or gpu.memory_mib <= 0 or len(gpu.product) > MAX_TEXT_CHARS:
                raise InvalidRequestError("inventory.gpus: a UUID, a product and memory are needed")

    def _check_mig(self) -> None:
        if len(self.profiles) > MAX_PROFILES:
            raise InvalidRequestError(f"inventory.mig_profiles: at most {MAX_PROFILES}")
        for gpu in self.gpus:
            if (gpu.memory_slices, gpu.compute_slices) != (MEMORY_SLICES_PER_GPU, MAX_COMPUTE_SLICES):
                raise UnsupportedError(
                    "inventory.gpus: MIG is planned for boards of 8 memory and 7 compute slices only"
                )
        check_profiles(self.profiles, gpu_memory_mib=min(gpu.memory_mib for gpu in self.gpus))

    def to_json(self) -> dict[str, Json]:
        """Return the inventory as SQL keeps it."""
        return {
            "rack": self.rack,
            "tray": self.tray,
            "region": self.region,
            "simulated": self.simulated,
            "tiers": [tier.label for tier in sorted(self.tiers)],
            "gpus": [{name: getattr(gpu, name) for name in GpuInfo.__slots__} for gpu in self.gpus],
            "mig_profiles": [
                {name: getattr(profile, name) for name in MigProfile.__slots__} | {"starts": list(profile.starts)}
                for profile in self.profiles
            ],
            "ingress_address": self.ingress_address,
            "evidence_kind": self.evidence_kind,
            "process_slots": self.process_slots,
            "driver_version": self.driver_version,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "Inventory":
        """Return the inventory that SQL kept.

        Raises:
            StateUnavailableError: the row does not hold one: the database was written by another version, or damaged.
        """
        with Fields(value, what="stored inventory", error=StateUnavailableError) as fields:
            return cls(
                rack=fields.text("rack"),
                tray=fields.integer("tray"),
                region=fields.text("region"),
                simulated=fields.boolean("simulated"),
                tiers=frozenset(tier_from_label(tier) for tier in fields.texts("tiers", max_items=len(Tier))),
                gpus=tuple(_gpu(item) for item in fields.array("gpus", max_items=MAX_GPUS)),
                profiles=tuple(_profile(item) for item in fields.array("mig_profiles", max_items=MAX_PROFILES)),
                ingress_address=fields.text("ingress_address"),
                evidence_kind=fields.text("evidence_kind"),
                process_slots=fields.integer("process_slots"),
                driver_version=fields.text("driver_version", empty=True),
            )


def _gpu(item: Json) -> GpuInfo:
    with Fields(item, what="stored GPU", error=StateUnavailableError) as fields:
        return GpuInfo(
            uuid=fields.text("uuid"),
            index=fields.integer("index"),
            product=fields.text("product", empty=True),
            memory_mib=fields.integer("memory_mib"),
            memory_slices=fields.integer("memory_slices"),
            compute_slices=fields.integer("compute_slices"),
        )


def _profile(item: Json) -> MigProfile:
    with Fields(item, what="stored MIG profile", error=StateUnavailableError) as fields:
        starts = fields.array("starts", max_items=MAX_STARTS)
        return MigProfile(
            profile_id=fields.integer("profile_id"),
            compute_slices=fields.integer("compute_slices"),
            memory_slices=fields.integer("memory_slices"),
            memory_mib=fields.integer("memory_mib"),
            max_instances=fields.integer("max_instances"),
            starts=tuple(start for start in starts if isinstance(start, int)),
        )
