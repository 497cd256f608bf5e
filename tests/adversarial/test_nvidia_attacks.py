"""Known attacks on GPU attestation, and on verifiers of XML signatures and OCSP."""

import base64
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from bulkhead.attestation.nvidia import NvidiaPolicy, parse_rim
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import BulkheadError
from tests.simulator.nvidia_world import (
    C14N11,
    DRIVER,
    FWID,
    GpuCase,
    Signer,
    certify,
    composite_device_id,
    driver_manifest,
    good_answers,
    manifest,
    measurements,
    ocsp_answer,
    opaque,
    pem,
    report,
    responder_for,
    split,
    vbios_manifest,
    world,
)

OTHER_NONCE = bytes(range(1, 33))
SWID = b'xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'


def assert_refused(case: GpuCase, obligation: str) -> None:
    """Assert that the case fails under this obligation."""
    with pytest.raises(BulkheadError) as caught:
        case.verify()
    assert obligation_of(caught.value) == obligation, caught.value


def driver_of(values: dict[int, list[bytes]], **change: Any) -> bytes:
    """Return a driver manifest of the vendor's with other values."""
    return manifest(world().rim, version=DRIVER, active=values, **change)


def second_gpu() -> tuple[Signer, ...]:
    """Return the identities of another, genuine GPU."""
    provisioner, *above = world().device[2:]
    brom = certify("GH100 A01 GSP BROM", issuer=provisioner, authority=True)
    leaf = certify("GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[composite_device_id(FWID)])
    return (leaf, brom, provisioner, *above)


def test_a_reused_nonce_is_refused() -> None:
    """A report that was recorded for an earlier nonce, and is sound in all else, is refused."""
    assert_refused(GpuCase(nonce=OTHER_NONCE), "GPU-5")


def test_the_responders_nonce_does_not_stand_in_for_the_requesters() -> None:
    """The nonce in the response is the GPU's own: a caller's nonce is found in the signed request alone."""
    case = GpuCase()
    responders = case.report[-96 - 2 - len(opaque()) - 32 :][:32]
    assert_refused(replace(case, nonce=responders), "GPU-5")


def test_a_relayed_report_of_another_gpu_does_not_fit_this_ones_chain() -> None:
    """One worker's report with another's certificates, and the other way round, is refused."""
    other = second_gpu()
    assert_refused(GpuCase(report=report(other[0])), "GPU-4")
    assert_refused(GpuCase(certificates=pem(other)), "GPU-4")


def test_another_gpus_evidence_shows_another_device() -> None:
    """A genuine second GPU verifies, under a serial that tells it apart: the caller compares descriptors with it."""
    other = second_gpu()
    answer = ocsp_answer(other[1].certificate, other[2])
    case = GpuCase(report=report(other[0]), certificates=pem(other), ocsp_responses=[*good_answers(), answer])
    assert case.verify().device_serial != GpuCase().verify().device_serial


def test_a_self_made_certificate_below_the_attestation_key_is_refused() -> None:
    """An attestation key is no authority: a chain longer by one certificate of the attacker's is refused."""
    leaf = world().device[0]
    forged = certify("GH100 A01 GSP FMC LF", issuer=leaf, authority=False, extensions=[composite_device_id(FWID)])
    assert_refused(GpuCase(report=report(forged), certificates=pem((forged, *world().device))), "GPU-2")
    assert_refused(GpuCase(report=report(forged), certificates=pem((forged, leaf, *world().device[2:]))), "GPU-2")


def test_a_weaker_hash_in_the_chain_is_refused() -> None:
    """A certificate signed with SHA-256 is refused, even by the right key."""
    brom, *above = world().device[1:]
    extensions = [composite_device_id(FWID)]
    weak = certify("GH100", issuer=brom, authority=False, extensions=extensions, digest=hashes.SHA256())
    assert_refused(GpuCase(report=report(weak), certificates=pem((weak, brom, *above))), "GPU-2")


def test_manifest_signers_vouch_for_no_device() -> None:
    """A chain to the root of manifests is no chain to the root of devices."""
    path = world().rim
    assert_refused(GpuCase(report=report(path[0]), certificates=pem(path)), "GPU-2")


def test_a_missing_fwid_is_not_replaced_by_the_certificates() -> None:
    """A report without FWID is refused though the certificate has one."""
    assert_refused(GpuCase(report=report(world().device[0], opaque_data=opaque(fwid=None))), "GPU-6")


def test_a_second_opaque_entry_is_refused() -> None:
    """Of two driver versions in one report neither counts."""
    doubled = opaque() + b"\x03\x00\x07\x00999.99\0"
    assert_refused(GpuCase(report=report(world().device[0], opaque_data=doubled)), "GPU-1")


def test_a_manifest_of_another_version_is_refused() -> None:
    """A sound manifest of an older driver does not cover a report that claims the new one, nor the other way round."""
    values = split(measurements())[0]
    old = manifest(world().rim, version="535.00", active=values)
    assert_refused(GpuCase(driver_rim=old), "GPU-15")
    claimed = report(world().device[0], opaque_data=opaque(driver=b"535.00\0"))
    assert_refused(GpuCase(report=claimed), "GPU-15")
    floor = NvidiaPolicy(minimum_driver_version="580.0")
    assert_refused(GpuCase(report=claimed, driver_rim=old, policy=floor), "GPU-10")


@pytest.mark.parametrize("wildcard", [bytes(48), b"\xff" * 48])
def test_zeros_in_a_manifest_are_no_wildcard(wildcard: bytes) -> None:
    """A reference value of zeros or ones matches zeros or ones alone."""
    values = {**split(measurements())[0], 30: [wildcard]}
    assert_refused(GpuCase(driver_rim=driver_of(values)), "GPU-16")


def test_zeros_in_a_report_are_no_wildcard() -> None:
    """A measurement that the GPU reports as zeros is compared like any other; so is one that it leaves out."""
    leaf, values = world().device[0], measurements()
    assert_refused(GpuCase(report=report(leaf, values={**values, 30: bytes(48)})), "GPU-16")
    assert_refused(GpuCase(report=report(leaf, values={**values, 30: b""})), "GPU-16")
    assert_refused(GpuCase(report=report(leaf, values={**values, 30: values[30][:47]})), "GPU-16")
    assert_refused(GpuCase(report=report(leaf, values={index: values[index] for index in range(30)})), "GPU-16")


def test_a_measurement_at_another_index_does_not_match() -> None:
    """Index i is block i + 1, not block i: a report shifted by one is refused."""
    values = measurements()
    shifted = {index - 1: values[index] for index in range(1, 64)}
    assert_refused(GpuCase(report=report(world().device[0], values={**shifted, 63: bytes(48)})), "GPU-16")


def test_manifests_that_demand_nothing_are_refused() -> None:
    """No active measurement, one without values, one of no bytes: each would match anything."""
    inactive = '<n:Resource type="Measurement" index="7" active="False" alternatives="1" name="m" size="48"/>'
    empty = '<n:Resource type="Measurement" index="41" active="True" alternatives="0" name="m" size="48"/>'
    no_bytes = '<n:Resource type="Measurement" index="41" active="True" alternatives="1" h:Hash0="" name="m" size="0"/>'
    assert_refused(GpuCase(driver_rim=driver_of({}, resources=inactive)), "GPU-11")
    values = split(measurements())[0]
    for resource in (empty, no_bytes):
        assert_refused(GpuCase(driver_rim=driver_of(values, resources=resource)), "GPU-11")


def test_hold_is_not_good() -> None:
    """A device on hold is refused, and so is one whose only good answer stands beside a revocation."""
    brom, provisioner = world().device[1:3]
    hold = ocsp_answer(
        brom.certificate,
        provisioner,
        status=ocsp.OCSPCertStatus.REVOKED,
        reason=x509.ReasonFlags.certificate_hold,
    )
    for answers in ([hold, *good_answers()[1:]], [*good_answers(), hold], [hold, *good_answers()]):
        assert_refused(GpuCase(ocsp_responses=answers), "GPU-7")


def test_answers_of_another_issuer_are_not_believed() -> None:
    """An answer that the device's own boot ROM signed about itself is refused."""
    leaf, brom, provisioner = world().device[:3]
    for signer in (brom, leaf):
        answer = ocsp_answer(brom.certificate, provisioner, signer=signer)
        assert_refused(GpuCase(ocsp_responses=[answer, *good_answers()[1:]]), "GPU-7")


def altered(old: bytes, new: bytes) -> bytes:
    """Return the base manifest with one text replaced in all places."""
    assert old in driver_manifest()
    return driver_manifest().replace(old, new)


def wrapped() -> bytes:
    """Return signature wrapping: the signed document inside another root with the attacker's payload."""
    inner = driver_manifest()
    start, end = inner.index(b" <n:Payload>"), inner.index(b"</n:Payload>") + 12
    evil = inner[start:end].replace(measurements()[30].hex().encode(), bytes(48).hex().encode())
    signature = inner[inner.index(b"<ds:Signature") : inner.index(b"</SoftwareIdentity>")]
    head = inner[:start]
    return (
        head
        + evil
        + signature.replace(b"</ds:Signature>", b"<ds:Object>" + inner + b"</ds:Object></ds:Signature>")
        + (b"</SoftwareIdentity>")
    )


def two_payloads() -> bytes:
    """Return a second payload beside the signed one."""
    inner = driver_manifest()
    start, end = inner.index(b" <n:Payload>"), inner.index(b"</n:Payload>") + 12
    return inner[:end] + inner[start:end] + inner[end:]


XML_ATTACKS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "signature wrapped": ("GPU-11", wrapped),
    "an object in the signature": ("GPU-12", lambda: altered(b"</ds:Signature>", b"<ds:Object/></ds:Signature>")),
    "two payloads": ("GPU-11", two_payloads),
    "no signature": ("GPU-11", lambda: driver_manifest().split(b"<ds:Signature")[0] + b"</SoftwareIdentity>"),
    "a comment inside a value": ("GPU-11", lambda: altered(b"<ds:DigestValue>", b"<ds:DigestValue><!-- -->")),
    "a processing instruction": ("GPU-11", lambda: altered(b"</n:Payload>", b"<?x y?></n:Payload>")),
    "document type": ("GPU-11", lambda: b"<!DOCTYPE SoftwareIdentity>" + driver_manifest()),
    "entity expansion": (
        "GPU-11",
        lambda: (
            b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + altered(b'name="m7"', b'name="&b;"')
        ),
    ),
    "external entity": (
        "GPU-11",
        lambda: b'<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + altered(b'name="m7"', b'name="&a;"'),
    ),
    "UTF-16, to hide a document type": (
        "GPU-11",
        lambda: ('<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE r>' + driver_manifest().decode()).encode("utf-16"),
    ),
    "declared encoding": (
        "GPU-11",
        lambda: b'<?xml version="1.0" encoding="UTF-7"?>+ADw-!DOCTYPE r+AD4-' + driver_manifest(),
    ),
    "CDATA": ("GPU-11", lambda: altered(b"</n:Payload>", b"<![CDATA[x]]></n:Payload>")),
    "text in the payload": ("GPU-11", lambda: altered(b"</n:Payload>", b"text</n:Payload>")),
    "xml:base": ("GPU-11", lambda: altered(b"<n:Payload>", b'<n:Payload xml:base="x">')),
    "relative namespace, which has no canonical form": (
        "GPU-11",
        lambda: altered(b"<n:Payload>", b'<n:Payload xmlns:x="relative/name">'),
    ),
    "too long": ("GPU-11", lambda: driver_manifest() + b" " * 300_000),
    "too deep": ("GPU-11", lambda: b"<a>" * 5_000 + b"</a>" * 5_000),
    "too many": ("GPU-11", lambda: altered(b"</n:Payload>", b"<n:x/>" * 5_000 + b"</n:Payload>")),
    "two measurements of one index": ("GPU-11", lambda: altered(b'index="21"', b'index="22"')),
    "a number beyond the blocks": ("GPU-11", lambda: altered(b'index="21"', b'index="255"')),
    "another namespace": ("GPU-11", lambda: altered(SWID, b'xmlns="urn:x"')),
    "a certificate that is none": ("GPU-12", lambda: altered(b"<ds:X509Certificate>", b"<ds:X509Certificate>AAAA")),
}


