"""Attacks on hardware evidence as a whole: parts of different origin, put together to look like one worker."""

import dataclasses
import datetime as dt
import json

import pytest

from bulkhead.attestation import AttestationRequest, EvidenceKind, Tier, appraise
from bulkhead.attestation.nvidia import NvidiaPolicy
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.parts import ProcessorPart
from bulkhead.attestation.policy import Technology
from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import BulkheadError, SimulatedEvidenceError
from tests.simulator.hardware_world import CONTEXT, NONCE, NOW, NOW_S, HardwareWorld, keys_of
from tests.simulator.nvidia_world import FWID
from tests.simulator.snp_machine import Machine
from tests.simulator.tdx_world import DAY_S

BINDING = {Technology.SNP: "SNP-11", Technology.TDX: "TDX-26"}
OTHER_NONCE = b"\x77" * 32


@pytest.fixture(params=list(BINDING), ids=["snp", "tdx"])
def world(request, tmp_path):
    """A confidential worker of each technology, with two GPUs."""
    return HardwareWorld(directory=tmp_path / "cache", technology=request.param)


@pytest.fixture
def verifier(world):
    """The tenant's verifier, with everything at hand."""
    return world.verifier()


def refused(world, verifier, evidence, *, policy=None, nonce=NONCE, now_s=NOW_S, context=CONTEXT):
    """Return obligation and code of the refusal."""
    with pytest.raises(BulkheadError) as caught:
        appraise(
            evidence,
            nonce=nonce,
            context=context,
            trust_policy=policy or world.policy(),
            now_s=now_s,
            hardware=verifier,
        )
    return obligation_of(caught.value), caught.value.code


def altered(evidence, **changes):
    """The container with members replaced, its signatures as they were."""
    return canonical_json({**json.loads(evidence), **changes})


def test_evidence_of_one_worker_with_anothers_key(world, verifier):
    """A man in the middle puts his own keyset beside a genuine quote."""
    thief = json.loads(keys_of("part-1.tray-1.example", 99).keyset.encoded)

    assert refused(world, verifier, altered(world.evidence(), keyset=thief)) == (
        BINDING[world.technology],
        "EVIDENCE_BINDING",
    )


def test_evidence_relayed_from_another_client(world, verifier):
    """Evidence that was made for another client's nonce, or another session, answers nobody else."""
    relayed = world.evidence(requests=[AttestationRequest(nonce=OTHER_NONCE, context=CONTEXT)])
    other_session = world.evidence(requests=[AttestationRequest(nonce=NONCE, context=b"another session")])

    for evidence in (relayed, other_session):
        assert refused(world, verifier, evidence) == (BINDING[world.technology], "EVIDENCE_BINDING")


def test_evidence_used_a_second_time(world, verifier):
    """Yesterday's evidence for this client's old nonce is refused for today's."""
    evidence = world.evidence()

    assert refused(world, verifier, evidence, nonce=OTHER_NONCE)[1] == "EVIDENCE_BINDING"
    assert refused(world, verifier, evidence, now_s=NOW_S + 3600)[1] == "EVIDENCE_EXPIRED"


def test_batch_path_of_another_caller(world, verifier):
    """A leaf's place in the batch cannot be claimed by who is not in it."""
    requests = [AttestationRequest(nonce=bytes([n]) * 32, context=CONTEXT) for n in range(3)]
    evidence = world.evidence(requests=requests)

    assert refused(world, verifier, evidence, nonce=OTHER_NONCE)[1] == "EVIDENCE_BINDING"
    moved = json.loads(evidence)["batch"] | {"index": 0}
    assert refused(world, verifier, altered(evidence, batch=moved), nonce=b"\x02" * 32)[1] == "EVIDENCE_BINDING"


def test_gpu_reports_of_another_batch(world, verifier):
    """GPU reports that answer another batch's nonce are refused, though a genuine quote covers them."""
    stale = [world.gpu(number, OTHER_NONCE) for number in world.gpus]

    assert refused(world, verifier, world.evidence(gpu_parts=lambda _: stale)) == ("GPU-5", "EVIDENCE_BINDING")


