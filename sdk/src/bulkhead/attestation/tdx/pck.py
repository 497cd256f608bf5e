"""The SGX extension of PCK certificates: which platform a key belongs to, and its TCB.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification 1.5, section 1.3.5. The
extension is a DER SEQUENCE of (OID, value) pairs below 1.2.840.113741.1.13.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from bulkhead.attestation.certificates import extension_values
from bulkhead.attestation.obligations import failed

__all__ = ["PckPlatform", "parse_sgx_extension", "read_pck_platform"]

_SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_SGX_OID: Final = bytes.fromhex("2a864886f84d010d01")  # DER contents of the same OID
_MAX_EXTENSION_BYTES: Final = 2_048  # real ones have about 550
_COMPONENTS: Final = 16
_INTEGER, _OCTET_STRING, _OID, _SEQUENCE = 0x02, 0x04, 0x06, 0x30
_PPID, _TCB, _PCE_ID, _FMSPC, _PLATFORM_INSTANCE = (bytes([arc]) for arc in (1, 2, 3, 4, 6))
_PCE_SVN: Final = b"\x02\x11"  # 2.17, below the extension's OID


@dataclass(frozen=True, slots=True, kw_only=True)
class PckPlatform:
    """What Intel certified of the platform.

    Attributes:
        fmspc: 6 bytes: family, model, stepping, platform and SKU; selects the TCB info.
        pce_id: 2 bytes: identity of the provisioning certification enclave.
        ppid: 16 bytes that are constant for the platform's processor package.
        cpu_svns: 16 security version numbers of the platform's SGX TCB components, 0 to 255 each.
        pce_svn: security version number of the provisioning certification enclave.
        platform_instance_id: 16 bytes of a multi-package platform; None from a processor CA.
    """

    fmspc: bytes
    pce_id: bytes
    ppid: bytes
    cpu_svns: tuple[int, ...]
    pce_svn: int
    platform_instance_id: bytes | None


def read_pck_platform(certificate: x509.Certificate) -> PckPlatform:
    """Return what a PCK certificate, verified by the caller, says of its platform.

    Raises:
        EvidenceError: TDX-5, the extension is missing, malformed or incomplete.
    """
    extension = extension_values(certificate).get(_SGX_EXTENSION)
    if extension is None:
        raise failed("TDX-5", "the PCK certificate has no SGX extension")
    return parse_sgx_extension(extension)


def parse_sgx_extension(extension: bytes) -> PckPlatform:
    """Return what the DER of an SGX extension says (untrusted).

    Raises:
        EvidenceError: TDX-5.
    """
    if len(extension) > _MAX_EXTENSION_BYTES:
        raise failed("TDX-5", f"the SGX extension is longer than {_MAX_EXTENSION_BYTES} bytes")
    fields = _pairs(_value(extension, _SEQUENCE))
    tcb = _pairs(_field(fields, _TCB, _SEQUENCE))
    svns = tuple(_integer(tcb, _TCB + bytes([arc]), high=0xFF) for arc in range(1, _COMPONENTS + 1))
    instance = _octets(fields, _PLATFORM_INSTANCE, 16) if _PLATFORM_INSTANCE in fields else None
    return PckPlatform(
        fmspc=_octets(fields, _FMSPC, 6),
        pce_id=_octets(fields, _PCE_ID, 2),
        ppid=_octets(fields, _PPID, 16),
        cpu_svns=svns,
        pce_svn=_integer(tcb, _PCE_SVN, high=0xFFFF),
        platform_instance_id=instance,
    )


def _pairs(data: bytes) -> dict[bytes, tuple[int, bytes]]:
    fields: dict[bytes, tuple[int, bytes]] = {}
    for tag, pair in _elements(data):
        parts = list(_elements(pair)) if tag == _SEQUENCE else []
        if len(parts) != 2 or parts[0][0] != _OID or not parts[0][1].startswith(_SGX_OID):
            raise failed("TDX-5", "the SGX extension is not a list of its own fields")
        arc = parts[0][1].removeprefix(_SGX_OID)
        if arc in fields:
            raise failed("TDX-5", "the SGX extension has a field twice")
        fields[arc] = parts[1]
    return fields


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, contents) of consecutive DER elements with lengths of at most two bytes (X.690 section 8.1)."""
    while data:
        header, length = 2, data[1] if len(data) > 1 else -1
        if length in (0x81, 0x82):
            header += length - 0x80
            length = int.from_bytes(data[2:header], "big")
        if not 0 <= length <= len(data) - header or (header == 2 and length > 0x7F):
            raise failed("TDX-5", "the SGX extension is not DER")
        yield data[0], data[header : header + length]
        data = data[header + length :]


def _value(data: bytes, tag: int) -> bytes:
    elements = list(_elements(data))
    if len(elements) != 1 or elements[0][0] != tag:
        raise failed("TDX-5", "the SGX extension is not one DER sequence")
    return elements[0][1]


def _field(fields: dict[bytes, tuple[int, bytes]], arc: bytes, tag: int) -> bytes:
    found, contents = fields.get(arc, (None, b""))
    if found != tag:
        raise failed("TDX-5", f"the SGX extension has no proper field {'.'.join(map(str, arc))}")
    return contents


def _octets(fields: dict[bytes, tuple[int, bytes]], arc: bytes, size: int) -> bytes:
    contents = _field(fields, arc, _OCTET_STRING)
    if len(contents) != size:
        raise failed("TDX-5", f"field {arc[0]} of the SGX extension is not {size} bytes")
    return contents


def _integer(fields: dict[bytes, tuple[int, bytes]], arc: bytes, *, high: int) -> int:
    contents = _field(fields, arc, _INTEGER)
    value = int.from_bytes(contents, "big", signed=True)
    if not contents or not 0 <= value <= high:
        raise failed("TDX-5", f"field {'.'.join(map(str, arc))} of the SGX extension is not within 0 to {high}")
    return value
