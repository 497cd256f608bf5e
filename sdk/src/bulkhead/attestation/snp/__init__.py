"""AMD SEV-SNP: attestation reports of versions 2 to 5 from Milan, Genoa (with Siena and Bergamo) and Turin.

Start at :func:`verify_snp_report`; :data:`SNP_OBLIGATIONS` lists what it checks. Written from AMD's SEV-SNP firmware
ABI (56860) and VCEK certificate specification (57230).
"""

from bulkhead.attestation.snp.obligations import SNP_OBLIGATIONS
from bulkhead.attestation.snp.policy import SnpPolicy, parse_snp_policy
from bulkhead.attestation.snp.product import SnpProduct, Tcb
from bulkhead.attestation.snp.report import GuestPolicy, PlatformInfo, SigningKey, SnpReport, read_snp_report
from bulkhead.attestation.snp.roots import SnpRoots, amd_roots
from bulkhead.attestation.snp.verify import VerifiedSnpReport, verify_snp_report

__all__ = [
    "SNP_OBLIGATIONS",
    "GuestPolicy",
    "PlatformInfo",
    "SigningKey",
    "SnpPolicy",
    "SnpProduct",
    "SnpReport",
    "SnpRoots",
    "Tcb",
    "VerifiedSnpReport",
    "amd_roots",
    "parse_snp_policy",
    "read_snp_report",
    "verify_snp_report",
]
