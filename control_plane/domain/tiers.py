"""Isolation tiers as the control plane reads them; what a tier is stands in :mod:`bulkhead.attestation.tiers`."""

from bulkhead.attestation.tiers import Tier
from bulkhead.errors import InvalidRequestError

__all__ = ["Tier", "tier_from_label"]


def tier_from_label(label: str) -> Tier:
    """Return the tier of that name.

    Raises:
        InvalidRequestError: no tier is called that.
    """
    try:
        return Tier(label)
    except ValueError as error:
        raise InvalidRequestError(f"tier: expected one of {', '.join(tier.value for tier in Tier)}") from error
