"""Known attacks on TDX verifiers, each as an attacker with a genuine platform of their own would try it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.tdx import TcbStatus, parse_collateral
from bulkhead.errors import BulkheadError, EvidenceBindingError, EvidenceError, EvidenceExpiredError
from tests.simulator.tdx_cases import with_status
from tests.simulator.tdx_world import (
    DAY_S,
    NOW_S,
    PPID,
    REPORT_DATA,
    TdxEvidence,
    TdxWorld,
    bundle,
    iso,
    key,
    policy,
    qe_identity,
    raw_point,
    raw_sign,
    sgx_extension,
    tcb_info,
)


def _refusal(evidence: TdxEvidence, **options: Any) -> BulkheadError:
    with pytest.raises(EvidenceError) as caught:
        evidence.verify(**options)
    return caught.value


def test_enclave_of_the_attacker_as_quoting_enclave() -> None:
    """CVE-2026-22696: an enclave of the attacker's, on a genuine platform, reports the attacker's attestation key."""
    assert obligation_of(_refusal(TdxWorld(qe_signer=b"\xaa" * 32).evidence())) == "TDX-14"


def test_sgx_quoting_enclave() -> None:
    """Intel's SGX quoting enclave (product 1, same signer) cannot speak for a TD."""
    assert obligation_of(_refusal(TdxWorld(qe_product=1).evidence())) == "TDX-14"


@pytest.mark.parametrize("member", ["qe_identity", "qe_identity_signature", "pck_crl", "root_ca_crl", "tcb_info"])
def test_collateral_left_out(member: str) -> None:
    """Leaving collateral out does not skip its check: what is missing is named with where it comes from."""
    text = bundle(TdxWorld().evidence().collateral)
    del text[member]
    with pytest.raises(EvidenceError) as caught:
        parse_collateral(json.dumps(text).encode())
    assert member in caught.value.message
    assert "Intel's Provisioning Certification Service" in caught.value.message


def test_whole_attestation_key_replaced() -> None:
    """A quote signed afresh by the attacker's key does not follow from the quoting enclave's report."""
    evidence = TdxWorld().evidence()
    signed, mine = evidence.quote[:632], key("attacker")
    forged = signed[:-64] + bytes(64)
    quote = forged + evidence.quote[632:636] + raw_sign(mine, forged) + raw_point(mine) + evidence.quote[764:]
    assert obligation_of(_refusal(replace(evidence, quote=quote), report_data=bytes(64))) == "TDX-7"


def test_attestation_key_off_the_curve() -> None:
    """A key that is no point of P-256 verifies nothing and raises nothing of the library's."""
    evidence = TdxWorld().evidence()
    quote = evidence.quote[:700] + b"\xff" * 64 + evidence.quote[764:]
    assert obligation_of(_refusal(replace(evidence, quote=quote))) == "TDX-7"


def test_zero_signature() -> None:
    """Both numbers zero (CVE-2022-21449) is no signature."""
    evidence = TdxWorld().evidence()
    quote = evidence.quote[:636] + bytes(64) + evidence.quote[700:]
    assert obligation_of(_refusal(replace(evidence, quote=quote))) == "TDX-8"


def test_documents_signed_by_a_platform() -> None:
    """A PCK certificate leads to the same root as the TCB signing certificate, and may not sign documents."""
    world = TdxWorld(tcb_signing_key="pck", qe_identity_signing_key="pck")
    evidence = world.evidence()
    chain = world.pck_chain()
    collateral = replace(evidence.collateral, tcb_info_issuer_chain=chain, qe_identity_issuer_chain=chain)
    assert obligation_of(_refusal(replace(evidence, collateral=collateral))) == "TDX-9"


def test_certificate_hidden_in_front_of_the_chain() -> None:
    """The first certificate is the PCK certificate; another in front of the genuine chain is no way around it."""
    world = TdxWorld(certification_type=3)
    other = TdxWorld(pck_subject="Intel SGX PCK Certificate", pck_ca_root_key="attacker").pck_chain()
    collateral = replace(world.collateral(), pck_certificate_chain=other + world.pck_chain())
    assert obligation_of(_refusal(TdxEvidence(quote=world.quote(), collateral=collateral))) in {"TDX-2", "TDX-4"}


def test_tcb_rollback_by_old_documents() -> None:
    """Documents from before a TCB recovery are refused once their dates or the policy's age have passed."""
    old = tcb_info(issueDate=iso(NOW_S - 40 * DAY_S), nextUpdate=iso(NOW_S - 10 * DAY_S))
    error = _refusal(TdxWorld(tcb_info=old).evidence())
    assert (obligation_of(error), type(error)) == ("TDX-12", EvidenceExpiredError)
    long_lived = tcb_info(issueDate=iso(NOW_S - 40 * DAY_S), nextUpdate=iso(NOW_S + 400 * DAY_S))
    assert obligation_of(_refusal(TdxWorld(tcb_info=long_lived).evidence())) == "TDX-12"


