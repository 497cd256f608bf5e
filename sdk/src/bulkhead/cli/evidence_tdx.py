"""`bulkhead evidence verify --type tdx`.

The quote is known by its header; every further file is a piece of collateral, in any of the forms that
:mod:`bulkhead.cli.tdx_pieces` reads. The nonce is REPORTDATA, filled with zero bytes to 64 where it is shorter.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from bulkhead.attestation.collateral.intel import tdx_items
from bulkhead.attestation.tdx import (
    TDX_OBLIGATIONS,
    TdReport,
    TdxCollateral,
    TdxQuote,
    VerifiedTdxQuote,
    decode_quote,
    parse_quote,
    verify_tdx_quote,
)
from bulkhead.cli.evidence_files import EvidenceFiles, NamedBytes, read_bounded, under
from bulkhead.cli.tdx_pieces import TdxPieces
from bulkhead.errors import EvidenceError, InvalidRequestError

__all__ = ["OBLIGATIONS", "is_evidence", "quote_in", "read_claims", "verify_files"]

OBLIGATIONS: Final = TDX_OBLIGATIONS
REPORT_DATA_BYTES: Final = 64
_TEE_TDX: Final = 0x81


def is_evidence(data: bytes) -> bool:
    """Whether ``data`` is a quote in any encoding: version 4 or 5, of a TD."""
    try:
        quote = quote_in(data)
    except EvidenceError:
        return False
    return quote[:2] in {b"\x04\0", b"\x05\0"} and int.from_bytes(quote[4:8], "little") == _TEE_TDX


def quote_in(data: bytes) -> bytes:
    """Return the binary quote in a file: raw, text, or JSON with a member ``quote`` as agents in guests write it.

    Raises:
        EvidenceError: TDX-1.
    """
    if data.lstrip().startswith(b"{"):
        try:
            member = json.loads(data)["quote"]
        except (ValueError, KeyError, TypeError, RecursionError):
            member = None
        if isinstance(member, str):
            data = member.encode("utf-8", "replace")
    return decode_quote(data)


def verify_files(files: EvidenceFiles) -> Mapping[str, Any]:
    """Verify a quote; return what it proves.

    Raises:
        EvidenceError: an obligation is not met.
        InvalidRequestError: a nonce longer than REPORTDATA, or an option of another technology.
    """
    files.refuse("tdx", rim=files.rims, ocsp=files.ocsp, product=files.product)
    if len(files.nonce) > REPORT_DATA_BYTES:
        raise InvalidRequestError(f"the nonce of a TDX quote has at most {REPORT_DATA_BYTES} bytes")
    evidence, further = files.split(is_evidence, "TDX-1")
    quote = quote_in(evidence.data)
    collateral = _collateral(files, parse_quote(quote), further)
    verified = verify_tdx_quote(
        quote,
        collateral=collateral,
        policy=files.policy.tdx,
        report_data=files.nonce.ljust(REPORT_DATA_BYTES, b"\0"),
        now_s=files.now_s,
    )
    return _facts(verified)


def _collateral(files: EvidenceFiles, quote: TdxQuote, further: list[NamedBytes]) -> TdxCollateral:
    pieces = TdxPieces()
    for file in further:
        pieces.add(file)
    for paths, obligation in ((files.collateral, "TDX-9"), (files.certificates, "TDX-2"), (files.crls, "TDX-4")):
        with under(obligation):
            for path in paths:
                pieces.add(NamedBytes(name=str(path), data=read_bounded(path)))
    if not pieces.complete:
        pieces.complete_from(files.cache, tdx_items(quote, pck_chain=pieces.pck_chain))
    return pieces.collateral()


def read_claims(data: bytes) -> Mapping[str, Any]:
    """Return what a quote says, verified by nobody.

    Raises:
        EvidenceError: TDX-1.
    """
    quote = parse_quote(quote_in(data))
    return {"version": quote.version, **_claims(quote.report)}


def _facts(verified: VerifiedTdxQuote) -> Mapping[str, Any]:
    platform, tcb = verified.platform, verified.tcb
    return {
        "tcb_status": tcb.status.value,
        "platform_status": tcb.platform.value,
        "module_status": tcb.module.value,
        "quoting_enclave_status": tcb.quoting_enclave.value,
        "advisories": tcb.advisories,
        "evaluation_number": tcb.evaluation_number,
        "not_after_s": verified.not_after_s,
        "fmspc": platform.fmspc,
        "ppid": platform.ppid,
        "platform_instance_id": platform.platform_instance_id,
        **_claims(verified.report),
    }


def _claims(report: TdReport) -> Mapping[str, Any]:
    return {
        "mr_td": report.mr_td,
        "rtmr0": report.rtmr0,
        "rtmr1": report.rtmr1,
        "rtmr2": report.rtmr2,
        "rtmr3": report.rtmr3,
        "mr_config_id": report.mr_config_id,
        "mr_owner": report.mr_owner,
        "mr_owner_config": report.mr_owner_config,
        "mr_seam": report.mr_seam,
        "tee_tcb_svn": report.tee_tcb_svn,
        "td_attributes": report.td_attributes,
        "xfam": report.xfam,
        "report_data": report.report_data,
    }
