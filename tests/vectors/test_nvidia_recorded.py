"""Reports of real GPUs, recorded by others: each verdict, and the obligation behind it."""

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import (
    GpuMode,
    NvidiaPolicy,
    NvidiaRoots,
    VerifiedGpu,
    match_measurements,
    nvidia_roots,
    parse_report,
    parse_rim,
    verify_gpu,
)
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import BulkheadError, EvidenceError

pytestmark = pytest.mark.skipif(
    "BULKHEAD_TEST_VECTORS" not in os.environ, reason="recorded evidence is not part of the repository"
)

NONCE = "4cff7f5380ead8fad8ec2c531c110aca4302a88f603792801a8ca29ee151af2e"
NONCE_550 = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
DRIVER_545 = "nvtrust/samples/Driver_RIM_test_no_gpu.swidtag"
VBIOS_545 = "nvtrust/samples/1010_0200_882_96005E0001_test_no_gpu.swidtag"
VBIOS_535 = "nvtrust/samples/1010_0200_882_96005E0001_PROD.swidtag"
MISMATCH_535 = "attestation-sdk/rims/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml"
# No OCSP answers were recorded, and each report is from before 2025.
LENIENT = NvidiaPolicy(revocation_required=False)
WITHOUT_FWID = NvidiaPolicy(revocation_required=False, allow_missing_fwid=True)


def read(name: str) -> bytes:
    """Return a recorded file."""
    return (Path(os.environ["BULKHEAD_TEST_VECTORS"]) / "attestation" / "nvidia" / name).read_bytes()


def verify(
    report: str,
    chain: str,
    *,
    driver: str | None = None,
    vbios: str | None = None,
    nonce: str | None = None,
    policy: NvidiaPolicy = LENIENT,
    at: str = "2024-06-01",
    roots: NvidiaRoots | None = None,
) -> VerifiedGpu:
    """Verify recorded files; without ``nonce`` the report's own is taken, as it was not recorded."""
    data = read(report)
    return verify_gpu(
        data,
        certificates=read(chain),
        driver_rim=read(driver) if driver else None,
        vbios_rim=read(vbios) if vbios else None,
        nonce=bytes.fromhex(nonce) if nonce else parse_report(data).nonce,
        policy=policy,
        now_s=int(dt.datetime.fromisoformat(f"{at}T00:00:00+00:00").timestamp()),
        roots=roots,
    )


def verify_545(**changes: Any) -> VerifiedGpu:
    """Verify the H100 of driver 545.00, with changes."""
    arguments = {"driver": DRIVER_545, "vbios": VBIOS_545, "nonce": NONCE, "policy": WITHOUT_FWID, **changes}
    return verify("ccc-certifier/attestationReport.txt", "ccc-certifier/gpuAkCertChain.txt", **arguments)


def refused(caught: pytest.ExceptionInfo[BulkheadError]) -> tuple[str | None, str]:
    """Return obligation and code."""
    return obligation_of(caught.value), caught.value.code


