"""A make-believe NVIDIA for tests: device and manifest authorities, GPUs' reports, signed manifests, OCSP answers."""

import base64
import datetime as dt
import hashlib
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from lxml import etree

from bulkhead.attestation.nvidia import NvidiaPolicy, NvidiaRoots, VerifiedGpu, verify_gpu

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
NOW_S = int(NOW.timestamp())
DAY = dt.timedelta(days=1)
NONCE = bytes(range(32))
FWID = hashlib.sha384(b"firmware").digest()
DRIVER = "580.10.01"
VBIOS = "96.00.AB.00.02"
SHA384_DER = bytes.fromhex("0609608648016503040202")
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_DSIG = "http://www.w3.org/2000/09/xmldsig#"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def sign(self, data: bytes) -> bytes:
        """Return R and S, 48 bytes each."""
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def certify(
    name: str,
    *,
    issuer: Signer | None,
    authority: bool,
    not_after: dt.datetime = NOW + 1000 * DAY,
    extensions: Sequence[x509.ExtensionType] = (),
    digest: hashes.SHA256 | hashes.SHA384 | None = None,
    critical: bool = False,
) -> Signer:
    """Return a fresh key with a certificate from ``issuer`` (its own, if None)."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 100 * DAY)
        .not_valid_after(not_after)
        .add_extension(_usage(authority=authority), critical=True)
    )
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Signer(certificate=builder.sign(issuer.key if issuer else key, digest or hashes.SHA384()), key=key)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def tcb_info(*fwids: bytes) -> x509.UnrecognizedExtension:
    """Blackwell's form: DiceTcbInfo with its list of FWIDs."""
    items = b"".join(_der(0x30, SHA384_DER + _der(0x04, fwid)) for fwid in fwids)
    body = _der(0x80, b"NVIDIA") + _der(0x83, b"\x01") + _der(0xA6, items)
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), _der(0x30, body))


def composite_device_id(fwid: bytes) -> x509.UnrecognizedExtension:
    """Hopper's form: version, device key, FWID."""
    body = _der(0x02, b"\x01") + _der(0x30, bytes(118)) + _der(0x30, SHA384_DER + _der(0x04, fwid))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), _der(0x30, body))


def _der(tag: int, value: bytes) -> bytes:
    length = bytes([len(value)]) if len(value) < 128 else b"\x81" + bytes([len(value)])
    return bytes([tag]) + length + value


@dataclass(frozen=True, kw_only=True)
class World:
    """The vendor's authorities, and one GPU's identities."""

    roots: NvidiaRoots
    device: tuple[Signer, ...]  # attestation key, boot ROM, provisioner, model, root
    rim: tuple[Signer, ...]  # signer, its authority, the chip's authority, root


