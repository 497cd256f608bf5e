"""Collateral of TDX quotes: what Intel publishes about platforms, as one bundle; nothing is fetched here.

The bundle is JSON with the members of Intel's ``sgx_ql_qve_collateral_t``, version 3: documents as text, signatures as
128 hexadecimal digits, chains as PEM (percent-encoded, too, as in Intel's HTTP headers), revocation lists as
hexadecimal, base64 or PEM. A document may also be Intel's whole answer, which holds document and signature. Every part
is untrusted until :func:`verify_collateral` has returned.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, verify_chain
from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx.documents import QeIdentity, TcbInfo, parse_qe_identity, parse_tcb_info
from bulkhead.attestation.tdx.signatures import public_key_of, signed_by
from bulkhead.encoding import Json
from bulkhead.errors import EvidenceError, EvidenceExpiredError

__all__ = [
    "TdxCollateral",
    "VerifiedCollateral",
    "check_current",
    "common_name",
    "load_lists",
    "parse_collateral",
    "split_answer",
    "verify_collateral",
]

MAX_COLLATERAL_BYTES: Final = 4_194_304  # some 20 kB; a revocation list of an old CA may grow
_SIGNATURE_BYTES: Final = 64
_TCB_SIGNER: Final = "Intel SGX TCB Signing"
_SIGNER_PATH: Final = 2  # the root signs the TCB signing certificate itself
_ANSWER: Final = re.compile(
    r'\s*\{\s*"(?:tcbInfo|enclaveIdentity)"\s*:\s*(\{.*\})\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*',
    re.DOTALL,
)  # of Intel's service: the signature is over the document's bytes as they stand here
_SOURCE: Final = "Intel's Provisioning Certification Service has it at"
_MEMBERS: Final = (  # member, obligation that needs it, where it comes from
    ("tcb_info", "TDX-9", "/tdx/certification/v4/tcb?fmspc=FMSPC"),
    ("tcb_info_signature", "TDX-9", "/tdx/certification/v4/tcb?fmspc=FMSPC"),
    ("tcb_info_issuer_chain", "TDX-9", "/tdx/certification/v4/tcb?fmspc=FMSPC, header TCB-Info-Issuer-Chain"),
    ("qe_identity", "TDX-10", "/tdx/certification/v4/qe/identity"),
    ("qe_identity_signature", "TDX-10", "/tdx/certification/v4/qe/identity"),
    (
        "qe_identity_issuer_chain",
        "TDX-10",
        "/tdx/certification/v4/qe/identity, header SGX-Enclave-Identity-Issuer-Chain",
    ),
    ("pck_crl", "TDX-4", "/sgx/certification/v4/pckcrl?ca=platform (or processor)"),
    ("root_ca_crl", "TDX-4", "IntelSGXRootCA.der"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxCollateral:
    """One bundle of collateral (untrusted bytes); chains, lists and the PCK chain in any form of ``inputs``.

    Attributes:
        tcb_info: raw bytes of the TCB info, as signed.
        tcb_info_signature: r ‖ s, 64 bytes.
        tcb_info_issuer_chain: TCB signing certificate and, if it likes, the root.
        qe_identity: raw bytes of the QE identity, as signed.
        qe_identity_signature: r ‖ s, 64 bytes.
        qe_identity_issuer_chain: as for the TCB info.
        pck_crl: revocation list of the CA that issued the PCK certificate.
        root_ca_crl: revocation list of the root.
        pck_certificate_chain: for quotes that name their PCK certificate only; else unused.
    """

    tcb_info: bytes
    tcb_info_signature: bytes
    tcb_info_issuer_chain: bytes
    qe_identity: bytes
    qe_identity_signature: bytes
    qe_identity_issuer_chain: bytes
    pck_crl: bytes
    root_ca_crl: bytes
    pck_certificate_chain: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCollateral:
    """Collateral that Intel signed and that is current.

    Attributes:
        tcb_info: of the quote's platform if FMSPC and PCEID are equal, which the caller checks.
        qe_identity: of the TD quoting enclave.
        not_after_s: Unix seconds at which the first of documents and signing certificates runs out.
    """

    tcb_info: TcbInfo
    qe_identity: QeIdentity
    not_after_s: int


def parse_collateral(data: bytes) -> TdxCollateral:
    """Return the bundle in untrusted JSON; unknown members are ignored.

    Raises:
        EvidenceError: not such JSON; a missing member fails its obligation and says where it comes from.
    """
    if len(data) > MAX_COLLATERAL_BYTES:
        raise failed("TDX-9", f"the collateral is longer than {MAX_COLLATERAL_BYTES} bytes")
    try:
        value: Json = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise failed("TDX-9", "the collateral is not JSON") from error
    if not isinstance(value, dict):
        raise failed("TDX-9", "the collateral is not a JSON object")
    members = _unpacked(value)
    parts: dict[str, bytes] = {}
    for name, obligation, source in _MEMBERS:
        text = members.get(name)
        if not isinstance(text, str) or not text:
            raise failed(obligation, f"{name} is missing from the collateral: {_SOURCE} {source}")
        parts[name] = _signature(text, name, obligation) if name.endswith("_signature") else _bytes(text)
    chain = members.get("pck_certificate_chain")
    return TdxCollateral(**parts, pck_certificate_chain=_bytes(chain) if isinstance(chain, str) and chain else None)


def split_answer(text: str) -> tuple[str, str] | None:
    """Return document and signature in an answer of Intel's service (untrusted), or None if it is none.

    Document: text of TCB info or QE identity exactly as signed. Signature: 128 hexadecimal digits.
    """
    answer = _ANSWER.fullmatch(text.rstrip("\0"))
    return (answer[1], answer[2]) if answer else None


def verify_collateral(
    collateral: TdxCollateral,
    *,
    roots: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    maximum_age_s: int,
    now_s: int,
) -> VerifiedCollateral:
    """Verify both documents.

    Obligations: TDX-9 and TDX-10, with TDX-3 and TDX-4 for the signing certificates; TDX-11; TDX-12.

    Args:
        collateral: untrusted.
        roots: trusted.
        crls: untrusted; among them the root's.
        maximum_age_s: seconds since a document was issued.
        now_s: Unix seconds.

    Raises:
        EvidenceError: an obligation is not met; ``EvidenceExpiredError`` where time has passed.
    """
    ends = [
        _verify_document(
            document, signature, chain, what=what, obligation=obligation, roots=roots, crls=crls, now_s=now_s
        )
        for document, signature, chain, what, obligation in (
            (
                collateral.tcb_info,
                collateral.tcb_info_signature,
                collateral.tcb_info_issuer_chain,
                "the TCB info",
                "TDX-9",
            ),
            (
                collateral.qe_identity,
                collateral.qe_identity_signature,
                collateral.qe_identity_issuer_chain,
                "the QE identity",
                "TDX-10",
            ),
        )
    ]
    # Parsed only now: nothing of a document counts, not even its errors, before its signature holds.
    tcb_info = parse_tcb_info(collateral.tcb_info)  # TDX-11
    qe_identity = parse_qe_identity(collateral.qe_identity)  # TDX-11
    for document, what in ((tcb_info, "the TCB info"), (qe_identity, "the QE identity")):  # TDX-12
        check_current(document.issued_s, document.next_update_s, what=what, maximum_age_s=maximum_age_s, now_s=now_s)
        ends += [document.next_update_s, document.issued_s + maximum_age_s]
    return VerifiedCollateral(tcb_info=tcb_info, qe_identity=qe_identity, not_after_s=min(ends))


def check_current(issued_s: int, next_update_s: int, *, what: str, maximum_age_s: int, now_s: int) -> None:
    """Check that ``now_s`` is within a document's dates and that it is no older than ``maximum_age_s``.

    Raises:
        EvidenceExpiredError: TDX-12.
    """
    if now_s < issued_s:
        raise failed("TDX-12", f"{what} was issued in the future", EvidenceExpiredError)
    if now_s > next_update_s:
        raise failed("TDX-12", f"{what} is out of date: fetch it again", EvidenceExpiredError)
    if now_s - issued_s > maximum_age_s:
        raise failed("TDX-12", f"{what} is older than the policy allows: fetch it again", EvidenceExpiredError)


def load_lists(collateral: TdxCollateral) -> tuple[x509.CertificateRevocationList, ...]:
    """Return the bundle's revocation lists, parsed and not verified.

    Raises:
        EvidenceError: TDX-4.
    """
    try:
        return (
            *load_crls(collateral.pck_crl, what="the PCK CA's revocation list"),
            *load_crls(collateral.root_ca_crl, what="the root's revocation list"),
        )
    except EvidenceError as error:
        raise failed("TDX-4", error.message) from error


def common_name(name: x509.Name) -> str | None:
    """Return the one common name in a distinguished name, or None."""
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _unpacked(members: dict[str, Json]) -> dict[str, Json]:
    unpacked = dict(members)
    for name in ("tcb_info", "qe_identity"):
        text = members.get(name)
        answer = split_answer(text) if isinstance(text, str) else None
        if answer is not None:
            unpacked[name], unpacked[f"{name}_signature"] = answer
    return unpacked


def _verify_document(
    document: bytes,
    signature: bytes,
    chain: bytes,
    *,
    what: str,
    obligation: str,
    roots: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    now_s: int,
) -> int:
    try:
        signer, *others = load_certificates(chain, what=f"the certificate chain of {what}")
    except EvidenceError as error:
        raise failed(obligation, error.message) from error
    rules = ChainRules(
        scheme=SignatureScheme.ECDSA_P256_SHA256,
        max_length=_SIGNER_PATH,
        chain=obligation,
        validity="TDX-3",
        revocation="TDX-4",
        crls_required=True,
    )
    path = verify_chain(signer, intermediates=others, roots=roots, rules=rules, now_s=now_s, crls=crls)
    # Every PCK certificate leads to the same root, so that only the name tells a signer of documents from a platform.
    if common_name(signer.subject) != _TCB_SIGNER:
        raise failed(obligation, f"{what} is not signed by Intel's TCB signing certificate")
    if not signed_by(public_key_of(signer), signature, document):
        raise failed(obligation, f"the signature of {what} does not hold")
    return min(int(certificate.not_valid_after_utc.timestamp()) for certificate in path)


def _signature(text: str, name: str, obligation: str) -> bytes:
    try:
        signature = bytes.fromhex(text)
    except ValueError as cause:
        raise failed(obligation, f"{name} is not hexadecimal") from cause
    if len(signature) != _SIGNATURE_BYTES:
        raise failed(obligation, f"{name} is not {_SIGNATURE_BYTES} bytes")
    return signature


def _bytes(text: str) -> bytes:
    # C programs count the zero that ends a text. A lone surrogate gives bytes that no reader takes.
    return text.rstrip("\0").encode("utf-8", "surrogatepass")
