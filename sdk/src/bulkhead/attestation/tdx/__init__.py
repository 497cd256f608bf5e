"""Intel TDX: quotes of versions 4 and 5, verified to Intel's root with TCB evaluation (docs/protocol.md section 3).

Evidence and collateral are given; nothing is fetched. :func:`verify_tdx_quote` returns a value that proves something,
or raises an error whose details name the obligation in :data:`TDX_OBLIGATIONS` that failed.
"""

from bulkhead.attestation.tdx.collateral import TdxCollateral, parse_collateral
from bulkhead.attestation.tdx.documents import TcbStatus
from bulkhead.attestation.tdx.obligations import TDX_OBLIGATIONS
from bulkhead.attestation.tdx.policy import TdImage, TdxPolicy
from bulkhead.attestation.tdx.quote import TdReport, TdxQuote, decode_quote, parse_quote
from bulkhead.attestation.tdx.verify import VerifiedTdxQuote, verify_tdx_quote

__all__ = [
    "TDX_OBLIGATIONS",
    "TcbStatus",
    "TdImage",
    "TdReport",
    "TdxCollateral",
    "TdxPolicy",
    "TdxQuote",
    "VerifiedTdxQuote",
    "decode_quote",
    "parse_collateral",
    "parse_quote",
    "verify_tdx_quote",
]
