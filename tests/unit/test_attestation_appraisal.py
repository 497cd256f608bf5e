import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation import (
    AttestationRequest,
    Evidence,
    EvidenceIssuer,
    EvidenceKind,
    SimulatedWorker,
    Tier,
    TrustPolicy,
    VerifiedWorker,
    appraise,
)
from bulkhead.attestation.evidence import MAX_EVIDENCE_BYTES, signed_message
from bulkhead.attestation.statement import batch_leaf
from bulkhead.encoding import canonical_json
from bulkhead.errors import (
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
    SimulatedEvidenceError,
)
from tests.simulator.sealed_world import NOW_S, World

CONTEXT = b"session context"
NONCE = bytes(32)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
POLICY = TrustPolicy(
    accepted_kinds=frozenset(EvidenceKind), operator_keys=(PUBLIC,), minimum_tier=Tier.PROCESS, maximum_age_s=3600
)


@pytest.fixture(scope="module")
def worlds():
    return {kind: World(kind=kind) for kind in (EvidenceKind.OPERATOR, EvidenceKind.SIMULATED)}


def issue(world, *, not_after_s=NOW_S + 600, **changes):
    issuer = EvidenceIssuer(kind=world.kind, key=KEY)
    return issuer.issue(
        [AttestationRequest(nonce=NONCE, context=CONTEXT)],
        keyset=world.keys.keyset.encoded,
        descriptor=replace(world.descriptor(), **changes),
        not_after_s=not_after_s,
    )[0]


def check(evidence, *, nonce=NONCE, context=CONTEXT, policy=POLICY, now_s=NOW_S, development_mode=False):
    return appraise(
        evidence,
        nonce=nonce,
        context=context,
        trust_policy=policy,
        now_s=now_s,
        development_mode=development_mode,
    )


@pytest.fixture
def operator(worlds):
    return worlds[EvidenceKind.OPERATOR]


@pytest.fixture
def simulated(worlds):
    return worlds[EvidenceKind.SIMULATED]


def forge(evidence, **changes):
    """Return the container with members changed and the quote made anew by the same key: a lying signer."""
    value = json.loads(evidence)
    value.update(changes)
    parsed = Evidence.parse(canonical_json(value))
    statement = parsed.bind(batch_leaf(NONCE, CONTEXT)).statement
    return replace(parsed, quote=KEY.sign(signed_message(parsed.kind, statement))).encode()


def test_operator_evidence_gives_a_verified_worker(operator):
    """Evidence by a pinned operator key proves its descriptor, until the earlier of its and the policy's end."""
    evidence = issue(operator)
    worker = check(evidence)
    assert isinstance(worker, VerifiedWorker)
    assert (worker.kind, worker.tier) == (EvidenceKind.OPERATOR, Tier.GPU)
    assert worker.descriptor == operator.descriptor()
    assert worker.keyset == operator.keys.keyset.encoded
    assert worker.not_after_s == NOW_S + 600
    assert check(evidence, policy=replace(POLICY, maximum_age_s=60)).not_after_s == NOW_S + 60


def test_simulated_evidence_needs_development_mode(simulated):
    """Outside development mode simulated evidence is refused, whatever the policy accepts; inside it proves nothing."""
    evidence = issue(simulated)
    with pytest.raises(SimulatedEvidenceError):
        check(evidence)
    worker = check(evidence, development_mode=True)
    assert isinstance(worker, SimulatedWorker)
    assert not isinstance(worker, VerifiedWorker)


def test_development_mode_does_not_override_the_policy(simulated):
    """A policy without simulated evidence refuses it in development mode too."""
    with pytest.raises(EvidencePolicyError):
        check(
            issue(simulated),
            policy=replace(POLICY, accepted_kinds=frozenset({EvidenceKind.OPERATOR})),
            development_mode=True,
        )


def test_another_kind_is_refused_by_policy(operator):
    """A policy for hardware only does not take an operator's word."""
    with pytest.raises(EvidencePolicyError):
        check(issue(operator), policy=replace(POLICY, accepted_kinds=frozenset({EvidenceKind.HARDWARE})))


def test_hardware_evidence_fails_closed(operator):
    """An operator's signature is no hardware evidence, whatever the container calls it."""
    with pytest.raises(EvidenceError, match="HW-1"):
        check(forge(issue(operator), kind="hardware"))


@pytest.mark.parametrize("other", ["nonce", "context"])
def test_evidence_for_someone_else_is_refused(operator, other):
    """Another nonce or another session context is not what was signed."""
    changed = {"nonce": {"nonce": bytes([1]) * 32}, "context": {"context": b"another session"}}[other]
    with pytest.raises(EvidenceBindingError):
        check(issue(operator), **changed)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("device", "AAAA"),
        ("not_after", NOW_S + 601),
        ("batch", {"index": 0, "size": 2, "path": ["00" * 32]}),
        ("keyset", {}),
        ("quote", "AAAA"),
    ],
)
def test_changed_member_is_refused(operator, member, value):
    """Each member of the container is under the signature."""
    container = json.loads(issue(operator))
    container[member] = value
    with pytest.raises(EvidenceBindingError):
        check(canonical_json(container))


