"""A first trust policy from the evidence of a known good worker: what it is becomes what is accepted.

The evidence is read, not verified: whoever writes a policy this way says that the worker is good, and verifies with the
policy afterwards. Where the evidence falls short of a strict default, the default stays; the exception that it would
need is named, with what it costs, and made only if the caller asks.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from bulkhead.attestation.nvidia.opaque import GpuMode
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.nvidia.report import GpuReport
from bulkhead.attestation.policy import Technology, TrustPolicy
from bulkhead.attestation.snp.policy import SnpPolicy
from bulkhead.attestation.snp.product import COMPONENTS, SnpProduct, Tcb
from bulkhead.attestation.snp.report import GuestPolicy, PlatformInfo, SigningKey, SnpReport
from bulkhead.attestation.tdx.policy import (
    ATTRIBUTE_DEBUG_GROUP,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_SEPT_VE_DISABLE,
    TdImage,
    TdxPolicy,
)
from bulkhead.attestation.tdx.quote import TdReport
from bulkhead.errors import EvidencePolicyError

__all__ = ["PolicyDraft", "PolicyException", "draft_from_gpu", "draft_from_snp", "draft_from_tdx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyException:
    """Where evidence falls short of a strict default.

    Attributes:
        key: of the policy, such as ``snp.vmpl``.
        value: that would accept the evidence.
        cost: what accepting it means.
    """

    key: str
    value: Any
    cost: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDraft:
    """A policy that accepts what some evidence says, but for the exceptions.

    Attributes:
        policy: strict where the evidence allows it.
        exceptions: what it still refuses of that evidence.
    """

    policy: TrustPolicy
    exceptions: tuple[PolicyException, ...] = ()

    def with_exceptions(self) -> TrustPolicy:
        """Return the policy with every exception made."""
        policy = self.policy
        for exception in self.exceptions:
            table, _, name = exception.key.partition(".")
            rules = dataclasses.replace(getattr(policy, table), **{name: exception.value})
            policy = dataclasses.replace(policy, **{table: rules})
        return policy


def draft_from_snp(
    base: TrustPolicy, claims: SnpReport, product: SnpProduct, *, csp_id: str = "", pin_machine: bool = False
) -> PolicyDraft:
    """Return ``base`` with the measurement and TCB of an SEV-SNP report (not verified).

    Args:
        base: to which the report's rules are added.
        claims: of the report.
        product: product line of the machine.
        csp_id: the provider's id, of a VLEK.
        pin_machine: accept this CHIP_ID alone.

    Raises:
        EvidencePolicyError: the guest may be debugged, which no policy accepts.
    """
    if claims.policy & GuestPolicy.DEBUG:
        raise EvidencePolicyError("SNP-14: the guest may be debugged: no policy can accept it")
    raw = (claims.reported_tcb, claims.committed_tcb, claims.launch_tcb)
    levels = [Tcb.parse(tcb, product) for tcb in raw]
    floor = Tcb(**{name: min(getattr(level, name) for level in levels) for name in COMPONENTS})
    defaults = SnpPolicy()
    rules = dataclasses.replace(
        base.snp,
        products=frozenset({product}) & defaults.products or defaults.products,
        tcb_floors={**base.snp.tcb_floors, product: floor},
        measurements=(base.snp.measurements or frozenset()) | {claims.measurement},
        chip_ids=(base.snp.chip_ids or frozenset()) | {claims.chip_id} if pin_machine else base.snp.chip_ids,
    )
    policy = dataclasses.replace(base, snp=rules, technologies=base.technologies | {Technology.SNP})
    return PolicyDraft(policy=policy, exceptions=tuple(_snp_exceptions(claims, product, csp_id, defaults)))


def _snp_exceptions(claims: SnpReport, product: SnpProduct, csp_id: str, defaults: SnpPolicy) -> list[PolicyException]:
    found: list[tuple[bool, str, Any, str]] = [
        (
            product not in defaults.products,
            "products",
            frozenset({product}),
            "Milan's root key seed was extracted in software: its reports show nothing against their host",
        ),
        (
            claims.signing_key == SigningKey.VLEK,
            "signing_keys",
            frozenset({SigningKey.VLEK}),
            "a VLEK is shared by a provider's machines and loaded by it; its reports name no chip",
        ),
        (
            claims.signing_key == SigningKey.VLEK,
            "csp_ids",
            frozenset({csp_id}) if csp_id else frozenset(),
            "the provider vouches; its id stands in the VLEK's certificate, to be given beside the report",
        ),
        (claims.vmpl != defaults.vmpl, "vmpl", claims.vmpl, "software at VMPL 0 of the guest is not what is measured"),
        (
            bool(claims.policy & GuestPolicy.MIGRATE_MA),
            "allow_migration_agent",
            True,
            "a migration agent can carry the guest to a host that nobody verified",
        ),
        (
            bool(claims.policy & GuestPolicy.CXL_ALLOW),
            "allow_cxl",
            True,
            "memory on CXL devices lies outside of the processor's package",
        ),
        (
            bool(defaults.required_platform_info & ~claims.platform_info),
            "required_platform_info",
            PlatformInfo(defaults.required_platform_info & claims.platform_info),
            "without ALIAS_CHECK_COMPLETE memory modules that lie about their size break integrity (CVE-2024-21944)",
        ),
        (
            (claims.current_tcb, claims.current_version) != (claims.committed_tcb, claims.committed_version),
            "allow_provisional_firmware",
            True,
            "firmware that is not committed can be rolled back below what runs",
        ),
    ]
    return [PolicyException(key=f"snp.{key}", value=value, cost=cost) for holds, key, value, cost in found if holds]


def draft_from_tdx(
    base: TrustPolicy, report: TdReport, *, ppid: bytes | None = None, pin_machine: bool = False
) -> PolicyDraft:
    """Return ``base`` with the image of a TD's report (not verified).

    Args:
        base: to which the report's rules are added.
        report: of the TD.
        ppid: of the platform, for pinning it.
        pin_machine: accept this platform alone.

    Raises:
        EvidencePolicyError: the TD is under debug or can migrate, which no policy accepts.
    """
    attributes = int.from_bytes(report.td_attributes, "little")
    if attributes & ATTRIBUTE_DEBUG_GROUP:
        raise EvidencePolicyError("TDX-19: the TD is under debug or profiling: no policy can accept it")
    if attributes & ATTRIBUTE_MIGRATABLE or not attributes & ATTRIBUTE_SEPT_VE_DISABLE:
        raise EvidencePolicyError("TDX-20, TDX-21: the TD is open to its host or can migrate: no policy can accept it")
    defaults = TdxPolicy()
    image = TdImage(mr_td=report.mr_td, rtmrs=report.rtmrs)
    pins = (base.tdx.ppids or frozenset()) | {ppid} if pin_machine and ppid is not None else base.tdx.ppids
    rules = dataclasses.replace(base.tdx, images=tuple(dict.fromkeys((*(base.tdx.images or ()), image))), ppids=pins)
    policy = dataclasses.replace(base, tdx=rules, technologies=base.technologies | {Technology.TDX})
    return PolicyDraft(policy=policy, exceptions=tuple(_tdx_exceptions(report, attributes, defaults)))


def _tdx_exceptions(report: TdReport, attributes: int, defaults: TdxPolicy) -> list[PolicyException]:
    unexpected = attributes & ~(ATTRIBUTE_SEPT_VE_DISABLE | defaults.optional_attributes)
    xfam = int.from_bytes(report.xfam, "little")
    found: list[tuple[bool, str, Any, str]] = [
        (
            bool(unexpected),
            "optional_attributes",
            defaults.optional_attributes | unexpected,
            "an attribute that this build does not know may open the TD in a way that it does not know either",
        ),
        (
            bool(xfam & ~defaults.allowed_xfam),
            "allowed_xfam",
            defaults.allowed_xfam | xfam,
            "an unknown feature may carry state that the guest does not know to protect",
        ),
        *(
            (
                value not in getattr(defaults, key),
                key,
                frozenset({value}),
                "the owner's value is not measured: only that it is this one is proven",
            )
            for key, value in (
                ("mr_config_ids", report.mr_config_id),
                ("mr_owners", report.mr_owner),
                ("mr_owner_configs", report.mr_owner_config),
            )
        ),
    ]
    return [PolicyException(key=f"tdx.{key}", value=value, cost=cost) for holds, key, value, cost in found if holds]


def draft_from_gpu(base: TrustPolicy, report: GpuReport, *, product: str) -> PolicyDraft:
    """Return ``base`` with the driver and VBIOS of a GPU's report (not verified).

    Args:
        base: to which the report's rules are added.
        report: of the GPU.
        product: chip that its certificates name; empty where there are none.
    """
    defaults = NvidiaPolicy()
    products = frozenset({product}) if product else defaults.products
    rules = dataclasses.replace(
        base.nvidia,
        products=products & defaults.products or defaults.products,
        driver_versions=base.nvidia.driver_versions | {report.driver_version},
        vbios_versions=base.nvidia.vbios_versions | {report.vbios_version},
    )
    found: list[tuple[bool, str, Any, str]] = [
        (
            bool(product) and product not in defaults.products,
            "products",
            products,
            "this build's verifier was not tried on this chip",
        ),
        (
            report.mode is not GpuMode.SPT,
            "modes",
            frozenset({report.mode}),
            "the GPU's peers and switches matter as much as the GPU, and one report says nothing about them",
        ),
        (
            report.fwid is None,
            "allow_missing_fwid",
            True,
            "without FWID nothing ties the report to the firmware that signed it",
        ),
    ]
    exceptions = [
        PolicyException(key=f"nvidia.{key}", value=value, cost=cost) for holds, key, value, cost in found if holds
    ]
    policy = dataclasses.replace(base, nvidia=rules, technologies=base.technologies | {Technology.NVIDIA})
    return PolicyDraft(policy=policy, exceptions=tuple(exceptions))
