"""TDX verdicts beside those of dcap-qvl: equal over recorded vectors, own cases and mutations, or explained here."""

import json
import os
import random
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.tdx import TdxPolicy, decode_quote, parse_collateral, parse_quote, verify_tdx_quote
from bulkhead.errors import BulkheadError
from tests.simulator.mutations import flips
from tests.simulator.tdx_cases import CASES
from tests.simulator.tdx_world import NOW_S, TdxEvidence, TdxWorld, bundle, roots, tcb_info

_VECTORS = Path(os.environ.get("BULKHEAD_TEST_VECTORS", "missing")) / "attestation" / "tdx"

ORACLE_IS_MORE_LENIENT: Final = {
    "padding not zero": "it ignores whatever follows the quote",
    "leaf that is no PCK certificate": "it asks for a path to the root, not for the PCK certificate's name",
    "CA that is no PCK CA": "the same for the CA",
    "text beside the certificates": "it skips text around PEM blocks",
    "report data beyond the digest": "it compares 32 of the 64 bytes",
    "signed by a platform": "it asks for a path to the root, not for the TCB signing certificate's name",
    "TCB info older than the policy allows": "age beside nextUpdate is our policy",
    "list older than the policy allows": "age beside nextUpdate is our policy",
    "module that runs now out of date": "like Intel it lets the status at launch stand where that is the better one",
    "PCEID of another": "it compares FMSPC only",
    "XFAM without SSE": "it leaves XFAM to its caller",
    "unknown feature": "it leaves XFAM to its caller",
    "another MRTD": "measurements are left to its caller",
    "another RTMR0": "measurements are left to its caller",
    "another RTMR1": "measurements are left to its caller",
    "another RTMR2": "measurements are left to its caller",
    "another RTMR3": "measurements are left to its caller",
    "MRCONFIGID": "owner's values are left to its caller",
    "MROWNER": "owner's values are left to its caller",
    "MROWNERCONFIG": "owner's values are left to its caller",
    "another nonce": "REPORTDATA is left to its caller",
}
"""Our refusals that the oracle accepts, each with the reason; the names are those of ``tdx_cases``."""

ORACLE_READS_PAST: Final = {
    764: "type of the outer certification data: it does not look at it",
    765: "the same",
    1254: "length of the chain, low byte: a shorter one cuts the copy of the root, which it does not need",
    1255: "the same",
}
"""Offsets in a version 4 quote with 32 bytes of authentication data where it accepts changed bytes; we refuse them."""


def _oracle(quote: bytes, collateral: dict[str, str], now_s: int, root: bytes | None) -> bool:
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral))
        if root is None:
            report = dcap_qvl.verify(quote, parsed, now_s)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, parsed, root, now_s)
    except ValueError:
        return False
    return bool(report.status == "UpToDate")


def _oracle_of(evidence: TdxEvidence) -> bool:
    root = roots()[0].public_bytes(Encoding.DER)
    return _oracle(evidence.quote, bundle(evidence.collateral), NOW_S, root)


def _ours(evidence: TdxEvidence) -> bool:
    try:
        evidence.verify()
    except BulkheadError:
        return False
    return True


@pytest.mark.parametrize(
    "world",
    [
        {},
        {"version": 5},
        {"version": 5, "body_type": 2},
        {"padding": bytes(100)},
        {"tee_tcb_svn": bytes([5, 0]) + b"\4" * 14},
        {"td_attributes": 1 << 28 | 1 << 27 | 1 << 30 | 1 << 31 | 1 << 63},
        {"qe_attributes": bytes.fromhex("15000000000000000000000000000000")},
    ],
    ids=str,
)
def test_both_accept(world: dict[str, Any]) -> None:
    """Evidence that is in order is accepted by both."""
    evidence = TdxWorld(**world).evidence()
    assert _ours(evidence)
    assert _oracle_of(evidence)


@pytest.mark.parametrize(("what", "world"), [(what, world) for _, what, world, _ in CASES], ids=[c[1] for c in CASES])
def test_cases(what: str, world: dict[str, Any]) -> None:
    """Every case that we refuse is refused by the oracle, or stands in the list with its reason."""
    evidence = TdxWorld(**world).evidence()
    assert not _ours(evidence)
    assert _oracle_of(evidence) == (what in ORACLE_IS_MORE_LENIENT)


@pytest.mark.parametrize(
    "world",
    [
        {"auth_data": bytes(16)},  # it takes 32 bytes of authentication data only; the format has a length field
        {"certification_type": 3},  # with the chain given beside; it takes that in its newest interface only
    ],
    ids=["authentication data", "chain beside the quote"],
)
def test_oracle_is_stricter(world: dict[str, Any]) -> None:
    """What the format allows and the oracle does not read, we accept on purpose."""
    made = TdxWorld(**world)
    evidence = made.evidence()
    evidence = replace(evidence, collateral=replace(evidence.collateral, pck_certificate_chain=made.pck_chain()))
    assert _ours(evidence)
    assert not _oracle_of(evidence)


