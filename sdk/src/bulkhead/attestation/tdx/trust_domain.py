"""Checks of the trust domain itself: its report, verified by the caller, against a tenant's policy."""

import hmac

from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx.policy import (
    ATTRIBUTE_DEBUG_GROUP,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_SEPT_VE_DISABLE,
    XFAM_MANDATORY,
    TdImage,
    TdxPolicy,
)
from bulkhead.attestation.tdx.quote import TdReport
from bulkhead.errors import EvidenceBindingError, EvidencePolicyError

__all__ = ["check_report_data", "check_trust_domain"]


def check_trust_domain(report: TdReport, policy: TdxPolicy) -> None:
    """Check that a TD is closed to its host and runs what ``policy`` allows.

    Raises:
        EvidencePolicyError: TDX-19 to TDX-25.
    """
    _check_attributes(int.from_bytes(report.td_attributes, "little"), report, policy)
    xfam = int.from_bytes(report.xfam, "little")
    if xfam & XFAM_MANDATORY != XFAM_MANDATORY or xfam & ~(policy.allowed_xfam | XFAM_MANDATORY):  # TDX-23
        raise failed("TDX-23", f"XFAM {xfam:#x} lacks a mandatory feature or has an unknown one", EvidencePolicyError)
    if policy.images is not None and not any(_is_image(report, image) for image in policy.images):  # TDX-24
        raise failed("TDX-24", "MRTD and RTMRs are not those of an allowed image", EvidencePolicyError)
    for name, value, allowed in (  # TDX-25
        ("MRCONFIGID", report.mr_config_id, policy.mr_config_ids),
        ("MROWNER", report.mr_owner, policy.mr_owners),
        ("MROWNERCONFIG", report.mr_owner_config, policy.mr_owner_configs),
    ):
        if value not in allowed:
            raise failed("TDX-25", f"{name} has a value that the policy does not allow", EvidencePolicyError)


def check_report_data(report: TdReport, expected: bytes) -> None:
    """Check that REPORTDATA is ``expected`` (64 bytes), in constant time.

    Raises:
        EvidenceBindingError: TDX-26, the quote speaks of another nonce, session or key.
    """
    if not hmac.compare_digest(report.report_data, expected):
        raise failed("TDX-26", "REPORTDATA is not what was asked for", EvidenceBindingError)


def _check_attributes(attributes: int, report: TdReport, policy: TdxPolicy) -> None:
    if attributes & ATTRIBUTE_DEBUG_GROUP:  # TDX-19
        raise failed("TDX-19", "the TD is under debug or profiling: its host reads it", EvidencePolicyError)
    if not attributes & ATTRIBUTE_SEPT_VE_DISABLE:  # TDX-20
        raise failed("TDX-20", "SEPT_VE_DISABLE is clear", EvidencePolicyError)
    if attributes & ATTRIBUTE_MIGRATABLE:  # TDX-21
        raise failed("TDX-21", "the TD can migrate: it could leave the attested platform", EvidencePolicyError)
    if report.mr_service_td is not None and any(report.mr_service_td):  # TDX-21
        raise failed("TDX-21", "a service TD is bound, which may export the TD", EvidencePolicyError)
    unexpected = attributes & ~(ATTRIBUTE_SEPT_VE_DISABLE | policy.optional_attributes)
    if unexpected:  # TDX-22
        raise failed("TDX-22", f"reserved or unexpected TD attributes {unexpected:#x}", EvidencePolicyError)


def _is_image(report: TdReport, image: TdImage) -> bool:
    return report.mr_td == image.mr_td and all(
        expected is None or actual == expected for actual, expected in zip(report.rtmrs, image.rtmrs, strict=True)
    )
