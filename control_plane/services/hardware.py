"""The platform's own trust in hardware evidence: which confidential guests its control plane gives tickets for.

A tenant's SDK judges the same evidence again, under the tenant's policy; this one only keeps the platform from handing
out what cannot hold.
"""

import time
from dataclasses import dataclass
from typing import Self

from bulkhead.attestation import HardwareVerifier, TrustPolicy, load_trust_policy
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.https import HttpsFetcher
from bulkhead.attestation.collateral.store import CollateralStore, default_directory
from control_plane.services.settings import FleetSettings

__all__ = ["HardwareTrust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareTrust:
    """A trust policy and the verifier that applies it."""

    policy: TrustPolicy
    verifier: HardwareVerifier

    @classmethod
    def from_settings(cls, settings: FleetSettings) -> Self | None:
        """Return the trust that the configuration names, or None: hardware evidence is then not admitted.

        Raises:
            ConfigError: the policy cannot be read.
        """
        if settings.hardware_policy is None:
            return None
        policy = load_trust_policy(settings.hardware_policy)
        rules = policy.collateral
        cache = CollateralCache(
            store=CollateralStore(settings.collateral_directory or default_directory()),
            policy=rules,
            fetcher=HttpsFetcher(allowed=rules.fetch, mirrors=rules.mirrors) if rules.fetch else None,
            now_s=lambda: int(time.time()),
        )
        return cls(policy=policy, verifier=HardwareVerifier(collateral=cache))
