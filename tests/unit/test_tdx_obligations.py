"""Every obligation of the TDX verifier: one accepted base case, and for each at least one case that fails it alone."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.tdx import TDX_OBLIGATIONS, TcbStatus, TdImage, TdxPolicy, parse_collateral
from bulkhead.errors import (
    BulkheadError,
    EvidenceError,
    EvidencePolicyError,
)
from tests.simulator.tdx_cases import BAD_48, CASES, POLICY_CASES, World, with_status
from tests.simulator.tdx_world import DAY_S, MR_TD, NOW_S, PPID, RTMRS, TdxWorld, bundle, policy


@pytest.mark.parametrize("world", [{}, {"version": 5}, {"version": 5, "body_type": 2}], ids=str)
def test_base_case(world: World) -> None:
    """A platform under the test root is accepted, in each form of quote, and the value says what was proven."""
    verified = TdxWorld(**world).evidence().verify()
    assert verified.report.mr_td == MR_TD
    assert verified.platform.ppid == PPID
    assert verified.tcb.status is TcbStatus.UP_TO_DATE
    assert verified.not_after_s == NOW_S + 20 * DAY_S


@pytest.mark.parametrize(
    ("obligation", "world", "error"),
    [(o, w, e) for o, _, w, e in CASES],
    ids=[f"{o} {what}" for o, what, *_ in CASES],
)
def test_obligation_fails_alone(obligation: str, world: World, error: type[EvidenceError]) -> None:
    """One thing wrong fails exactly its obligation, with the code of its kind."""
    evidence = TdxWorld(**world).evidence()
    with pytest.raises(error) as caught:
        evidence.verify()
    assert type(caught.value) is error
    assert obligation_of(caught.value) == obligation


def test_advisories() -> None:
    """TDX-18: accepting a status leaves each of its advisories to be accepted by name."""
    evidence = TdxWorld(tcb_info=with_status("SWHardeningNeeded", ["INTEL-SA-1", "INTEL-SA-2"])).evidence()
    statuses = frozenset({TcbStatus.SW_HARDENING_NEEDED})
    with pytest.raises(EvidencePolicyError) as caught:
        evidence.verify(policy(accepted_statuses=statuses, accepted_advisories=frozenset({"INTEL-SA-1"})))
    assert obligation_of(caught.value) == "TDX-18"
    both = frozenset({"INTEL-SA-1", "INTEL-SA-2"})
    verified = evidence.verify(policy(accepted_statuses=statuses, accepted_advisories=both))
    assert verified.tcb.advisories == ("INTEL-SA-1", "INTEL-SA-2")


@pytest.mark.parametrize(
    ("obligation", "world", "changes"),
    [(obligation, world, changes) for obligation, _, world, changes in POLICY_CASES],
    ids=[f"{obligation} {what}" for obligation, what, *_ in POLICY_CASES],
)
def test_policy_option(obligation: str, world: World, changes: dict[str, Any]) -> None:
    """A stricter policy refuses what a laxer one takes, under its own obligation."""
    with pytest.raises(EvidencePolicyError) as caught:
        TdxWorld(**world).evidence().verify(policy(**changes))
    assert obligation_of(caught.value) == obligation


def test_default_policy_knows_no_image() -> None:
    """TDX-24: a policy that names no image accepts none."""
    with pytest.raises(EvidencePolicyError) as caught:
        TdxWorld().evidence().verify(TdxPolicy())
    assert obligation_of(caught.value) == "TDX-24"


def test_pinned_choices_accept() -> None:
    """PPID, MRSEAM and a register left out on purpose accept the platform that they name."""
    changes: dict[str, Any] = {
        "ppids": frozenset({PPID}),
        "mr_seams": frozenset({b"\x33" * 48}),
        "images": (TdImage(mr_td=MR_TD, rtmrs=(*RTMRS[:3], None)),),
    }
    assert TdxWorld(rtmrs=(*RTMRS[:3], BAD_48)).evidence().verify(policy(**changes)).platform.ppid == PPID


def test_worst_status_counts() -> None:
    """Out of date in one part and configuration needed in another is both, as Intel's library converges them."""
    world = TdxWorld(tcb_info=with_status("ConfigurationNeeded", []), qe_svn=3)
    with pytest.raises(EvidencePolicyError) as caught:
        world.evidence().verify()
    assert obligation_of(caught.value) == "TDX-17"
    assert "OutOfDateConfigurationNeeded" in caught.value.message
    assert caught.value.details["advisories"] == "SA-Q"


def test_module_of_version_0() -> None:
    """A TDX 1.0 module is judged by the platform's first two components, not by an identity of its own."""
    TdxWorld(tee_tcb_svn=bytes([5, 0]) + b"\4" * 14).evidence().verify()
    with pytest.raises(EvidenceError) as caught:
        TdxWorld(tee_tcb_svn=bytes([4, 0]) + b"\4" * 14).evidence().verify()
    assert obligation_of(caught.value) == "TDX-16"


