"""Mutations of recorded evidence of real machines: nothing is accepted but what reads as the original does.

Which bytes may change, and why, stands in ``UNCHECKED``: the changed input must give what the reason says is read,
equal to the original's. Everything else that is changed must be refused, with an obligation.
"""

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import NvidiaPolicy, parse_rim, verify_gpu
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.snp import PlatformInfo, SigningKey, SnpPolicy, SnpProduct, Tcb, verify_snp_report
from bulkhead.attestation.tdx import TdxPolicy, decode_quote, parse_collateral, parse_quote, verify_tdx_quote
from bulkhead.errors import EvidenceError
from tests.simulator.mutations import accepted, cuts, flips

_ROOT = os.environ.get("BULKHEAD_TEST_VECTORS")
_VECTORS = Path(_ROOT or "/nonexistent") / "attestation"
pytestmark = pytest.mark.skipif(
    not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors"
)
_SAMPLE = 24


@dataclass(frozen=True)
class Recorded:
    """Evidence in parts, and how they are verified together."""

    parts: dict[str, bytes]
    verify: Callable[..., object]

    def accepts(self, **changed: bytes) -> bool:
        """Return whether the evidence with some parts changed is verified."""
        return accepted(lambda: self.verify(**{**self.parts, **changed}))


def _read(name: str) -> bytes:
    return (_VECTORS / name).read_bytes()


def _at(day: str) -> int:
    return int(dt.datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp())


_SNP_POLICY = SnpPolicy(
    products=frozenset(SnpProduct),
    tcb_floors=dict.fromkeys(SnpProduct, Tcb(bootloader=0, tee=0, snp=0, microcode=0)),
    measurements=None,
    required_platform_info=PlatformInfo(0),
    allow_provisional_firmware=True,
)


def _snp(
    report: str, leaf: str, day: str, report_data: bytes, product: SnpProduct | None = None, **policy: Any
) -> Recorded:
    (certificate,) = load_certificates(_read(f"snp/{leaf}"), what="leaf")
    raw = _read(f"snp/{report}")

    def verify(report: bytes, leaf: bytes) -> object:
        try:
            certificates = load_certificates(leaf, what="leaf")
        except EvidenceError as error:
            raise failed("SNP-4", error.message) from error  # as the command line does
        return verify_snp_report(
            report,
            certificates=certificates,
            report_data=report_data,
            policy=dataclasses.replace(_SNP_POLICY, **policy),
            now_s=_at(day),
            product=product,
        )

    if report.endswith(".hex"):
        raw = bytes.fromhex(raw.decode())
    return Recorded({"report": raw, "leaf": certificate.public_bytes(Encoding.DER)}, verify)


def _tdx(quote: str, collateral: str, day: str) -> Recorded:
    raw = decode_quote(_read(f"tdx/{quote}"))
    report_data = parse_quote(raw).report.report_data

    def verify(quote: bytes, collateral: bytes) -> object:
        return verify_tdx_quote(
            quote,
            collateral=parse_collateral(collateral),
            policy=TdxPolicy(images=None),
            report_data=report_data,
            now_s=_at(day),
        )

    return Recorded({"quote": raw, "collateral": _read(f"tdx/{collateral}")}, verify)


def _gpu() -> Recorded:
    names = {
        "report": "ccc-certifier/attestationReport.txt",
        "certificates": "ccc-certifier/gpuAkCertChain.txt",
        "driver_rim": "nvtrust/samples/Driver_RIM_test_no_gpu.swidtag",
        "vbios_rim": "nvtrust/samples/1010_0200_882_96005E0001_test_no_gpu.swidtag",
    }
    parts = {part: _read(f"nvidia/{name}") for part, name in names.items()}
    parts["report"] = bytes.fromhex(parts["report"].decode()) if parts["report"][:1] != b"\x11" else parts["report"]
    nonce = bytes.fromhex("4cff7f5380ead8fad8ec2c531c110aca4302a88f603792801a8ca29ee151af2e")
    policy = NvidiaPolicy(revocation_required=False, allow_missing_fwid=True)
    return Recorded(parts, lambda **given: verify_gpu(**given, nonce=nonce, policy=policy, now_s=_at("2024-06-01")))


