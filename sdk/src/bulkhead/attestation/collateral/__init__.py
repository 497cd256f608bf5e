"""Collateral: what vendors publish for verification, at hand in a cache and fetched only where a tenant allows it."""

from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralItem, CollateralKind
from bulkhead.attestation.collateral.policy import CollateralPolicy

__all__ = ["CollateralEntry", "CollateralItem", "CollateralKind", "CollateralPolicy"]
