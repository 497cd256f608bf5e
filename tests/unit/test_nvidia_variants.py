"""Evidence of GPUs as other machines write it: every form that the specifications allow is accepted and read alike."""

import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509

from bulkhead.attestation.nvidia import NvidiaPolicy, driver_rim_id
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import EvidenceError
from tests.simulator.nvidia_world import (
    DRIVER,
    FWID,
    VBIOS,
    GpuCase,
    Signer,
    answers,
    certify,
    composite_device_id,
    driver_manifest,
    good_answers,
    headed_opaque,
    manifest,
    measurements,
    minimum_svn,
    opaque,
    pem,
    report,
    split,
    tcb_info,
    world,
)


def _blackwell(*, chip: str | None = "GB100", product: str = "GB100", middle: str = "Test GB100") -> GpuCase:
    """Return the evidence of a GB100, whose firmware calls itself ``chip``, with manifests for ``product``."""
    root = world().device[4]
    path: list[Signer] = [root]
    for name in (f"{middle} Identity", f"{middle} Provisioner ICA 00000", "GB100 A01 GSP BROM"):
        path.insert(0, certify(name, issuer=path[0], authority=True))
    leaf = certify("GB100 A01 GSP FMC LF", issuer=path[0], authority=False, extensions=[tcb_info(FWID, bytes(48))])
    path.insert(0, leaf)
    driver, vbios = split(measurements())
    return GpuCase(
        report=report(leaf, opaque_data=opaque(chip=None if chip is None else chip.encode() + b"\0")),
        certificates=pem(path),
        driver_rim=manifest(world().rim, version=DRIVER, active=driver, product=product),
        vbios_rim=manifest(world().rim, version=VBIOS, active=vbios, product=product),
        ocsp_responses=answers(path, world().rim),
    )


@pytest.mark.parametrize(
    ("case", "rim"),
    [
        (_blackwell, f"NV_GPU_CC_DRIVER_GB100_{DRIVER}"),
        (lambda: _blackwell(chip=None), f"NV_GPU_CC_DRIVER_GB100_{DRIVER}"),
        (lambda: _blackwell(chip="GB200", product="GB200"), f"NV_GPU_CC_DRIVER_GB200_{DRIVER}"),
        (lambda: _blackwell(chip="GB200"), f"NV_GPU_CC_DRIVER_GB200_{DRIVER}"),
        (lambda: _blackwell(middle="Test"), f"NV_GPU_CC_DRIVER_GB100_{DRIVER}"),
        (GpuCase, f"NV_GPU_DRIVER_GH100_{DRIVER}"),
    ],
    ids=["GB100", "before CHIP_INFO", "GB200", "GB200 with manifests of its chip", "unnamed authorities", "GH100"],
)
def test_the_drivers_manifest_is_named_by_the_firmwares_chip(case: Callable[[], GpuCase], rim: str) -> None:
    """Hopper and Blackwell are accepted, and a missing manifest is asked for by the name that NVIDIA gives it."""
    verified = case().verify()
    assert verified.measurements_matched == 33
    assert driver_rim_id(verified.product, verified.report) == rim
    with pytest.raises(EvidenceError) as caught:
        replace(case(), driver_rim=None).verify()
    assert caught.value.details["rim"] == rim


@pytest.mark.parametrize("chip", ["GB100", None])
def test_a_hopper_manifest_does_not_serve_a_blackwell(chip: str | None) -> None:
    """NVIDIA's service has a sound manifest of the same driver version for the other chip: it is refused."""
    with pytest.raises(EvidenceError) as caught:
        _blackwell(chip=chip, product="GH100").verify()
    assert obligation_of(caught.value) == "GPU-15"


def _with_rim(change: Callable[[str], str]) -> GpuCase:
    return GpuCase(driver_rim=manifest(world().rim, version=DRIVER, active=split(measurements())[0], change=change))


