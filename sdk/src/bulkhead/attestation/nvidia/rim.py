"""Reference integrity manifests (RIMs): which measurements a driver or VBIOS of one version has, signed by NVIDIA.

A SWID tag (ISO/IEC 19770-2, TCG Reference Integrity Manifest Information Model) with an enveloped XML signature. The
reader and the signature see one and the same tree: it is taken apart once, by position, and every element must be one
that belongs there, so nothing can be read that was not signed.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bulkhead.attestation.inputs import MAX_CERTIFICATES, load_certificates
from bulkhead.attestation.nvidia.rim_xml import canonical, parse_xml
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError

if TYPE_CHECKING:
    from lxml.etree import _Element

__all__ = ["Rim", "check_rim_signature", "parse_rim"]

_FORM: Final = "GPU-11"
_SIGNATURE: Final = "GPU-12"
_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_DS: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_ONCE: Final = (f"{_SWID}Meta", f"{_SWID}Payload", f"{_DS}Signature")
_BESIDE: Final = (f"{_SWID}Entity", f"{_SWID}Link")
_EMPTY: Final = frozenset({f"{_SWID}Meta", *_BESIDE})
_ACTIVE: Final = {"true": True, "false": False}
_C14N: Final = frozenset(
    {"http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"}
)  # without comments; equal here, see rim_xml
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_COMPONENT_BYTES: Final = 48  # of R and S on P-384 (RFC 4050: concatenated)
_MAX_INDEX: Final = 254  # index i is block i + 1, a u8
_SVN: Final = "{https://docs.nvidia.com/attestation/specs/latest/opaque-data.html}"
_SVN_INDEX: Final = 0x1000  # from here on an index less this is a type of opaque data, with a least security version
_MAX_SVN_INDEX: Final = _SVN_INDEX + 0xFFFF
_MAX_SVN: Final = 0xFFFF
_MAX_ALTERNATIVES: Final = 32  # four at most in those seen
_MAX_MEASUREMENT_BYTES: Final = 64
_MAX_ATTRIBUTE_CHARS: Final = 256
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """A parsed manifest; trusted only after its signature and the path of its signer were verified.

    Attributes:
        version: of the driver or VBIOS (``colloquialVersion``).
        product: chip, such as ``GH100``.
        tag_id: the manifest's own name.
        measurements: index -> accepted values, of active measurements alone; index i is the report's block i + 1.
        minimum_svns: type of opaque data -> least security version, where active.
        certificates: signer first.
        signed_info: canonical bytes under the signature.
        signature: R and S, 48 bytes each.
        digest: SHA-384 that ``signed_info`` states.
        content: canonical bytes of the document without its signature, whose digest that must be.
    """

    version: str
    product: str
    tag_id: str
    measurements: Mapping[int, tuple[bytes, ...]]
    minimum_svns: Mapping[int, int]
    certificates: tuple[x509.Certificate, ...]
    signed_info: bytes
    signature: bytes
    digest: bytes
    content: bytes


def parse_rim(data: bytes, *, what: str) -> Rim:
    """Return the manifest in untrusted bytes (XML in UTF-8, raw or base64).

    Raises:
        EvidenceError: GPU-11: not a manifest; GPU-12: not signed in the one way accepted.
        UnsupportedError: lxml is not installed.
    """
    root = parse_xml(data, what=what)
    _expect(root, f"{_SWID}SoftwareIdentity", what)
    meta, payload, signature = _parts(root, what)
    info, value, certificates = _parse_signature(signature, what)
    measurements, minimum_svns = _parse_payload(payload, what)
    signed_info = canonical(info, what=what)
    digest = _parse_signed_info(info, what)
    root.remove(signature)
    return Rim(
        version=_attribute(meta, "colloquialVersion", what),
        product=_attribute(meta, "product", what),
        tag_id=_attribute(root, "tagId", what),
        measurements=measurements,
        minimum_svns=minimum_svns,
        certificates=certificates,
        signed_info=signed_info,
        signature=value,
        digest=digest,
        content=canonical(root, what=what),
    )


def check_rim_signature(rim: Rim, *, what: str) -> None:
    """Return if the manifest is what its first certificate signed; that certificate is not trusted by this.

    Raises:
        EvidenceError: GPU-12.
    """
    if not hmac.compare_digest(hashlib.sha384(rim.content).digest(), rim.digest):
        raise failed(_SIGNATURE, f"{what}: its content is not what was signed")
    key = rim.certificates[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise failed(_SIGNATURE, f"{what}: the signer's key is not on P-384")
    r, s = (
        int.from_bytes(part, "big") for part in (rim.signature[:_COMPONENT_BYTES], rim.signature[_COMPONENT_BYTES:])
    )
    try:
        key.verify(encode_dss_signature(r, s), rim.signed_info, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise failed(_SIGNATURE, f"{what}: the signature is wrong") from error


def _parts(root: "_Element", what: str) -> tuple["_Element", "_Element", "_Element"]:
    """Return the one Meta, Payload and Signature; Entity and Link say who made the manifest, not what it demands."""
    found: dict[str, list[_Element]] = {tag: [] for tag in (*_ONCE, *_BESIDE)}
    for child in root:
        if child.tag not in found or (len(child) and child.tag in _EMPTY):
            raise failed(_FORM, f"{what}: elements where none belong")
        found[str(child.tag)].append(child)
    if any(len(found[tag]) != 1 for tag in _ONCE):
        raise failed(_FORM, f"{what}: not one Meta, Payload and Signature each")
    meta, payload, signature = (found[tag][0] for tag in _ONCE)
    return meta, payload, signature


def _parse_payload(payload: "_Element", what: str) -> tuple[Mapping[int, tuple[bytes, ...]], Mapping[int, int]]:
    measurements: dict[int, tuple[bytes, ...]] = {}
    minimum_svns: dict[int, int] = {}
    seen: set[int] = set()
    for resource in payload:
        _expect(resource, f"{_SWID}Resource", what)
        # A resource of another type would be a demand that is not understood here.
        if _attribute(resource, "type", what) != "Measurement" or len(resource):
            raise failed(_FORM, f"{what}: a resource that is no measurement")
        index = _number(resource, "index", what, high=_MAX_SVN_INDEX)
        if index in seen or _MAX_INDEX < index < _SVN_INDEX:
            raise failed(_FORM, f"{what}: measurement {index} stands twice, or has no such number")
        seen.add(index)
        active = _ACTIVE.get(_attribute(resource, "active", what).lower())
        if active is None:
            raise failed(_FORM, f"{what}: measurement {index} is neither active nor inactive")
        if active and index >= _SVN_INDEX:
            minimum_svns[index - _SVN_INDEX] = _number(resource, f"{_SVN}minSvn", what, high=_MAX_SVN)
        elif active:
            measurements[index] = _alternatives(resource, index, what)
    if not measurements:
        raise failed(_FORM, f"{what}: no active measurement: it would match anything")
    return MappingProxyType(measurements), MappingProxyType(minimum_svns)


def _alternatives(resource: "_Element", index: int, what: str) -> tuple[bytes, ...]:
    count = _number(resource, "alternatives", what, high=_MAX_ALTERNATIVES)
    size = _number(resource, "size", what, high=_MAX_MEASUREMENT_BYTES)
    names = {name for name in map(str, resource.attrib) if name.startswith(_HASH)}
    if not count or not size or names != {f"{_HASH}{number}" for number in range(count)}:
        raise failed(_FORM, f"{what}: measurement {index} does not state its values, at least one")
    values = [_attribute(resource, f"{_HASH}{number}", what) for number in range(count)]
    if not all(_HEX.fullmatch(value) and len(value) == 2 * size for value in values):
        raise failed(_FORM, f"{what}: a value of measurement {index} is not {size} bytes in hexadecimal")
    return tuple(bytes.fromhex(value) for value in values)


def _parse_signature(signature: "_Element", what: str) -> tuple["_Element", bytes, tuple[x509.Certificate, ...]]:
    info, value, key_info = _children(signature, ("SignedInfo", "SignatureValue", "KeyInfo"), what)
    (data,) = _children(key_info, ("X509Data",), what)
    if not 0 < len(data) <= MAX_CERTIFICATES or any(child.tag != f"{_DS}X509Certificate" for child in data):
        raise failed(_SIGNATURE, f"{what}: 1 to {MAX_CERTIFICATES} certificates must stand in its signature")
    raw = _base64(value, what)
    if len(raw) != 2 * _COMPONENT_BYTES:
        raise failed(_SIGNATURE, f"{what}: the signature is not {2 * _COMPONENT_BYTES} bytes long")
    try:
        certificates = tuple(
            certificate
            for child in data
            for certificate in load_certificates(_base64(child, what), what=f"{what}: certificate")
        )
    except EvidenceError as error:
        raise failed(_SIGNATURE, error.message) from error
    return info, raw, certificates


def _parse_signed_info(info: "_Element", what: str) -> bytes:
    """Return the one reference's digest; every algorithm is pinned, so that no signer's or forger's choice counts."""
    method, signature_method, reference = _children(
        info, ("CanonicalizationMethod", "SignatureMethod", "Reference"), what
    )
    transforms, digest_method, digest_value = _children(reference, ("Transforms", "DigestMethod", "DigestValue"), what)
    enveloped, transform = _children(transforms, ("Transform", "Transform"), what)
    pinned = (
        _algorithm(method) in _C14N
        and _algorithm(transform) in _C14N
        and _algorithm(enveloped) == _ENVELOPED
        and _algorithm(signature_method) == _ECDSA_SHA384
        and _algorithm(digest_method) == _SHA384
    )
    if not pinned or reference.keys() != ["URI"] or reference.get("URI") != "":
        raise failed(_SIGNATURE, f"{what}: the signature does not cover the whole document in the accepted way")
    digest = _base64(digest_value, what)
    if len(digest) != hashes.SHA384.digest_size:
        raise failed(_SIGNATURE, f"{what}: the digest is not SHA-384's")
    return digest