@cache
def _recorded(name: str) -> Recorded:
    return {
        "SNP v5 Turin": lambda: _snp(
            "ms-tee/turin_attestation_report.bin", "ms-tee/turin_vcek.pem", "2026-03-01", bytes(64)
        ),
        "SNP v3 Milan": lambda: _snp(
            "ms-tee/milan_attestation_report.bin", "ms-tee/milan_vcek.pem", "2026-03-01", bytes(64)
        ),
        "SNP v2 Milan": lambda: _snp(
            "virtee-sev/report_milan.hex", "virtee-sev/vcek_milan.der", "2026-03-01", _report_data("virtee-sev"),
            SnpProduct.MILAN,
        ),
        "SNP v3 Milan VLEK": lambda: _snp(
            "coco-trustee/test-vlek-report.bin", "coco-trustee/test-vlek.der", "2025-06-01", _report_data("coco"),
            signing_keys=frozenset({SigningKey.VLEK}), csp_ids=None, vmpl=1,
        ),
        "TDX v4": lambda: _tdx("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-06-20"),
        "TDX v5": lambda: _tdx(
            "go-tdx-guest/quote_v5_sample.dat", "composed/collateral_90c06f000000_2026-03-16.json", "2026-03-20"
        ),
        "GPU H100": _gpu,
    }[name]()  # fmt: skip


def _report_data(source: str) -> bytes:
    if source == "coco":
        return _read("snp/coco-trustee/test-vlek-report.bin")[0x50:0x90]
    return bytes.fromhex(_read("snp/virtee-sev/report_milan.hex").decode())[0x50:0x90]


def _quote_but_pem(quote: bytes) -> object:
    parsed = parse_quote(quote)
    chain = parsed.certification_data
    return dataclasses.replace(parsed, certification_data=b""), chain.rstrip(b"\0").translate(None, b"\r\n")


def _used_collateral(data: bytes) -> object:
    parsed = parse_collateral(data)
    signers = (load_certificates(chain, what="chain")[0] for chain in _chains(parsed))
    lists = (parsed.pck_crl, parsed.root_ca_crl)
    return (
        *signers, *(bytes.fromhex(one.decode()) for one in lists), parsed.tcb_info, parsed.tcb_info_signature,
        parsed.qe_identity, parsed.qe_identity_signature,
    )  # fmt: skip


def _chains(parsed: Any) -> tuple[bytes, bytes]:
    return parsed.tcb_info_issuer_chain, parsed.qe_identity_issuer_chain


UNCHECKED: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "report": ("none: reserved bytes are demanded zero, the rest is signed", lambda data: data),
    "leaf": ("none: a certificate is signed, or its outer algorithm compared with the inner", lambda data: data),
    "quote": ("line breaks of the PEM text and the zero behind it: the same certificates are read", _quote_but_pem),
    "collateral": (
        "text that no signature needs: issuer chain of the PCK list, copies of the root; case of hexadecimal digits",
        _used_collateral,
    ),
    "certificates": (
        "text outside PEM blocks, line breaks and unused bits of base64: the same certificates are read",
        lambda data: load_certificates(data, what="chain"),
    ),
    "driver_rim": (
        "what canonical XML erases: white space inside tags, kind of quotes; white space and unused bits in base64",
        lambda data: parse_rim(data, what="rim"),
    ),
    "vbios_rim": ("as the driver's", lambda data: parse_rim(data, what="rim")),
}
"""Part -> which bytes may change and why, and what must read equal if one was."""

_CASES = {
    "SNP v5 Turin": ("report", "leaf"),
    "SNP v3 Milan": ("report", "leaf"),
    "SNP v2 Milan": ("report", "leaf"),
    "SNP v3 Milan VLEK": ("report", "leaf"),
    "TDX v4": ("quote", "collateral"),
    "TDX v5": ("quote", "collateral"),
    "GPU H100": ("report", "certificates", "driver_rim", "vbios_rim"),
}
_PARTS = [(name, part) for name, parts in _CASES.items() for part in parts]


