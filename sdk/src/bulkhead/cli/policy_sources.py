"""What `bulkhead evidence policy init --from` reads: evidence of any technology, and certificates beside it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from bulkhead.attestation.collateral.nvidia import manifest_of
from bulkhead.attestation.evidence import Evidence, EvidenceKind
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import parse_report, parse_rim
from bulkhead.attestation.nvidia.identity import chip_of
from bulkhead.attestation.parts import GpuParts, ProcessorPart
from bulkhead.attestation.policy import TrustPolicy
from bulkhead.attestation.policy_from import PolicyDraft, draft_from_gpu, draft_from_snp, draft_from_tdx
from bulkhead.attestation.snp import SigningKey, SnpProduct, read_snp_report
from bulkhead.attestation.snp.certificate_table import read_certificate_table
from bulkhead.attestation.snp.endorsement import read_endorsement
from bulkhead.attestation.snp.product import product_of_cpuid
from bulkhead.attestation.tdx import parse_quote
from bulkhead.attestation.tdx.pck import read_pck_platform
from bulkhead.cli import evidence_nvidia, evidence_snp, evidence_tdx
from bulkhead.cli.evidence_files import NamedBytes, read_bounded
from bulkhead.cli.tdx_pieces import TdxPieces
from bulkhead.errors import EvidenceError, InvalidRequestError

__all__ = ["draft_policy"]

_HEAD = (
    "Trust policy, kept by the tenant. Every key is optional; what is left out has its strict default. bulkhead "
    "evidence policy check says in words what it accepts; docs/trust-policy.md explains it."
)


def draft_policy(
    sources: Sequence[Path], *, product: str = "", pin_machine: bool = False
) -> tuple[PolicyDraft, tuple[str, ...]]:
    """Return a policy that accepts what ``sources`` are evidence of, and remarks for the head of its file.

    Args:
        sources: files: evidence, and certificates that belong to it; none gives the strict defaults.
        product: of SEV-SNP reports that name none.
        pin_machine: accept exactly these machines.

    Raises:
        EvidenceError: malformed, or such that no policy can accept it.
        InvalidRequestError: a file is neither evidence nor certificates, or a product is missing.
    """
    if not sources:
        return PolicyDraft(policy=TrustPolicy()), (_HEAD,)
    files = [NamedBytes(name=str(path), data=read_bounded(path)) for path in sources]
    certificates = [certificate for file in files for certificate in _certificates(file)]
    draft = PolicyDraft(policy=TrustPolicy(technologies=frozenset()))
    remarks = [_HEAD]
    for file in files:
        added = _draft(draft.policy, file, certificates, product=product, pin_machine=pin_machine)
        if added is not None:
            draft = PolicyDraft(policy=added.policy, exceptions=(*draft.exceptions, *added.exceptions))
            remarks.append(
                f"Accepts what {file.name} was evidence of; it was read, not verified, when this was written."
            )
    return _without_repetition(draft), tuple(remarks)


def _draft(
    base: TrustPolicy, file: NamedBytes, certificates: list[x509.Certificate], *, product: str, pin_machine: bool
) -> PolicyDraft | None:
    whole = _whole_evidence(file.data)
    if whole is not None:
        return _whole(base, file, whole, pin_machine=pin_machine)
    if evidence_snp.is_evidence(file.data):
        return _snp(base, file, certificates, product=product, pin_machine=pin_machine)
    if evidence_tdx.is_evidence(file.data):
        quote = parse_quote(evidence_tdx.quote_in(file.data))
        ppid = _ppid(quote.certification_data) if pin_machine and quote.has_pck_chain else None
        return draft_from_tdx(base, quote.report, ppid=ppid, pin_machine=pin_machine)
    if evidence_nvidia.is_evidence(file.data):
        evidence = evidence_nvidia.evidence_in(file.data)
        own = load_certificates(evidence.certificates, what=file.name) if evidence.certificates else certificates
        chips = [chip for chip in (chip_of([certificate]) for certificate in own) if chip]
        return draft_from_gpu(base, parse_report(evidence.report), product=chips[0] if chips else "")
    if _belongs_to_evidence(file):
        return None
    raise InvalidRequestError(f"{file.name}: neither evidence nor anything that belongs to it")


def _whole_evidence(data: bytes) -> Evidence | None:
    try:
        evidence = Evidence.parse(data)
    except EvidenceError:
        return None
    return evidence if evidence.kind is EvidenceKind.HARDWARE else None


def _whole(base: TrustPolicy, file: NamedBytes, evidence: Evidence, *, pin_machine: bool) -> PolicyDraft:
    """Draft from a worker's whole evidence: its processor and every GPU."""
    part = ProcessorPart.parse(evidence.quote)
    table = read_certificate_table(part.auxiliary) if part.auxiliary else ()
    quote = NamedBytes(name=file.name, data=part.quote)
    drafts = [_draft(base, quote, list(table), product="", pin_machine=pin_machine)]
    for gpu in GpuParts.parse(evidence.device).gpus:
        before = drafts[-1].policy if drafts[-1] is not None else base
        chips = chip_of(load_certificates(gpu.certificates, what=file.name))
        drafts.append(draft_from_gpu(before, parse_report(gpu.report), product=chips))
    made = [draft for draft in drafts if draft is not None]
    exceptions = tuple(exception for draft in made for exception in draft.exceptions)
    return PolicyDraft(policy=made[-1].policy if made else base, exceptions=exceptions)


def _belongs_to_evidence(file: NamedBytes) -> bool:
    """Whether a file may stand beside evidence, so that one list of files serves this command and verification."""
    try:
        TdxPieces().add(file)  # certificates and revocation lists of any vendor, and Intel's collateral
    except EvidenceError:
        try:
            parse_rim(manifest_of(file.data), what=file.name)
        except EvidenceError:
            return False
    return True


def _snp(
    base: TrustPolicy, file: NamedBytes, certificates: list[x509.Certificate], *, product: str, pin_machine: bool
) -> PolicyDraft:
    claims = read_snp_report(evidence_snp.report_part(file.data)[0])
    found = product_of_cpuid(*claims.cpuid[:2]) if claims.cpuid else evidence_snp.given_product(product)
    if found is None:
        raise InvalidRequestError(f"{file.name}: the report names no product that is known; say which: --product milan")
    csp_id = _csp_id(certificates, found) if claims.signing_key == SigningKey.VLEK else ""
    return draft_from_snp(base, claims, found, csp_id=csp_id, pin_machine=pin_machine)


def _csp_id(certificates: list[x509.Certificate], product: SnpProduct) -> str:
    for certificate in certificates:
        try:
            return read_endorsement(certificate, product=product, signing_key=SigningKey.VLEK).csp_id
        except EvidenceError:
            continue  # of something else
    return ""


def _ppid(chain: bytes) -> bytes | None:
    try:
        return read_pck_platform(load_certificates(chain.rstrip(b"\0"), what="PCK chain")[0]).ppid
    except EvidenceError:
        return None


def _certificates(file: NamedBytes) -> tuple[x509.Certificate, ...]:
    try:
        return load_certificates(file.data, what=file.name)
    except EvidenceError:
        return ()


def _without_repetition(draft: PolicyDraft) -> PolicyDraft:
    unique = {exception.key: exception for exception in draft.exceptions}
    return dataclasses.replace(draft, exceptions=tuple(unique.values()))
