"""Recorded evidence through the command line, as somebody does who has read ``--help`` alone.

A policy is written by `policy init --from` the evidence, and the nonce read by `claims`; then each verdict of the
recorded files is reached with their names as arguments.
"""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bulkhead.cli.program import program

_VECTORS = Path(os.environ.get("BULKHEAD_TEST_VECTORS", "missing")) / "attestation"
pytestmark = pytest.mark.skipif(
    not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors"
)

SDK, NVTRUST, CCC = "nvidia/attestation-sdk", "nvidia/nvtrust/samples", "nvidia/ccc-certifier"
H100_545 = (f"{CCC}/attestationReport.txt", f"{CCC}/gpuAkCertChain.txt")
H100_550 = (f"{NVTRUST}/hopperAttestationReport.txt", f"{NVTRUST}/hopperCertChain.txt")
H100_535 = (f"{SDK}/gpu/hopperAttestationReport.txt", f"{SDK}/gpu/hopperCertChain.txt")
BLACKWELL = (f"{SDK}/gpu/blackwellAttestationReport.txt", f"{SDK}/gpu/blackwellCertChain.txt")
DRIVER_545 = f"{NVTRUST}/Driver_RIM_test_no_gpu.swidtag"
VBIOS_545 = f"{NVTRUST}/1010_0200_882_96005E0001_test_no_gpu.swidtag"
VBIOS_PROD = f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag"
MISMATCH = f"{SDK}/rims/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml"
BAD_RIM = f"{SDK}/rims/incorrect_signature_driver_rim.xml"
BAD_SIGNATURE = f"{SDK}/gpu/hopperAttestationReportInvalidSignature.txt"
NONCE_545 = "4cff7f5380ead8fad8ec2c531c110aca4302a88f603792801a8ca29ee151af2e"
NONCE_550 = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
MS_MILAN = ("snp/ms-tee/milan_attestation_report.bin", "snp/ms-tee/milan_vcek.pem")
MS_TURIN = ("snp/ms-tee/turin_attestation_report.bin", "snp/ms-tee/turin_vcek.pem")
VIRTEE = ("snp/virtee-sev/report_milan.hex", "snp/virtee-sev/vcek_milan.der")
COCO = ("snp/coco-trustee/test-report.bin", "snp/coco-trustee/test-vcek.der")
COCO_VLEK = ("snp/coco-trustee/test-vlek-report.bin", "snp/coco-trustee/test-vlek.der")
GO_SEV = ("snp/go-sev-guest/attestation.bin", "snp/go-sev-guest/vcek.testcer")
TDX_V4 = ("tdx/dcap-qvl/tdx_quote", "tdx/dcap-qvl/tdx_quote_collateral.json")
TDX_V5 = ("tdx/go-tdx-guest/quote_v5_sample.dat", "tdx/composed/collateral_90c06f000000_2026-03-16.json")
TDX_OLD = ("tdx/dcap-rs/quote_tdx_00806f050000.dat", "tdx/composed/collateral_00806f050000_2025-02-13.json")
TDX_DEBUG = ("tdx/coco-trustee/tdx_quote_4.dat", "tdx/composed/collateral_50806f000000_2023-06-18.json")