@cache
def world() -> World:
    """Return the one world of a test run; keys are made once."""
    device_root = certify("Test Device Identity CA", issuer=None, authority=True)
    model = certify("Test GH100 Identity", issuer=device_root, authority=True)
    provisioner = certify("Test GH100 Provisioner ICA 1", issuer=model, authority=True)
    brom = certify("GH100 A01 GSP BROM", issuer=provisioner, authority=True)
    leaf = certify("GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=[composite_device_id(FWID)])
    rim_root = certify("Test CoRIM signing Root CA", issuer=None, authority=True)
    chip = certify("Test Reference Value GH100 CA", issuer=rim_root, authority=True)
    lower = certify("Test Reference Value L3 GH100", issuer=chip, authority=True)
    signer = certify("Test RIM L4 Signer", issuer=lower, authority=False)
    return World(
        roots=NvidiaRoots(device=device_root.certificate, rim=rim_root.certificate),
        device=(leaf, brom, provisioner, model, device_root),
        rim=(signer, lower, chip, rim_root),
    )


def measurements() -> dict[int, bytes]:
    """Index (as in manifests, from 0) -> value of the GPU's 64 measurements; 0 is all zero."""
    return {index: hashlib.sha384(b"m%d" % index).digest() if index else bytes(48) for index in range(64)}


def opaque(**changes: bytes | None) -> bytes:
    """Return opaque data; ``changes`` by name replace entries, None leaves one out."""
    numbers = {
        "driver": 3, "vbios": 6, "nvdec0": 11, "chip_sku": 15, "project": 17, "project_sku": 18, "fwid": 20,
        "ppcie": 21, "version": 34, "chip": 35, "mode": 36,
    }  # fmt: skip
    values: dict[str, bytes | None] = {
        "vbios": bytes.fromhex("00ab009602000000"), "chip_sku": b"882\0", "project": b"G520\0",
        "project_sku": b"0200\0", "driver": DRIVER.encode() + b"\0", "nvdec0": b"\xaa", "fwid": FWID,
        "version": b"\x01\x00", "mode": b"\x01\x00",
    }  # fmt: skip
    entries = {**values, **changes}
    return b"".join(
        struct.pack("<HH", numbers[name], len(value)) + value for name, value in entries.items() if value is not None
    )


def headed_opaque(*svns: tuple[int, int]) -> bytes:
    """Return opaque data of version 2, with a header and typed values; ``svns`` are (type, security version)."""
    plain, typed = opaque(version=None), b""
    while plain:
        kind, size = struct.unpack_from("<HH", plain)
        typed += struct.pack("<HHH", kind, 1, size) + plain[4 : 4 + size]
        plain = plain[4 + size :]
    for kind, svn in svns:
        typed += struct.pack("<HHHH", kind, 0x87, 2, svn)
    return b"NVDAOD" + struct.pack("<HBBH", 0, 2, 0, 0) + typed


def minimum_svn(kind: int, svn: int, *, active: str = "True") -> str:
    """Return a manifest's resource that demands a least security version of a type of opaque data."""
    return (
        f'<n:Resource xmlns:s="https://docs.nvidia.com/attestation/specs/latest/opaque-data.html" type="Measurement" '
        f'index="{0x1000 + kind}" active="{active}" alternatives="1" name="FSP_MIN_SVN" size="2" s:minSvn="{svn}" '
        f's:includeInResult="True"/>'
    )


def report(
    signer: Signer,
    *,
    nonce: bytes = NONCE,
    values: Mapping[int, bytes] | None = None,
    opaque_data: bytes | None = None,
) -> bytes:
    """Return a signed report of ``values`` (index from 0)."""
    record = b"".join(
        struct.pack("<BBHBH", index + 1, 1, len(value) + 3, 1, len(value)) + value
        for index, value in (values if values is not None else measurements()).items()
    )
    blocks = len(values) if values is not None else 64
    data = opaque_data if opaque_data is not None else opaque()
    signed = (
        b"\x11\xe0\x01\xff" + nonce + b"\x00" + b"\x11\x60\x00\x00" + bytes([blocks])
        + len(record).to_bytes(3, "little") + record + bytes(32) + struct.pack("<H", len(data)) + data
    )  # fmt: skip
    return signed + signer.sign(signed)


def manifest(
    path: Sequence[Signer],
    *,
    version: str,
    active: Mapping[int, Sequence[bytes]],
    product: str = "GH100",
    resources: str = "",
    info: Mapping[str, str] | None = None,
    extra: str = "",
    change: Callable[[str], str] = str,
) -> bytes:
    """Return a signed manifest.

    Args:
        path: signer first; all of it stands in the signature.
        version: of driver or VBIOS.
        active: index -> accepted values.
        product: chip.
        resources: further elements of the payload.
        info: replacements (old -> new) in the signed information, before signing.
        extra: elements beside the payload, before the signature.
        change: of the text before signing.
    """
    body = "".join(
        f'<n:Resource type="Measurement" index="{index}" active="True" alternatives="{len(values)}" '
        + " ".join(f'h:Hash{number}="{value.hex()}"' for number, value in enumerate(values))
        + f' name="m{index}" size="{len(values[0])}"/>\n'
        for index, values in active.items()
    )
    head = (
        f'<SoftwareIdentity xmlns="{_SWID}" xmlns:n="{_SWID}" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384" '
        f'name="{product}" tagId="tag-{version}">\n <n:Entity name="test"/>\n'
        f' <n:Meta colloquialVersion="{version}" product="{product}"/>\n'
        f" <n:Payload>\n{body}{resources}</n:Payload>{extra}"
    )
    head = change(head)
    bare = etree.fromstring(f"{head}</SoftwareIdentity>")
    digest = base64.b64encode(hashlib.sha384(etree.tostring(bare, method="c14n")).digest()).decode()
    signed_info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{C14N11}"/>'
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{_DSIG}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{C14N11}"/></ds:Transforms>'
        '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    for old, new in (info or {}).items():
        assert old in signed_info
        signed_info = signed_info.replace(old, new)
    certificates = "".join(
        "<ds:X509Certificate>"
        + base64.b64encode(signer.certificate.public_bytes(Encoding.DER)).decode()
        + "</ds:X509Certificate>"
        for signer in path
    )
    document = (
        f'{head}<ds:Signature xmlns:ds="{_DSIG}">{signed_info}<ds:SignatureValue>@</ds:SignatureValue>'
        f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>"
    )
    element = etree.fromstring(document).find(f".//{{{_DSIG}}}SignedInfo")
    assert element is not None
    signature = path[0].sign(etree.tostring(element, method="c14n"))
    return document.replace("@", base64.b64encode(signature).decode()).encode()


def ocsp_answer(
    certificate: x509.Certificate,
    issuer: Signer,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    reason: x509.ReasonFlags | None = None,
    this_update: dt.datetime = NOW - dt.timedelta(hours=1),
    signer: Signer | None = None,
    also: Sequence[x509.Certificate] = (),
) -> bytes:
    """Return the answer of ``issuer``, or of a responder ``signer`` whose certificate it carries, ``also`` others."""
    responder = signer or issuer
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer.certificate,
        algorithm=hashes.SHA384(),
        cert_status=status,
        this_update=this_update,
        next_update=this_update + DAY,
        revocation_time=NOW - 30 * DAY if status is ocsp.OCSPCertStatus.REVOKED else None,
        revocation_reason=reason,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
    carried = [*([signer.certificate] if signer else []), *also]
    if carried:
        builder = builder.certificates(carried)
    return builder.sign(responder.key, hashes.SHA384()).public_bytes(Encoding.DER)


def responder_for(issuer: Signer, *, authorised: bool = True) -> Signer:
    """Return an OCSP responder that ``issuer`` certified, for OCSP or only as some signer."""
    usages = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])] if authorised else []
    return certify("Test OCSP responder", issuer=issuer, authority=False, extensions=usages)


