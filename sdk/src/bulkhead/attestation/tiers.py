"""Isolation tiers, in order (docs/architecture.md names what each holds and whom it trusts)."""

from enum import Enum
from typing import Self

__all__ = ["Tier"]


class Tier(Enum):
    """How far a partition is isolated; compares by strength: ``PROCESS < MIG < GPU < CONFIDENTIAL``.

    The values are the names used in records, tickets, evidence and configuration.
    """

    PROCESS = "process"
    MIG = "mig"
    GPU = "gpu"
    CONFIDENTIAL = "confidential"

    _rank: int

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python, for each look-up

    @property
    def label(self) -> str:
        """The value."""
        return str(self.value)

    def __lt__(self, other: Self) -> bool:
        return self._rank < other._rank

    def __le__(self, other: Self) -> bool:
        return self._rank <= other._rank

    def __gt__(self, other: Self) -> bool:
        return self._rank > other._rank

    def __ge__(self, other: Self) -> bool:
        return self._rank >= other._rank


for _place, _tier in enumerate(Tier):
    _tier._rank = _place  # noqa: SLF001  once, here: comparisons are frequent where a fleet is searched
