"""Verification of an SEV-SNP report against a tenant's policy."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.obligations import failed
from bulkhead.attestation.snp.appraisal import appraise_snp
from bulkhead.attestation.snp.endorsement import Endorsement, verify_endorsement
from bulkhead.attestation.snp.policy import SnpPolicy
from bulkhead.attestation.snp.product import SnpProduct, Tcb, product_of_cpuid
from bulkhead.attestation.snp.report import SigningKey, SnpReport, read_snp_report
from bulkhead.attestation.snp.roots import SnpRoots, amd_roots
from bulkhead.errors import EvidenceBindingError

__all__ = ["REPORT_DATA_BYTES", "VerifiedSnpReport", "verify_snp_report"]

REPORT_DATA_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnpReport:
    """A report that met every obligation. Only :func:`verify_snp_report` makes one.

    Attributes:
        claims: the report's, now trusted.
        product: product line.
        signing_key: VCEK or VLEK.
        csp_id: provider's id of a VLEK; empty for a VCEK.
        reported_tcb: levels from which the signing key was derived.
        committed_tcb: levels below which the firmware cannot be rolled back.
        launch_tcb: levels at the guest's launch.
        leaf_sha256: SHA-256 of the leaf certificate.
        not_after_s: Unix seconds at which the first of certificates and revocation list runs out.
    """

    claims: SnpReport
    product: SnpProduct
    signing_key: SigningKey
    csp_id: str
    reported_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    leaf_sha256: bytes
    not_after_s: int


def verify_snp_report(
    report: bytes,
    *,
    certificates: Sequence[x509.Certificate],
    report_data: bytes,
    policy: SnpPolicy,
    now_s: int,
    product: SnpProduct | None = None,
    crls: Sequence[x509.CertificateRevocationList] = (),
    roots: Mapping[SnpProduct, SnpRoots] | None = None,
) -> VerifiedSnpReport:
    """Verify a report and appraise it against ``policy``.

    Obligations (:data:`bulkhead.attestation.snp.SNP_OBLIGATIONS`), in the order of checking:
        SNP-1 report well-formed, reserved fields zero; SNP-2 product known; SNP-3 signing key named and not masked;
        SNP-4 chain to the product's pinned ARK; SNP-5 validity; SNP-6 revocation; SNP-7 leaf of the right kind;
        SNP-8 patch levels equal REPORTED_TCB; SNP-9 hardware id equals CHIP_ID; SNP-10 signature; SNP-11 REPORT_DATA.
        Then against the policy: SNP-12 product; SNP-13 kind of signing key; SNP-14 no debugging; SNP-15 no migration;
        SNP-16 rest of POLICY; SNP-17 VMPL; SNP-18 TCB floors; SNP-19 firmware committed; SNP-20 MEASUREMENT;
        SNP-21 HOST_DATA; SNP-22 PLATFORM_INFO; SNP-23 CHIP_ID; SNP-24 ID and author keys, GUEST_SVN.

    The caller checks: that ``report_data`` is fresh and binds the keys it is about to use
    (:func:`bulkhead.attestation.statement.statement`), and devices outside the processor.

    Args:
        report: untrusted; raw, hexadecimal, base64 or PEM.
        certificates: untrusted; the VCEK's or VLEK's, in any order with the product's own ASK, ASVK and ARK, of which
            none is needed: no certificate of any other path may come along.
        report_data: 64 bytes expected.
        policy: the tenant's.
        now_s: Unix seconds.
        product: for version 2, which names none; must agree with later versions.
        crls: untrusted; AMD's revocation lists, applied where given.
        roots: authorities to trust; AMD's own if None.

    Raises:
        EvidenceError: malformed or does not verify; ``details["obligation"]`` names which.
        EvidenceExpiredError: a certificate or list out of date.
        EvidenceBindingError: other REPORT_DATA.
        EvidencePolicyError: verified, but ``policy`` does not accept it.
    """
    claims = read_snp_report(report)  # SNP-1
    product = _product(claims, product)  # SNP-2
    signing_key = _signing_key(claims)  # SNP-3
    endorsement = verify_endorsement(  # SNP-4 to SNP-7
        certificates,
        product=product,
        signing_key=signing_key,
        roots=(amd_roots() if roots is None else roots)[product],
        crls=crls,
        crl_required=policy.require_crl,
        max_crl_age_s=policy.max_crl_age_s,
        now_s=now_s,
    )
    _check_leaf_matches(claims, endorsement, product)  # SNP-8, SNP-9
    _check_signature(claims, endorsement)  # SNP-10
    if len(report_data) != REPORT_DATA_BYTES or not hmac.compare_digest(claims.report_data, report_data):  # SNP-11
        raise failed("SNP-11", "REPORT_DATA is not what was asked for", EvidenceBindingError)
    appraise_snp(claims, product, signing_key, endorsement.csp_id, policy)  # SNP-12 to SNP-24
    return VerifiedSnpReport(
        claims=claims,
        product=product,
        signing_key=signing_key,
        csp_id=endorsement.csp_id,
        reported_tcb=Tcb.parse(claims.reported_tcb, product),
        committed_tcb=Tcb.parse(claims.committed_tcb, product),
        launch_tcb=Tcb.parse(claims.launch_tcb, product),
        leaf_sha256=hashlib.sha256(endorsement.certificate.public_bytes(Encoding.DER)).digest(),
        not_after_s=endorsement.not_after_s,
    )


def _product(claims: SnpReport, given: SnpProduct | None) -> SnpProduct:
    if claims.cpuid is None:
        if given is None:
            raise failed("SNP-2", "a version 2 report names no product: it must be given")
        return given
    found = product_of_cpuid(claims.cpuid[0], claims.cpuid[1])
    if found is None:
        raise failed(
            "SNP-2", f"CPUID family 0x{claims.cpuid[0]:02X}, model 0x{claims.cpuid[1]:02X} is no known product"
        )
    if given is not None and given is not found:
        raise failed("SNP-2", f"the report is from {found.value}, not from {given.value}")
    return found


def _signing_key(claims: SnpReport) -> SigningKey:
    if claims.signing_key not in {SigningKey.VCEK, SigningKey.VLEK}:
        raise failed("SNP-3", f"SIGNING_KEY {claims.signing_key} is neither VCEK nor VLEK")
    # A VLEK is not the chip's key, and signs whatever the mask is; SNP-10 checks that it did.
    if claims.chip_key_masked and claims.signing_key == SigningKey.VCEK:
        raise failed("SNP-3", "the host masks the chip's key: such a report is not signed")
    return SigningKey(claims.signing_key)


def _check_leaf_matches(claims: SnpReport, endorsement: Endorsement, product: SnpProduct) -> None:
    if endorsement.levels != claims.reported_tcb:
        raise failed("SNP-8", "the certificate is for another TCB than the report's REPORTED_TCB")
    if endorsement.hwid and endorsement.hwid.ljust(len(claims.chip_id), b"\0") != claims.chip_id:
        raise failed("SNP-9", f"the {product.value} certificate is for another chip than the report's CHIP_ID")


def _check_signature(claims: SnpReport, endorsement: Endorsement) -> None:
    try:
        endorsement.key.verify(encode_dss_signature(*claims.signature), claims.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise failed("SNP-10", "the signature is not by the certificate's key over this report") from error