@pytest.mark.parametrize("name", XML_ATTACKS)
def test_attacks_on_xml_are_refused(name: str) -> None:
    """Each classic of XML and its signatures ends in our error, before a measurement is compared."""
    obligation, attack = XML_ATTACKS[name]
    assert_refused(GpuCase(driver_rim=attack()), obligation)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('URI=""', 'URI="#payload"'),
        ('URI=""', 'URI="" Type="x"'),
        ("more#ecdsa-sha384", "more#ecdsa-sha256"),
        ("more#ecdsa-sha384", "more#hmac-sha384"),
        ("more#sha384", "more#sha224"),
        ("#enveloped-signature", "#base64"),
        (f'<ds:Transform Algorithm="{C14N11}"/>', ""),
        (f'<ds:Transform Algorithm="{C14N11}"/>', f'<ds:Transform Algorithm="{C14N11}#WithComments"/>'),
        (
            f'<ds:Transform Algorithm="{C14N11}"/>',
            '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"><ds:XPath>0</ds:XPath></ds:Transform>',
        ),
        ("</ds:Reference>", '</ds:Reference><ds:Reference URI=""/>'),
    ],
)
def test_signatures_that_cover_less_are_refused_even_from_the_vendor(old: str, new: str) -> None:
    """Every other reference, transform or algorithm is refused, rightly signed or not."""
    document = driver_of(split(measurements())[0], info={old: new})
    with pytest.raises(BulkheadError) as caught:
        parse_rim(document, what="rim")
    assert obligation_of(caught.value) in {"GPU-11", "GPU-12"}


