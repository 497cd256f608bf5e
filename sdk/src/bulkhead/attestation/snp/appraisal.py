"""A verified report's claims against a tenant's policy (SNP-12 to SNP-24)."""

from typing import Final

from bulkhead.attestation.obligations import failed
from bulkhead.attestation.snp.policy import SnpPolicy
from bulkhead.attestation.snp.product import SnpProduct, Tcb
from bulkhead.attestation.snp.report import GuestPolicy, PlatformInfo, SigningKey, SnpReport
from bulkhead.errors import BulkheadError, EvidencePolicyError

__all__ = ["appraise_snp"]

_ABI_BITS: Final = 0xFFFF
_KNOWN_POLICY: Final = _ABI_BITS | sum(GuestPolicy)


def appraise_snp(
    claims: SnpReport, product: SnpProduct, signing_key: SigningKey, csp_id: str, policy: SnpPolicy
) -> None:
    """Return if ``policy`` accepts a report whose signature, chain and binding the caller has verified.

    Raises:
        EvidencePolicyError: it does not; the obligation says why.
    """
    if product not in policy.products:
        raise _refused("SNP-12", f"the policy does not accept {product.value}")
    _check_signing_key(signing_key, csp_id, policy)
    _check_guest_policy(claims, policy)
    if claims.vmpl != policy.vmpl:
        raise _refused("SNP-17", f"the report is of VMPL {claims.vmpl}, not {policy.vmpl}")
    _check_tcb(claims, product, policy)
    if policy.measurements is not None and claims.measurement not in policy.measurements:
        raise _refused("SNP-20", f"MEASUREMENT {claims.measurement.hex()} is not on the policy's list")
    if policy.host_data is not None and claims.host_data not in policy.host_data:
        raise _refused("SNP-21", f"HOST_DATA {claims.host_data.hex()} is not on the policy's list")
    _check_platform(claims, policy)
    _check_keys(claims, policy)


def _check_signing_key(signing_key: SigningKey, csp_id: str, policy: SnpPolicy) -> None:
    if signing_key not in policy.signing_keys:
        raise _refused("SNP-13", f"the policy does not accept reports signed by a {signing_key.name}")
    if signing_key is SigningKey.VLEK and policy.csp_ids is not None and csp_id not in policy.csp_ids:
        raise _refused("SNP-13", f"the policy does not accept the VLEK of {csp_id}")


def _check_guest_policy(claims: SnpReport, policy: SnpPolicy) -> None:
    bits = claims.policy
    if bits & GuestPolicy.DEBUG:
        raise _refused("SNP-14", "the guest may be debugged: its host can read it")
    if bits & GuestPolicy.MIGRATE_MA and not policy.allow_migration_agent:
        raise _refused("SNP-15", "the guest may be moved by a migration agent")
    if not bits & GuestPolicy.RESERVED_ONE or bits & ~_KNOWN_POLICY:
        raise _refused("SNP-16", f"reserved bits of POLICY 0x{bits:016X} are not as the ABI demands")
    if bits & GuestPolicy.SMT and not policy.allow_smt:
        raise _refused("SNP-16", "the guest may run with SMT")
    if bits & GuestPolicy.CXL_ALLOW and not policy.allow_cxl:
        raise _refused("SNP-16", "the guest may use CXL memory or devices")
    if policy.require_single_socket and not bits & GuestPolicy.SINGLE_SOCKET:
        raise _refused("SNP-16", "the guest may run on several sockets")


def _check_tcb(claims: SnpReport, product: SnpProduct, policy: SnpPolicy) -> None:
    floor = policy.tcb_floors.get(product)
    if floor is None:
        raise _refused("SNP-18", f"the policy names no TCB floor for {product.value}")
    for name, raw in (
        ("reported", claims.reported_tcb),
        ("committed", claims.committed_tcb),
        ("launch", claims.launch_tcb),
    ):
        below = Tcb.parse(raw, product).below(floor)
        if below:
            raise _refused("SNP-18", f"the {name} TCB is below the policy's floor in {', '.join(below)}")
    committed = (claims.committed_tcb, claims.committed_version)
    if (claims.current_tcb, claims.current_version) != committed and not policy.allow_provisional_firmware:
        raise _refused("SNP-19", "the running firmware is provisional: its host can roll it back")


def _check_platform(claims: SnpReport, policy: SnpPolicy) -> None:
    missing = policy.required_platform_info & ~claims.platform_info
    if missing:
        raise _refused("SNP-22", f"PLATFORM_INFO lacks {_bit_names(missing)}")
    forbidden = policy.forbidden_platform_info & claims.platform_info
    if forbidden:
        raise _refused("SNP-22", f"PLATFORM_INFO has {_bit_names(forbidden)}")
    if policy.chip_ids is not None and claims.chip_id not in policy.chip_ids:
        raise _refused("SNP-23", f"CHIP_ID {claims.chip_id.hex()} is not pinned by the policy")


def _check_keys(claims: SnpReport, policy: SnpPolicy) -> None:
    if policy.id_key_digests is not None and claims.id_key_digest not in policy.id_key_digests:
        raise _refused("SNP-24", "the guest's ID key is not on the policy's list")
    if policy.author_key_digests is not None and (
        not claims.author_key_enabled or claims.author_key_digest not in policy.author_key_digests
    ):
        raise _refused("SNP-24", "the guest's author key is not on the policy's list")
    if claims.guest_svn < policy.minimum_guest_svn:
        raise _refused("SNP-24", f"GUEST_SVN {claims.guest_svn} is below {policy.minimum_guest_svn}")


def _bit_names(bits: PlatformInfo) -> str:
    return ", ".join(bit.name for bit in PlatformInfo if bit & bits and bit.name)


def _refused(obligation: str, message: str) -> BulkheadError:
    return failed(obligation, message, EvidencePolicyError)
