"""TCB evaluation: platform, TDX module and quoting enclave each find their level; the worst of the three counts.

Source: Intel PCS API 4, "Enumerate TCB levels of TDX", and Intel's quote verification library. A TD 1.5 report has two
sets of versions: of the TDX module that launched the TD, and of the one that runs now, after an update under the TD.
Both are rated and the worse counts. Where Intel would say "relaunch advised" (launched by an old module on a host that
has a new one since) this says out of date, because the TD still is what the old module measured.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx.documents import ModuleIdentity, QeIdentity, SvnLevel, TcbInfo, TcbLevel, TcbStatus
from bulkhead.attestation.tdx.pck import PckPlatform
from bulkhead.attestation.tdx.quote import EnclaveReport, TdReport
from bulkhead.errors import EvidencePolicyError

__all__ = ["TcbAppraisal", "check_module", "check_quoting_enclave", "evaluate_tcb"]

_CONFIGURATION: Final = frozenset({TcbStatus.CONFIGURATION_NEEDED, TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbAppraisal:
    """What Intel says of the three parts of a TDX platform.

    Attributes:
        platform: status of hardware, microcode and SEAM loader, at launch and now.
        module: status of the TDX module, at launch and now.
        quoting_enclave: status of the quoting enclave.
        advisories: of every matched level that is not up to date, in order, each once.
        evaluation_number: the lower of those of TCB info and QE identity.
    """

    platform: TcbStatus
    module: TcbStatus
    quoting_enclave: TcbStatus
    advisories: tuple[str, ...]
    evaluation_number: int

    @property
    def status(self) -> TcbStatus:
        """The worst of the three; out of date beside configuration needed is both at once."""
        parts = (self.platform, self.module, self.quoting_enclave)
        worst = max(parts)
        if worst is TcbStatus.OUT_OF_DATE and not _CONFIGURATION.isdisjoint(parts):
            return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
        return worst


def check_quoting_enclave(report: EnclaveReport, identity: QeIdentity) -> None:
    """Check that a quoting enclave's report (verified by the caller) is of the enclave that Intel names.

    Raises:
        EvidenceError: TDX-14.
    """
    # Skipping this accepts quotes from any enclave on a genuine platform: CVE-2026-22696.
    if report.mr_signer != identity.mr_signer:
        raise failed("TDX-14", "the quoting enclave has another signer (MRSIGNER) than Intel's")
    if report.isv_prod_id != identity.isv_prod_id:
        raise failed("TDX-14", f"the enclave's product {report.isv_prod_id} is not {identity.isv_prod_id}")
    if not _equal_under_mask(report.misc_select, identity.misc_select, identity.misc_select_mask):
        raise failed("TDX-14", "the quoting enclave has another MISCSELECT")
    if not _equal_under_mask(report.attributes, identity.attributes, identity.attributes_mask):
        raise failed("TDX-14", "the quoting enclave has other ATTRIBUTES (such as DEBUG)")


def check_module(report: TdReport, info: TcbInfo, mr_seams: frozenset[bytes] | None) -> None:
    """Check that the TDX module is one that Intel names and, if ``mr_seams`` is given, one of these builds.

    Raises:
        EvidenceError: TDX-15; ``EvidencePolicyError`` where only ``mr_seams`` refuses it.
    """
    identity = _module_identity(report.tee_tcb_svn, info)
    if report.mr_signer_seam != identity.mr_signer:
        raise failed("TDX-15", "the TDX module has another signer (MRSIGNERSEAM)")
    # No bit is defined beyond the identity's mask; SEAMATTRIBUTES is reserved as zero.
    unmasked = any(byte & ~mask for byte, mask in zip(report.seam_attributes, identity.attributes_mask, strict=True))
    if unmasked or not _equal_under_mask(report.seam_attributes, identity.attributes, identity.attributes_mask):
        raise failed("TDX-15", "the TDX module has other attributes (SEAMATTRIBUTES)")
    if mr_seams is not None and report.mr_seam not in mr_seams:
        raise failed("TDX-15", "the TDX module (MRSEAM) is not pinned in the policy", EvidencePolicyError)


def evaluate_tcb(
    *, platform: PckPlatform, report: TdReport, enclave: EnclaveReport, info: TcbInfo, identity: QeIdentity
) -> TcbAppraisal:
    """Return Intel's judgement; the caller has verified every argument and compares the status with its policy.

    Raises:
        EvidenceError: TDX-16, a part matches no level: nothing is known of it, and that is a refusal.
    """
    modules = [report.tee_tcb_svn] if report.tee_tcb_svn_2 is None else [report.tee_tcb_svn, report.tee_tcb_svn_2]
    platform_levels = [_platform_level(platform, svns, info) for svns in modules]
    module_levels = [_module_level(svns, info) for svns in modules]
    enclave_level = _svn_level(identity.levels, enclave.isv_svn, "the quoting enclave")
    levels: list[TcbLevel | SvnLevel] = [*platform_levels, *module_levels, enclave_level]
    advisories = [item for level in levels if level.status is not TcbStatus.UP_TO_DATE for item in level.advisories]
    return TcbAppraisal(
        platform=max(level.status for level in platform_levels),
        module=max(level.status for level in module_levels),
        quoting_enclave=enclave_level.status,
        advisories=tuple(dict.fromkeys(advisories)),
        evaluation_number=min(info.evaluation_number, identity.evaluation_number),
    )


def _module_version(svns: bytes) -> int:
    return svns[1]


def _module_identity(svns: bytes, info: TcbInfo) -> ModuleIdentity:
    version = _module_version(svns)
    if version == 0:
        return info.module
    identity = info.modules.get(version)
    if identity is None:
        raise failed("TDX-15", f"the TCB info knows no TDX module of version {version}")
    return identity


def _platform_level(platform: PckPlatform, svns: bytes, info: TcbInfo) -> TcbLevel:
    # From version 1 on, components 0 and 1 are the module's, which has levels of its own.
    first = 0 if _module_version(svns) == 0 else 2
    for level in info.levels:
        if (
            _at_least(platform.cpu_svns, level.sgx_svns)
            and platform.pce_svn >= level.pce_svn
            and _at_least(tuple(svns)[first:], level.tdx_svns[first:])
        ):
            return level
    raise failed("TDX-16", "the platform is below every TCB level of its TCB info")


def _module_level(svns: bytes, info: TcbInfo) -> SvnLevel:
    isv_svn = svns[0]
    if _module_version(svns) == 0:
        return SvnLevel(isv_svn=isv_svn, status=TcbStatus.UP_TO_DATE, advisories=())  # judged with the platform
    return _svn_level(_module_identity(svns, info).levels, isv_svn, "the TDX module")


def _svn_level(levels: tuple[SvnLevel, ...], isv_svn: int, what: str) -> SvnLevel:
    for level in levels:
        if isv_svn >= level.isv_svn:
            return level
    raise failed("TDX-16", f"{what} of version {isv_svn} is below every TCB level")


def _at_least(actual: tuple[int, ...], floor: tuple[int, ...]) -> bool:
    return all(svn >= least for svn, least in zip(actual, floor, strict=True))


def _equal_under_mask(actual: bytes, expected: bytes, mask: bytes) -> bool:
    return all((a ^ e) & m == 0 for a, e, m in zip(actual, expected, mask, strict=True))
