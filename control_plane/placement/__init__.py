"""Where a partition goes: exact geometry, hard constraints, one documented score, a reason for every rejection."""

from control_plane.placement.geometry import MigProfile, Occupancy, check_profiles
from control_plane.placement.place import (
    Demand,
    Gpu,
    Host,
    Placement,
    Rejection,
    RejectionReason,
    Verdict,
    choose,
    place,
)

__all__ = [
    "Demand",
    "Gpu",
    "Host",
    "MigProfile",
    "Occupancy",
    "Placement",
    "Rejection",
    "RejectionReason",
    "Verdict",
    "check_profiles",
    "choose",
    "place",
]
