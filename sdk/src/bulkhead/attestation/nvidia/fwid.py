"""The firmware identity (FWID) that the device's boot ROM wrote into the attestation key's certificate.

Hopper carries TCG's CompositeDeviceID (version, device key, FWID) under 2.23.133.5.4.1, Blackwell a DiceTcbInfo (TCG
DICE Attestation Architecture 1.1 section 6.1.1) under 2.23.133.5.4.1.1. The form decides, not the number, since TCG
gave 2.23.133.5.4.1 to DiceTcbInfo later.
"""

from collections.abc import Iterator
from typing import Final

from cryptography import x509

from bulkhead.attestation.certificates import extension_values
from bulkhead.attestation.nvidia.opaque import FWID_BYTES
from bulkhead.attestation.obligations import failed

__all__ = ["FWID_EXTENSIONS", "certificate_fwid", "parse_fwid"]

_OBLIGATION: Final = "GPU-6"
FWID_EXTENSIONS: Final = frozenset({"2.23.133.5.4.1", "2.23.133.5.4.1.1"})
_INTEGER: Final = 0x02
_OCTET_STRING: Final = 0x04
_OBJECT_IDENTIFIER: Final = 0x06
_SEQUENCE: Final = 0x30
_FWIDS: Final = 0xA6  # [6] of DiceTcbInfo
_SHA384: Final = bytes.fromhex("608648016503040202")  # content of 2.16.840.1.101.3.4.2.2


def certificate_fwid(certificate: x509.Certificate) -> bytes:
    """Return the FWID of the layer that ``certificate`` was issued to, 48 bytes.

    Of several FWIDs in a DiceTcbInfo the first is that layer's firmware; further ones (all zero on Blackwell) are not
    compared with anything.

    Raises:
        EvidenceError: GPU-6: none, contradictory ones, or not of that form.
    """
    extensions = extension_values(certificate)
    found = {parse_fwid(extensions[oid]) for oid in FWID_EXTENSIONS if oid in extensions}
    if len(found) != 1:
        raise failed(_OBLIGATION, "the attestation key's certificate does not state one FWID")
    (fwid,) = found
    return fwid


def parse_fwid(der: bytes) -> bytes:
    """Return the first FWID, 48 bytes, in the DER of a CompositeDeviceID or DiceTcbInfo (untrusted).

    Raises:
        EvidenceError: GPU-6.
    """
    (fields,) = _children(der, [_SEQUENCE])
    elements = list(_elements(fields))
    if len(elements) == 3 and elements[0][0] == _INTEGER and elements[2][0] == _SEQUENCE:
        return _digest(elements[2][1])
    lists = [value for tag, value in elements if tag == _FWIDS]
    if len(lists) != 1 or not lists[0]:
        raise failed(_OBLIGATION, "the certificate's FWID is in no known form")
    tag, first = next(_elements(lists[0]))
    if tag != _SEQUENCE:
        raise failed(_OBLIGATION, "the certificate's FWID list is malformed")
    return _digest(first)


def _digest(fwid: bytes) -> bytes:
    algorithm, digest = _children(fwid, [_OBJECT_IDENTIFIER, _OCTET_STRING])
    if algorithm != _SHA384 or len(digest) != FWID_BYTES:
        raise failed(_OBLIGATION, "the certificate's FWID is not a SHA-384 digest")
    return digest


def _children(data: bytes, tags: list[int]) -> list[bytes]:
    elements = list(_elements(data))
    if [tag for tag, _ in elements] != tags:
        raise failed(_OBLIGATION, "the certificate's FWID extension is malformed")
    return [value for _, value in elements]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each DER element (X.690); lengths up to 65,535, as certificates are shorter."""
    offset = 0
    while offset < len(data):
        head = data[offset : offset + 2]
        length_bytes = {0x81: 1, 0x82: 2}.get(head[1], 0) if len(head) == 2 else 0
        length = int.from_bytes(data[offset + 2 : offset + 2 + length_bytes], "big") if length_bytes else head[-1]
        start = offset + 2 + length_bytes
        if len(head) != 2 or (not length_bytes and head[1] > 0x7F) or start + length > len(data):
            raise failed(_OBLIGATION, "the certificate's FWID extension is malformed")
        yield head[0], data[start : start + length]
        offset = start + length