def test_tcb_rollback_by_evaluation_number() -> None:
    """Old QE identity beside new TCB info counts as the older of the two."""
    evidence = TdxWorld(qe_identity=qe_identity(tcbEvaluationDataNumber=17)).evidence()
    evidence.verify()
    error = _refusal(evidence, policy_=policy(minimum_evaluation_number=18))
    assert obligation_of(error) == "TDX-17"


def test_one_component_rolled_back() -> None:
    """Sixteen components are compared one by one: a high one does not make up for a low one."""
    svns = (255,) * 15 + (3,)
    assert obligation_of(_refusal(TdxWorld(pck_extension=sgx_extension(svns=svns)).evidence())) == "TDX-17"


def test_debug_td_under_the_laxest_policy() -> None:
    """A TD that its host may read or profile is refused by every policy: no attribute of that group can be allowed."""
    for bit in range(8):
        evidence = TdxWorld(td_attributes=1 << 28 | 1 << bit).evidence()
        error = _refusal(evidence, policy_=policy(images=None, optional_attributes=2**64 - 1))
        assert obligation_of(error) == "TDX-19"


def test_td_that_can_leave_the_platform() -> None:
    """Migration, and a service TD that could export the TD, are refused by every policy."""
    for world in ({"td_attributes": 1 << 28 | 1 << 29}, {"version": 5, "mr_service_td": b"\1" * 48}):
        evidence = TdxWorld(**world).evidence()
        error = _refusal(evidence, policy_=policy(images=None, optional_attributes=2**64 - 1))
        assert obligation_of(error) == "TDX-21"


@pytest.mark.parametrize(
    "world", [{"revoked_by_ca": (3,)}, {"revoked_by_root": (2,)}, {"revoked_by_root": (4,)}], ids=str
)
def test_revoked_certificate(world: dict[str, Any]) -> None:
    """A platform, its CA or Intel's signer of documents that was revoked no longer vouches, warm or cold."""
    TdxWorld().evidence().verify()
    assert obligation_of(_refusal(TdxWorld(**world).evidence())) == "TDX-4"


def test_module_swapped_under_the_td() -> None:
    """A TD 1.5 whose host replaced the TDX module by one out of date, or unknown, is rated by what runs now, too."""
    for svns, obligation in ((bytes([5, 1]), "TDX-17"), (bytes([3, 1]), "TDX-16"), (bytes([6, 9]), "TDX-15")):
        world = TdxWorld(version=5, tee_tcb_svn_2=svns + b"\4" * 14)
        assert obligation_of(_refusal(world.evidence())) == obligation


def test_revoked_is_never_acceptable() -> None:
    """A policy that lists every status still refuses a revoked platform."""
    evidence = TdxWorld(tcb_info=with_status("Revoked", [])).evidence()
    error = _refusal(evidence, policy_=policy(accepted_statuses=frozenset(TcbStatus)))
    assert obligation_of(error) == "TDX-17"


def test_lists_that_never_end() -> None:
    """A revocation list frozen at a time before the revocation is too old for the policy, whatever its own end."""
    world = TdxWorld(crl_issued_s=NOW_S - 60 * DAY_S, crl_next_s=NOW_S + 4000 * DAY_S)
    assert obligation_of(_refusal(world.evidence())) == "TDX-12"


def test_relayed_evidence() -> None:
    """Genuine evidence of one worker, made for one session, does not serve another nonce or key."""
    evidence = TdxWorld().evidence()
    evidence.verify(report_data=REPORT_DATA)
    for other in (bytes(64), REPORT_DATA[:-1] + b"\0", REPORT_DATA[:32], b""):
        error = _refusal(evidence, report_data=other)
        assert (obligation_of(error), type(error)) == ("TDX-26", EvidenceBindingError)


def test_key_extracted_from_another_machine() -> None:
    """An attestation key that leaked from some machine is confined by pinning the platform (TEE.fail)."""
    leaked = TdxWorld(pck_extension=sgx_extension(ppid=b"\xee" * 16)).evidence()
    leaked.verify()
    assert obligation_of(_refusal(leaked, policy_=policy(ppids=frozenset({PPID})))) == "TDX-27"


def test_duplicate_members() -> None:
    """A document with a member twice has no meaning, even under a true signature."""
    world = TdxWorld()
    evidence = world.evidence()
    twice = evidence.collateral.tcb_info.replace(b'"tcbType": 0', b'"tcbType": 0, "tcbType": 0')
    signature = raw_sign(key("signing"), twice)
    collateral = replace(evidence.collateral, tcb_info=twice, tcb_info_signature=signature)
    assert obligation_of(_refusal(replace(evidence, collateral=collateral))) == "TDX-11"


def test_deep_json() -> None:
    """A bundle nested beyond any sense is refused, not followed."""
    with pytest.raises(EvidenceError):
        parse_collateral(b"[" * 200_000)
