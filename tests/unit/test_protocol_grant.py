from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from audit.records import Decision, tenant_cause
from bulkhead.attestation import EvidenceKind, SimulatedWorker, Tier, VerifiedWorker
from bulkhead.errors import (
    CheckpointError,
    DowngradeError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
    InclusionError,
    ProofError,
    RecordError,
    SimulatedEvidenceError,
    TicketError,
    TicketExpiredError,
)
from bulkhead.protocol.grant import verify_grant, verify_renewal
from bulkhead.sealing import WorkerKeys
from bulkhead.transparency.note import NoteSigner
from tests.simulator.sealed_world import NOW_S, ORIGIN, World


@pytest.fixture(scope="module")
def world():
    return World()


def check(world, offer=None, *, anchors=None, expectation=None, now_s=NOW_S):
    return verify_grant(
        offer if offer is not None else world.offer(),
        expectation=expectation or world.expectation(),
        anchors=anchors or world.anchors(),
        now_s=now_s,
    )


def test_honest_offer_is_verified(world):
    """An honest offer gives a grant that ends with its ticket."""
    grant = check(world)
    assert isinstance(grant.worker, VerifiedWorker)
    assert not grant.simulated
    assert grant.keyset == world.keys.keyset
    assert grant.claims.session == world.session
    assert grant.not_after_s == grant.claims.expires_at_s == NOW_S + 300
    assert grant.decision.fields.tenant == world.tenant


