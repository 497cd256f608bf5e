"""Hardware evidence as a whole: a processor and its GPUs, verified to test roots."""

import dataclasses
import datetime as dt
from pathlib import Path

import pytest

from bulkhead.attestation import AttestationRequest, EvidenceKind, Tier, VerifiedWorker, appraise
from bulkhead.attestation.collateral import CollateralKind, CollateralPolicy
from bulkhead.attestation.collateral.amd import vcek_item
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.store import CollateralStore
from bulkhead.attestation.hardware import HARDWARE_OBLIGATIONS, HardwareVerifier
from bulkhead.attestation.nvidia import NvidiaPolicy
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.parts import GpuParts, ProcessorPart
from bulkhead.attestation.policy import Technology
from bulkhead.attestation.snp import read_snp_report
from bulkhead.errors import EvidenceError, EvidenceExpiredError, EvidencePolicyError, SimulatedEvidenceError
from tests.simulator import snp_machine, tdx_world
from tests.simulator.hardware_world import CONTEXT, NONCE, NOW, NOW_S, HardwareWorld, roots
from tests.simulator.snp_machine import Machine

BOTH = [Technology.SNP, Technology.TDX]


@pytest.fixture(params=BOTH, ids=["snp", "tdx"])
def world(request, tmp_path):
    """A confidential worker of each technology."""
    return HardwareWorld(directory=tmp_path / "cache", technology=request.param)


def check(world, evidence, *, policy=None, verifier=None, now_s=NOW_S, nonce=NONCE, context=CONTEXT):
    """Appraise evidence as the tenant does."""
    return appraise(
        evidence,
        nonce=nonce,
        context=context,
        trust_policy=policy if policy is not None else world.policy(),
        now_s=now_s,
        hardware=verifier if verifier is not None else world.verifier(),
    )


def refused(world, evidence, **options):
    """Return the obligation under which evidence is refused, and its code."""
    with pytest.raises(EvidenceError) as caught:
        check(world, evidence, **options)
    return obligation_of(caught.value), caught.value.code


def test_complete_evidence_is_a_verified_confidential_worker(world):
    """Processor and GPUs together show tier confidential; the claims name machine, measurement and GPUs."""
    worker = check(world, world.evidence())

    assert isinstance(worker, VerifiedWorker)
    assert (worker.kind, worker.tier) == (EvidenceKind.HARDWARE, Tier.CONFIDENTIAL)
    claims = worker.hardware
    expected = {
        Technology.SNP: (snp_machine.MEASUREMENT, Machine().full_hwid.ljust(64, b"\0")),
        Technology.TDX: (tdx_world.MR_TD, tdx_world.PPID),
    }
    assert (claims.measurement, claims.machine) == expected[world.technology]
    assert [gpu.uuid for gpu in claims.gpus] == ["GPU-0", "GPU-1"]
    assert len({gpu.device_serial for gpu in claims.gpus}) == 2
    assert claims.gpu_attachment == "software"
    assert worker.keyset == world.keys.keyset.encoded


def test_every_caller_of_a_batch_is_served_by_one_quote(world):
    """Each caller's nonce is in the batch that one quote covers, and no other's."""
    requests = [AttestationRequest(nonce=bytes([n]) * 32, context=bytes([n])) for n in range(5)]
    evidence = world.evidence(requests=requests)

    assert isinstance(check(world, evidence, nonce=b"\x04" * 32, context=b"\x04"), VerifiedWorker)
    first = {Technology.SNP: "SNP-11", Technology.TDX: "TDX-26"}[world.technology]
    assert refused(world, evidence, nonce=b"\x09" * 32, context=b"\x04") == (first, "EVIDENCE_BINDING")


def test_validity_ends_with_the_first_part(world):
    """A worker is verified until the first of its evidence, policy and collateral ends."""
    assert check(world, world.evidence()).not_after_s == NOW_S + 3600
    assert check(world, world.evidence(not_after_s=NOW_S + 60)).not_after_s == NOW_S + 60
    assert check(world, world.evidence(), policy=world.policy(maximum_age_s=5)).not_after_s == NOW_S + 5
    soon = world.store(ocsp_from=NOW - dt.timedelta(hours=23, minutes=50))
    assert check(world, world.evidence(), verifier=world.verifier(store=soon)).not_after_s == NOW_S + 600