@pytest.mark.parametrize("bit", [16, 18, 19, 20, 21, 22, 62])
def test_attributes_of_later_modules(bit: int) -> None:
    """Attributes that later TDX modules define pass the oracle; with us a tenant has to name them."""
    evidence = TdxWorld(td_attributes=1 << 28 | 1 << bit).evidence()
    assert _oracle_of(evidence)
    assert not _ours(evidence)


def test_order_of_levels() -> None:
    """The oracle sorts TCB levels; we take them as Intel signed them, best first, so that worst first is refused."""
    info = tcb_info()
    info["tcbLevels"].reverse()
    evidence = TdxWorld(tcb_info=info).evidence()
    assert _oracle_of(evidence)
    assert not _ours(evidence)


@pytest.mark.parametrize("version", [4, 5])
def test_mutations(version: int) -> None:
    """Over a seeded sample of changed bytes the verdicts are equal, save where nothing signs what was changed.

    The oracle reads past a changed type of the outer certification data and past all text of the certificate chain that
    it does not need: the copy of the root, PEM labels, zeros at the end. We refuse all of that.
    """
    evidence, rng = TdxWorld(version=version).evidence(), random.Random(f"oracle-{version}")
    shift = 0 if version == 4 else 6 + 64
    chain = evidence.quote.index(b"-----BEGIN ")
    for position in rng.sample(range(len(evidence.quote)), 100):
        changed = bytearray(evidence.quote)
        changed[position] ^= rng.randrange(1, 256)
        mutated = replace(evidence, quote=bytes(changed))
        ours, oracle = _ours(mutated), _oracle_of(mutated)
        if ours != oracle:
            assert oracle, "we accept nothing in a signed quote that the oracle refuses"
            assert position >= chain or position - shift in ORACLE_READS_PAST


@pytest.mark.parametrize("part", ["tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature", "pck_crl"])
def test_collateral_mutations(part: str) -> None:
    """Both refuse every changed byte of documents, signatures and lists."""
    evidence, rng = TdxWorld().evidence(), random.Random(part)
    data: bytes = getattr(evidence.collateral, part)
    for position in rng.sample(range(len(data)), 8):
        changed = bytearray(data)
        changed[position] ^= rng.randrange(1, 128)
        if part in {"tcb_info", "qe_identity"} and changed[position] > 0x7F:
            continue  # the oracle takes documents as text
        mutated = replace(evidence, collateral=replace(evidence.collateral, **{part: bytes(changed)}))
        assert (_ours(mutated), _oracle_of(mutated)) == (False, False)


_RECORDED: Final = [
    ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-06-20"),
    ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-08-20"),
    ("go-tdx-guest/quote_v5_sample.dat", "composed/collateral_90c06f000000_2026-03-16.json", "2026-03-20"),
    ("go-tdx-guest/quote_v5_sample.dat", "dcap-qvl/tdx_quote_collateral.json", "2025-06-20"),
    ("dcap-rs/quote_tdx_00806f050000.dat", "composed/collateral_00806f050000_2025-02-13.json", "2025-02-20"),
    ("coco-trustee/tdx_quote_4.dat", "composed/collateral_50806f000000_2023-06-18.json", "2023-06-20"),
]


def _check_recorded(quote_file: str, collateral_file: str, day: str, sample: int | None) -> None:
    raw = decode_quote((_VECTORS / quote_file).read_bytes())
    text = (_VECTORS / collateral_file).read_bytes()
    now_s = int(datetime.fromisoformat(day + "T00:00:00+00:00").timestamp())
    collateral, members = parse_collateral(text), json.loads(text)
    report_data = parse_quote(raw).report.report_data
    shift = 0 if raw[0] == 4 else 6 + 64
    # Behind the quoting enclave's report stand certificates as PEM, of which the oracle skips what it does not need.
    end = raw.index(b"-----BEGIN ")
    for position, quote in [(0, raw), *flips(raw[:end], sample=sample, seed=day)]:
        whole = quote if quote == raw else quote + raw[end:]
        try:
            verify_tdx_quote(
                whole, collateral=collateral, policy=TdxPolicy(images=None), report_data=report_data, now_s=now_s
            )
        except BulkheadError:
            ours = False
        else:
            ours = True
        if ours != _oracle(whole, members, now_s, None):
            assert not ours
            assert position - shift in ORACLE_READS_PAST, position


@pytest.mark.skipif(not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors")
@pytest.mark.parametrize(("quote_file", "collateral_file", "day"), _RECORDED)
def test_recorded(quote_file: str, collateral_file: str, day: str) -> None:
    """Recorded evidence, whole and with sampled bytes before its certificates changed, has the oracle's verdict."""
    _check_recorded(quote_file, collateral_file, day, 20)


@pytest.mark.long
@pytest.mark.skipif(not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors")
@pytest.mark.parametrize(("quote_file", "collateral_file", "day"), _RECORDED)
def test_recorded_every_byte(quote_file: str, collateral_file: str, day: str) -> None:
    """The same for every byte before the certificates."""
    _check_recorded(quote_file, collateral_file, day, None)