@pytest.mark.parametrize(
    ("field", "value"),
    [("tenant", "tenant_x"), ("tier", "process"), ("model_digest", "00" * 32), ("gpus", []), ("phase", "boot")],
)
def test_changed_descriptor_is_refused(operator, field, value):
    """Each field of the descriptor is under the signature."""
    container = json.loads(issue(operator))
    container["descriptor"][field] = value
    with pytest.raises(EvidenceBindingError):
        check(canonical_json(container))


def test_operator_key_must_be_pinned(operator):
    """Evidence signed by a key that the policy does not pin is refused."""
    with pytest.raises(EvidencePolicyError, match="not pinned"):
        check(issue(operator), policy=replace(POLICY, operator_keys=(bytes(32),)))


def test_simulated_signature_is_no_operator_signature(simulated):
    """The kind is part of what is signed: relabelled evidence of the very same key does not hold."""
    container = json.loads(issue(simulated))
    container["kind"] = "operator"
    container["descriptor"]["simulated"] = False
    with pytest.raises(EvidenceBindingError):
        check(canonical_json(container))


def test_simulated_part_makes_the_whole_simulated(operator):
    """An operator that signs a descriptor with a simulated part is refused in either mode, and its issuer refuses."""
    descriptor = json.loads(issue(operator))["descriptor"]
    lie = forge(issue(operator), descriptor=descriptor | {"simulated": True})
    with pytest.raises(SimulatedEvidenceError):
        check(lie)
    with pytest.raises(EvidenceError, match="disagree"):
        check(lie, development_mode=True)
    with pytest.raises(EvidenceError):
        issue(operator, simulated=True)


def test_operator_cannot_show_confidential(operator):
    """Tier confidential takes hardware: neither the operator's issuer nor the verifier lets it pass."""
    with pytest.raises(EvidenceError):
        issue(operator, tier=Tier.CONFIDENTIAL)
    descriptor = json.loads(issue(operator))["descriptor"]
    with pytest.raises(EvidenceError, match="cannot show"):
        check(forge(issue(operator), descriptor=descriptor | {"tier": "confidential"}))


def test_tier_below_the_policy_is_refused(operator):
    """A consistent worker of a weaker tier than demanded is an EvidencePolicyError that names both."""
    with pytest.raises(EvidencePolicyError) as caught:
        check(issue(operator, tier=Tier.PROCESS), policy=replace(POLICY, minimum_tier=Tier.MIG))
    assert caught.value.details == {"tier": "process", "minimum_tier": "mig"}


def test_expired_evidence_is_refused(operator):
    """At its end evidence is expired."""
    with pytest.raises(EvidenceExpiredError):
        check(issue(operator), now_s=NOW_S + 600)


def test_evidence_cannot_outlive_keys(operator):
    """A validity of more than 24 hours is not honest."""
    with pytest.raises(EvidenceError, match="outlive"):
        check(issue(operator, not_after_s=NOW_S + 25 * 3600))


@pytest.mark.parametrize("encoded", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 9000, b" " * (MAX_EVIDENCE_BYTES + 1)])
def test_garbage_is_an_evidence_error(encoded):
    """Bytes that are no container raise EvidenceError, never anything else."""
    with pytest.raises(EvidenceError):
        check(encoded)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"more": 1}, {"kind": "rumour"}, {"batch": {"index": 0, "size": 1, "path": ["00" * 32] * 17}}],
)
def test_other_shapes_are_refused(operator, change):
    """Unknown versions, members and kinds and a path above 16 are refused."""
    with pytest.raises(EvidenceError):
        check(canonical_json(json.loads(issue(operator)) | change))


@pytest.mark.parametrize("change", [{"tier": "best"}, {"ticket_issuers": []}, {"memory_mib": -1}, {"version": 2}])
def test_other_descriptors_are_refused(operator, change):
    """A descriptor with an unknown tier, no issuer or a negative amount is refused."""
    value = json.loads(issue(operator))
    value["descriptor"] |= change
    with pytest.raises(EvidenceError):
        check(canonical_json(value))


def test_batch_serves_every_caller_and_nobody_else(operator):
    """One signature serves a batch; the evidence of one caller is not another's."""
    requests = [AttestationRequest(nonce=bytes([n]) * 32, context=bytes([n])) for n in range(5)]
    batch = EvidenceIssuer(kind=EvidenceKind.OPERATOR, key=KEY).issue(
        requests, keyset=operator.keys.keyset.encoded, descriptor=operator.descriptor(), not_after_s=NOW_S + 60
    )
    for request, evidence in zip(requests, batch, strict=True):
        assert check(evidence, nonce=request.nonce, context=request.context).tier is Tier.GPU
    with pytest.raises(EvidenceBindingError):
        check(batch[0], nonce=requests[1].nonce, context=requests[1].context)
    assert len({Evidence.parse(evidence).quote for evidence in batch}) == 1


def test_only_hardware_issues_hardware_evidence():
    """An Ed25519 issuer of hardware evidence cannot be made."""
    with pytest.raises(EvidenceError):
        EvidenceIssuer(kind=EvidenceKind.HARDWARE, key=KEY)


def test_tenant_root_survives_encoding(operator):
    """A descriptor with a tenant root comes back with it."""
    root = bytes(range(32))
    assert check(issue(operator, tenant_root=root)).descriptor.tenant_root == root
