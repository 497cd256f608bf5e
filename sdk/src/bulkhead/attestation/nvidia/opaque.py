"""Opaque data of NVIDIA's SPDM measurements: what a GPU says about itself, inside the signed response.

Two layouts (NVIDIA attestation-sdk, ``spdm_opaque_data_parser``), all numbers little-endian: entries of type u16,
size u16, value; or, after the header ``NVDAOD`` (profile u16, major u8, minor u8, reserved u16), entries of type u16,
value type u16, size u16, value.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final

from bulkhead.attestation.obligations import failed

__all__ = [
    "FWID_BYTES",
    "GpuMode",
    "OpaqueData",
    "OpaqueType",
    "gpu_mode",
    "opaque_text",
    "parse_opaque",
    "vbios_version",
]

FWID_BYTES: Final = 48  # SHA-384
_OBLIGATION: Final = "GPU-1"
_MAGIC: Final = b"NVDAOD"
_HEADER_BYTES: Final = 12
_MAX_VERSION: Final = 2  # the layouts described above
_MAX_TEXT_BYTES: Final = 32  # versions and project numbers have up to 12 characters
_VBIOS_BYTES: Final = 8
_SVN_VALUE_TYPE: Final = 0x87  # a security version, u16
_SVN_BYTES: Final = 2
_MODE_STATED_SINCE: Final = 1  # opaque data version from which FEATURE_FLAG is present
_ENABLED: Final = b"\xaa"
_DISABLED: Final = b"\x55"


class OpaqueType(IntEnum):
    """The entries that are read here; others are carried, not interpreted."""

    DRIVER_VERSION = 3
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    CHIP_SKU = 15
    PROJECT = 17
    PROJECT_SKU = 18
    FWID = 20
    PROTECTED_PCIE_STATUS = 21
    OPAQUE_DATA_VERSION = 34
    CHIP_INFO = 35
    FEATURE_FLAG = 36


class GpuMode(Enum):
    """How a GPU in confidential-computing mode is attached."""

    MPT = "mpt"  # multi-GPU passthrough
    SPT = "spt"  # single-GPU passthrough
    PPCIE = "ppcie"  # protected PCIe: NVLink is not encrypted, the switches must be attested, too


_MODES: Final = {0: GpuMode.MPT, 1: GpuMode.SPT, 2: GpuMode.PPCIE}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueData:
    """What was read.

    Attributes:
        version: of the format.
        entries: value by type, of every type, known or not.
        svns: security versions, by type: those entries that say they are some.
    """

    version: int
    entries: Mapping[int, bytes]
    svns: Mapping[int, int]


def parse_opaque(data: bytes) -> OpaqueData:
    """Return what is in opaque data (untrusted, at most 65,535 bytes).

    Raises:
        EvidenceError: GPU-1: truncated, two values of one type, or a version that this build does not know.
    """
    headed = data.startswith(_MAGIC)
    entries, svns = _entries(data[_HEADER_BYTES:] if headed else data, typed=headed)
    version = (
        _header_version(data) if headed else int.from_bytes(entries.get(OpaqueType.OPAQUE_DATA_VERSION, b""), "little")
    )
    if version > _MAX_VERSION:
        raise failed(_OBLIGATION, f"opaque data of version {version} is not known to this build")
    return OpaqueData(version=version, entries=MappingProxyType(entries), svns=MappingProxyType(svns))


def _header_version(data: bytes) -> int:
    if len(data) < _HEADER_BYTES or data[6:8] != b"\x00\x00":
        raise failed(_OBLIGATION, "opaque data: truncated header or unknown profile")
    return data[8]


def _entries(data: bytes, *, typed: bool) -> tuple[dict[int, bytes], dict[int, int]]:
    entries: dict[int, bytes] = {}
    svns: dict[int, int] = {}
    head, offset = struct.Struct("<HHH" if typed else "<HH"), 0
    while offset < len(data):
        if offset + head.size > len(data):
            raise failed(_OBLIGATION, "opaque data: an entry is truncated")
        kind, *value_type, size = head.unpack_from(data, offset)
        value = data[offset + head.size : offset + head.size + size]
        if len(value) != size:
            raise failed(_OBLIGATION, "opaque data: a value is truncated")
        if entries.get(kind, value) != value:  # which of two counts would be the reader's choice
            raise failed(_OBLIGATION, f"opaque data: entry {kind} has two values")
        entries[kind] = value
        if value_type == [_SVN_VALUE_TYPE] and size == _SVN_BYTES:
            svns[kind] = int.from_bytes(value, "little")
        offset += head.size + size
    return entries, svns


def opaque_text(entries: Mapping[int, bytes], kind: OpaqueType) -> str:
    """Return a NUL-padded text entry of 1 to 32 letters, digits, dots and hyphens.

    Raises:
        EvidenceError: GPU-1: missing or something else.
    """
    text = entries.get(kind, b"").rstrip(b"\x00")
    if (
        not 0 < len(text) <= _MAX_TEXT_BYTES
        or not all(chr(byte).isalnum() or byte in b".-" for byte in text)
        or not text.isascii()
    ):
        raise failed(_OBLIGATION, f"opaque data: {kind.name.lower()} is missing or malformed")
    return text.decode("ascii")


def vbios_version(entries: Mapping[int, bytes]) -> str:
    """Return the VBIOS version as manifests write it, such as ``96.00.5E.00.01``.

    The eight bytes are two little-endian words: four parts of the version, and the fifth; the rest names no version.

    Raises:
        EvidenceError: GPU-1: missing or not of that form.
    """
    value = entries.get(OpaqueType.VBIOS_VERSION, b"")
    if len(value) != _VBIOS_BYTES:
        raise failed(_OBLIGATION, "opaque data: vbios_version is missing or malformed")
    return ".".join(f"{part:02X}" for part in (*reversed(value[:4]), value[4]))


def gpu_mode(opaque: OpaqueData) -> tuple[GpuMode, bool]:
    """Return the mode, and whether the GPU states it.

    Before version 1 of the opaque data there was nothing to state: passthrough of one GPU, unless the entry for
    protected PCIe says otherwise.

    Raises:
        EvidenceError: GPU-1: a version that must state it does not, or an unknown value.
    """
    flag = opaque.entries.get(OpaqueType.FEATURE_FLAG)
    protected = opaque.entries.get(OpaqueType.PROTECTED_PCIE_STATUS)
    if flag is not None:
        mode = _MODES.get(int.from_bytes(flag, "little")) if flag else None
        if mode is None or (protected == _ENABLED and mode is not GpuMode.PPCIE):
            raise failed(_OBLIGATION, "opaque data: the feature flag is unknown or contradicted")
        return mode, True
    if opaque.version >= _MODE_STATED_SINCE:
        raise failed(_OBLIGATION, "opaque data: the feature flag is missing")
    if protected in {None, _DISABLED}:
        return GpuMode.SPT, protected is not None
    if protected == _ENABLED:
        return GpuMode.PPCIE, True
    raise failed(_OBLIGATION, "opaque data: the status of protected PCIe is unknown")