def answers(device: Sequence[Signer], rim: Sequence[Signer]) -> list[bytes]:
    """Return a good answer about everything that must have one."""
    pairs = [*itertools.pairwise(device[1:]), *itertools.pairwise(rim)]
    return [ocsp_answer(signer.certificate, issuer) for signer, issuer in pairs]


def split(values: Mapping[int, bytes]) -> tuple[dict[int, list[bytes]], dict[int, list[bytes]]]:
    """Return the driver's and VBIOS's share of the reference measurements: 21 and 12, as in real manifests."""
    driver = {index: [bytes(48), values[index]] if index == 23 else [values[index]] for index in (7, *range(21, 41))}
    vbios = {index: [values[index]] for index in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12)}
    return driver, vbios


def pem(path: Sequence[Signer]) -> bytes:
    """Return certificates as PEM, leaf first."""
    return b"".join(signer.certificate.public_bytes(Encoding.PEM) for signer in path)


@cache
def driver_manifest() -> bytes:
    """Return the driver's manifest of the base case."""
    return manifest(world().rim, version=DRIVER, active=split(measurements())[0])


@cache
def vbios_manifest() -> bytes:
    """Return the VBIOS's manifest of the base case."""
    return manifest(world().rim, version=VBIOS, active=split(measurements())[1])


@cache
def good_answers() -> tuple[bytes, ...]:
    """Return the OCSP answers of the base case."""
    return tuple(answers(world().device, world().rim))


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """Everything that :func:`verify_gpu` takes; the defaults are accepted, and each test changes one thing."""

    report: bytes = field(default_factory=lambda: report(world().device[0]))
    certificates: bytes = field(default_factory=lambda: pem(world().device))
    driver_rim: bytes | None = field(default_factory=driver_manifest)
    vbios_rim: bytes | None = field(default_factory=vbios_manifest)
    ocsp_responses: Sequence[bytes] = field(default_factory=good_answers)
    nonce: bytes = NONCE
    policy: NvidiaPolicy = field(default_factory=NvidiaPolicy)
    now_s: int = NOW_S

    def verify(self) -> VerifiedGpu:
        """Verify this case under the test roots."""
        return verify_gpu(
            self.report, certificates=self.certificates, driver_rim=self.driver_rim, vbios_rim=self.vbios_rim,
            ocsp_responses=self.ocsp_responses, nonce=self.nonce, policy=self.policy, now_s=self.now_s,
            roots=world().roots,
        )  # fmt: skip
