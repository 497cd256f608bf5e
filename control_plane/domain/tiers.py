"""Isolation tiers, ordered (docs/architecture.md, "Isolation tiers")."""

from enum import IntEnum

from bulkhead.errors import InvalidRequestError

__all__ = ["Tier", "tier_from_label"]


class Tier(IntEnum):
    """A higher number isolates more; the values are those of ``bulkhead.v1.Tier``."""

    PROCESS = 1
    MIG = 2
    GPU = 3
    CONFIDENTIAL = 4

    @property
    def label(self) -> str:
        """The name used in records, tickets, evidence and configuration."""
        return self.name.lower()


_BY_LABEL = {tier.label: tier for tier in Tier}


def tier_from_label(label: str) -> Tier:
    """Return the tier of that name.

    Raises:
        InvalidRequestError: no tier is called that.
    """
    tier = _BY_LABEL.get(label)
    if tier is None:
        raise InvalidRequestError(f"tier: expected one of {', '.join(_BY_LABEL)}")
    return tier
