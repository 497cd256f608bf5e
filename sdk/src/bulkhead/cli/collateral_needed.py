"""Which pieces of collateral the verification of evidence in files will look for."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509

from bulkhead.attestation.collateral.amd import chain_item, crl_item, vcek_item
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.intel import tdx_items
from bulkhead.attestation.collateral.kinds import CollateralItem
from bulkhead.attestation.collateral.nvidia import OCSP_NONCE_BYTES, manifest_of, ocsp_item, rim_item
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import driver_rim_id, parse_report, parse_rim
from bulkhead.attestation.nvidia.identity import chip_of
from bulkhead.attestation.snp import SigningKey, read_snp_report
from bulkhead.attestation.snp.product import product_of_cpuid
from bulkhead.attestation.tdx import parse_quote
from bulkhead.cli import evidence_nvidia, evidence_snp, evidence_tdx
from bulkhead.cli.evidence_files import NamedBytes, read_bounded
from bulkhead.errors import EvidenceError, InvalidRequestError

__all__ = ["needed_items"]

RandomBytes = Callable[[int], bytes]
_TECHNOLOGIES = (evidence_snp, evidence_tdx, evidence_nvidia)


def needed_items(
    paths: Sequence[Path], *, product: str, cache: CollateralCache, random_bytes: RandomBytes
) -> Iterator[CollateralItem]:
    """Yield the pieces; who fetches each one before asking for the next gets those that only it names, too.

    Args:
        paths: evidence, and certificates of GPUs beside it.
        product: of an SEV-SNP report that names none.
        cache: in which a GPU's manifests are looked up, whose signers are asked about.
        random_bytes: secure randomness, for OCSP's nonces.

    Raises:
        EvidenceError: malformed evidence.
        InvalidRequestError: a file is no evidence, or a product is missing.
    """
    files = [NamedBytes(name=str(path), data=read_bounded(path)) for path in paths]
    # A quote holds certificates in PEM, too: what is evidence is known first.
    others = [file.data for file in files if not any(module.is_evidence(file.data) for module in _TECHNOLOGIES)]
    certificates = next((data for data in others if b"-----BEGIN CERTIFICATE-----" in data), None)
    for file in files:
        if file.data is certificates:
            continue
        if evidence_snp.is_evidence(file.data):
            yield from _snp(file, product)
        elif evidence_tdx.is_evidence(file.data):
            yield from tdx_items(parse_quote(evidence_tdx.quote_in(file.data)), pck_chain=certificates)
        elif evidence_nvidia.is_evidence(file.data):
            yield from _gpu(file, certificates, cache, random_bytes)
        else:
            raise InvalidRequestError(f"{file.name}: no evidence of a technology that is known")


def _snp(file: NamedBytes, product: str) -> Iterator[CollateralItem]:
    claims = read_snp_report(evidence_snp.report_part(file.data)[0])
    found = product_of_cpuid(*claims.cpuid[:2]) if claims.cpuid else evidence_snp.given_product(product)
    if found is None:
        raise InvalidRequestError(f"{file.name}: the report names no product that is known; say which: --product milan")
    key = SigningKey.VLEK if claims.signing_key == SigningKey.VLEK else SigningKey.VCEK
    if key is SigningKey.VCEK:
        yield vcek_item(claims, found)
    yield chain_item(found, key)
    yield crl_item(found, key)


def _gpu(
    file: NamedBytes, certificates: bytes | None, cache: CollateralCache, random_bytes: RandomBytes
) -> Iterator[CollateralItem]:
    evidence = evidence_nvidia.evidence_in(file.data)
    chain = evidence.certificates or certificates
    if chain is None:
        raise InvalidRequestError(f"{file.name}: the device's certificates are needed, too: give their file as well")
    report, path = parse_report(evidence.report), load_certificates(chain, what="the device's certificates")
    manifests = [rim_item(driver_rim_id(chip_of(path), report)), rim_item(report.vbios_rim_id)]
    yield from manifests
    pairs = dict.fromkeys(itertools.pairwise(path[1:]))
    for item in manifests:
        pairs |= dict.fromkeys(_signers(item, cache))
    for certificate, issuer in pairs:
        yield ocsp_item(certificate, issuer, nonce=random_bytes(OCSP_NONCE_BYTES))


def _signers(item: CollateralItem, cache: CollateralCache) -> list[tuple[x509.Certificate, x509.Certificate]]:
    try:
        manifest = parse_rim(manifest_of(cache.offline().find(item).data), what=item.name)
    except EvidenceError:
        return []  # told as missing when it was asked for
    return list(itertools.pairwise(manifest.certificates))
