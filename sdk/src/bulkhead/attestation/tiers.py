"""Isolation tiers, in order (docs/architecture.md names what each holds and whom it trusts)."""

from enum import Enum
from typing import Self

__all__ = ["Tier"]


class Tier(Enum):
    """How far a partition is isolated; compares by strength: ``PROCESS < MIG < GPU < CONFIDENTIAL``."""

    PROCESS = "process"
    MIG = "mig"
    GPU = "gpu"
    CONFIDENTIAL = "confidential"

    @property
    def _rank(self) -> int:
        return list(type(self)).index(self)

    def __lt__(self, other: Self) -> bool:
        return self._rank < other._rank

    def __le__(self, other: Self) -> bool:
        return self._rank <= other._rank

    def __gt__(self, other: Self) -> bool:
        return self._rank > other._rank

    def __ge__(self, other: Self) -> bool:
        return self._rank >= other._rank
