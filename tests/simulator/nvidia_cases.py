"""What can be wrong with a GPU's evidence: each case changes one thing and fails one obligation alone."""

import datetime as dt
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.x509 import ocsp

from bulkhead.attestation.nvidia import NvidiaPolicy
from bulkhead.errors import (
    BulkheadError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
)
from tests.simulator.nvidia_world import (
    DRIVER,
    FWID,
    NOW,
    VBIOS,
    GpuCase,
    answers,
    certify,
    composite_device_id,
    driver_manifest,
    good_answers,
    headed_opaque,
    manifest,
    measurements,
    minimum_svn,
    ocsp_answer,
    opaque,
    pem,
    report,
    split,
    tcb_info,
    vbios_manifest,
    world,
)

Change = Callable[[], GpuCase]
YESTERDAY = NOW - dt.timedelta(days=1)


def with_device(*, leaf_extension: x509.ExtensionType | None = None, **change: Any) -> GpuCase:
    """Return the base case with an attestation key of another certificate."""
    brom, *above = world().device[1:]
    extension = leaf_extension or composite_device_id(FWID)
    leaf = certify("GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[extension], **change)
    return GpuCase(report=report(leaf), certificates=pem((leaf, brom, *above)))


def under(**demands: Any) -> GpuCase:
    """Return the base case under a policy with other demands."""
    return GpuCase(policy=NvidiaPolicy(**demands))


def zero_fwid() -> GpuCase:
    """Return a report and a certificate that agree on a FWID of zeros, as a chip without measured firmware would."""
    brom, *above = world().device[1:]
    leaf = certify("GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[tcb_info(bytes(48))])
    signed = report(leaf, opaque_data=opaque(fwid=bytes(48)))
    return GpuCase(report=signed, certificates=pem((leaf, brom, *above)))


def with_opaque(**changes: bytes | None) -> GpuCase:
    """Return the base case with other opaque data in a signed report."""
    return GpuCase(report=report(world().device[0], opaque_data=opaque(**changes)))


def with_answer(position: int, **change: Any) -> GpuCase:
    """Return the base case with another answer about the certificate at ``position`` of :func:`answers`."""
    device, rim = world().device, world().rim
    pairs = [*itertools.pairwise(device[1:]), *itertools.pairwise(rim)]
    subject, issuer = pairs[position]
    others = [answer for number, answer in enumerate(good_answers()) if number != position]
    return GpuCase(ocsp_responses=[*others, ocsp_answer(subject.certificate, issuer, **change)])


def with_rim_signer(**change: Any) -> GpuCase:
    """Return the base case with manifests of a signer with another certificate."""
    lower, *above = world().rim[1:]
    signer = certify("Test RIM L4 Signer", issuer=lower, authority=False, **change)
    path = (signer, lower, *above)
    driver, vbios = split(measurements())
    return GpuCase(
        driver_rim=manifest(path, version=DRIVER, active=driver),
        vbios_rim=manifest(path, version=VBIOS, active=vbios),
        ocsp_responses=answers(world().device, path),
    )


def foreign_rim() -> GpuCase:
    """Return manifests that are sound under a root that is not pinned."""
    root = certify("Test CoRIM signing Root CA", issuer=None, authority=True)
    signer = certify("Test RIM L4 Signer", issuer=root, authority=False)
    driver, vbios = split(measurements())
    return GpuCase(
        driver_rim=manifest((signer, root), version=DRIVER, active=driver),
        vbios_rim=manifest((signer, root), version=VBIOS, active=vbios),
    )


def foreign_device() -> GpuCase:
    """Return a device chain that is sound under a root that is not pinned."""
    path = [certify("Test Device Identity CA", issuer=None, authority=True)]
    for name in ("Test GH100 Identity", "Test GH100 Provisioner", "GH100 BROM"):
        path.insert(0, certify(name, issuer=path[0], authority=True))
    extensions = [composite_device_id(FWID)]
    path.insert(0, certify("GH100 FMC LF", issuer=path[0], authority=False, extensions=extensions))
    return GpuCase(report=report(path[0]), certificates=pem(path))


def two_chips() -> GpuCase:
    """Return a boot ROM of one chip under another chip's authority."""
    provisioner, model, root = world().device[2:]
    brom = certify("GB100 A01 GSP BROM", issuer=provisioner, authority=True)
    leaf = certify("GB100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[composite_device_id(FWID)])
    path = (leaf, brom, provisioner, model, root)
    return GpuCase(report=report(leaf), certificates=pem(path), ocsp_responses=answers(path, world().rim))


def driver_rim(**change: Any) -> GpuCase:
    """Return the base case with another driver manifest, properly signed."""
    arguments = {"version": DRIVER, "active": split(measurements())[0], **change}
    return GpuCase(driver_rim=manifest(world().rim, **arguments))


def conflict() -> GpuCase:
    """Return a driver manifest that also states a measurement of the VBIOS's, with the same value."""
    active, vbios = split(measurements())
    return driver_rim(active={**active, 12: vbios[12]})


def other_value() -> GpuCase:
    """Return a report with one measurement that no manifest states."""
    values = {**measurements(), 30: bytes(48)}
    return GpuCase(report=report(world().device[0], values=values))


def with_minimum(kind: int, svn: int, *, active: str = "True", also_vbios: bool = False, typed: bool = True) -> GpuCase:
    """Return a report of security version 5 under type 37, and a driver manifest that demands ``svn`` of ``kind``."""
    driver, vbios = split(measurements())
    demand = minimum_svn(kind, svn, active=active)
    return GpuCase(
        report=report(world().device[0], opaque_data=headed_opaque((37, 5)) if typed else opaque()),
        driver_rim=manifest(world().rim, version=DRIVER, active=driver, resources=demand),
        vbios_rim=manifest(world().rim, version=VBIOS, active=vbios, resources=demand if also_vbios else ""),
    )


CASES: list[tuple[str, str, type[BulkheadError], Change]] = [
    ("GPU-1", "trailing byte", EvidenceError, lambda: GpuCase(report=GpuCase().report + b"\0")),
    ("GPU-1", "no VBIOS version", EvidenceError, lambda: with_opaque(vbios=None)),
    ("GPU-1", "unknown opaque version", EvidenceError, lambda: with_opaque(version=b"\x09")),
    ("GPU-1", "mode missing where it must be", EvidenceError, lambda: with_opaque(mode=None)),
    ("GPU-1", "unknown mode", EvidenceError, lambda: with_opaque(mode=b"\x07\x00")),
    ("GPU-1", "mode contradicted", EvidenceError, lambda: with_opaque(ppcie=b"\xaa")),
    ("GPU-1", "unknown NVDEC0 status", EvidenceError, lambda: with_opaque(nvdec0=b"\x00")),
    ("GPU-1", "short FWID", EvidenceError, lambda: with_opaque(fwid=FWID[:47])),
    ("GPU-2", "another root", EvidenceError, foreign_device),
    ("GPU-2", "root left out", EvidenceError, lambda: GpuCase(certificates=pem(world().device[:-1]))),
    (
        "GPU-2",
        "not in order",
        EvidenceError,
        lambda: GpuCase(certificates=pem([*world().device[:3], *world().device[:2:-1]])),
    ),
    ("GPU-2", "no certificate", EvidenceError, lambda: GpuCase(certificates=b"")),
    ("GPU-3", "attestation key expired", EvidenceExpiredError, lambda: with_device(not_after=YESTERDAY)),
    ("GPU-4", "another chip's key", EvidenceError, lambda: GpuCase(report=report(world().rim[0]))),
    ("GPU-5", "another nonce", EvidenceBindingError, lambda: GpuCase(nonce=bytes(32))),
    ("GPU-5", "a nonce cut short", EvidenceBindingError, lambda: GpuCase(nonce=bytes(range(31)))),
    ("GPU-6", "no FWID", EvidencePolicyError, lambda: with_opaque(fwid=None)),
    ("GPU-6", "another FWID", EvidenceError, lambda: with_opaque(fwid=bytes(reversed(FWID)))),
    ("GPU-6", "FWID of zeros", EvidenceError, zero_fwid),
    ("GPU-6", "second FWID only", EvidenceError, lambda: with_device(leaf_extension=tcb_info(bytes(48), FWID))),
    ("GPU-7", "no answers", EvidenceError, lambda: GpuCase(ocsp_responses=())),
    ("GPU-7", "one answer missing", EvidenceError, lambda: GpuCase(ocsp_responses=good_answers()[1:])),
    ("GPU-7", "unknown", EvidenceError, lambda: with_answer(1, status=ocsp.OCSPCertStatus.UNKNOWN)),
    ("GPU-7", "answer too old", EvidenceExpiredError, lambda: with_answer(2, this_update=NOW - dt.timedelta(days=2))),
    (
        "GPU-7",
        "answer of the future",
        EvidenceExpiredError,
        lambda: with_answer(0, this_update=NOW + dt.timedelta(hours=1)),
    ),
    ("GPU-7", "signer revoked", EvidenceError, lambda: with_answer(3, status=ocsp.OCSPCertStatus.REVOKED)),
    ("GPU-7", "no OCSP answer", EvidenceError, lambda: GpuCase(ocsp_responses=[b"\x30\x03\x0a\x01\x06"])),
    ("GPU-8", "chip not accepted", EvidencePolicyError, lambda: under(products=frozenset({"GB100"}))),
    ("GPU-8", "two chips", EvidenceError, two_chips),
    ("GPU-9", "multi-GPU mode", EvidencePolicyError, lambda: with_opaque(mode=b"\x00\x00")),
    ("GPU-9", "protected PCIe", EvidencePolicyError, lambda: with_opaque(mode=b"\x02\x00", ppcie=b"\xaa")),
    (
        "GPU-9",
        "protected PCIe before version 1",
        EvidencePolicyError,
        lambda: with_opaque(mode=None, version=None, ppcie=b"\xaa"),
    ),
    (
        "GPU-9",
        "not stated",
        EvidencePolicyError,
        lambda: replace(with_opaque(mode=None, version=None), policy=NvidiaPolicy(mode_must_be_stated=True)),
    ),
    ("GPU-10", "driver not listed", EvidencePolicyError, lambda: under(driver_versions=frozenset({"570.00"}))),
    ("GPU-10", "driver below the floor", EvidencePolicyError, lambda: under(minimum_driver_version="580.10.02")),
    ("GPU-10", "VBIOS not listed", EvidencePolicyError, lambda: under(vbios_versions=frozenset({"96.00"}))),
    ("GPU-10", "VBIOS below the floor", EvidencePolicyError, lambda: under(minimum_vbios_version="96.00.AC.00.00")),
    ("GPU-10", "floor that cannot be compared", EvidencePolicyError, lambda: under(minimum_driver_version="58x")),
    ("GPU-11", "no driver manifest", EvidenceError, lambda: GpuCase(driver_rim=None)),
    ("GPU-11", "no VBIOS manifest", EvidenceError, lambda: GpuCase(vbios_rim=None)),
    ("GPU-11", "not XML", EvidenceError, lambda: GpuCase(driver_rim=b"<SoftwareIdentity>")),
    (
        "GPU-11",
        "a demand that is not understood",
        EvidenceError,
        lambda: driver_rim(resources='<n:Resource type="OpaqueData" index="63" active="True"/>'),
    ),
    ("GPU-11", "an element too many", EvidenceError, lambda: driver_rim(extra="<n:Payload/>")),
    (
        "GPU-12",
        "content changed",
        EvidenceError,
        lambda: GpuCase(driver_rim=driver_manifest().replace(b'name="m7"', b'name="m8"')),
    ),
    ("GPU-12", "digest of the new content, old signature", EvidenceError, lambda: GpuCase(driver_rim=spliced())),
    ("GPU-13", "another root", EvidenceError, foreign_rim),
    (
        "GPU-13",
        "an OCSP responder as signer",
        EvidenceError,
        lambda: with_rim_signer(extensions=[x509.ExtendedKeyUsage([x509.OID_OCSP_SIGNING])]),
    ),
    ("GPU-14", "signer expired", EvidenceExpiredError, lambda: with_rim_signer(not_after=YESTERDAY)),
    ("GPU-15", "driver of another version", EvidenceError, lambda: driver_rim(version="580.10.02")),
    ("GPU-15", "another chip's", EvidenceError, lambda: driver_rim(product="GB100")),
    (
        "GPU-15",
        "manifests exchanged",
        EvidenceError,
        lambda: GpuCase(driver_rim=vbios_manifest(), vbios_rim=driver_manifest()),
    ),
    ("GPU-16", "conflict", EvidenceError, conflict),
    ("GPU-16", "another value", EvidenceError, other_value),
    ("GPU-16", "minimum in both manifests", EvidenceError, lambda: with_minimum(37, 5, also_vbios=True)),
    ("GPU-17", "security version below", EvidenceError, lambda: with_minimum(37, 6)),
    ("GPU-17", "security version not stated", EvidenceError, lambda: with_minimum(38, 0)),
    ("GPU-17", "a value that is no security version", EvidenceError, lambda: with_minimum(3, 0)),
    ("GPU-17", "a report without typed values", EvidenceError, lambda: with_minimum(37, 0, typed=False)),
]


def spliced() -> bytes:
    """Return the base manifest with the digest of another one: content and digest agree, the signature does not."""
    active = {**split(measurements())[0], 7: [bytes(48)]}
    other = manifest(world().rim, version=DRIVER, active=active)
    start, end = b"<ds:SignatureValue>", b"</ds:SignatureValue>"
    old = driver_manifest()
    return other[: other.index(start)] + old[old.index(start) : old.index(end)] + other[other.index(end) :]
