"""The SEV-SNP attestation report: bytes to claims, nothing of it trusted (AMD 56860, ATTESTATION_REPORT).

All integers are little-endian. Version 3 adds CPUID family, model and stepping, version 5 the mitigation vectors. What
a version does not define must be zero.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from bulkhead.attestation.inputs import decode_text
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError

__all__ = ["REPORT_BYTES", "SIGNED_BYTES", "GuestPolicy", "PlatformInfo", "SigningKey", "SnpReport", "read_snp_report"]

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
_VERSIONS: Final = range(2, 6)
_ECDSA_P384_SHA384: Final = 1  # SIGNATURE_ALGO, AMD 56860 chapter 10
_COMPONENT_BYTES: Final = 72  # R and S, little-endian; P-384 fills 48
_P384_BYTES: Final = 48
_ALWAYS_RESERVED: Final = (
    (0x04C, 0x050),
    (0x18B, 0x1A0),
    (0x1EB, 0x1EC),
    (0x1EF, 0x1F0),
    (0x208, SIGNED_BYTES),
    (SIGNED_BYTES + _P384_BYTES, SIGNED_BYTES + _COMPONENT_BYTES),
    (SIGNED_BYTES + _COMPONENT_BYTES + _P384_BYTES, REPORT_BYTES),
)
_CPUID: Final = (0x188, 0x18B)  # from version 3
_MITIGATIONS: Final = (0x1F8, 0x208)  # from version 5
_KEY_INFO_RESERVED: Final = 0xFFFF_FFE0


class SigningKey(IntEnum):
    """SIGNING_KEY, bits 4:2 of KEY_INFO; 2 to 6 are reserved."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class GuestPolicy(IntFlag):
    """Bits of the guest's POLICY above the ABI version in bits 15:0."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class PlatformInfo(IntFlag):
    """Bits of PLATFORM_INFO that this build can name; newer firmware sets others."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    TIO_EN = 1 << 7


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """Claims of a report. Nothing in it is trusted before :func:`bulkhead.attestation.snp.verify_snp_report`.

    Attributes:
        raw: the 0x4A0 bytes.
        version: 2 to 5.
        guest_svn: security version of the guest's image, from its ID block.
        policy: 64 bits of the guest's POLICY.
        family_id: 16 bytes of the ID block.
        image_id: 16 bytes of the ID block.
        vmpl: privilege level of the requester, or 0xFFFFFFFF where the host asked.
        platform_info: 64 bits.
        author_key_enabled: AUTHOR_KEY_EN of KEY_INFO.
        chip_key_masked: MASK_CHIP_KEY of KEY_INFO.
        signing_key: SIGNING_KEY of KEY_INFO, 0 to 7.
        report_data: 64 bytes of the requester's choice.
        measurement: 48 bytes, of the guest at launch.
        host_data: 32 bytes of the host's choice at launch.
        id_key_digest: 48 bytes, zero without an ID block.
        author_key_digest: 48 bytes, zero without an author key.
        report_id: 32 bytes.
        report_id_ma: 32 bytes, of the migration agent.
        current_tcb: 8 bytes, running now.
        reported_tcb: 8 bytes, from which the endorsement key was derived.
        committed_tcb: 8 bytes, below which the firmware cannot be rolled back.
        launch_tcb: 8 bytes, when the guest was launched or imported.
        cpuid: family, model, stepping (combined values); None in version 2.
        chip_id: 64 bytes, zero where the host masks it.
        current_version: major, minor, build of the running firmware.
        committed_version: major, minor, build of the committed firmware.
        launch_mitigations: bit vector; None below version 5.
        current_mitigations: bit vector; None below version 5.
        signature: R and S as integers.
    """

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: int
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_mitigations: int | None
    current_mitigations: int | None
    signature: tuple[int, int]

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        return self.raw[:SIGNED_BYTES]


def read_snp_report(data: bytes) -> SnpReport:
    """Return the claims in a report that comes raw, as hexadecimal, base64 or one PEM block.

    Raises:
        EvidenceError: SNP-1.
    """
    try:
        raw = decode_text(
            data,
            is_binary=lambda it: len(it) == REPORT_BYTES,
            max_bytes=REPORT_BYTES,
            what="report",
            error=EvidenceError,
        )
    except EvidenceError as error:
        raise failed("SNP-1", error.message) from error
    return _parse(raw)


def _parse(raw: bytes) -> SnpReport:
    version = _u32(raw, 0x000)
    if version not in _VERSIONS:
        raise failed("SNP-1", f"report version {version} is not one of 2 to 5")
    if _u32(raw, 0x034) != _ECDSA_P384_SHA384:
        raise failed("SNP-1", "the signature algorithm is not ECDSA P-384 with SHA-384")
    _check_reserved(raw, version)
    key_info = _u32(raw, 0x048)
    r, s = SIGNED_BYTES, SIGNED_BYTES + _COMPONENT_BYTES
    return SnpReport(
        raw=raw,
        version=version,
        guest_svn=_u32(raw, 0x004),
        policy=_u64(raw, 0x008),
        family_id=raw[0x010:0x020],
        image_id=raw[0x020:0x030],
        vmpl=_u32(raw, 0x030),
        platform_info=_u64(raw, 0x040),
        author_key_enabled=bool(key_info & 1),
        chip_key_masked=bool(key_info & 2),
        signing_key=key_info >> 2 & 7,
        report_data=raw[0x050:0x090],
        measurement=raw[0x090:0x0C0],
        host_data=raw[0x0C0:0x0E0],
        id_key_digest=raw[0x0E0:0x110],
        author_key_digest=raw[0x110:0x140],
        report_id=raw[0x140:0x160],
        report_id_ma=raw[0x160:0x180],
        current_tcb=raw[0x038:0x040],
        reported_tcb=raw[0x180:0x188],
        committed_tcb=raw[0x1E0:0x1E8],
        launch_tcb=raw[0x1F0:0x1F8],
        cpuid=(raw[0x188], raw[0x189], raw[0x18A]) if version >= 3 else None,
        chip_id=raw[0x1A0:0x1E0],
        current_version=(raw[0x1EA], raw[0x1E9], raw[0x1E8]),
        committed_version=(raw[0x1EE], raw[0x1ED], raw[0x1EC]),
        launch_mitigations=_u64(raw, 0x1F8) if version >= 5 else None,
        current_mitigations=_u64(raw, 0x200) if version >= 5 else None,
        signature=(
            int.from_bytes(raw[r : r + _COMPONENT_BYTES], "little"),
            int.from_bytes(raw[s : s + _COMPONENT_BYTES], "little"),
        ),
    )


def _check_reserved(raw: bytes, version: int) -> None:
    reserved = list(_ALWAYS_RESERVED)
    if version < 3:
        reserved.append(_CPUID)
    if version < 5:
        reserved.append(_MITIGATIONS)
    for start, end in sorted(reserved):
        if any(raw[start:end]):
            raise failed("SNP-1", f"reserved bytes 0x{start:03X} to 0x{end - 1:03X} are not zero")
    if _u32(raw, 0x048) & _KEY_INFO_RESERVED:
        raise failed("SNP-1", "reserved bits of KEY_INFO are not zero")


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")


def _u64(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 8], "little")
