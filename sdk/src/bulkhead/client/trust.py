"""What a client believes by its own configuration, and the verification of grants against it."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from bulkhead.attestation import EvidenceKind, HardwareVerifier, TrustPolicy
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.https import HttpsFetcher
from bulkhead.attestation.collateral.kinds import CollateralEntry
from bulkhead.attestation.collateral.store import CollateralStore, default_directory
from bulkhead.client.config import Profile, TicketIssuerPin
from bulkhead.client.opening import ReceivedGrant
from bulkhead.errors import ConfigError
from bulkhead.protocol.grant import Expectation, TrustAnchors, VerifiedGrant, verify_grant

__all__ = ["Trust"]

_log = logging.getLogger("bulkhead.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """A tenant's pins.

    Attributes:
        tenant_id: own tenant.
        log_vkey: verifier key of its audit log.
        ticket_issuer: the pinned ones.
        trust_policy: which evidence is accepted.
        development_mode: whether simulated evidence may be accepted.
        model_digests: pinned digests (32 bytes) by model name.
        tenant_roots: fingerprints (32 bytes) of the tenant's own roots; none for a tenant without.
        hardware: verifies hardware evidence to the vendors' pinned roots, with the collateral at hand; None has none.
    """

    tenant_id: str
    log_vkey: str
    ticket_issuer: TicketIssuerPin
    trust_policy: TrustPolicy
    development_mode: bool
    model_digests: Mapping[str, bytes]
    tenant_roots: tuple[bytes, ...] = ()
    hardware: HardwareVerifier | None = None

    @classmethod
    def from_profile(cls, profile: Profile, *, development_mode: bool | None = None) -> Self:
        """Return the pins of a profile.

        Args:
            profile: the tenant's own.
            development_mode: None takes the profile's.

        Raises:
            ConfigError: the profile lacks one that a session needs.
        """
        if profile.tenant_id is None or profile.log_vkey is None or profile.ticket_issuer is None:
            raise ConfigError(
                f"profile {profile.name}: a session needs tenant, log_vkey and ticket_issuer (or its fingerprint)"
            )
        return cls(
            tenant_id=profile.tenant_id,
            log_vkey=profile.log_vkey,
            ticket_issuer=profile.ticket_issuer,
            trust_policy=profile.trust,
            development_mode=profile.development_mode if development_mode is None else development_mode,
            model_digests=profile.model_digests,
            tenant_roots=profile.root.fingerprints,
            hardware=_hardware(profile),
        )

    def anchors(
        self, ticket_issuer: bytes, *, also: Iterable[str] = (), also_roots: Iterable[bytes] = ()
    ) -> TrustAnchors:
        """Return what verification stands on, if the ticket's issuer is a pinned one.

        Args:
            ticket_issuer: raw Ed25519 public key (32 bytes), as received.
            also: fingerprints of further issuers, e.g. one of an older receipt.
            also_roots: fingerprints (32 bytes) of further roots of the tenant, e.g. one that was replaced since.

        Raises:
            EvidencePolicyError: the ticket issuer is not pinned.
        """
        return TrustAnchors(
            log_vkey=self.log_vkey,
            ticket_issuers=(self.ticket_issuer.also(also).check(ticket_issuer),),
            trust_policy=self.trust_policy,
            development_mode=self.development_mode,
            tenant_roots=(*self.tenant_roots, *also_roots),
            hardware=self.hardware,
        )

    async def prepare(self, received: ReceivedGrant) -> None:
        """Have at hand what verifying hardware evidence will need; off the event loop, since services may be slow.

        Nothing is fetched that the trust policy does not allow.

        Raises:
            ConnectionFailedError: a service that may be asked did not answer.
        """
        if self.hardware is not None and EvidenceKind.HARDWARE in self.trust_policy.accepted_kinds:
            await asyncio.to_thread(self.hardware.prepare, received.offer.evidence, trust_policy=self.trust_policy)

    def collateral_for(self, received: ReceivedGrant) -> tuple[CollateralEntry, ...]:
        """Return what verifying the grant's evidence takes from vendors, for saved receipts; offline."""
        if self.hardware is None or EvidenceKind.HARDWARE not in self.trust_policy.accepted_kinds:
            return ()
        return self.hardware.collateral_for(received.offer.evidence, trust_policy=self.trust_policy)

    def verify(self, received: ReceivedGrant, *, expectation: Expectation, now_s: int) -> VerifiedGrant:
        """Return the grant if everything of it holds (:func:`bulkhead.protocol.grant.verify_grant`).

        A simulated worker, which only development mode lets through, is logged as such every time.

        Raises:
            EvidencePolicyError: the ticket issuer is not pinned.
            ProofError, EvidenceError, TicketError: see there.
        """
        anchors = self.anchors(received.ticket_issuer)
        grant = verify_grant(received.offer, expectation=expectation, anchors=anchors, now_s=now_s)
        if grant.simulated:
            _log.warning(
                "session %s: the worker is SIMULATED and proves nothing (development mode)", grant.claims.session
            )
        return grant


def _hardware(profile: Profile) -> HardwareVerifier:
    rules = profile.trust.collateral
    return HardwareVerifier(
        collateral=CollateralCache(
            store=CollateralStore(profile.collateral_directory or default_directory()),
            policy=rules,
            fetcher=HttpsFetcher(allowed=rules.fetch, mirrors=rules.mirrors) if rules.fetch else None,
            now_s=lambda: int(time.time()),
        )
    )
