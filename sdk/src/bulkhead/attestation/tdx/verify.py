"""Verification of Intel TDX quotes: a proof-carrying value, or the number of the obligation that failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, verify_chain
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx.collateral import (
    TdxCollateral,
    check_current,
    common_name,
    load_lists,
    verify_collateral,
)
from bulkhead.attestation.tdx.documents import TcbStatus
from bulkhead.attestation.tdx.pck import PckPlatform, read_pck_platform
from bulkhead.attestation.tdx.policy import TdxPolicy
from bulkhead.attestation.tdx.quote import TdReport, TdxQuote, parse_quote
from bulkhead.attestation.tdx.roots import intel_roots
from bulkhead.attestation.tdx.signatures import public_key_of, read_public_key, signed_by
from bulkhead.attestation.tdx.tcb import TcbAppraisal, check_module, check_quoting_enclave, evaluate_tcb
from bulkhead.attestation.tdx.trust_domain import check_report_data, check_trust_domain
from bulkhead.errors import EvidenceError, EvidenceExpiredError, EvidencePolicyError

__all__ = ["VerifiedTdxQuote", "verify_tdx_quote"]

_PCK_NAME: Final = "Intel SGX PCK Certificate"
_PCK_CAS: Final = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})
_PCK_PATH: Final = 3  # PCK certificate, PCK CA, root
_DIGEST_BYTES: Final = 32
_PCK_RULES: Final = ChainRules(
    scheme=SignatureScheme.ECDSA_P256_SHA256,
    max_length=_PCK_PATH,
    chain="TDX-2",
    validity="TDX-3",
    revocation="TDX-4",
    crls_required=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTdxQuote:
    """A quote that holds under a policy. Only :func:`verify_tdx_quote` makes one; it is never persisted.

    Attributes:
        report: of the TD; true as far as Intel's hardware is.
        platform: on which it runs.
        tcb: Intel's judgement of platform, TDX module and quoting enclave.
        not_after_s: Unix seconds; the first of documents, lists and certificates runs out then.
    """

    report: TdReport
    platform: PckPlatform
    tcb: TcbAppraisal
    not_after_s: int


def verify_tdx_quote(
    quote: bytes,
    *,
    collateral: TdxCollateral,
    policy: TdxPolicy,
    report_data: bytes,
    now_s: int,
    roots: Sequence[x509.Certificate] | None = None,
) -> VerifiedTdxQuote:
    """Verify a TDX quote of version 4 or 5.

    Obligations: TDX-1 to TDX-27, one sentence each in ``TDX_OBLIGATIONS``:
        1 form; 2 to 5 PCK certificate, its path, validity, revocation and platform; 6 to 8 the signatures from the PCK
        key over the quoting enclave's report to the TD's; 9 to 13 Intel's documents, their dates and their platform;
        14 to 18 quoting enclave, TDX module and TCB; 19 to 25 the TD; 26 REPORTDATA; 27 pinned platforms.

    The caller checks: that ``report_data`` binds what it relies on (its nonce, the worker's keys), and asks again
    before ``not_after_s``. What RTMRs mean is the image builder's: an event log is no part of the quote.

    Args:
        quote: binary form (untrusted); ``decode_quote`` reads the text forms.
        collateral: untrusted.
        policy: the tenant's.
        report_data: the 64 bytes that the TD was asked to report.
        now_s: Unix seconds of the caller's clock.
        roots: trusted; None for the pinned Intel root.

    Raises:
        EvidenceError: malformed or not verifiable.
        EvidenceBindingError: REPORTDATA is another.
        EvidenceExpiredError: a certificate, list or document is not current.
        EvidencePolicyError: verifies, but the policy does not accept it.
        All name the obligation in their details.
    """
    trusted = intel_roots() if roots is None else roots
    parsed = parse_quote(quote)  # TDX-1
    crls = load_lists(collateral)
    path = _verify_pck(parsed, collateral, trusted, crls, now_s)  # TDX-2, TDX-3, TDX-4
    platform = read_pck_platform(path[0])  # TDX-5
    _verify_signatures(parsed, path[0])  # TDX-6, TDX-7, TDX-8
    maximum_age_s = policy.maximum_collateral_age_s
    list_end_s = _check_pck_list(path[1], crls, maximum_age_s, now_s)  # TDX-12
    documents = verify_collateral(  # TDX-9, TDX-10, TDX-11, TDX-12
        collateral, roots=trusted, crls=crls, maximum_age_s=maximum_age_s, now_s=now_s
    )
    info, identity = documents.tcb_info, documents.qe_identity
    if (info.fmspc, info.pce_id) != (platform.fmspc, platform.pce_id):  # TDX-13
        raise failed("TDX-13", f"the TCB info is of platform {info.fmspc.hex()}, not {platform.fmspc.hex()}")
    check_quoting_enclave(parsed.qe_report, identity)  # TDX-14
    check_module(parsed.report, info, policy.mr_seams)  # TDX-15
    tcb = evaluate_tcb(  # TDX-16
        platform=platform, report=parsed.report, enclave=parsed.qe_report, info=info, identity=identity
    )
    _check_tcb(tcb, policy)  # TDX-17, TDX-18
    check_trust_domain(parsed.report, policy)  # TDX-19 to TDX-25
    check_report_data(parsed.report, report_data)  # TDX-26
    if policy.ppids is not None and platform.ppid not in policy.ppids:  # TDX-27
        raise failed("TDX-27", "the platform's PPID is not pinned in the policy", EvidencePolicyError)
    certificates_end_s = min(int(certificate.not_valid_after_utc.timestamp()) for certificate in path)
    return VerifiedTdxQuote(
        report=parsed.report,
        platform=platform,
        tcb=tcb,
        not_after_s=min(documents.not_after_s, list_end_s, certificates_end_s),
    )


def _verify_pck(
    quote: TdxQuote,
    collateral: TdxCollateral,
    roots: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    now_s: int,
) -> tuple[x509.Certificate, ...]:
    leaf, *others = _pck_chain(quote, collateral)
    path = verify_chain(leaf, intermediates=others, roots=roots, rules=_PCK_RULES, now_s=now_s, crls=crls)
    named = common_name(leaf.subject) == _PCK_NAME and common_name(leaf.issuer) in _PCK_CAS
    if len(path) != _PCK_PATH or not named:
        raise failed("TDX-2", "the certificate is not a PCK certificate of an Intel PCK CA")
    if any(certificate not in path for certificate in others):
        raise failed("TDX-2", "the PCK certificate chain holds a certificate that is not of its path")
    return path


def _pck_chain(quote: TdxQuote, collateral: TdxCollateral) -> tuple[x509.Certificate, ...]:
    chain = quote.certification_data if quote.has_pck_chain else collateral.pck_certificate_chain
    if chain is None:
        raise failed(
            "TDX-2",
            "the quote names its PCK certificate only, and the collateral has none: Intel's Provisioning "
            "Certification Service has it at /sgx/certification/v4/pckcert",
        )
    try:
        certificates = load_certificates(chain.rstrip(b"\0"), what="the PCK certificate chain")
    except EvidenceError as error:
        raise failed("TDX-2", error.message) from error
    # Nothing signs these bytes as such: beside line breaks, a quote has no room for others than the certificates'.
    written = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    if quote.has_pck_chain and _without_breaks(written) != _without_breaks(chain.rstrip(b"\0")):
        raise failed("TDX-2", "the PCK certificate chain is not a plain list of PEM certificates")
    return certificates


def _without_breaks(text: bytes) -> bytes:
    return text.translate(None, b"\r\n")


def _verify_signatures(quote: TdxQuote, pck: x509.Certificate) -> None:
    enclave = quote.qe_report
    if not signed_by(public_key_of(pck), quote.qe_report_signature, enclave.signed):  # TDX-6
        raise failed("TDX-6", "the PCK key did not sign the quoting enclave's report")
    digest = Hash(SHA256())
    digest.update(quote.attestation_key + quote.qe_auth_data)
    if enclave.report_data != digest.finalize() + bytes(len(enclave.report_data) - _DIGEST_BYTES):  # TDX-7
        raise failed("TDX-7", "the quoting enclave did not report this attestation key")
    if not signed_by(read_public_key(quote.attestation_key), quote.signature, quote.signed):  # TDX-8
        raise failed("TDX-8", "the attestation key did not sign the quote")


def _check_pck_list(
    pck_ca: x509.Certificate, crls: Sequence[x509.CertificateRevocationList], maximum_age_s: int, now_s: int
) -> int:
    # Present and signed: TDX-4. The root's list lives a year, so that only its own dates bound it.
    ends = []
    for crl in crls:
        if crl.next_update_utc is None:
            raise failed("TDX-4", "a revocation list without an end", EvidenceExpiredError)
        issued_s, end_s = int(crl.last_update_utc.timestamp()), int(crl.next_update_utc.timestamp())
        ends.append(end_s)
        if crl.issuer == pck_ca.subject:
            check_current(issued_s, end_s, what="the PCK revocation list", maximum_age_s=maximum_age_s, now_s=now_s)
            ends.append(issued_s + maximum_age_s)
    return min(ends)


def _check_tcb(tcb: TcbAppraisal, policy: TdxPolicy) -> None:
    details = {
        "platform": tcb.platform.value,
        "module": tcb.module.value,
        "quoting_enclave": tcb.quoting_enclave.value,
        "advisories": ",".join(tcb.advisories),
    }
    # Revoked means that the platform's keys may be known to others: no policy can accept that.
    if tcb.status is TcbStatus.REVOKED or tcb.status not in policy.accepted_statuses:  # TDX-17
        raise failed("TDX-17", f"the platform's TCB is {tcb.status.value}", EvidencePolicyError, details=details)
    if tcb.evaluation_number < policy.minimum_evaluation_number:  # TDX-17
        raise failed(
            "TDX-17", f"TCB evaluation {tcb.evaluation_number} is older than the policy allows", EvidencePolicyError
        )
    standing = [advisory for advisory in tcb.advisories if advisory not in policy.accepted_advisories]
    if standing:  # TDX-18
        raise failed("TDX-18", f"advisories stand: {', '.join(standing)}", EvidencePolicyError, details=details)
