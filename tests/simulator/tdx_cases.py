"""What can be wrong with TDX evidence: each case changes one thing of ``TdxWorld`` and fails one obligation alone."""

from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from bulkhead.attestation.tdx import TcbStatus, TdImage
from bulkhead.errors import EvidenceBindingError, EvidenceError, EvidenceExpiredError, EvidencePolicyError
from tests.simulator import tdx_world
from tests.simulator.tdx_world import DAY_S, MR_TD, NOW_S, RTMRS, qe_identity, tcb_info

BAD_48: Final = b"\x99" * 48


def with_status(status: str, advisories: list[str]) -> dict[str, Any]:
    """Return a TCB info whose best level has that status."""
    info = tcb_info()
    info["tcbLevels"][0].update(tcbStatus=status, advisoryIDs=advisories)
    return info


def with_module(**changes: Any) -> dict[str, Any]:
    """Return a TCB info whose TDX module identity differs."""
    info = tcb_info()
    info["tdxModuleIdentities"][0].update(changes)
    return info


World: TypeAlias = dict[str, Any]
CASES: Final[list[tuple[str, str, World, type[EvidenceError]]]] = [
    ("TDX-1", "version 3", {"version": 3}, EvidenceError),
    ("TDX-1", "SGX", {"tee_type": 0}, EvidenceError),
    ("TDX-1", "P-384 key", {"key_type": 3}, EvidenceError),
    ("TDX-1", "another vendor's QE", {"vendor": bytes(16)}, EvidenceError),
    ("TDX-1", "padding not zero", {"padding": bytes(10) + b"\1"}, EvidenceError),
    ("TDX-1", "body type of a later version", {"version": 5, "body_type": 4}, EvidenceError),
    ("TDX-1", "unknown certification data", {"certification_type": 9}, EvidenceError),
    ("TDX-2", "PCK CA not under the root", {"pck_ca_root_key": "other"}, EvidenceError),
    ("TDX-2", "leaf that is no PCK certificate", {"pck_subject": "Intel SGX TCB Signing"}, EvidenceError),
    ("TDX-2", "CA that is no PCK CA", {"pck_ca_subject": "Intel SGX Some CA"}, EvidenceError),
    ("TDX-2", "issuer that is no CA", {"pck_ca_is_ca": False}, EvidenceError),
    ("TDX-2", "text beside the certificates", {"chain_end": b"x"}, EvidenceError),
    ("TDX-2", "PCK certificate only named", {"certification_type": 3}, EvidenceError),
    ("TDX-3", "PCK run out", {"pck_not_after": datetime(2026, 1, 1, tzinfo=UTC)}, EvidenceExpiredError),
    ("TDX-4", "PCK revoked", {"revoked_by_ca": (3,)}, EvidenceError),
    ("TDX-4", "PCK CA revoked", {"revoked_by_root": (2,)}, EvidenceError),
    ("TDX-4", "TCB signing revoked", {"revoked_by_root": (4,)}, EvidenceError),
    ("TDX-4", "lists run out", {"crl_next_s": NOW_S - 1}, EvidenceExpiredError),
    ("TDX-5", "no SGX extension", {"pck_extension": None}, EvidenceError),
    ("TDX-5", "short FMSPC", {"pck_extension": tdx_world.sgx_extension(fmspc=b"\1")}, EvidenceError),
    ("TDX-5", "extension cut", {"pck_extension": tdx_world.sgx_extension()[:-1]}, EvidenceError),
    ("TDX-5", "15 components", {"pck_extension": tdx_world.sgx_extension(svns=(4,) * 15)}, EvidenceError),
    ("TDX-6", "QE report signed by another", {"qe_signing_key": "other"}, EvidenceError),
    ("TDX-7", "another attestation key reported", {"bound_key": "other"}, EvidenceError),
    ("TDX-7", "report data beyond the digest", {"qe_report_data_tail": b"\1" * 32}, EvidenceError),
    ("TDX-8", "user data of the header changed after signing", {"spoiled_at": 30}, EvidenceError),
    ("TDX-9", "TCB info signed by another", {"tcb_signing_key": "other"}, EvidenceError),
    ("TDX-9", "signed by a platform", {"document_signer": "Intel SGX PCK Certificate"}, EvidenceError),
    ("TDX-10", "QE identity signed by another", {"qe_identity_signing_key": "other"}, EvidenceError),
    ("TDX-11", "TCB info for SGX", {"tcb_info": tcb_info(id="SGX")}, EvidenceError),
    ("TDX-11", "TCB info of version 2", {"tcb_info": tcb_info(version=2)}, EvidenceError),
    ("TDX-11", "QE identity for SGX", {"qe_identity": qe_identity(id="QE")}, EvidenceError),
    ("TDX-11", "status that Intel does not have", {"tcb_info": with_status("Fine", [])}, EvidenceError),
    ("TDX-11", "no date", {"qe_identity": qe_identity(nextUpdate="soon")}, EvidenceError),
    ("TDX-12", "TCB info run out", {"tcb_info": tcb_info(nextUpdate=tdx_world.iso(NOW_S - 1))}, EvidenceExpiredError),
    (
        "TDX-12",
        "TCB info of tomorrow",
        {"tcb_info": tcb_info(issueDate=tdx_world.iso(NOW_S + 1))},
        EvidenceExpiredError,
    ),
    (
        "TDX-12",
        "QE identity run out",
        {"qe_identity": qe_identity(nextUpdate=tdx_world.iso(NOW_S - 1))},
        EvidenceExpiredError,
    ),
    (
        "TDX-12",
        "TCB info older than the policy allows",
        {"tcb_info": tcb_info(issueDate=tdx_world.iso(NOW_S - 31 * DAY_S))},
        EvidenceExpiredError,
    ),
    ("TDX-12", "list older than the policy allows", {"crl_issued_s": NOW_S - 31 * DAY_S}, EvidenceExpiredError),
    ("TDX-13", "FMSPC of another platform", {"tcb_info": tcb_info(fmspc="00806F050000")}, EvidenceError),
    ("TDX-13", "PCEID of another", {"tcb_info": tcb_info(pceId="0001")}, EvidenceError),
    ("TDX-14", "enclave of another signer", {"qe_signer": b"\x67" * 32}, EvidenceError),
    ("TDX-14", "another product", {"qe_product": 1}, EvidenceError),
    ("TDX-14", "another MISCSELECT", {"qe_misc_select": 1}, EvidenceError),
    ("TDX-14", "debug enclave", {"qe_attributes": b"\x13" + bytes(15)}, EvidenceError),
    ("TDX-15", "module of another signer", {"seam": (BAD_48, BAD_48, bytes(8))}, EvidenceError),
    ("TDX-15", "module attributes", {"seam": (BAD_48, bytes(48), b"\1" + bytes(7))}, EvidenceError),
    (
        "TDX-15",
        "module attribute outside the mask",
        {
            "seam": (BAD_48, bytes(48), b"\1" + bytes(7)),
            "tcb_info": with_module(attributesMask="00" * 8),
        },
        EvidenceError,
    ),
    (
        "TDX-15",
        "module version unknown since an update",
        {"version": 5, "tee_tcb_svn_2": bytes([6, 2]) + b"\4" * 14},
        EvidenceError,
    ),
    ("TDX-15", "module version unknown", {"tee_tcb_svn": bytes([6, 2]) + b"\4" * 14}, EvidenceError),
    (
        "TDX-15",
        "no identities",
        {"tcb_info": {name: value for name, value in tcb_info().items() if name != "tdxModuleIdentities"}},
        EvidenceError,
    ),
    ("TDX-16", "platform below all", {"pck_extension": tdx_world.sgx_extension(svns=(1,) * 16)}, EvidenceError),
    ("TDX-16", "one component below all", {"tee_tcb_svn": bytes([6, 1]) + b"\4" * 13 + b"\1"}, EvidenceError),
    ("TDX-16", "PCE below all", {"pck_extension": tdx_world.sgx_extension(pce_svn=12)}, EvidenceError),
    ("TDX-16", "module below all", {"tee_tcb_svn": bytes([3, 1]) + b"\4" * 14}, EvidenceError),
    (
        "TDX-16",
        "module that runs now below all",
        {"version": 5, "tee_tcb_svn_2": bytes([3, 1]) + b"\4" * 14},
        EvidenceError,
    ),
    ("TDX-16", "quoting enclave below all", {"qe_svn": 1}, EvidenceError),
    ("TDX-17", "platform out of date", {"pck_extension": tdx_world.sgx_extension(svns=(3,) * 16)}, EvidencePolicyError),
    ("TDX-17", "module out of date", {"tee_tcb_svn": bytes([5, 1]) + b"\4" * 14}, EvidencePolicyError),
    (
        "TDX-17",
        "launched by a module out of date, updated since",
        {"version": 5, "tee_tcb_svn": bytes([5, 1]) + b"\4" * 14, "tee_tcb_svn_2": bytes([6, 1]) + b"\4" * 14},
        EvidencePolicyError,
    ),
    (
        "TDX-17",
        "module that runs now out of date",
        {"version": 5, "tee_tcb_svn_2": bytes([5, 1]) + b"\4" * 14},
        EvidencePolicyError,
    ),
    ("TDX-17", "quoting enclave out of date", {"qe_svn": 3}, EvidencePolicyError),
    ("TDX-17", "revoked", {"tcb_info": with_status("Revoked", [])}, EvidencePolicyError),
    ("TDX-19", "debug", {"td_attributes": 1 << 28 | 1}, EvidencePolicyError),
    ("TDX-19", "profiling by the host", {"td_attributes": 1 << 28 | 1 << 5}, EvidencePolicyError),
    ("TDX-20", "no SEPT_VE_DISABLE", {"td_attributes": 0}, EvidencePolicyError),
    ("TDX-21", "migratable", {"td_attributes": 1 << 28 | 1 << 29}, EvidencePolicyError),
    ("TDX-21", "service TD", {"version": 5, "mr_service_td": BAD_48}, EvidencePolicyError),
    ("TDX-22", "reserved attribute", {"td_attributes": 1 << 28 | 1 << 40}, EvidencePolicyError),
    ("TDX-23", "XFAM without SSE", {"xfam": 1}, EvidencePolicyError),
    ("TDX-23", "unknown feature", {"xfam": 0x602E7 | 1 << 40}, EvidencePolicyError),
    ("TDX-24", "another MRTD", {"mr_td": BAD_48}, EvidencePolicyError),
    *(
        ("TDX-24", f"another RTMR{i}", {"rtmrs": (*RTMRS[:i], BAD_48, *RTMRS[i + 1 :])}, EvidencePolicyError)
        for i in range(4)
    ),
    *(
        ("TDX-25", name, {"owner": tuple(BAD_48 if i == j else bytes(48) for j in range(3))}, EvidencePolicyError)
        for i, name in enumerate(("MRCONFIGID", "MROWNER", "MROWNERCONFIG"))
    ),
    ("TDX-26", "another nonce", {"report_data": bytes(64)}, EvidenceBindingError),
]