def test_h100_with_both_manifests_is_accepted() -> None:
    """H100, driver 545.00, VBIOS 96.00.5E.00.01: 33 of 33 measurements match, where a missing FWID is allowed."""
    verified = verify_545()
    assert (verified.measurements_matched, verified.measurements_expected) == (33, 33)
    assert (verified.product, verified.report.driver_version) == ("GH100", "545.00")
    assert verified.report.vbios_version == "96.00.5E.00.01"
    assert verified.report.vbios_rim_id == "NV_GPU_VBIOS_1010_0200_882_96005E0001"
    assert (verified.report.mode, verified.report.mode_stated) == (GpuMode.SPT, False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policy": LENIENT}, ("GPU-6", "EVIDENCE_POLICY")),
        ({"policy": NvidiaPolicy(allow_missing_fwid=True)}, ("GPU-7", "EVIDENCE_INVALID")),
        ({"nonce": NONCE_550}, ("GPU-5", "EVIDENCE_BINDING")),
        ({"at": "2025-06-26"}, ("GPU-14", "EVIDENCE_EXPIRED")),
        ({"at": "2023-06-22"}, ("GPU-14", "EVIDENCE_EXPIRED")),
        ({"at": "2019-01-01"}, ("GPU-3", "EVIDENCE_EXPIRED")),
        ({"vbios": VBIOS_535}, ("GPU-16", "EVIDENCE_INVALID")),
        ({"vbios": DRIVER_545}, ("GPU-15", "EVIDENCE_INVALID")),
        ({"driver": MISMATCH_535}, ("GPU-12", "EVIDENCE_INVALID")),
        ({"driver": "attestation-sdk/rims/incorrect_signature_driver_rim.xml"}, ("GPU-12", "EVIDENCE_INVALID")),
        ({"driver": None}, ("GPU-11", "EVIDENCE_INVALID")),
    ],
)
def test_h100_is_refused_under_each_change(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    """One change against the accepted verdict is refused for that change's reason."""
    with pytest.raises(BulkheadError) as caught:
        verify_545(**changes)
    assert refused(caught) == expected


def test_the_verdict_changes_when_the_manifests_expire() -> None:
    """Accepted on the VBIOS signer's last day, 2025-06-22, and refused the day after."""
    verify_545(at="2025-06-22")
    with pytest.raises(BulkheadError) as caught:
        verify_545(at="2025-06-23")
    assert refused(caught) == ("GPU-14", "EVIDENCE_EXPIRED")


@pytest.mark.parametrize(
    ("report", "chain", "product", "driver", "vbios"),
    [
        ("nvtrust/samples/hopper", "nvtrust/samples/hopper", "GH100", "550.90.07", "96.00.9F.00.01"),
        ("attestation-sdk/gpu/blackwell", "attestation-sdk/gpu/blackwell", "GB100", "575.32", "97.00.88.00.0F"),
    ],
)
def test_chain_signature_and_fwid_hold_where_no_manifest_is_here(
    report: str, chain: str, product: str, driver: str, vbios: str
) -> None:
    """Hopper and Blackwell with FWID pass everything up to the manifests, and are refused for these alone."""
    names = (f"{report}AttestationReport.txt", f"{chain}CertChain.txt")
    with pytest.raises(BulkheadError) as caught:
        verify(*names, nonce=NONCE_550, at="2025-12-01")
    assert refused(caught) == ("GPU-11", "EVIDENCE_INVALID")
    assert caught.value.details["rim"].endswith(f"{product}_{driver}")
    claims = parse_report(read(names[0]))
    assert (claims.driver_version, claims.vbios_version) == (driver, vbios)
    with pytest.raises(BulkheadError) as caught:
        verify(*names, nonce=NONCE, at="2025-12-01")
    assert refused(caught) == ("GPU-5", "EVIDENCE_BINDING")


def test_h100_535_matches_its_vbios_and_not_the_altered_driver_manifest() -> None:
    """Driver 535.86.09: the altered driver manifest fails by signature and by measurements; the VBIOS's matches."""
    name = "attestation-sdk/gpu/hopper"
    with pytest.raises(BulkheadError) as caught:
        verify(
            f"{name}AttestationReport.txt",
            f"{name}CertChain.txt",
            driver=MISMATCH_535,
            vbios=VBIOS_535,
            policy=WITHOUT_FWID,
        )
    assert refused(caught) == ("GPU-12", "EVIDENCE_INVALID")
    claims = parse_report(read(f"{name}AttestationReport.txt"))
    driver, vbios = (parse_rim(read(rim), what=rim) for rim in (MISMATCH_535, VBIOS_535))
    assert all(claims.measurements[index + 1] in values for index, values in vbios.measurements.items())
    with pytest.raises(EvidenceError) as mismatch:
        match_measurements(claims, driver=driver, vbios=vbios)
    assert not set(mismatch.value.details["indices"].split(", ")) & {str(index) for index in vbios.measurements}


@pytest.mark.parametrize("chain", ["attestation-sdk/gpu/hopperCertChain.txt", "nvtrust/samples/hopperCertChain.txt"])
def test_invalid_signature_is_refused(chain: str) -> None:
    """A report whose signature was altered is refused for it."""
    with pytest.raises(BulkheadError) as caught:
        verify("attestation-sdk/gpu/hopperAttestationReportInvalidSignature.txt", chain)
    assert refused(caught) == ("GPU-4", "EVIDENCE_INVALID")


@pytest.mark.parametrize(
    "chain",
    [
        "attestation-sdk/gpu/blackwellCertChain.txt",
        "attestation-sdk/gpu/hopperCertChain.txt",
        "nvtrust/samples/hopperCertChain.txt",
    ],
)
def test_chains_of_other_machines_are_refused(chain: str) -> None:
    """Another machine's chain is sound, and did not sign this report."""
    with pytest.raises(BulkheadError) as caught:
        verify("ccc-certifier/attestationReport.txt", chain, nonce=NONCE, policy=WITHOUT_FWID)
    assert refused(caught) == ("GPU-4", "EVIDENCE_INVALID")


def test_the_incorrect_root_of_manifests_is_refused() -> None:
    """Under another root the same manifests lead nowhere."""
    (root,) = load_certificates(read("attestation-sdk/rims/incorrect_rim_root.crt"), what="root")
    with pytest.raises(BulkheadError) as caught:
        verify_545(roots=NvidiaRoots(device=nvidia_roots().device, rim=root))
    assert refused(caught) == ("GPU-13", "EVIDENCE_INVALID")


@pytest.mark.parametrize(
    ("name", "pinned"),
    [("verifier_device_root.pem", "device"), ("verifier_RIM_root.pem", "rim")],
)
def test_the_pinned_roots_are_the_recorded_ones(name: str, pinned: str) -> None:
    """The package's roots equal NVIDIA's own verifier's."""
    certificate: x509.Certificate = getattr(nvidia_roots(), pinned)
    assert load_certificates(read(f"nvtrust/certs/{name}"), what=name) == (certificate,)
