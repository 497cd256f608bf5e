"""A trust policy in words: what it accepts, what it refuses and why, and where it is weaker than the defaults."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from bulkhead.attestation.evidence import EvidenceKind
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.policy import Technology, TrustPolicy
from bulkhead.attestation.snp.policy import SnpPolicy
from bulkhead.attestation.snp.product import COMPONENTS
from bulkhead.attestation.snp.report import PlatformInfo, SigningKey
from bulkhead.attestation.tdx.policy import TdxPolicy
from bulkhead.attestation.tiers import Tier

__all__ = ["PolicyInWords", "explain_policy"]

_DAY_S = 24 * 3600


@dataclass(slots=True, kw_only=True)
class PolicyInWords:
    """Sentences: what is accepted, what is refused, and what a strict policy would not allow."""

    accepts: list[str] = field(default_factory=list)
    refuses: list[str] = field(default_factory=list)
    weaker: list[str] = field(default_factory=list)


def explain_policy(policy: TrustPolicy) -> PolicyInWords:
    """Return ``policy`` in words."""
    words = PolicyInWords()
    _kinds(policy, words)
    if EvidenceKind.HARDWARE in policy.accepted_kinds:
        _hardware(policy, words)
    _general(policy, words)
    _collateral(policy, words)
    return words


def _kinds(policy: TrustPolicy, words: PolicyInWords) -> None:
    if EvidenceKind.HARDWARE not in policy.accepted_kinds:
        words.refuses.append("Hardware evidence, so that tier confidential cannot be reached: accepted_kinds lacks it.")
    if EvidenceKind.OPERATOR in policy.accepted_kinds:
        keys = len(policy.operator_keys)
        if policy.minimum_tier is Tier.CONFIDENTIAL:
            words.refuses.append("Operator evidence after all: it shows tiers up to gpu, and minimum_tier is higher.")
        elif keys:
            words.accepts.append(f"Operator evidence signed by one of {keys} pinned keys, for tiers up to gpu.")
            words.weaker.append("Operator evidence trusts whoever runs the rack; the default takes hardware alone.")
        else:
            words.refuses.append("Operator evidence after all: operator_keys pins no key.")
    else:
        words.refuses.append("Operator evidence: the operator's word is not asked for.")
    if EvidenceKind.SIMULATED in policy.accepted_kinds:
        words.weaker.append("SIMULATED evidence, which proves nothing, where the SDK is in development mode.")
    else:
        words.refuses.append("Simulated evidence, in development mode, too.")


def _hardware(policy: TrustPolicy, words: PolicyInWords) -> None:
    if Technology.SNP in policy.technologies:
        _snp(policy.snp, words)
    if Technology.TDX in policy.technologies:
        _tdx(policy.tdx, words)
    if Technology.NVIDIA in policy.technologies:
        _nvidia(policy.nvidia, words)
    names = {Technology.SNP: "AMD SEV-SNP", Technology.TDX: "Intel TDX", Technology.NVIDIA: "NVIDIA GPUs"}
    for technology in sorted(set(Technology) - policy.technologies):
        words.refuses.append(f"{names[technology]}: technologies lacks {technology.value}.")
    if not policy.technologies - {Technology.NVIDIA}:
        words.refuses.append("Every confidential worker: no processor's technology is accepted.")
    elif Technology.NVIDIA not in policy.technologies:
        words.refuses.append("Every confidential worker with GPUs, and without one there is no tier confidential.")


def _snp(policy: SnpPolicy, words: PolicyInWords) -> None:
    names = {product.value for product in policy.products if product in policy.tcb_floors}
    measurements = len(policy.measurements or ())
    if not measurements:
        words.refuses.append("Every SEV-SNP guest: [snp] measurements is empty, and there is no wildcard.")
    for product in sorted(policy.products - policy.tcb_floors.keys()):
        words.refuses.append(f"SEV-SNP on {product.value}: it has no [snp.tcb_floors.{product.value}].")
    if measurements and names:
        words.accepts.append(
            f"SEV-SNP guests with one of {measurements} launch measurements, on {_listed(names)}, at VMPL "
            f"{policy.vmpl}, signed by a {_listed({SigningKey(key).name for key in policy.signing_keys})}."
        )
    for product, floor in policy.tcb_floors.items():
        levels = ", ".join(f"{name} {getattr(floor, name)}" for name in COMPONENTS if getattr(floor, name))
        if levels:
            words.accepts.append(f"On {product.value} firmware from {levels} on: reported, committed and at launch.")
        else:
            words.weaker.append(f"Any firmware on {product.value}, however old: its TCB floor is zero.")
    words.refuses.append("SEV-SNP guests under debug: always.")
    words.weaker += _snp_weaker(policy)
    words.refuses += _snp_pins(policy)


def _snp_weaker(policy: SnpPolicy) -> Iterator[str]:
    default = SnpPolicy()
    if policy.products - default.products:
        yield f"{_listed({item.value for item in policy.products - default.products})}: {_MILAN}"
    if SigningKey.VLEK in policy.signing_keys:
        yield "VLEKs: the provider that loaded the key vouches for the machine, and reports name no chip."
    if SigningKey.VLEK in policy.signing_keys and policy.csp_ids is None:
        yield "VLEKs of any provider."
    if policy.vmpl != default.vmpl:
        yield f"Reports of VMPL {policy.vmpl}, whose guest is owned by other software at VMPL 0."
    if policy.allow_migration_agent:
        yield "Guests that a migration agent may carry to a host that nobody verified."
    if policy.allow_cxl:
        yield "Guests that may use memory on CXL devices, outside of the processor's package."
    if policy.allow_provisional_firmware:
        yield "Firmware that its host can roll back."
    missing = default.required_platform_info & ~policy.required_platform_info
    if missing:
        yield f"Platforms without {_listed({bit.name or '' for bit in PlatformInfo if bit & missing})}."


_MILAN = "its root key seed was extracted in software, so that its reports show nothing against their host."


def _snp_pins(policy: SnpPolicy) -> Iterator[str]:
    for what, pinned in (
        ("CHIP_ID", policy.chip_ids),
        ("HOST_DATA", policy.host_data),
        ("ID key digest", policy.id_key_digests),
        ("author key digest", policy.author_key_digests),
    ):
        if pinned is not None:
            yield f"SEV-SNP guests whose {what} is none of {len(pinned)} pinned."
    if policy.require_single_socket:
        yield "SEV-SNP guests that may run on several sockets."
    if not policy.allow_smt:
        yield "SEV-SNP guests that may run with SMT."
    if policy.require_crl:
        yield "SEV-SNP evidence while AMD's revocation list is not at hand."


def _tdx(policy: TdxPolicy, words: PolicyInWords) -> None:
    images = len(policy.images or ())
    if images:
        words.accepts.append(
            f"TDX guests of one of {images} images, where Intel calls platform, module and quoting enclave "
            f"{_listed({status.value for status in policy.accepted_statuses})}."
        )
    else:
        words.refuses.append("Every TDX guest: there is no [[tdx.images]], and there is no wildcard.")
    for number, image in enumerate(policy.images or ()):
        left_out = [f"RTMR{index}" for index, value in enumerate(image.rtmrs) if value is None]
        if left_out:
            words.weaker.append(f"Image {number} of TDX whatever {' and '.join(left_out)} is.")
    words.refuses.append("TDX guests under debug or profiling, that can migrate, or on revoked platforms: always.")
    words.refuses.append(f"TDX collateral issued more than {_days(policy.maximum_collateral_age_s)} ago.")
    if policy.ppids is not None:
        words.refuses.append(f"TDX platforms whose PPID is none of {len(policy.ppids)} pinned.")
    if policy.mr_seams is not None:
        words.refuses.append(f"TDX modules that are none of {len(policy.mr_seams)} pinned.")
    default = TdxPolicy()
    for status in sorted({item.value for item in policy.accepted_statuses - default.accepted_statuses}):
        words.weaker.append(f"TDX platforms that Intel calls {status}.")
    if policy.accepted_advisories:
        words.weaker.append(f"TDX platforms open to {_listed(policy.accepted_advisories)}.")
    if policy.optional_attributes & ~default.optional_attributes:
        words.weaker.append("TD attributes beyond those that this build knows to be harmless.")
    if policy.allowed_xfam & ~default.allowed_xfam:
        words.weaker.append("Processor features beyond those that this build knows guests to protect.")


def _nvidia(policy: NvidiaPolicy, words: PolicyInWords) -> None:
    modes = _listed({mode.value.upper() for mode in policy.modes})
    words.accepts.append(f"GPUs of chip {_listed(policy.products)} in mode {modes}, {_versions(policy)}.")
    if policy.revocation_required:
        words.refuses.append(f"GPUs without OCSP answers of the last {_days(policy.maximum_ocsp_age_s)}.")
    else:
        words.weaker.append("GPUs and manifests that nobody said are not revoked: revocation_required is false.")
    if policy.fwids is not None:
        words.refuses.append(f"GPUs whose FWID is none of {len(policy.fwids)} pinned.")
    default = NvidiaPolicy()
    if policy.allow_missing_fwid:
        words.weaker.append("GPUs whose report is tied to no firmware: allow_missing_fwid is true.")
    if policy.products - default.products:
        words.weaker.append(f"Chips that this build was not tried on: {_listed(policy.products - default.products)}.")
    if policy.modes - default.modes:
        words.weaker.append("GPUs whose peers and switches are not attested with them.")


def _versions(policy: NvidiaPolicy) -> str:
    parts = []
    for what, versions, minimum in (
        ("driver", policy.driver_versions, policy.minimum_driver_version),
        ("VBIOS", policy.vbios_versions, policy.minimum_vbios_version),
    ):
        exact = f" {_listed(versions)}" if versions else " of any version that NVIDIA publishes a manifest for"
        parts.append(f"{what}{exact}{f' from {minimum} on' if minimum else ''}")
    return " and ".join(parts)


def _general(policy: TrustPolicy, words: PolicyInWords) -> None:
    words.accepts.append(
        f"Tier {policy.minimum_tier.value}{'' if policy.minimum_tier is Tier.CONFIDENTIAL else ' or stronger'}; one "
        f"verification holds for at most {policy.maximum_age_s} s."
    )
    if policy.minimum_tier is not Tier.CONFIDENTIAL:
        words.weaker.append(f"Workers whose operator can read prompts: minimum_tier is {policy.minimum_tier.value}.")
    if policy.regions is not None:
        words.refuses.append(f"Workers outside of {_listed(policy.regions)}.")
    if policy.model_digests is not None:
        words.refuses.append(f"Workers whose model is none of {len(policy.model_digests)} pinned.")
    if policy.tenant_roots is not None:
        words.refuses.append(f"Workers of no tenant root, or of none of {len(policy.tenant_roots)} named.")


def _collateral(policy: TrustPolicy, words: PolicyInWords) -> None:
    allowed = sorted(policy.collateral.fetch)
    if not allowed:
        words.refuses.append("Fetching: only collateral that is at hand is used.")
    for kind in allowed:
        mirror = policy.collateral.mirrors.get(kind)
        words.accepts.append(f"Fetching {kind.value} from {mirror or kind.origin}: {kind.discloses}.")


def _listed(names: "set[str] | frozenset[str]") -> str:
    return ", ".join(sorted(names)) or "nothing"


def _days(seconds: int) -> str:
    return f"{seconds // _DAY_S} days" if seconds >= 2 * _DAY_S else f"{seconds} s"