def test_simulated_offer_is_called_simulated():
    """In development mode a simulated worker is usable and says so; outside it is refused."""
    world = World(kind=EvidenceKind.SIMULATED)
    grant = check(world)
    assert grant.simulated
    assert isinstance(grant.worker, SimulatedWorker)
    with pytest.raises(SimulatedEvidenceError):
        check(world, anchors=replace(world.anchors(), development_mode=False))


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": Decision.DENY},
        {"tenant": "tenant_other"},
        {"session": "sess_other"},
        {"model": "another-model"},
        {"bundle": "00" * 32},
        {"tier": "best"},
        {"tier": ""},
        {"cause": tenant_cause(credential="cred", request_id="req_other")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_decision_of_something_else_is_refused(world, changes):
    """A record in the tenant's own log that is no permission for this open stops it before the evidence is read."""
    with pytest.raises(RecordError):
        check(world, replace(world.offer(leaf=world.decision_leaf(**changes)), evidence=b"never read"))


def test_decision_below_the_wanted_tier_is_refused(world):
    """A decision for a weaker tier than the client asked for is no permission for its prompt."""
    expectation = replace(world.expectation(), minimum_tier=Tier.CONFIDENTIAL)
    with pytest.raises(DowngradeError, match="weaker"):
        check(world, expectation=expectation)


def test_another_logs_key_is_refused(world):
    """A checkpoint by a key that is not pinned, or of another log, proves nothing."""
    stranger = NoteSigner.from_seed(ORIGIN, bytes(32))
    elsewhere = NoteSigner.from_seed("audit.example/t/other/0", bytes(32))
    for signer in (stranger, elsewhere):
        with pytest.raises(CheckpointError):
            check(world, anchors=replace(world.anchors(), log_vkey=signer.vkey))


def test_record_outside_the_log_is_refused(world):
    """A leaf that the checkpoint does not include is no record."""
    offer = world.offer()
    other = replace(offer.decision, leaf=world.decision_leaf())
    with pytest.raises(InclusionError):
        check(world, replace(offer, decision=other))


def test_garbage_in_an_offer_is_a_proof_error(world):
    """A receipt of nonsense raises within the tree."""
    offer = world.offer()
    with pytest.raises(ProofError):
        check(world, replace(offer, decision=replace(offer.decision, checkpoint="nonsense")))


@pytest.mark.parametrize("change", ["nonce", "cnf", "session", "model_digest", "policy_digest"])
def test_evidence_is_bound_to_the_whole_context(world, change):
    """Evidence for another nonce, session key, session, model or policy bundle is refused, or its decision is."""
    offer, expectation = world.offer(), world.expectation()
    match change:
        case "nonce" | "cnf":
            expectation = replace(expectation, **{change: bytes([9]) * 32})
        case "session":
            offer = replace(offer, session="sess_other")
        case "model_digest" | "policy_digest":
            offer = replace(offer, **{change: bytes([9]) * 32})
    with pytest.raises((EvidenceBindingError, RecordError)):
        check(world, offer, expectation=expectation)


@pytest.mark.parametrize(
    "changes",
    [{"tenant": "tenant_other"}, {"model": "other"}, {"model_digest": bytes(32)}, {"ticket_issuers": (bytes(32),)}],
)
def test_descriptor_of_something_else_is_refused(world, changes):
    """Honestly signed evidence of another tenant's partition, another model or other ticket issuers is refused."""
    descriptor = replace(world.descriptor(), **changes)
    with pytest.raises(EvidenceBindingError):
        check(world, world.offer(descriptor=descriptor))


def test_tier_below_the_decision_is_refused(world):
    """The policy decided on tier gpu; a worker of tier mig is not what was allowed."""
    descriptor = replace(world.descriptor(), tier=Tier.MIG)
    with pytest.raises(EvidencePolicyError, match="decided"):
        check(world, world.offer(descriptor=descriptor, tier=Tier.MIG))


def test_pinned_model_digest_is_held(world):
    """A client that pins the model's digest refuses another."""
    with pytest.raises(EvidencePolicyError, match="pinned"):
        check(world, expectation=replace(world.expectation(), model_digest=bytes(32)))


def test_certificate_of_another_key_is_refused(world):
    """The TLS certificate's key must stand in the attested keyset."""
    other = WorkerKeys.generate(authority=world.authority, now_s=NOW_S)
    certificate = x509.load_pem_x509_certificate(other.tls_certificate).public_bytes(Encoding.DER)
    for bad in (certificate, b"", b"nonsense", bytes(5_000)):
        with pytest.raises(EvidenceBindingError):
            check(world, replace(world.offer(), worker_certificate=bad))


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "tenant_other"},
        {"session": "sess_other"},
        {"cnf": bytes(32)},
        {"partition": "part_other"},
        {"tier": Tier.CONFIDENTIAL},
        {"simulated": True},
        {"model": "other"},
        {"model_digest": bytes(32)},
        {"keyset_digest": bytes(32)},
        {"evidence_digest": bytes(32)},
        {"decision_leaf_hash": bytes(32)},
        {"audience": "part-2.example"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_ticket_for_something_else_is_refused(world, changes):
    """A ticket by the right issuer that names anything else than was verified is refused."""
    with pytest.raises(TicketError):
        check(world, world.offer(**changes))


def test_ticket_by_another_issuer_is_refused(world):
    """Only issuers in the client's own configuration count, whatever the descriptor lists."""
    anchors = replace(world.anchors(), ticket_issuers=(World(seed=5).issuer.public_key,))
    with pytest.raises(TicketError, match="not trusted"):
        check(world, anchors=anchors)


def test_times_are_held(world):
    """An expired ticket, and evidence past its end, are refused."""
    offer = world.offer()
    with pytest.raises(TicketExpiredError):
        check(world, offer, now_s=NOW_S + 300)
    with pytest.raises(EvidenceExpiredError):
        check(world, offer, now_s=NOW_S + 3600)


def test_renewal_of_the_same_session_is_taken(world):
    """A renewal for the same session, tenant, model and tier continues it."""
    new = check(world)
    assert verify_renewal(check(world), new) is new


def test_renewal_may_not_weaken(world):
    """Another session, key or model, a weaker tier, or simulation where there was none, is refused."""
    old = check(world)
    for changes in (
        {"tenant": "tenant_other"},
        {"session": "sess_other"},
        {"cnf": bytes(32)},
        {"model_digest": bytes(32)},
        {"tier": Tier.MIG},
    ):
        with pytest.raises(EvidencePolicyError):
            verify_renewal(old, replace(old, claims=replace(old.claims, **changes)))
    simulated = check(World(kind=EvidenceKind.SIMULATED)).worker
    with pytest.raises(EvidencePolicyError):
        verify_renewal(old, replace(old, worker=simulated))
    by_hardware = replace(old, worker=replace(old.worker, kind=EvidenceKind.HARDWARE))
    with pytest.raises(EvidencePolicyError):
        verify_renewal(by_hardware, old)  # the operator's word in place of the vendor's
    assert verify_renewal(old, by_hardware) is by_hardware


def test_evidence_may_not_outlive_the_keys():
    """Evidence beyond its keys' end is not honest, and once the keys have ended they are expired whatever it says."""
    own = World(seed=31)
    own.keys = WorkerKeys.generate(authority=own.authority, now_s=NOW_S, life_s=100)
    offer = own.offer()
    with pytest.raises(EvidenceError, match="outlives"):
        check(own, offer)
    with pytest.raises(EvidenceExpiredError, match="keys"):
        check(own, offer, now_s=NOW_S + 100)
