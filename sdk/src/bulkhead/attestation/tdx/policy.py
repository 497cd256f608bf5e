"""What a tenant accepts of a TDX worker; strict by default, every default with its reason."""

from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.tdx.documents import TcbStatus

__all__ = [
    "ATTRIBUTE_DEBUG_GROUP",
    "ATTRIBUTE_KEY_LOCKER",
    "ATTRIBUTE_LASS",
    "ATTRIBUTE_MIGRATABLE",
    "ATTRIBUTE_PERFMON",
    "ATTRIBUTE_PROTECTION_KEYS",
    "ATTRIBUTE_SEPT_VE_DISABLE",
    "XFAM_MANDATORY",
    "TdImage",
    "TdxPolicy",
]

# Intel TDX Module 1.5 ABI, ATTRIBUTES.
ATTRIBUTE_DEBUG_GROUP: Final = 0xFF  # TUD: DEBUG (bit 0), profiling by the host, reserved: any makes the TD untrusted
ATTRIBUTE_LASS: Final = 1 << 27
ATTRIBUTE_SEPT_VE_DISABLE: Final = 1 << 28
ATTRIBUTE_MIGRATABLE: Final = 1 << 29
ATTRIBUTE_PROTECTION_KEYS: Final = 1 << 30
ATTRIBUTE_KEY_LOCKER: Final = 1 << 31
ATTRIBUTE_PERFMON: Final = 1 << 63

XFAM_MANDATORY: Final = 0x3  # x87 and SSE: fixed to 1 by every TDX module
_XFAM_KNOWN: Final = 0x6_DBE7  # what the TDX module 1.5 lets a TD use: up to AVX-512, AMX, PT, CET, UINTR, LBR
_ZERO_48: Final = bytes(48)
_DAY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TdImage:
    """One known good TD image.

    Attributes:
        mr_td: 48 bytes.
        rtmrs: RTMR0 to RTMR3, 48 bytes each; None where the register is not compared, so that a decision to leave one
            out is written down.
    """

    mr_td: bytes
    rtmrs: tuple[bytes | None, bytes | None, bytes | None, bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """What a tenant accepts; what is not said here (DEBUG, SEPT_VE_DISABLE, migration, signatures) is not negotiable.

    Attributes:
        images: accepted images; MRTD and RTMRs count together, so that no two images mix. None accepts any image: for
            looking at evidence, never for a session. Default none at all: only the tenant knows its image.
        accepted_statuses: worst TCB statuses accepted. Default up to date: every other is known to be attackable or
            misconfigured. Revoked is refused whatever stands here.
        accepted_advisories: INTEL-SA ids that the tenant has judged harmless to it, needed beside any other status.
            Default none: accepting a status says nothing about next year's advisories of the same status.
        minimum_evaluation_number: least ``tcbEvaluationDataNumber`` of TCB info and QE identity. Default 0: Intel keeps
            older evaluations valid on purpose, and the documents' dates are checked anyway.
        maximum_collateral_age_s: seconds since TCB info, QE identity and the PCK CA's revocation list were issued.
            Default 30 days: the life that Intel gives them, so that no longer ``nextUpdate`` stretches it.
        optional_attributes: TD attributes that may be set beside SEPT_VE_DISABLE. Default linear address space
            separation, protection keys, key locker and performance monitoring of the TD by itself: each is used by the
            guest and shows nothing to its host. Later modules define more (ICSSD, TPA); a tenant adds them by bit.
        allowed_xfam: features that may be set. Default those of TDX module 1.5: an unknown feature may carry state
            that the guest does not know to protect.
        mr_config_ids: accepted MRCONFIGID values. Default zero: any other is configuration that nothing measured.
        mr_owners: accepted MROWNER values. Default zero, for the same reason.
        mr_owner_configs: accepted MROWNERCONFIG values. Default zero, for the same reason.
        mr_seams: pinned TDX modules, or None for any that Intel's TCB info covers. Default None: the module's level is
            checked, and pinning breaks with each update.
        ppids: pinned platforms (16 bytes each), or None. Default None: ids are not known in advance. Pinning is
            recommended, as it confines a leaked attestation key to its own machine.
    """

    images: tuple[TdImage, ...] | None = ()
    accepted_statuses: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    accepted_advisories: frozenset[str] = frozenset()
    minimum_evaluation_number: int = 0
    maximum_collateral_age_s: int = 30 * _DAY_S
    optional_attributes: int = ATTRIBUTE_LASS | ATTRIBUTE_PROTECTION_KEYS | ATTRIBUTE_KEY_LOCKER | ATTRIBUTE_PERFMON
    allowed_xfam: int = _XFAM_KNOWN
    mr_config_ids: frozenset[bytes] = frozenset({_ZERO_48})
    mr_owners: frozenset[bytes] = frozenset({_ZERO_48})
    mr_owner_configs: frozenset[bytes] = frozenset({_ZERO_48})
    mr_seams: frozenset[bytes] | None = None
    ppids: frozenset[bytes] | None = None