def test_a_manifest_with_a_key_of_its_own_is_refused() -> None:
    """The signer's certificate in the signature is worth only its path: a self-made one leads nowhere."""
    own = certify("Test RIM L4 Signer", issuer=None, authority=False)
    document = manifest((own, *world().rim[1:]), version=DRIVER, active=split(measurements())[0])
    assert_refused(GpuCase(driver_rim=document), "GPU-13")


def test_the_vbios_manifest_does_not_stand_in_for_the_drivers() -> None:
    """Each manifest must be for its own part: the same one twice is refused."""
    assert_refused(GpuCase(driver_rim=vbios_manifest()), "GPU-15")


def test_forms_in_the_wild_are_one_and_the_same() -> None:
    """Raw and base64 manifests, raw, hexadecimal and base64 reports give the same verdict."""
    case = GpuCase()
    reports = (
        case.report,
        case.report.hex().encode(),
        base64.b64encode(case.report),
        case.report.hex().upper().encode(),
    )
    manifests = (driver_manifest(), base64.encodebytes(driver_manifest()), b"\n" + driver_manifest() + b"\n")
    expected = case.verify()
    for form, document in itertools.zip_longest(reports, manifests, fillvalue=driver_manifest()):
        assert replace(case, report=form, driver_rim=document).verify() == expected