def test_gpu_reports_swapped_in_after_the_quote(world, verifier):
    """The quote covers the reports: others put in afterwards, genuine and fresh, change its statement."""
    evidence = world.evidence()
    other = json.loads(
        world.evidence(
            gpu_parts=lambda nonce: [world.gpu(0, nonce), dataclasses.replace(world.gpu(0, nonce), uuid="GPU-1")]
        )
    )

    assert refused(world, verifier, altered(evidence, device=other["device"]))[0] == BINDING[world.technology]


@pytest.mark.parametrize("attack", ["missing", "added", "swapped", "renamed", "none"])
def test_gpus_that_are_not_exactly_the_descriptors(world, verifier, attack):
    """Each GPU of the descriptor has its report, in order, and there is no other."""

    def parts(nonce):
        first, second = (world.gpu(number, nonce) for number in (0, 1))
        return {
            "missing": [first],
            "added": [first, second, dataclasses.replace(world.gpu(0, nonce), uuid="GPU-2")],
            "swapped": [second, first],
            "renamed": [first, dataclasses.replace(second, uuid="GPU-7")],
            "none": [],
        }[attack]

    assert refused(world, verifier, world.evidence(gpu_parts=parts)) == ("HW-4", "EVIDENCE_BINDING")


def test_one_gpu_that_stands_for_two(world, verifier):
    """One device under two names is one device: its certificate may stand for one GPU only."""

    def parts(nonce):
        return [world.gpu(0, nonce), dataclasses.replace(world.gpu(0, nonce), uuid="GPU-1")]

    assert refused(world, verifier, world.evidence(gpu_parts=parts)) == ("HW-6", "EVIDENCE_BINDING")
    twice = world.evidence(gpu_parts=lambda nonce: [world.gpu(0, nonce)] * 2, gpus=("GPU-0", "GPU-0"))
    assert refused(world, verifier, twice)[0] == "HW-4"


def test_gpu_report_with_another_gpus_certificates(world, verifier):
    """A report is its own device's: another's certificates did not sign it."""

    def parts(nonce):
        first, second = (world.gpu(number, nonce) for number in (0, 1))
        return [first, dataclasses.replace(second, certificates=first.certificates)]

    assert refused(world, verifier, world.evidence(gpu_parts=parts)) == ("GPU-4", "EVIDENCE_INVALID")


def test_processor_alone_for_confidential(world, verifier):
    """A genuine processor without its GPUs is not tier confidential, with and without GPUs in the descriptor."""
    alone = world.evidence(gpu_parts=lambda _: [], gpus=())

    assert refused(world, verifier, alone) == ("HW-7", "EVIDENCE_INVALID")


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "tenant_2"}, {"partition": "part_2"}, {"model_digest": "11" * 32}, {"ticket_issuers": ["22" * 32]},
        {"tier": "gpu"}, {"region": "us-east"}, {"gpus": ["GPU-0", "GPU-1", "GPU-2"]}, {"software": "other"},
        {"phase": "boot"}, {"tenant_root": "33" * 32},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_descriptor_changed_after_the_quote(world, verifier, changes):
    """Every field of the descriptor is in the statement that the processor quoted."""
    evidence = world.evidence()
    changed = altered(evidence, descriptor={**json.loads(evidence)["descriptor"], **changes})

    expected = "HW-4" if "gpus" in changes else BINDING[world.technology]
    assert refused(world, verifier, changed) == (expected, "EVIDENCE_BINDING")


def test_validity_stretched_after_the_quote(world, verifier):
    """The end of validity is in the statement, too."""
    assert refused(world, verifier, altered(world.evidence(), not_after=NOW_S + 7200))[1] == "EVIDENCE_BINDING"


def test_simulated_part_in_hardware_evidence(world, verifier):
    """A descriptor with a simulated part is refused under genuine quotes, and so is the kind relabelled."""
    with pytest.raises(SimulatedEvidenceError):
        appraise(
            world.evidence(simulated=True), nonce=NONCE, context=CONTEXT, trust_policy=world.policy(), now_s=NOW_S,
            hardware=verifier,
        )  # fmt: skip
    relabelled = world.evidence(kind=EvidenceKind.SIMULATED, simulated=True)
    with pytest.raises(BulkheadError):
        appraise(
            relabelled, nonce=NONCE, context=CONTEXT, now_s=NOW_S, development_mode=True, hardware=verifier,
            trust_policy=world.policy(accepted_kinds=frozenset(EvidenceKind)),
        )  # fmt: skip


