"""Completing what a GPU's report needs: manifests and OCSP answers that did not come along with it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.dates import ocsp_end
from bulkhead.attestation.collateral.kinds import CollateralItem
from bulkhead.attestation.collateral.nvidia import OCSP_NONCE_BYTES, manifest_of, ocsp_item, rim_item
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import GpuReport, NvidiaPolicy, driver_rim_id, parse_rim
from bulkhead.attestation.nvidia.identity import chip_of
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import BulkheadError, EvidenceError

__all__ = ["GpuCollateral", "complete_gpu", "end_of_gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCollateral:
    """Manifests and OCSP answers for one GPU (untrusted).

    Attributes:
        driver_rim: manifest of the driver, or None.
        vbios_rim: manifest of the VBIOS, or None.
        ocsp_responses: DER.
        missing: errors about what was looked for and not found, each with its source.
    """

    driver_rim: bytes | None = None
    vbios_rim: bytes | None = None
    ocsp_responses: tuple[bytes, ...] = ()
    missing: tuple[BulkheadError, ...] = ()

    def explain(self, error: BulkheadError) -> BulkheadError:
        """Return ``error`` of a verifier, or what is known of the missing piece that it is about."""
        obligation = obligation_of(error)
        return next((missing for missing in self.missing if obligation_of(missing) == obligation), error)


def complete_gpu(
    given: GpuCollateral,
    *,
    report: GpuReport,
    certificates: bytes,
    policy: NvidiaPolicy,
    cache: CollateralCache,
    random_bytes: Callable[[int], bytes],
) -> GpuCollateral:
    """Return ``given`` with what is missing from the cache, or fetched where that is allowed.

    OCSP answers are looked for only if none was given and the policy demands them or they are at hand anyway; the
    responder is asked about every certificate that the verifier will look at.

    Args:
        given: what came along with the evidence.
        report: claims, not trusted.
        certificates: the device's, PEM, leaf first, not trusted.
        policy: the tenant's.
        cache: collateral at hand.
        random_bytes: secure randomness, for OCSP's nonces.

    Raises:
        ConnectionFailedError: a service did not answer.
    """
    try:
        path = load_certificates(certificates, what="the device's certificates")
    except EvidenceError:
        return given  # the verifier says what is wrong with them
    search = _Search(cache)
    driver = given.driver_rim or search.manifest(driver_rim_id(chip_of(path), report))
    vbios = given.vbios_rim or search.manifest(report.vbios_rim_id)
    answers = given.ocsp_responses
    if not answers:
        pairs = [*itertools.pairwise(path[1:]), *_rim_pairs(driver), *_rim_pairs(vbios)]
        items = [ocsp_item(certificate, issuer, nonce=random_bytes(OCSP_NONCE_BYTES)) for certificate, issuer in pairs]
        answers = search.answers(items, required=policy.revocation_required)
    return GpuCollateral(driver_rim=driver, vbios_rim=vbios, ocsp_responses=answers, missing=tuple(search.missing))


def end_of_gpu(collateral: GpuCollateral, certificates: bytes) -> int:
    """Return Unix seconds at which the first of a verified GPU's certificates, manifests and answers runs out."""
    used = list(load_certificates(certificates, what="the device's certificates"))
    for manifest in (collateral.driver_rim, collateral.vbios_rim):
        used += parse_rim(manifest, what="manifest").certificates if manifest is not None else ()
    ends = [int(certificate.not_valid_after_utc.timestamp()) for certificate in used]
    ends += [end_s for end_s in map(ocsp_end, collateral.ocsp_responses) if end_s is not None]
    return min(ends)


class _Search:
    def __init__(self, cache: CollateralCache) -> None:
        self._cache = cache
        self.missing: list[BulkheadError] = []

    def manifest(self, rim_id: str) -> bytes | None:
        try:
            return manifest_of(self._cache.find(rim_item(rim_id)).data)
        except EvidenceError as error:
            self.missing.append(error)
            return None

    def answers(self, items: Sequence[CollateralItem], *, required: bool) -> tuple[bytes, ...]:
        found: dict[str, bytes] = {}
        for item in items:
            if item.name in found or not (required or self._cache.has(item) or self._cache.allows(item)):
                continue
            try:
                found[item.name] = self._cache.find(item).data
            except EvidenceError as error:
                self.missing.append(error)
        return tuple(found.values())


def _rim_pairs(manifest: bytes | None) -> list[tuple[x509.Certificate, x509.Certificate]]:
    if manifest is None:
        return []
    try:
        return list(itertools.pairwise(parse_rim(manifest, what="manifest").certificates))
    except EvidenceError:
        return []  # the verifier says what is wrong with it
