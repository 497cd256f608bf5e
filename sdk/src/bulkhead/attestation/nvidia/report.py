"""GPU attestation reports: an SPDM 1.1 GET_MEASUREMENTS request and its signed MEASUREMENTS response (DMTF DSP0274).

Layout, all numbers little-endian: request (37 bytes: version, code, two parameters, nonce of 32 bytes, slot), response
(version, code, two parameters, number of blocks u8, record length u24, record, nonce of 32 bytes, opaque length u16,
opaque data), signature (96 bytes: R and S of ECDSA on P-384, big-endian). Nothing is trusted here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bulkhead.attestation.inputs import decode_text
from bulkhead.attestation.nvidia.opaque import (
    FWID_BYTES,
    GpuMode,
    OpaqueData,
    OpaqueType,
    gpu_mode,
    opaque_text,
    parse_opaque,
    vbios_version,
)
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError

__all__ = ["NONCE_BYTES", "SIGNATURE_BYTES", "GpuReport", "parse_report"]

SIGNATURE_BYTES: Final = 96
NONCE_BYTES: Final = 32
MAX_REPORT_BYTES: Final = 16_384  # reports seen have 4.0 to 4.3 kB: 64 blocks of 55 bytes, half a kB of opaque data
_OBLIGATION: Final = "GPU-1"
_REQUEST_BYTES: Final = 37
_REQUEST_START: Final = b"\x11\xe0\x01\xff"  # SPDM 1.1, GET_MEASUREMENTS, signature requested, all blocks
_RESPONSE_START: Final = b"\x11\x60"  # SPDM 1.1, MEASUREMENTS
_RESPONSE_HEAD_BYTES: Final = 8
_BLOCK_HEAD_BYTES: Final = 4
_DMTF_HEAD_BYTES: Final = 3
_DMTF_SPECIFICATION: Final = 1  # bit 0 of MeasurementSpecification
_NVDEC0: Final = {b"\xaa": True, b"\x55": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """What a GPU's report claims; proven only by :func:`bulkhead.attestation.nvidia.verify_gpu`.

    Attributes:
        nonce: the requester's, 32 bytes.
        measurements: block number (1 to 255) -> value.
        driver_version: such as ``550.90.07``.
        vbios_version: such as ``96.00.5E.00.01``.
        project: board project and ``project_sku``, ``chip_sku``: name the VBIOS manifest.
        project_sku: see ``project``.
        chip_sku: see ``project``.
        chip: such as ``GB100``, as the firmware calls itself; None in reports that predate it (Hopper's).
        fwid: SHA-384 of the firmware that holds the attestation key, 48 bytes; None in reports that predate it.
        mode: passthrough of one or several GPUs, or protected PCIe.
        mode_stated: False where the report predates the field.
        nvdec0_enabled: whether measurement 35 says anything.
        opaque: every opaque entry.
        signed: the bytes under the signature.
        signature: R and S, 48 bytes each.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    driver_version: str
    vbios_version: str
    project: str
    project_sku: str
    chip_sku: str
    chip: str | None
    fwid: bytes | None
    mode: GpuMode
    mode_stated: bool
    nvdec0_enabled: bool
    opaque: OpaqueData
    signed: bytes
    signature: bytes

    @property
    def vbios_rim_id(self) -> str:
        """Name of the VBIOS's manifest at NVIDIA's RIM service."""
        version = self.vbios_version.replace(".", "")
        return f"NV_GPU_VBIOS_{self.project}_{self.project_sku}_{self.chip_sku}_{version}".upper()


def parse_report(data: bytes) -> GpuReport:
    """Return the claims of a report: raw, hexadecimal or base64; untrusted.

    Raises:
        EvidenceError: GPU-1.
    """
    try:
        raw = decode_text(
            data,
            is_binary=lambda candidate: candidate.startswith(_REQUEST_START[:2]),
            max_bytes=MAX_REPORT_BYTES,
            what="GPU report",
            error=EvidenceError,
        )
    except EvidenceError as error:
        raise failed(_OBLIGATION, error.message) from error
    if len(raw) < _REQUEST_BYTES + _RESPONSE_HEAD_BYTES + SIGNATURE_BYTES or not raw.startswith(_REQUEST_START):
        raise failed(_OBLIGATION, "not a signed SPDM 1.1 report of all measurements")
    signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    measurements, opaque_data = _parse_response(signed[_REQUEST_BYTES:])
    opaque = parse_opaque(opaque_data)
    entries = opaque.entries
    mode, mode_stated = gpu_mode(opaque)
    return GpuReport(
        nonce=raw[4 : 4 + NONCE_BYTES],
        measurements=measurements,
        driver_version=opaque_text(entries, OpaqueType.DRIVER_VERSION),
        vbios_version=vbios_version(entries),
        project=opaque_text(entries, OpaqueType.PROJECT),
        project_sku=opaque_text(entries, OpaqueType.PROJECT_SKU),
        chip_sku=opaque_text(entries, OpaqueType.CHIP_SKU),
        chip=opaque_text(entries, OpaqueType.CHIP_INFO) if OpaqueType.CHIP_INFO in entries else None,
        fwid=_fwid(entries),
        mode=mode,
        mode_stated=mode_stated,
        nvdec0_enabled=_nvdec0(entries),
        opaque=opaque,
        signed=signed,
        signature=signature,
    )


def _parse_response(response: bytes) -> tuple[Mapping[int, bytes], bytes]:
    if not response.startswith(_RESPONSE_START):
        raise failed(_OBLIGATION, "the response is not SPDM 1.1 MEASUREMENTS")
    record_end = _RESPONSE_HEAD_BYTES + int.from_bytes(response[5:8], "little")
    opaque_start = record_end + NONCE_BYTES + 2
    if len(response) < opaque_start:
        raise failed(_OBLIGATION, "the measurement record is longer than the report")
    opaque = response[opaque_start:]
    if len(opaque) != int.from_bytes(response[opaque_start - 2 : opaque_start], "little"):
        raise failed(_OBLIGATION, "the opaque data does not end where the signature begins")
    return MappingProxyType(_parse_record(response[_RESPONSE_HEAD_BYTES:record_end], blocks=response[4])), opaque


def _parse_record(record: bytes, *, blocks: int) -> dict[int, bytes]:
    measurements: dict[int, bytes] = {}
    offset = 0
    for _ in range(blocks):
        head = record[offset : offset + _BLOCK_HEAD_BYTES]
        size = int.from_bytes(head[2:4], "little")
        body = record[offset + _BLOCK_HEAD_BYTES : offset + _BLOCK_HEAD_BYTES + size]
        if len(head) != _BLOCK_HEAD_BYTES or len(body) != size or size < _DMTF_HEAD_BYTES:
            raise failed(_OBLIGATION, "a measurement block is truncated")
        value = body[_DMTF_HEAD_BYTES:]
        if head[1] != _DMTF_SPECIFICATION or len(value) != int.from_bytes(body[1:3], "little"):
            raise failed(_OBLIGATION, f"measurement block {head[0]} is not of DMTF's form")
        if head[0] == 0 or head[0] in measurements:
            raise failed(_OBLIGATION, f"measurement block {head[0]} stands twice or has no number")
        measurements[head[0]] = value
        offset += _BLOCK_HEAD_BYTES + size
    if offset != len(record) or not measurements:
        raise failed(_OBLIGATION, "the measurement record has bytes outside its blocks, or none")
    return measurements


def _fwid(entries: Mapping[int, bytes]) -> bytes | None:
    fwid = entries.get(OpaqueType.FWID)
    if fwid is not None and len(fwid) != FWID_BYTES:
        raise failed(_OBLIGATION, "the FWID is not of SHA-384's length")
    return fwid


def _nvdec0(entries: Mapping[int, bytes]) -> bool:
    enabled = _NVDEC0.get(entries.get(OpaqueType.NVDEC0_STATUS, b""))
    if enabled is None:
        raise failed(_OBLIGATION, "opaque data: the status of NVDEC0 is missing or unknown")
    return enabled
