"""Collateral: what vendors publish for verification, at hand in a cache and fetched only where a tenant allows it.

:class:`CollateralCache` finds a piece: in a :class:`CollateralStore` on disk, else through a fetcher that the tenant's
policy allows. Every piece is signed by its vendor and verified where it is used, wherever it came from.
"""

from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralItem, CollateralKind
from bulkhead.attestation.collateral.policy import CollateralPolicy

__all__ = ["CollateralEntry", "CollateralItem", "CollateralKind", "CollateralPolicy"]