def test_operators_word_under_the_name_of_hardware(world, verifier):
    """An Ed25519 signature in place of a quote is no hardware evidence."""
    forged = altered(world.evidence(), quote=b64url_encode(bytes(64)), signer=b64url_encode(bytes(32)))

    assert refused(world, verifier, forged) == ("HW-1", "EVIDENCE_INVALID")


def test_quote_of_one_technology_under_the_name_of_the_other(world, verifier):
    """A report called a quote, or the other way round, is read as what it is called, and refused."""
    other = {Technology.SNP: Technology.TDX, Technology.TDX: Technology.SNP}[world.technology]

    def processor(statement):
        return ProcessorPart(technology=other, quote=world.processor(statement).quote)

    evidence = world.evidence(processor=processor)
    assert refused(world, verifier, evidence)[0] == {Technology.SNP: "TDX-1", Technology.TDX: "SNP-1"}[world.technology]


def test_collateral_expired(world):
    """OCSP answers of the day before yesterday, and Intel's documents past their time, prove nothing."""
    old = world.verifier(store=world.store(ocsp_from=NOW - dt.timedelta(days=2)))
    assert refused(world, old, world.evidence()) == ("GPU-7", "EVIDENCE_EXPIRED")
    if world.technology is Technology.TDX:
        later = NOW_S + 25 * DAY_S
        evidence = world.evidence(not_after_s=later + 60)
        assert refused(world, world.verifier(now_s=later), evidence, now_s=later) == ("TDX-4", "EVIDENCE_EXPIRED")


def test_collateral_of_another_machine_in_the_cache(world):
    """A poisoned cache proves nothing: each piece is verified where it is used, wherever it came from."""
    store = world.store()
    for folder in world.directory.iterdir():
        for path in folder.iterdir():
            stored = json.loads(path.read_bytes())
            path.write_bytes(canonical_json({**stored, "data": "AAAA"}))

    obligation, code = refused(world, world.verifier(store=store), world.evidence())
    assert (obligation, code) in {
        ("GPU-7", "EVIDENCE_INVALID"),
        ("TDX-4", "EVIDENCE_INVALID"),
        ("TDX-9", "EVIDENCE_INVALID"),
    }


def test_debug_guest_in_a_session(world, verifier):
    """A guest that its host can read is refused in a session as it is on the command line."""
    if world.technology is Technology.TDX:
        world.td = dataclasses.replace(world.td, td_attributes=1 << 28 | 1)
        assert refused(world, verifier, world.evidence())[0] == "TDX-19"
        return

    def processor(statement):
        report = Machine().report(changes=[(0x50, statement), (0x08, (0xB001F).to_bytes(8, "little"))])
        return dataclasses.replace(world.processor(statement), quote=report)

    assert refused(world, verifier, world.evidence(processor=processor))[0] == "SNP-14"


def test_mig_slice_called_confidential(world, verifier):
    """Whatever stands below confidential in the descriptor is not lifted by genuine quotes."""
    policy = world.policy(minimum_tier=Tier.CONFIDENTIAL)

    assert refused(world, verifier, world.evidence(tier=Tier.GPU), policy=policy)[1] == "EVIDENCE_POLICY"
    assert refused(world, verifier, world.evidence(tier=Tier.MIG), policy=policy)[0] == "HW-7"


def test_firmware_that_the_policy_does_not_list(world, verifier):
    """A GPU whose firmware is genuine and not on the tenant's list is refused; one on the list is not."""
    listed = world.policy(nvidia=NvidiaPolicy(fwids=frozenset({FWID})))
    other = world.policy(nvidia=NvidiaPolicy(fwids=frozenset({bytes(48)})))

    assert refused(world, verifier, world.evidence(), policy=other) == ("GPU-6", "EVIDENCE_POLICY")
    assert refused(world, verifier, world.evidence(), policy=listed, nonce=OTHER_NONCE)[1] == "EVIDENCE_BINDING"
    appraise(world.evidence(), nonce=NONCE, context=CONTEXT, trust_policy=listed, now_s=NOW_S, hardware=verifier)


def test_manifest_that_matches_anything_is_no_way_round(world, verifier):
    """A policy that asks nobody about revocation still demands manifests that match."""
    policy = world.policy(nvidia=NvidiaPolicy(revocation_required=False, driver_versions=frozenset({"1.2"})))

    assert refused(world, verifier, world.evidence(), policy=policy)[0] == "GPU-10"
