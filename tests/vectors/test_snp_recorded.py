"""Recorded SEV-SNP evidence of real machines: each verdict, for its reason, at the times at which it changes."""

import dataclasses
import datetime as dt
import itertools
import os
from pathlib import Path

import pytest

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.snp import (
    PlatformInfo,
    SigningKey,
    SnpPolicy,
    SnpProduct,
    Tcb,
    read_snp_report,
    verify_snp_report,
)
from bulkhead.errors import BulkheadError

_ROOT = os.environ.get("BULKHEAD_TEST_VECTORS")
_VECTORS = Path(_ROOT or "/nonexistent") / "attestation" / "snp"
pytestmark = pytest.mark.skipif(
    not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors"
)

_ZERO = Tcb(bootloader=0, tee=0, snp=0, microcode=0)
STRICT = SnpPolicy(tcb_floors=dict.fromkeys(SnpProduct, _ZERO), measurements=None)
MILAN = dataclasses.replace(STRICT, products=frozenset(SnpProduct))
# Firmware of 2023 had no check for aliased memory.
OLD = dataclasses.replace(MILAN, required_platform_info=PlatformInfo(0))
PROVISIONAL = dataclasses.replace(OLD, allow_provisional_firmware=True)
VLEK = dataclasses.replace(PROVISIONAL, signing_keys=frozenset({SigningKey.VLEK}), csp_ids=None, vmpl=1)

MS_MILAN = ("ms-tee/milan_attestation_report.bin", "ms-tee/milan_vcek.pem")
MS_TURIN = ("ms-tee/turin_attestation_report.bin", "ms-tee/turin_vcek.pem")
VIRTEE = ("virtee-sev/report_milan.hex", "virtee-sev/vcek_milan.der")
COCO = ("coco-trustee/test-report.bin", "coco-trustee/test-vcek.der")
COCO_VLEK = ("coco-trustee/test-vlek-report.bin", "coco-trustee/test-vlek.der")
GO_SEV = ("go-sev-guest/attestation.bin", "go-sev-guest/vcek.testcer")
PAIRS = (MS_MILAN, MS_TURIN, VIRTEE, COCO, COCO_VLEK, GO_SEV)

VERDICTS = [
    # (evidence, policy, date, product given, obligation that fails or None)
    (MS_MILAN, MILAN, "2026-03-01", None, None),
    (MS_MILAN, STRICT, "2026-03-01", None, "SNP-12"),
    (MS_MILAN, MILAN, "2026-02-04", None, "SNP-5"),
    (MS_MILAN, MILAN, "2033-02-06", None, "SNP-5"),
    (MS_TURIN, STRICT, "2026-03-01", None, None),
    (MS_TURIN, STRICT, "2026-03-01", SnpProduct.GENOA, "SNP-2"),
    (MS_TURIN, STRICT, "2033-02-05", None, None),
    (MS_TURIN, STRICT, "2033-02-06", None, "SNP-5"),
    (VIRTEE, OLD, "2026-03-01", None, "SNP-2"),
    (VIRTEE, OLD, "2026-03-01", SnpProduct.MILAN, None),
    (VIRTEE, OLD, "2026-03-01", SnpProduct.GENOA, "SNP-4"),
    (VIRTEE, MILAN, "2026-03-01", SnpProduct.MILAN, "SNP-22"),
    (COCO, OLD, "2026-03-01", SnpProduct.MILAN, "SNP-19"),
    (COCO, PROVISIONAL, "2026-03-01", SnpProduct.MILAN, None),
    (COCO_VLEK, VLEK, "2025-12-10", None, None),
    (COCO_VLEK, VLEK, "2025-12-11", None, "SNP-5"),
    (COCO_VLEK, PROVISIONAL, "2025-03-01", None, "SNP-13"),
    (COCO_VLEK, dataclasses.replace(VLEK, vmpl=0), "2025-03-01", None, "SNP-17"),
    (COCO_VLEK, dataclasses.replace(VLEK, csp_ids=frozenset({"other"})), "2025-03-01", None, "SNP-13"),
    (GO_SEV, OLD, "2026-03-01", SnpProduct.MILAN, "SNP-14"),
]


def _certificates(name):
    return load_certificates((_VECTORS / name).read_bytes(), what=name)


def _verdict(evidence, policy, date, product, *, report_data=None, extra=()):
    report, leaf = evidence
    raw = (_VECTORS / report).read_bytes()
    try:
        verify_snp_report(
            raw,
            certificates=[certificate for name in (leaf, *extra) for certificate in _certificates(name)],
            report_data=report_data or read_snp_report(raw).report_data,
            policy=policy,
            now_s=int(dt.datetime.fromisoformat(f"{date}T00:00:00+00:00").timestamp()),
            product=product,
        )
    except BulkheadError as error:
        return obligation_of(error)
    return None


@pytest.mark.parametrize(("evidence", "policy", "date", "product", "obligation"), VERDICTS)
def test_verdict(evidence, policy, date, product, obligation):
    """Each recorded report gets the recorded verdict, by the obligation that explains it."""
    assert _verdict(evidence, policy, date, product) == obligation


@pytest.mark.parametrize(
    ("report", "leaf"), [pair for pair in itertools.product(PAIRS, repeat=2) if pair[0] is not pair[1]]
)
def test_wrong_pairing(report, leaf):
    """No report is accepted with the certificate of another machine."""
    takes_all = dataclasses.replace(VLEK, signing_keys=frozenset(SigningKey), vmpl=read_vmpl(report))
    product = SnpProduct.MILAN if report in (VIRTEE, COCO, GO_SEV) else None

    verdict = _verdict((report[0], leaf[1]), takes_all, "2025-06-01", product)

    assert verdict in {"SNP-4", "SNP-5", "SNP-7", "SNP-8", "SNP-9"}


def read_vmpl(evidence):
    """VMPL of a recorded report."""
    return read_snp_report((_VECTORS / evidence[0]).read_bytes()).vmpl


def test_report_data():
    """A recorded report does not answer another nonce."""
    nonce = bytes([1, 2, 3, 4, 5]).ljust(64, b"\0")

    assert _verdict(MS_TURIN, STRICT, "2026-03-01", None, report_data=nonce) == "SNP-11"
    assert _verdict(GO_SEV, OLD, "2026-03-01", SnpProduct.MILAN, report_data=nonce) == "SNP-14"


@pytest.mark.parametrize("machine", ["milan", "turin"])
def test_own_chain_along(machine):
    """The chain that a machine hands out is accepted beside its leaf; another product's is not."""
    evidence = {"milan": MS_MILAN, "turin": MS_TURIN}[machine]
    other = {"milan": "turin", "turin": "milan"}[machine]

    def own(name):
        return (f"ms-tee/{name}_ask.pem", f"ms-tee/{name}_ark.pem")

    assert _verdict(evidence, MILAN, "2026-03-01", None, extra=own(machine)) is None
    assert _verdict(evidence, MILAN, "2026-03-01", None, extra=own(other)) == "SNP-4"
