"""`bulkhead evidence verify --type snp`.

The first file is the report, every further one a certificate, as are those of ``--certs``. The nonce is REPORT_DATA,
filled with zero bytes to 64 where it is shorter.
"""

from collections.abc import Mapping
from typing import Any

from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.snp import (
    GuestPolicy,
    PlatformInfo,
    SnpProduct,
    VerifiedSnpReport,
    parse_snp_policy,
    verify_snp_report,
)
from bulkhead.attestation.snp.product import product_of_name
from bulkhead.attestation.snp.verify import REPORT_DATA_BYTES
from bulkhead.cli.evidence_files import EvidenceFiles, read_bounded, under
from bulkhead.errors import InvalidRequestError

__all__ = ["verify_files"]


def verify_files(files: EvidenceFiles) -> Mapping[str, Any]:
    """Verify a report; return what it proves.

    Raises:
        EvidenceError: an obligation is not met.
        InvalidRequestError: unknown product, or a nonce longer than REPORT_DATA.
        ConfigError: the policy's table.
    """
    policy = parse_snp_policy(files.policy)
    if len(files.nonce) > REPORT_DATA_BYTES:
        raise InvalidRequestError(f"the nonce of an SEV-SNP report has at most {REPORT_DATA_BYTES} bytes")
    first, *further = files.evidence
    with under("SNP-1"):
        report = read_bounded(first)
    with under("SNP-4"):
        certificates = [
            certificate
            for path in (*further, *files.certificates)
            for certificate in load_certificates(read_bounded(path), what=str(path))
        ]
    with under("SNP-6"):
        crls = [crl for path in files.crls for crl in load_crls(read_bounded(path), what=str(path))]
    verified = verify_snp_report(
        report,
        certificates=certificates,
        report_data=files.nonce.ljust(REPORT_DATA_BYTES, b"\0"),
        policy=policy,
        now_s=files.now_s,
        product=_product(files.product),
        crls=crls,
    )
    return _facts(verified)


def _product(name: str) -> SnpProduct | None:
    if not name:
        return None
    product = product_of_name(name)
    if product is None:
        raise InvalidRequestError(f"{name} is none of milan, genoa, siena, bergamo, turin")
    return product


def _facts(verified: VerifiedSnpReport) -> Mapping[str, Any]:
    claims = verified.claims
    return {
        "product": verified.product,
        "signing_key": verified.signing_key.name,
        "csp_id": verified.csp_id,
        "leaf_sha256": verified.leaf_sha256,
        "not_after_s": verified.not_after_s,
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
        "reported_tcb": verified.reported_tcb,
        "committed_tcb": verified.committed_tcb,
        "launch_tcb": verified.launch_tcb,
        "firmware": claims.committed_version,
    }