def _with_opaque(data: bytes) -> GpuCase:
    return GpuCase(report=report(world().device[0], opaque_data=data))


def _critical_fwid() -> GpuCase:
    brom, *above = world().device[1:]
    leaf = certify(
        "GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[composite_device_id(FWID)], critical=True
    )
    return GpuCase(report=report(leaf), certificates=pem((leaf, brom, *above)))


def _signer_with(*usages: x509.ObjectIdentifier) -> GpuCase:
    lower, *above = world().rim[1:]
    signer = certify("RIM signer", issuer=lower, authority=False, extensions=[x509.ExtendedKeyUsage(usages)])
    driver = manifest((signer, lower, *above), version=DRIVER, active=split(measurements())[0])
    return GpuCase(driver_rim=driver, policy=NvidiaPolicy(revocation_required=False))


def _minimum(svn: int, active: str) -> GpuCase:
    demand = minimum_svn(37, svn, active=active)
    driver = manifest(world().rim, version=DRIVER, active=split(measurements())[0], resources=demand)
    return replace(_with_opaque(headed_opaque((37, 5))), driver_rim=driver)


VARIANTS: dict[str, Callable[[], GpuCase]] = {
    "manifest with a link and a second entity": lambda: _with_rim(
        lambda text: text.replace("<n:Meta ", '<n:Entity name="b"/><n:Link rel="x" href="y"/><n:Meta ')
    ),
    "activity in lower case": lambda: _with_rim(lambda text: text.replace('active="True"', 'active="true"')),
    "manifest with an XML declaration": lambda: GpuCase(
        driver_rim=b'<?xml version="1.0" encoding="UTF-8"?>\n' + driver_manifest()
    ),
    "opaque data with a header": lambda: _with_opaque(headed_opaque()),
    "security version reached": lambda: _minimum(5, "True"),
    "security version demanded of nobody": lambda: _minimum(9, "False"),
    "an entry of a later type": lambda: _with_opaque(opaque() + b"\x63\x00\x02\x00ab"),
    "an entry repeated": lambda: _with_opaque(opaque() + b"\xff\x00\x00\x00" * 2),
    "VBIOS bytes that name no version": lambda: _with_opaque(opaque(vbios=bytes.fromhex("00ab009602000001"))),
    "project in lower case": lambda: _with_opaque(opaque(project=b"g520\0")),
    "mode of eight bytes": lambda: _with_opaque(opaque(mode=b"\1" + bytes(7))),
    "critical FWID": _critical_fwid,
    "manifest signer with a usage": lambda: _signer_with(x509.OID_CODE_SIGNING),
    "base64 of the PEM chain": lambda: GpuCase(certificates=base64.b64encode(GpuCase().certificates)),
    "chain with text and CRLF": lambda: GpuCase(
        certificates=b"subject=x\r\n" + GpuCase().certificates.replace(b"\n", b"\r\n")
    ),
    "an answer that is an error beside the others": lambda: GpuCase(
        ocsp_responses=[b"\x30\x03\x0a\x01\x06", *good_answers()]
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_accepted(name: str) -> None:
    """Each variant is accepted, with every measurement equal."""
    assert VARIANTS[name]().verify().measurements_matched == 33


def test_the_vbios_manifests_name_is_in_capitals() -> None:
    """NVIDIA's service knows board projects in capitals only."""
    case = replace(_with_opaque(opaque(project=b"g520\0")), vbios_rim=None)
    with pytest.raises(EvidenceError) as caught:
        case.verify()
    assert caught.value.details["rim"] == "NV_GPU_VBIOS_G520_0200_882_9600AB0002"


def test_two_values_of_one_entry_are_refused() -> None:
    """Which of two values counts is not left to the reader."""
    with pytest.raises(EvidenceError) as caught:
        _with_opaque(opaque() + b"\x0b\x00\x01\x00\x55").verify()
    assert obligation_of(caught.value) == "GPU-1"
