"""`bulkhead evidence verify --type snp`.

The report is known by its size; every further file holds certificates (a certificate table of the host's, too) or a
revocation list. The nonce is REPORT_DATA, filled with zero bytes to 64 where it is shorter.
"""

from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509

from bulkhead.attestation.collateral.amd import crl_item, has_endorsement, vcek_item
from bulkhead.attestation.inputs import decode_text, load_certificates, load_crls
from bulkhead.attestation.snp import (
    SNP_OBLIGATIONS,
    GuestPolicy,
    PlatformInfo,
    SigningKey,
    SnpProduct,
    SnpReport,
    VerifiedSnpReport,
    read_snp_report,
    verify_snp_report,
)
from bulkhead.attestation.snp.certificate_table import is_certificate_table, read_certificate_table
from bulkhead.attestation.snp.product import Tcb, product_of_cpuid, product_of_name
from bulkhead.attestation.snp.report import REPORT_BYTES
from bulkhead.attestation.snp.verify import REPORT_DATA_BYTES
from bulkhead.cli.evidence_files import EvidenceFiles, NamedBytes, read_bounded, under
from bulkhead.errors import EvidenceError, InvalidRequestError

__all__ = ["OBLIGATIONS", "given_product", "is_evidence", "read_claims", "report_part", "verify_files"]

OBLIGATIONS: Final = SNP_OBLIGATIONS
_VERSIONS: Final = range(2, 6)
_CRL_MARK: Final = b"-----BEGIN X509 CRL-----"


def is_evidence(data: bytes) -> bool:
    """Whether ``data`` is a report in any encoding, alone or followed by the host's certificate table."""
    try:
        decode_text(
            report_part(data)[0], is_binary=_is_report, max_bytes=REPORT_BYTES, what="report", error=EvidenceError
        )
    except EvidenceError:
        return False
    return True


def verify_files(files: EvidenceFiles) -> Mapping[str, Any]:
    """Verify a report; return what it proves.

    Raises:
        EvidenceError: an obligation is not met.
        InvalidRequestError: unknown product, or a nonce longer than REPORT_DATA.
    """
    files.refuse("snp", rim=files.rims, ocsp=files.ocsp, collateral=files.collateral)
    if len(files.nonce) > REPORT_DATA_BYTES:
        raise InvalidRequestError(f"the nonce of an SEV-SNP report has at most {REPORT_DATA_BYTES} bytes")
    product = given_product(files.product)
    report, further = files.split(is_evidence, "SNP-1")
    raw, table = report_part(report.data)
    claims = read_snp_report(raw)
    certificates, crls = _read_further(files, further)
    with under("SNP-4"):
        certificates += read_certificate_table(table) if table else ()
    _complete(files, claims, product, certificates, crls)
    verified = verify_snp_report(
        raw,
        certificates=certificates,
        report_data=files.nonce.ljust(REPORT_DATA_BYTES, b"\0"),
        policy=files.policy.snp,
        now_s=files.now_s,
        product=product,
        crls=crls,
    )
    return _facts(verified)


def given_product(name: str) -> SnpProduct | None:
    """Return the product line of a name on the command line, None for an empty one.

    Raises:
        InvalidRequestError: no such product.
    """
    if not name:
        return None
    product = product_of_name(name)
    if product is None:
        raise InvalidRequestError(f"{name} is none of milan, genoa, siena, bergamo, turin")
    return product


def _is_report(data: bytes) -> bool:
    return len(data) == REPORT_BYTES and int.from_bytes(data[:4], "little") in _VERSIONS


def report_part(data: bytes) -> tuple[bytes, bytes]:
    """Return report and certificate table of an extended report, which is one behind the other; else ``data`` alone."""
    if is_certificate_table(data[REPORT_BYTES:]) and _is_report(data[:REPORT_BYTES]):
        return data[:REPORT_BYTES], data[REPORT_BYTES:]
    return data, b""