HARDENING: Final[World] = {"tcb_info": with_status("SWHardeningNeeded", ["INTEL-SA-1", "INTEL-SA-2"])}
POLICY_CASES: Final[list[tuple[str, str, World, dict[str, Any]]]] = [
    ("TDX-15", "module not pinned", {}, {"mr_seams": frozenset({BAD_48})}),
    ("TDX-17", "evaluation too old", {}, {"minimum_evaluation_number": 19}),
    (
        "TDX-18",
        "one of two advisories accepted",
        HARDENING,
        {
            "accepted_statuses": frozenset({TcbStatus.SW_HARDENING_NEEDED}),
            "accepted_advisories": frozenset({"INTEL-SA-1"}),
        },
    ),
    ("TDX-22", "protection keys not taken", {"td_attributes": 1 << 28 | 1 << 30}, {"optional_attributes": 0}),
    ("TDX-23", "features not taken", {}, {"allowed_xfam": 0}),
    ("TDX-24", "no image named", {}, {"images": ()}),
    ("TDX-24", "another image named", {}, {"images": (TdImage(mr_td=MR_TD, rtmrs=(BAD_48, *RTMRS[1:])),)}),
    ("TDX-27", "platform not pinned", {}, {"ppids": frozenset({bytes(16)})}),
]
"""What a stricter policy refuses: obligation, what, changes of the world, changes of the policy."""
