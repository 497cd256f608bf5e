"""Intel's provisioning certification service, API 4: what to ask for a quote, and reading its answers.

An answer holds one signed document; the signature covers the bytes of the document as they stand in the answer, so that
they are cut out, never written anew. The issuer's chain comes in a header.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralItem, CollateralKind
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx.collateral import TdxCollateral, common_name
from bulkhead.attestation.tdx.pck import read_pck_platform
from bulkhead.attestation.tdx.quote import TdxQuote
from bulkhead.errors import EvidenceError

__all__ = ["TdxItems", "collateral_of", "pck_crl_item", "signed_document", "tcb_info_item", "tdx_items"]

_START: Final = re.compile(r'\s*\{\s*"(tcbInfo|enclaveIdentity)"\s*:\s*')
_END: Final = re.compile(r'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')
_MEMBERS: Final = {CollateralKind.INTEL_TCB_INFO: "tcbInfo", CollateralKind.INTEL_QE_IDENTITY: "enclaveIdentity"}
_PROCESSOR_CA: Final = "Intel SGX PCK Processor CA"
QE_IDENTITY_ITEM: Final = CollateralItem(
    kind=CollateralKind.INTEL_QE_IDENTITY, name="td", path="/tdx/certification/v4/qe/identity"
)
ROOT_CRL_ITEM: Final = CollateralItem(kind=CollateralKind.INTEL_ROOT_CRL, name="sgx-root", path="/IntelSGXRootCA.der")


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxItems:
    """The four pieces that a quote of one platform needs."""

    tcb_info: CollateralItem
    qe_identity: CollateralItem
    pck_crl: CollateralItem
    root_crl: CollateralItem

    def __iter__(self) -> Iterator[CollateralItem]:
        return iter((self.tcb_info, self.qe_identity, self.pck_crl, self.root_crl))


def tcb_info_item(fmspc: bytes) -> CollateralItem:
    """Return where the TCB info of platforms with this FMSPC (6 bytes) is."""
    return CollateralItem(
        kind=CollateralKind.INTEL_TCB_INFO,
        name=fmspc.hex(),
        path=f"/tdx/certification/v4/tcb?fmspc={fmspc.hex().upper()}",
    )


def pck_crl_item(authority: str) -> CollateralItem:
    """Return where the revocation list of the PCK ``platform`` or ``processor`` CA is."""
    return CollateralItem(
        kind=CollateralKind.INTEL_PCK_CRL,
        name=authority,
        path=f"/sgx/certification/v4/pckcrl?ca={authority}&encoding=der",
    )


def tdx_items(quote: TdxQuote, *, pck_chain: bytes | None = None) -> TdxItems:
    """Return what the platform of a quote needs; the quote need not be trusted.

    Args:
        quote: parsed.
        pck_chain: certificates, leaf first, for a quote that only names its PCK certificate.

    Raises:
        EvidenceError: TDX-2 or TDX-5: no PCK certificate that names its platform.
    """
    chain = quote.certification_data if quote.has_pck_chain else pck_chain
    if chain is None:
        raise failed("TDX-2", "the quote has no PCK certificate, so that nothing says which platform it is from")
    try:
        leaf = load_certificates(chain.rstrip(b"\0"), what="the PCK certificate chain")[0]
    except EvidenceError as error:
        raise failed("TDX-2", error.message) from error
    processor = common_name(leaf.issuer) == _PROCESSOR_CA
    return TdxItems(
        tcb_info=tcb_info_item(read_pck_platform(leaf).fmspc),
        qe_identity=QE_IDENTITY_ITEM,
        pck_crl=pck_crl_item("processor" if processor else "platform"),
        root_crl=ROOT_CRL_ITEM,
    )


def collateral_of(
    *,
    tcb_info: CollateralEntry,
    qe_identity: CollateralEntry,
    pck_crl: CollateralEntry,
    root_crl: CollateralEntry,
    pck_chain: bytes | None = None,
) -> TdxCollateral:
    """Return the bundle that verification takes, from answers of the service (untrusted).

    Raises:
        EvidenceError: TDX-9 or TDX-10: an answer is not of the service's form.
    """
    info, info_signature = signed_document(tcb_info.data, CollateralKind.INTEL_TCB_INFO)
    identity, identity_signature = signed_document(qe_identity.data, CollateralKind.INTEL_QE_IDENTITY)
    return TdxCollateral(
        tcb_info=info,
        tcb_info_signature=info_signature,
        tcb_info_issuer_chain=tcb_info.chain,
        qe_identity=identity,
        qe_identity_signature=identity_signature,
        qe_identity_issuer_chain=qe_identity.chain,
        pck_crl=pck_crl.data,
        root_ca_crl=root_crl.data,
        pck_certificate_chain=pck_chain,
    )


def signed_document(answer: bytes, kind: CollateralKind) -> tuple[bytes, bytes]:
    """Return the raw bytes of the document in an answer, and its signature (64 bytes).

    Raises:
        EvidenceError: TDX-9 or TDX-10: not of the service's form.
    """
    try:
        text = answer.decode("utf-8")
        start = _START.match(text)
        if start is None or start[1] != _MEMBERS[kind]:
            raise failed(kind.obligation, f"the answer holds no {_MEMBERS[kind]}")
        _, end = json.JSONDecoder().raw_decode(text, start.end())
    except (ValueError, RecursionError) as error:
        raise failed(kind.obligation, f"the answer with {_MEMBERS[kind]} is not JSON") from error
    rest = _END.fullmatch(text, end)
    if rest is None:
        raise failed(kind.obligation, f"the answer with {_MEMBERS[kind]} does not end in its signature")
    return text[start.end() : end].encode(), bytes.fromhex(rest[1])