def test_chain_from_collateral() -> None:
    """A quote that only names its PCK certificate verifies with the chain in the collateral."""
    world = TdxWorld(certification_type=3)
    evidence = world.evidence()
    replace(evidence, collateral=replace(evidence.collateral, pck_certificate_chain=world.pck_chain())).verify()


def test_zero_padding() -> None:
    """Zero bytes behind the quote, as host buffers leave them, are accepted."""
    TdxWorld(padding=bytes(3000)).evidence().verify()


def test_updated_module() -> None:
    """A TD 1.5 whose module was updated under it is rated at launch and now; both up to date is accepted."""
    TdxWorld(version=5, tee_tcb_svn_2=bytes([7, 1]) + b"\5" * 14).evidence().verify()


def _pem_list(der: bytes) -> str:
    return f"-----BEGIN X509 CRL-----\n{base64.encodebytes(der).decode()}-----END X509 CRL-----\n"


def _answers(text: dict[str, str]) -> dict[str, Any]:
    """Return a bundle whose documents are the whole answers of Intel's service."""
    info, identity = text["tcb_info"], text["qe_identity"]
    return {
        **text,
        "tcb_info": f'{{"tcbInfo":{info},"signature":"{text["tcb_info_signature"]}"}}',
        "qe_identity": f'{{"enclaveIdentity": {identity} , "signature": "{text["qe_identity_signature"]}"}}\n',
    }


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: {**text, "pck_crl": base64.b64encode(bytes.fromhex(text["pck_crl"])).decode()},
        lambda text: {**text, "root_ca_crl": _pem_list(bytes.fromhex(text["root_ca_crl"]))},
        lambda text: {**text, "root_ca_crl": text["root_ca_crl"].upper() + "\0"},
        lambda text: {**text, "tcb_info_issuer_chain": quote(text["tcb_info_issuer_chain"])},
        lambda text: {**text, "qe_identity_issuer_chain": text["qe_identity_issuer_chain"].replace("\n", "\r\n")},
        lambda text: {**text, "tcb_info": text["tcb_info"] + "\0"},
        _answers,
        lambda text: {**_answers(text), "tcb_info_signature": "", "qe_identity_signature": None},
        lambda text: {**text, "later": {"member": 1}, "major_version": 3},
    ],
    ids=["base64 list", "PEM list", "hex list of a C program", "percent-encoded chain", "CRLF", "zero at the end",
         "Intel's answers", "Intel's answers alone", "more members"],
)  # fmt: skip
def test_spellings_of_collateral(spell: Callable[[dict[str, str]], dict[str, Any]]) -> None:
    """Collateral is accepted in each form in which programs pass it on."""
    evidence = TdxWorld().evidence()
    spelled = json.dumps(spell(bundle(evidence.collateral))).encode()
    replace(evidence, collateral=parse_collateral(spelled)).verify()


def test_missing_list() -> None:
    """TDX-4: without the PCK CA's list the PCK certificate is not known to be good."""
    evidence = TdxWorld().evidence()
    without = replace(evidence.collateral, pck_crl=evidence.collateral.root_ca_crl)
    with pytest.raises(EvidenceError) as caught:
        replace(evidence, collateral=without).verify()
    assert obligation_of(caught.value) == "TDX-4"


def test_every_obligation_has_a_case() -> None:
    """The table of obligations and the cases name the same numbers."""
    assert {obligation for obligation, *_ in (*CASES, *POLICY_CASES)} == set(TDX_OBLIGATIONS)


@pytest.mark.parametrize(
    "spoil",
    [lambda _: b"", lambda text: text[:-9], lambda _: b"\xff\xfe", lambda _: b"-----BEGIN X509 CRL-----"],
    ids=["empty", "cut", "not text", "PEM without end"],
)
@pytest.mark.parametrize(
    ("part", "obligations"),
    [
        ("tcb_info", {"TDX-9"}),
        ("tcb_info_signature", {"TDX-9"}),
        ("tcb_info_issuer_chain", {"TDX-9"}),
        ("qe_identity", {"TDX-10"}),
        ("qe_identity_signature", {"TDX-10"}),
        ("qe_identity_issuer_chain", {"TDX-10"}),
        ("pck_crl", {"TDX-4"}),
        ("root_ca_crl", {"TDX-4"}),
    ],
)
def test_spoiled_collateral(part: str, obligations: set[str], spoil: Callable[[bytes], bytes]) -> None:
    """Each part of the collateral, when spoiled, fails the obligation that needs it, and nothing else is raised."""
    evidence = TdxWorld().evidence()
    collateral = replace(evidence.collateral, **{part: spoil(getattr(evidence.collateral, part))})
    if part.endswith("issuer_chain") and getattr(collateral, part):
        collateral = replace(collateral, **{part: getattr(evidence.collateral, part)[:400]})
    with pytest.raises(BulkheadError) as caught:
        replace(evidence, collateral=collateral).verify()
    assert obligation_of(caught.value) in obligations