def _filled(make: Callable[[int], str], room: int = 250_000) -> bytes:
    parts: list[str] = []
    while room > 0:
        parts.append(make(len(parts)))
        room -= len(parts[-1])
    return "".join(parts).encode()


_ROOT_TAG, _ENTITY = b"<SoftwareIdentity ", b'<n:Entity name="test"/>'


def _bombs() -> dict[str, Callable[[], bytes]]:
    attributes = _filled(lambda number: f' a{number:x}=""')
    namespaces = _filled(lambda number: f' xmlns:a{number:x}="u:"')
    half = _filled(lambda number: f' xmlns:a{number:x}="u:"', 120_000)
    return {
        "attributes": lambda: altered(b"<n:Entity ", b"<n:Entity" + attributes + b" "),
        "namespaces": lambda: altered(_ROOT_TAG, _ROOT_TAG.rstrip() + namespaces + b" "),
        "namespaces times elements": lambda: altered(_ROOT_TAG, _ROOT_TAG.rstrip() + half + b" ").replace(
            _ENTITY, _ENTITY * 900
        ),
        "white space": lambda: altered(b"<n:Payload>", b"<n:Payload>" + b" " * 200_000),
    }


@pytest.mark.parametrize("document", _bombs().values(), ids=_bombs())
def test_documents_made_to_take_long_are_refused_at_once(document: Callable[[], bytes]) -> None:
    """Canonicalisation takes the square of namespaces and more: what is bounded is bounded before it."""
    case = GpuCase(driver_rim=document())
    started = time.thread_time()
    with pytest.raises(BulkheadError) as caught:
        case.verify()
    assert obligation_of(caught.value) in {"GPU-11", "GPU-12"}
    assert time.thread_time() - started < 1.0


def test_answers_made_to_take_long_are_refused() -> None:
    """An answer with a crowd of responders, each of which would have to be tried, is refused as it is read."""
    provisioner = world().device[2]
    crowd = [responder_for(provisioner, authorised=False).certificate for _ in range(5)]
    answer = ocsp_answer(world().device[1].certificate, provisioner, also=crowd)
    assert_refused(GpuCase(ocsp_responses=[answer, *good_answers()]), "GPU-7")
