"""Every obligation of a GPU's verification, by a case that fails it alone."""

import datetime as dt
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from bulkhead.attestation.nvidia import GPU_OBLIGATIONS, GpuMode, NvidiaPolicy, verify_gpu
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import (
    BulkheadError,
    EvidenceError,
)
from tests.simulator.nvidia_cases import CASES, Change, with_answer, with_device, with_opaque
from tests.simulator.nvidia_world import (
    DRIVER,
    FWID,
    NOW,
    NOW_S,
    VBIOS,
    GpuCase,
    measurements,
    opaque,
    pem,
    report,
    responder_for,
    tcb_info,
    world,
)


def test_the_base_case_is_accepted() -> None:
    """A sound report with FWID, manifests and answers is accepted, 33 of 33 measurements equal."""
    verified = GpuCase().verify()
    assert (verified.product, verified.measurements_matched, verified.measurements_expected) == ("GH100", 33, 33)
    assert verified.report.mode is GpuMode.SPT
    assert verified.report.mode_stated
    assert verified.device_serial == world().device[1].certificate.serial_number


@pytest.mark.parametrize(
    ("obligation", "change", "error"),
    [(obligation, change, error) for obligation, _, error, change in CASES],
    ids=[f"{obligation} {name}" for obligation, name, _, _ in CASES],
)
def test_each_obligation_is_checked(obligation: str, change: Change, error: type[BulkheadError]) -> None:
    """One change against the base case fails exactly the obligation it breaks, under its code."""
    with pytest.raises(BulkheadError) as caught:
        change().verify()
    assert (obligation_of(caught.value), type(caught.value)) == (obligation, error), caught.value


def test_every_obligation_has_a_case() -> None:
    """The table of obligations and the cases name the same numbers."""
    assert {obligation for obligation, *_ in CASES} == set(GPU_OBLIGATIONS)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: with_device(leaf_extension=tcb_info(FWID, bytes(48))), id="Blackwell's form of FWID"),
        pytest.param(
            lambda: replace(with_opaque(fwid=None), policy=NvidiaPolicy(allow_missing_fwid=True)),
            id="FWID not demanded",
        ),
        pytest.param(
            lambda: GpuCase(ocsp_responses=(), policy=NvidiaPolicy(revocation_required=False)), id="OCSP not demanded"
        ),
        pytest.param(lambda: with_opaque(mode=None, version=None), id="before the mode was stated"),
        pytest.param(
            lambda: replace(with_opaque(mode=b"\x00"), policy=NvidiaPolicy(modes=frozenset({GpuMode.MPT}))),
            id="MPT wanted",
        ),
        pytest.param(
            lambda: GpuCase(
                policy=NvidiaPolicy(
                    driver_versions=frozenset({DRIVER}),
                    vbios_versions=frozenset({VBIOS}),
                    minimum_driver_version="580.9",
                    minimum_vbios_version="96.00.9F.00.00",
                )
            ),
            id="versions listed and above the floors",
        ),
        pytest.param(
            lambda: GpuCase(report=GpuCase().report.hex().encode(), certificates=pem(world().device)),
            id="report in hex",
        ),
    ],
)
def test_what_a_policy_allows_is_accepted(case: Change) -> None:
    """Each loosened demand, and each form in the wild, is accepted without touching the others."""
    assert case().verify().measurements_matched == 33


def test_a_delegated_responder_is_believed_only_if_its_issuer_named_it() -> None:
    """RFC 6960 section 4.2.2.2: an answer of a certificate without the OCSP usage, or of another CA, is refused.

    Authorities above the issuer may answer, too; the boot ROM below it and the authorities of manifests may not.
    """
    brom, issuer, *above = world().device[1:]
    for authority in (issuer, *above):
        with_answer(0, signer=responder_for(authority)).verify()
    for impostor in (responder_for(issuer, authorised=False), responder_for(brom), responder_for(world().rim[3])):
        with pytest.raises(EvidenceError) as caught:
            with_answer(0, signer=impostor).verify()
        assert obligation_of(caught.value) == "GPU-7"


def test_revoked_is_believed_however_old_and_even_where_answers_are_not_demanded() -> None:
    """An outdated answer that revokes still refuses; certificate hold is a revocation."""
    case = with_answer(
        0,
        status=ocsp.OCSPCertStatus.REVOKED,
        reason=x509.ReasonFlags.certificate_hold,
        this_update=NOW - dt.timedelta(days=300),
    )
    with pytest.raises(EvidenceError) as caught:
        replace(case, policy=NvidiaPolicy(revocation_required=False)).verify()
    assert (obligation_of(caught.value), caught.value.details["reason"]) == ("GPU-7", "certificateHold")


def test_measurement_35_may_differ_only_where_the_decoder_is_off() -> None:
    """With NVDEC0 off (signed), number 35 is not judged, and the counts say so; with it on, it is."""
    values = {**measurements(), 35: bytes(48)}
    leaf = world().device[0]
    off = GpuCase(report=report(leaf, values=values, opaque_data=opaque(nvdec0=b"\x55"))).verify()
    assert (off.measurements_matched, off.measurements_expected) == (32, 33)
    with pytest.raises(EvidenceError) as caught:
        GpuCase(report=report(leaf, values=values)).verify()
    assert caught.value.details["indices"] == "35"


def test_a_missing_manifest_is_named_with_its_source() -> None:
    """Whoever lacks collateral learns its name and who gives it."""
    with pytest.raises(
        EvidenceError, match=r"rim\.attestation\.nvidia\.com/v1/rim/NV_GPU_VBIOS_G520_0200_882_9600AB0002"
    ):
        GpuCase(vbios_rim=None).verify()


def test_nvidias_roots_are_the_default() -> None:
    """Without roots of the caller's, evidence under test roots is refused."""
    case = GpuCase()
    with pytest.raises(EvidenceError) as caught:
        verify_gpu(
            case.report, certificates=case.certificates, driver_rim=case.driver_rim, vbios_rim=case.vbios_rim,
            nonce=case.nonce, policy=case.policy, now_s=NOW_S,
        )  # fmt: skip
    assert obligation_of(caught.value) == "GPU-2"
