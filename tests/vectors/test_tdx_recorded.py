"""Recorded TDX evidence of real machines: each verdict, for the right reason, at the times at which it changes."""

import base64
import itertools
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.tdx import (
    TcbStatus,
    TdxPolicy,
    VerifiedTdxQuote,
    decode_quote,
    parse_collateral,
    parse_quote,
    verify_tdx_quote,
)
from bulkhead.errors import EvidenceError, EvidenceExpiredError, EvidencePolicyError

_VECTORS = Path(os.environ.get("BULKHEAD_TEST_VECTORS", "missing")) / "attestation" / "tdx"
pytestmark = pytest.mark.skipif(
    not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors"
)

V4 = ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json")
V5 = ("go-tdx-guest/quote_v5_sample.dat", "composed/collateral_90c06f000000_2026-03-16.json")
OUT_OF_DATE = ("dcap-rs/quote_tdx_00806f050000.dat", "composed/collateral_00806f050000_2025-02-13.json")
DEBUG = ("coco-trustee/tdx_quote_4.dat", "composed/collateral_50806f000000_2023-06-18.json")
_ANY_IMAGE = TdxPolicy(images=None)


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp())


def _verify(files: tuple[str, str], time: str, policy: TdxPolicy = _ANY_IMAGE) -> VerifiedTdxQuote:
    quote = decode_quote((_VECTORS / files[0]).read_bytes())
    return verify_tdx_quote(
        quote,
        collateral=parse_collateral((_VECTORS / files[1]).read_bytes()),
        policy=policy,
        report_data=parse_quote(quote).report.report_data,
        now_s=_at(time),
    )


@pytest.mark.parametrize(
    ("files", "first", "last"),
    [
        (V4, "2025-06-19T10:32:27", "2025-07-19T10:00:35"),
        (V5, "2026-03-16T22:34:05", "2026-04-15T22:06:09"),
    ],
    ids=["v4", "v5"],
)
def test_accepted_while_collateral_is_current(files: tuple[str, str], first: str, last: str) -> None:
    """Accepted from the second at which the last document was issued to that at which the first runs out."""
    for time in (first, last):
        verified = _verify(files, time)
        assert verified.tcb.status is TcbStatus.UP_TO_DATE
        assert verified.tcb.advisories == ()
        assert verified.not_after_s == _at(last)


@pytest.mark.parametrize(
    ("files", "time", "obligation"),
    [
        (V4, "2025-06-19T10:32:26", "TDX-12"),
        (V4, "2025-07-19T10:00:36", "TDX-4"),
        (V4, "2025-12-01T00:00:00", "TDX-4"),
        (V5, "2026-03-16T22:34:04", "TDX-4"),
        (V5, "2026-04-15T22:06:10", "TDX-12"),
    ],
)
def test_refused_outside_the_collaterals_time(files: tuple[str, str], time: str, obligation: str) -> None:
    """One second before or after, the document that is not current is named."""
    with pytest.raises(EvidenceExpiredError) as caught:
        _verify(files, time)
    assert obligation_of(caught.value) == obligation


def test_platform_out_of_date() -> None:
    """A platform out of date under a module up to date is refused for its TCB; a policy may accept it."""
    with pytest.raises(EvidencePolicyError) as caught:
        _verify(OUT_OF_DATE, "2025-02-20T00:00:00")
    assert obligation_of(caught.value) == "TDX-17"
    assert (caught.value.details["platform"], caught.value.details["module"]) == ("OutOfDate", "UpToDate")
    advisories = frozenset({"INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986"})
    statuses = frozenset({TcbStatus.OUT_OF_DATE})
    accepting = replace(_ANY_IMAGE, accepted_statuses=statuses, accepted_advisories=advisories)
    assert set(_verify(OUT_OF_DATE, "2025-02-20T00:00:00", accepting).tcb.advisories) == advisories


def test_debug_alone() -> None:
    """A TD under debug on a platform that is otherwise in order is refused for DEBUG and nothing else."""
    with pytest.raises(EvidencePolicyError) as caught:
        _verify(DEBUG, "2023-06-20T00:00:00")
    assert obligation_of(caught.value) == "TDX-19"


@pytest.mark.parametrize(("quote", "collateral"), list(itertools.permutations([V4, V5, OUT_OF_DATE], 2)))
def test_pairs(quote: tuple[str, str], collateral: tuple[str, str]) -> None:
    """Collateral of another platform fails FMSPC, at a time at which it is current."""
    times = {V4: "2025-06-20T00:00:00", V5: "2026-03-20T00:00:00", OUT_OF_DATE: "2025-02-20T00:00:00"}
    with pytest.raises(EvidenceError) as caught:
        _verify((quote[0], collateral[1]), times[collateral])
    # The PCK certificate of the newest quote was issued after the other collateral had run out.
    assert obligation_of(caught.value) == ("TDX-3" if quote == V5 else "TDX-13")


@pytest.mark.parametrize("files", [V4, V5])
def test_text_forms(files: tuple[str, str]) -> None:
    """Hexadecimal and base64 give the same quote as the raw bytes."""
    raw = (_VECTORS / files[0]).read_bytes()
    assert decode_quote(raw) == raw
    assert decode_quote(raw.hex().encode() + b"\n") == raw
    assert decode_quote(base64.encodebytes(raw)) == raw