VERDICTS = [
    # (files, date, options, policy from the evidence: None, "strict" or "exceptions", obligation that fails or None)
    (MS_MILAN, "2026-03-01", (), "exceptions", None),
    (MS_MILAN, "2026-03-01", (), "strict", "SNP-12"),
    (MS_TURIN, "2026-03-01", (), "strict", None),
    (MS_TURIN, "2026-03-01", (), None, "SNP-18"),
    ((*MS_TURIN, "snp/roots/ask_ark_turin_vcek.pem"), "2026-03-01", (), "strict", None),
    ((MS_TURIN[0], MS_MILAN[1]), "2026-03-01", (), "strict", "SNP-4"),
    ((MS_TURIN[0], VIRTEE[1]), "2026-03-01", (), "strict", "SNP-4"),
    ((MS_TURIN[0],), "2026-03-01", (), "strict", "SNP-4"),
    (VIRTEE, "2026-03-01", ("--product", "milan"), "exceptions", None),
    (VIRTEE, "2026-03-01", (), "exceptions", "SNP-2"),
    (COCO, "2026-03-01", ("--product", "milan"), "exceptions", None),
    (COCO, "2026-03-01", ("--product", "Milan"), "strict", "SNP-12"),
    ((COCO[0], VIRTEE[1]), "2026-03-01", ("--product", "milan"), "exceptions", "SNP-9"),
    (COCO_VLEK, "2025-12-10", (), "exceptions", None),
    (COCO_VLEK, "2025-12-11", (), "exceptions", "SNP-5"),
    (COCO_VLEK, "2025-12-10", (), "strict", "SNP-12"),
    (GO_SEV, "2026-03-01", ("--product", "milan"), COCO, "SNP-14"),
    (TDX_V4, "2025-06-20", (), "strict", None),
    (TDX_V4, "2025-12-01", (), "strict", "TDX-4"),
    (TDX_V4, "2025-06-20", (), None, "TDX-24"),
    ((TDX_V4[0],), "2025-06-20", (), "strict", "TDX-9"),
    (TDX_V5, "2026-03-20", (), "strict", None),
    (TDX_V5, "2026-05-01", (), "strict", "TDX-4"),
    ((TDX_V5[0], TDX_V4[1]), "2026-03-20", (), "strict", "TDX-4"),
    (TDX_OLD, "2025-02-20", (), "strict", "TDX-17"),
    (TDX_DEBUG, "2023-06-20", (), TDX_V4, "TDX-19"),
    ((*H100_545, DRIVER_545, VBIOS_545), "2024-06-01", (), "exceptions", None),
    ((*H100_545, DRIVER_545, VBIOS_545), "2024-06-01", (), "strict", "GPU-6"),
    ((*H100_545, DRIVER_545, VBIOS_545), "2025-06-23", (), "exceptions", "GPU-14"),
    ((*H100_545, DRIVER_545), "2024-06-01", (), "exceptions", "GPU-11"),
    ((*H100_545, DRIVER_545, VBIOS_PROD), "2024-06-01", (), "exceptions", "GPU-16"),
    ((*H100_545, BAD_RIM, VBIOS_545), "2024-06-01", (), "exceptions", "GPU-12"),
    ((H100_545[0], H100_550[1], DRIVER_545, VBIOS_545), "2024-06-01", (), "exceptions", "GPU-4"),
    (H100_550, "2025-12-01", (), "strict", "GPU-11"),
    ((*H100_535, VBIOS_PROD), "2024-06-01", (), "exceptions", "GPU-11"),
    ((*H100_535, VBIOS_PROD, MISMATCH), "2024-06-01", (), "exceptions", "GPU-12"),
    ((BAD_SIGNATURE, H100_535[1]), "2024-06-01", (), "exceptions", "GPU-4"),
    (BLACKWELL, "2025-12-01", (), "strict", "GPU-11"),
]