def test_default_policy_accepts_no_hardware(world):
    """Genuine hardware of a guest that the tenant did not name is refused."""
    from bulkhead.attestation import TrustPolicy

    expected = {Technology.SNP: "SNP-18", Technology.TDX: "TDX-24"}[world.technology]
    assert refused(world, world.evidence(), policy=TrustPolicy()) == (expected, "EVIDENCE_POLICY")


def test_pinned_vendors_roots_are_the_default(world):
    """Without roots given by the program, the tests' hardware is nobody's."""
    from bulkhead.attestation import HardwareVerifier

    obligation, code = refused(world, world.evidence(), verifier=HardwareVerifier(collateral=world.cache()))
    assert (obligation, code) == ({"snp": "SNP-4", "tdx": "TDX-2"}[world.technology], "EVIDENCE_INVALID")


def test_without_a_verifier_nothing_is_at_hand(world):
    """An appraisal that was given no collateral names the first piece that is missing, and fetches nothing."""
    with pytest.raises(EvidenceError) as caught:
        appraise(world.evidence(), nonce=NONCE, context=CONTEXT, trust_policy=world.policy(), now_s=NOW_S)
    assert obligation_of(caught.value) == {"snp": "SNP-4", "tdx": "TDX-9"}[world.technology]


@pytest.mark.parametrize("technologies", [{Technology.NVIDIA}, set(BOTH)], ids=["no-processor", "no-gpu"])
def test_technology_that_the_policy_leaves_out(world, technologies):
    """HW-2: a technology that is not listed is refused."""
    policy = world.policy(technologies=frozenset(technologies))
    assert refused(world, world.evidence(), policy=policy) == ("HW-2", "EVIDENCE_POLICY")


@pytest.mark.parametrize("changes", [{"regions": frozenset({"us"})}, {"model_digests": frozenset({bytes(32)})}])
def test_region_and_model_that_the_policy_leaves_out(world, changes):
    """A region or model that is not listed is refused, whatever the hardware shows."""
    with pytest.raises(EvidencePolicyError):
        check(world, world.evidence(), policy=world.policy(**changes))
    fitting = {"regions": frozenset({"eu-central"}), "model_digests": frozenset({b"\x4d" * 32})}
    check(world, world.evidence(), policy=world.policy(**{name: fitting[name] for name in changes}))


def test_slice_of_a_gpu_has_no_hardware_evidence(world):
    """HW-7: a MIG instance is never shown by hardware evidence, whatever it is called."""
    assert refused(world, world.evidence(tier=Tier.MIG), policy=world.policy(minimum_tier=Tier.MIG))[0] == "HW-7"


def test_simulated_descriptor_is_no_hardware(world):
    """One simulated part makes the whole simulated: hardware evidence about one is contradictory."""
    with pytest.raises(SimulatedEvidenceError):
        check(world, world.evidence(simulated=True))


def test_signer_beside_the_hardware_is_refused(world):
    """HW-1: no key vouches beside the hardware."""
    assert refused(world, world.evidence(signer=bytes(32)))[0] == "HW-1"


def test_processor_part_reads_what_it_writes():
    """The parts of hardware evidence have one encoding each."""
    part = ProcessorPart(technology=Technology.TDX, quote=b"quote", auxiliary=b"x")
    assert ProcessorPart.parse(part.encode()) == part
    assert GpuParts.parse(b"") == GpuParts(())


@pytest.mark.parametrize("data", [b"{}", b"junk", b'{"auxiliary":"","quote":"","technology":"nvidia","version":1}'])
def test_malformed_parts_are_refused(data):
    """A part that is not of its form is a typed error."""
    with pytest.raises(EvidenceError):
        ProcessorPart.parse(data)
    with pytest.raises(EvidenceError):
        GpuParts.parse(data)