def _children(element: "_Element", names: tuple[str, ...], what: str) -> list["_Element"]:
    children = list(element)
    if [child.tag for child in children] != [f"{_DS}{name}" for name in names]:
        raise failed(_SIGNATURE, f"{what}: {element.tag.rpartition('}')[2]} does not hold exactly {', '.join(names)}")
    return children


def _algorithm(element: "_Element") -> str | None:
    # Parameters inside (XPath, inclusive namespaces, output lengths) would change what is signed.
    return element.get("Algorithm") if len(element) == 0 and len(element.attrib) == 1 else None


def _expect(element: "_Element", tag: str, what: str) -> None:
    if element.tag != tag:
        raise failed(_FORM, f"{what}: {tag.rpartition('}')[2]} expected")


def _attribute(element: "_Element", name: str, what: str) -> str:
    value = element.get(name)
    if value is None or not 0 < len(value) <= _MAX_ATTRIBUTE_CHARS:
        raise failed(_FORM, f"{what}: attribute {name.rpartition('}')[2]} is missing or too long")
    return str(value)


def _number(element: "_Element", name: str, what: str, *, high: int) -> int:
    text = _attribute(element, name, what)
    if not _NUMBER.fullmatch(text) or int(text) > high:
        raise failed(_FORM, f"{what}: attribute {name.rpartition('}')[2]} is not a number up to {high}")
    return int(text)


def _base64(element: "_Element", what: str) -> bytes:
    try:
        return base64.b64decode("".join((element.text or "").split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise failed(_SIGNATURE, f"{what}: a value in its signature is not base64") from error