@pytest.fixture(autouse=True)
def _no_cache_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    """Run `bulkhead evidence` and return exit code and JSON."""
    result = CliRunner().invoke(program, ["evidence", *map(str, arguments), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, json.loads(result.stdout)


def paths(names):
    """Recorded files."""
    return [str(_VECTORS / name) for name in names]


def nonce_of(report):
    """What a piece of evidence answers, as it claims itself."""
    _, claims = run("claims", *paths([report]))
    return claims.get("report_data") or claims["nonce"]


def policy_from(files, how, product, tmp_path):
    """A policy written from evidence, without the demand for OCSP answers, of which none were recorded."""
    weaken = ["--with-exceptions"] if how == "exceptions" else []
    from_files = [item for name in files[:2] for item in ("--from", _VECTORS / name)]
    code, written = run("policy", "init", *from_files, *product, *weaken)
    assert code == 0
    path = tmp_path / "trust.toml"
    path.write_text(written["policy"].replace("revocation_required = true", "revocation_required = false"))
    return ["--policy", path]


@pytest.mark.parametrize(("files", "date", "options", "how", "obligation"), VERDICTS)
def test_recorded_verdicts(files, date, options, how, obligation, tmp_path):
    """Each recorded piece of evidence gets its verdict from the command line, for its reason."""
    source, made = (how, "exceptions") if isinstance(how, tuple) else (files, how)
    # A version 2 report names no product: `policy init` must be told, whatever verification is told.
    product = ["--product", "milan"] if source in (VIRTEE, COCO) or source[0] == COCO[0] else []
    policy = policy_from(source, made, product, tmp_path) if how is not None else []

    code, facts = run("verify", *paths(files), *options, *policy, "--nonce", nonce_of(files[0]), "--at", date)

    assert (code, facts["verified"]) == ((0, True) if obligation is None else (1, False))
    assert facts.get("obligation") == obligation
    if obligation is not None:
        assert facts["obligation_text"]
        assert facts["message"].startswith(f"{obligation}: ")


def test_h100_matches_every_measurement(tmp_path):
    """The H100 with both manifests: 33 of 33, with the nonce that was recorded beside it."""
    policy = policy_from(H100_545, "exceptions", [], tmp_path)
    files = paths([*H100_545, DRIVER_545, VBIOS_545])

    code, facts = run("verify", "--type", "nvidia", *files, *policy, "--nonce", NONCE_545, "--at", "2024-06-01")

    assert (code, facts["measurements_matched"], facts["measurements_expected"]) == (0, 33, 33)
    code, facts = run("verify", "--type", "nvidia", *files, *policy, "--nonce", NONCE_550, "--at", "2024-06-01")
    assert (code, facts["obligation"], facts["code"]) == (1, "GPU-5", "EVIDENCE_BINDING")


ROOTS = [
    (f"{SDK}/rims/rim_root.crt", None),
    ("nvidia/nvtrust/certs/verifier_RIM_root.pem", None),
    ("nvidia/nvtrust/certs/verifier_device_root.pem", None),
    (f"{SDK}/rims/incorrect_rim_root.crt", "GPU-13"),
]


@pytest.mark.parametrize(("root", "obligation"), ROOTS)
def test_roots_beside_the_evidence(root, obligation, tmp_path):
    """NVIDIA's own roots may lie beside the evidence, where they change nothing; another root is refused."""
    policy = policy_from(H100_545, "exceptions", [], tmp_path)
    files = paths([*H100_545, DRIVER_545, VBIOS_545])
    arguments = [*policy, "--nonce", NONCE_545, "--at", "2024-06-01"]

    assert run("verify", *files, *paths([root]), *arguments)[1].get("obligation") == obligation
    assert run("verify", *files, "--certs", *paths([root]), *arguments)[1].get("obligation") == obligation


@pytest.mark.parametrize(("evidence", "obligation"), [(GO_SEV[0], "SNP-14"), (TDX_DEBUG[0], "TDX-19")])
def test_no_policy_can_be_written_for_debug(evidence, obligation):
    """A guest under debug is refused when a policy is written for it, too."""
    code, facts = run("policy", "init", "--from", *paths([evidence]), "--product", "milan", "--with-exceptions")

    assert (code, facts["code"]) == (1, "EVIDENCE_POLICY")
    assert facts["message"].startswith(obligation)


def test_go_sev_answers_the_short_nonce_that_was_recorded(tmp_path):
    """A nonce shorter than REPORT_DATA is filled with zeros: another one is refused before the policy is asked."""
    policy = policy_from(COCO, "exceptions", ["--product", "milan"], tmp_path)
    files = [*paths(GO_SEV), "--product", "milan", "--at", "2026-03-01", *policy]

    assert run("verify", *files, "--nonce", "0102030405")[1]["obligation"] == "SNP-14"
    assert run("verify", *files, "--nonce", "01020304")[1]["obligation"] == "SNP-11"