def test_vcek_comes_from_the_host_or_from_the_cache(tmp_path):
    """A host that hands out no certificate is verified with the one in the cache; without it the piece is named."""
    world = HardwareWorld(directory=tmp_path, auxiliary=False)
    store = world.store()
    check(world, world.evidence(), verifier=world.verifier(store=store))
    item = vcek_item(read_snp_report(world.machine.report()), world.machine.product)
    (tmp_path / "amd-vcek" / f"{item.name}.json").unlink()

    with pytest.raises(EvidenceError) as caught:
        check(world, world.evidence(), verifier=world.verifier(store=store))
    assert (obligation_of(caught.value), caught.value.details["source"]) == ("SNP-4", item.url)


def test_ocsp_is_not_needed_where_the_policy_says_so(tmp_path):
    """A tenant that demands no OCSP answers is served without any, and still refused by one that revokes."""
    world = HardwareWorld(directory=tmp_path)
    store = world.store()
    for path in (tmp_path / "nvidia-ocsp").iterdir():
        path.unlink()
    lenient = world.policy(nvidia=NvidiaPolicy(revocation_required=False))

    assert isinstance(
        check(world, world.evidence(), policy=lenient, verifier=world.verifier(store=store)), VerifiedWorker
    )
    assert refused(world, world.evidence(), verifier=world.verifier(store=store)) == ("GPU-7", "EVIDENCE_INVALID")


def test_copies_older_than_the_policy_allows_are_not_used(world):
    """Staleness is the policy's: a copy that was fetched too long ago is refused by kind."""
    collateral = CollateralPolicy(maximum_age_s={CollateralKind.NVIDIA_OCSP: 10})
    policy = world.policy(collateral=collateral)
    with pytest.raises(EvidenceExpiredError) as caught:
        check(world, world.evidence(), policy=policy)
    assert obligation_of(caught.value) == "GPU-7"


def test_obligations_are_numbered_without_gaps():
    """HW-1, HW-2 and so on, each with its sentence in docs/trust-policy.md."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "trust-policy.md").read_text()
    assert all(f"| {number} | {sentence} |" in page for number, sentence in HARDWARE_OBLIGATIONS.items())
    assert list(HARDWARE_OBLIGATIONS) == [f"HW-{number}" for number in range(1, len(HARDWARE_OBLIGATIONS) + 1)]


def test_processor_alone_may_show_a_process(tmp_path):
    """A guest without GPUs is verified at tier process, and at no tier above."""
    world = HardwareWorld(directory=tmp_path, gpus=())
    policy = world.policy(minimum_tier=Tier.PROCESS)

    assert check(world, world.evidence(tier=Tier.PROCESS), policy=policy).tier is Tier.PROCESS
    for tier in (Tier.GPU, Tier.CONFIDENTIAL):
        assert refused(world, world.evidence(tier=tier), policy=policy)[0] == "HW-7"


def test_version_of_a_report_that_names_no_product_is_refused(tmp_path):
    """A version 2 report, which names no product, shows nothing in a session: nobody could say which root to ask."""
    world = HardwareWorld(directory=tmp_path)
    report = dataclasses.replace(world).machine

    def processor(statement):
        part = world.processor(statement)
        return dataclasses.replace(part, quote=report.report(version=2, changes=[(0x50, statement)]))

    assert refused(world, world.evidence(processor=processor))[0] == "SNP-2"


def test_evidence_is_verified_again_with_the_collateral_that_it_was_verified_with(world, tmp_path):
    """What a verifier found at hand is enough for another one that has nothing, offline; less or other is not."""
    evidence = world.evidence()
    carried = world.verifier().collateral_for(evidence, trust_policy=world.policy())
    assert carried
    elsewhere = HardwareVerifier(
        collateral=CollateralCache(
            store=CollateralStore(tmp_path / "none"), policy=CollateralPolicy(), now_s=lambda: 0
        ),
        roots=roots(),
    )
    refused(world, evidence, verifier=elsewhere)
    again = elsewhere.carrying(carried, now_s=NOW_S)
    assert check(world, evidence, verifier=again) == check(world, evidence)
    lacking = [entry for entry in carried if entry.kind is not CollateralKind.NVIDIA_RIM]
    refused(world, evidence, verifier=elsewhere.carrying(lacking, now_s=NOW_S))
    broken = [dataclasses.replace(entry, data=entry.data[:-9] + bytes(9)) for entry in carried]
    refused(world, evidence, verifier=elsewhere.carrying(broken, now_s=NOW_S))
    assert list((tmp_path).glob("none")) == []