def _check(name: str, part: str, sample: int | None) -> None:
    evidence, read = _recorded(name), UNCHECKED[part][1]
    data = evidence.parts[part]
    original = read(data)
    assert evidence.accepts()
    for position, mutated in flips(data, sample=sample, seed=f"{name} {part}"):
        if evidence.accepts(**{part: mutated}):
            assert read(mutated) == original, (part, position)


@pytest.mark.parametrize(("name", "part"), _PARTS)
def test_sampled_flips(name: str, part: str) -> None:
    """No sampled byte of recorded evidence can change, but those that are listed as unchecked."""
    _check(name, part, _SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize(("name", "part"), _PARTS)
def test_every_flip(name: str, part: str) -> None:
    """No byte of recorded evidence can change, but those that are listed as unchecked."""
    _check(name, part, None)


_SNP_FIELDS = (4, 8, 16, 32, 48, 52, 56, 64, 72, 76, 80, 144, 192, 224, 272, 320, 352, 384, 392, 416, 480, 488, 496)


def _tdx_boundaries(quote: bytes) -> list[int]:
    body = 48 if quote[0] == 4 else 54
    end = body + (584 if quote[0] == 4 else 648)
    fields = [body + at for at in (0, 16, 64, 112, 120, 128, 136, 184, 232, 280, 328, 376, 424, 472, 520)]
    tail = [end + at for at in (0, 4, 68, 132, 134, 138, 522, 586, 588, 620, 622, 626)]
    return [0, 2, 4, 8, 12, 28, 48, *fields, *tail]


def _gpu_boundaries(report: bytes) -> list[int]:
    offsets, offset = [0, 1, 2, 3, 4, 36, 37, 38, 41, 42], 45
    record_end = 45 + int.from_bytes(report[42:45], "little")
    while offset < record_end:
        offset += 4 + int.from_bytes(report[offset + 2 : offset + 4], "little")
        offsets.append(offset)
    offset += 34
    while offset < len(report) - 96:
        offsets.append(offset)
        offset += 4 + int.from_bytes(report[offset + 2 : offset + 4], "little")
    return [*offsets, offset, len(report) - 48]


_BOUNDARIES: dict[str, Callable[[bytes], list[int]]] = {
    "SNP": lambda _: [0, *_SNP_FIELDS, 0x1F8, 0x200, 0x208, 0x2A0, 0x2E8, 0x330, 0x49F],
    "TDX": _tdx_boundaries,
    "GPU": _gpu_boundaries,
}


@pytest.mark.parametrize("name", _CASES)
def test_fields_cut_and_extended(name: str) -> None:
    """At each field's boundary, a report or quote that is cut, begun there, extended or short of a byte is refused."""
    evidence = _recorded(name)
    part = next(iter(_CASES[name]))
    data = evidence.parts[part]
    for at, mutant in cuts(data, _BOUNDARIES[name[:3]](data)):
        assert not evidence.accepts(**{part: mutant}), at


@pytest.mark.parametrize("name", _CASES)
def test_every_part_is_needed(name: str) -> None:
    """No part can be left empty, or be another part of the same evidence."""
    evidence = _recorded(name)
    for part in _CASES[name]:
        for other in (b"", *(data for key, data in evidence.parts.items() if key != part)):
            assert not evidence.accepts(**{part: other}), part


@pytest.mark.parametrize("one", _CASES)
def test_machines_do_not_mix(one: str) -> None:
    """A part of another machine's evidence of the same kind is refused beside the rest."""
    evidence = _recorded(one)
    for other in _CASES:
        if other == one or other[:3] != one[:3]:
            continue
        for part in _CASES[one]:
            assert not evidence.accepts(**{part: _recorded(other).parts[part]}), (other, part)


def test_collateral_of_two_days_does_not_mix() -> None:
    """Documents of one bundle with the signatures of another are refused, part by part."""
    evidence, other = _recorded("TDX v4"), json.loads(_recorded("TDX v5").parts["collateral"])
    own = json.loads(evidence.parts["collateral"])
    for member in ("tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature"):
        mixed = json.dumps({**own, member: other[member]}).encode()
        assert not evidence.accepts(collateral=mixed), member