def _read_further(
    files: EvidenceFiles, further: list[NamedBytes]
) -> tuple[list[x509.Certificate], list[x509.CertificateRevocationList]]:
    crls: list[x509.CertificateRevocationList] = []
    with under("SNP-6"):
        for path in files.crls:
            crls += load_crls(read_bounded(path), what=str(path))
        for file in further:
            crls += load_crls(file.data, what=file.name) if _is_crl(file.data) else ()
    certificates: list[x509.Certificate] = []
    with under("SNP-4"):
        named = [NamedBytes(name=str(path), data=read_bounded(path)) for path in files.certificates]
        for file in (*[item for item in further if not _is_crl(item.data)], *named):
            table = is_certificate_table(file.data)
            certificates += read_certificate_table(file.data) if table else load_certificates(file.data, what=file.name)
    return certificates, crls


def _is_crl(data: bytes) -> bool:
    if _CRL_MARK in data:
        return True
    try:
        load_crls(data, what="file")
    except EvidenceError:
        return False
    return True


def _complete(
    files: EvidenceFiles,
    claims: SnpReport,
    given: SnpProduct | None,
    certificates: list[x509.Certificate],
    crls: list[x509.CertificateRevocationList],
) -> None:
    """Add from the cache, or by an allowed fetch, what was not given."""
    product = given if claims.cpuid is None else product_of_cpuid(claims.cpuid[0], claims.cpuid[1])
    if product is None or claims.signing_key not in {SigningKey.VCEK, SigningKey.VLEK}:
        return  # SNP-2 or SNP-3: said by the verifier
    key = SigningKey(claims.signing_key)
    if not has_endorsement(certificates) and key is SigningKey.VCEK:
        entry = files.cache.find(vcek_item(claims, product))
        with under("SNP-4"):
            certificates += load_certificates(entry.data, what=entry.source)
    item = crl_item(product, key)
    if not crls and (files.policy.snp.require_crl or files.cache.has(item) or files.cache.allows(item)):
        entry = files.cache.find(item)
        with under("SNP-6"):
            crls += load_crls(entry.data, what=entry.source)


def read_claims(data: bytes) -> Mapping[str, Any]:
    """Return what a report says, verified by nobody.

    Raises:
        EvidenceError: SNP-1.
    """
    claims = read_snp_report(report_part(data)[0])
    product = product_of_cpuid(claims.cpuid[0], claims.cpuid[1]) if claims.cpuid else None
    return {
        "product": product,
        "signing_key": claims.signing_key,
        **_claims(claims),
        "reported_tcb": claims.reported_tcb if product is None else Tcb.parse(claims.reported_tcb, product),
        "committed_tcb": claims.committed_tcb if product is None else Tcb.parse(claims.committed_tcb, product),
        "launch_tcb": claims.launch_tcb if product is None else Tcb.parse(claims.launch_tcb, product),
    }


def _facts(verified: VerifiedSnpReport) -> Mapping[str, Any]:
    return {
        "product": verified.product,
        "signing_key": verified.signing_key.name,
        "csp_id": verified.csp_id,
        "leaf_sha256": verified.leaf_sha256,
        "not_after_s": verified.not_after_s,
        **_claims(verified.claims),
        "reported_tcb": verified.reported_tcb,
        "committed_tcb": verified.committed_tcb,
        "launch_tcb": verified.launch_tcb,
    }


def _claims(claims: SnpReport) -> Mapping[str, Any]:
    return {
        "version": claims.version,
        "vmpl": claims.vmpl,
        "guest_svn": claims.guest_svn,
        "policy": [bit.name for bit in GuestPolicy if bit & claims.policy],
        "platform_info": [bit.name for bit in PlatformInfo if bit & claims.platform_info],
        "platform_info_bits": claims.platform_info,
        "measurement": claims.measurement,
        "report_data": claims.report_data,
        "host_data": claims.host_data,
        "family_id": claims.family_id,
        "image_id": claims.image_id,
        "id_key_digest": claims.id_key_digest,
        "author_key_digest": claims.author_key_digest if claims.author_key_enabled else b"",
        "report_id": claims.report_id,
        "chip_id": claims.chip_id,
        "cpuid": claims.cpuid,
        "firmware": claims.committed_version,
    }
