"""Who gets a model's key from a broker, and everybody who does not."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.records import Decision
from bulkhead.attestation import AttestationRequest, EvidenceIssuer, EvidenceKind, Phase, Tier
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.policy import Technology
from bulkhead.errors import (
    BulkheadError,
    CheckpointError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
    ExhaustedError,
    InclusionError,
    KeyBrokerError,
    KeyReleaseError,
    ModelKeyError,
    ModelManifestError,
    ModelRolledBackError,
    ModelSignatureError,
    SealError,
    SimulatedEvidenceError,
)
from bulkhead.models import DataKey, FileKek, SealedSource, hash_model
from bulkhead.protocol.release import ReleaseRequest
from bulkhead.sealing import WorkerKeys
from tests.simulator.hardware_world import NOW_S, HardwareWorld
from tests.simulator.release_world import ReleaseWorld


@pytest.fixture
def world(tmp_path: Path) -> ReleaseWorld:
    return ReleaseWorld(tmp_path)


def test_an_attested_worker_gets_the_key_and_loads_the_model(world: ReleaseWorld) -> None:
    """What was released opens under the worker's own knowledge, and the model is the one that was sealed."""
    request = world.request()
    released = world.release(request)
    key = DataKey(bytearray(world.open(released, request)))
    manifest = world.sealed.manifest()
    with SealedSource(world.sealed.directory, manifest=manifest, key=key, threads=1) as source:
        assert hash_model(source).digest() == manifest.model_digest
    assert released.worker.descriptor.phase is Phase.BOOT


def stranger(world: ReleaseWorld) -> ReleaseRequest:
    """An operator key that nobody pinned."""
    world.evidence_issuer = EvidenceIssuer(kind=EvidenceKind.OPERATOR, key=Ed25519PrivateKey.generate())
    return world.request()


def other_nonce(world: ReleaseWorld) -> ReleaseRequest:
    return dataclasses.replace(world.request(), nonce=world.broker.challenge())


def used_nonce(world: ReleaseWorld) -> ReleaseRequest:
    request = world.request()
    world.release(request)
    return request


def old_nonce(world: ReleaseWorld) -> ReleaseRequest:
    request = world.request()
    world.monotonic_s += 121
    return request


def old_keys(world: ReleaseWorld) -> ReleaseRequest:
    keys = WorkerKeys.generate(authority="x.example", now_s=world.now_s - 100, life_s=100)
    return world.request(keys=keys)


def expired(world: ReleaseWorld) -> ReleaseRequest:
    request = world.request()
    world.now_s += 601
    return request


def other_tenant(world: ReleaseWorld) -> ReleaseRequest:
    return dataclasses.replace(world.request(), tenant="tenant_01h455vb4pex5vsknk084sn02q")


def signed_by(key: Ed25519PrivateKey) -> Callable[[ReleaseWorld], ReleaseRequest]:
    def make(world: ReleaseWorld) -> ReleaseRequest:
        manifest = dataclasses.replace(world.sealed.manifest(), signer=key.public_key().public_bytes_raw())
        return world.request(manifest=manifest.sign(key))

    return make


def forged_log(world: ReleaseWorld) -> ReleaseRequest:
    request = world.request()
    other = ReleaseWorld(world.directory / "other", seed=9)
    return dataclasses.replace(request, decision=other.audit_receipt(request.decision.leaf))


def not_in_the_log(world: ReleaseWorld) -> ReleaseRequest:
    request = world.request()
    return dataclasses.replace(request, decision=dataclasses.replace(request.decision, leaf=world.leaf()))


def other_kek(world: ReleaseWorld) -> ReleaseRequest:
    world.sealed = dataclasses.replace(world.sealed, kek=FileKek.create(world.directory / "other-kek"))
    world.broker = world.make_broker()
    return world.request()


def decided(**changes: object) -> Callable[[ReleaseWorld], ReleaseRequest]:
    return lambda world: world.request(leaf=world.leaf(**changes))


def described(**changes: object) -> Callable[[ReleaseWorld], ReleaseRequest]:
    return lambda world: world.request(**changes)


Refusal = tuple[str, Callable[[ReleaseWorld], ReleaseRequest], type[BulkheadError]]
REFUSALS: list[Refusal] = [
    ("unattested", lambda world: world.request(edit=lambda _: b"{}"), EvidenceError),
    ("an operator that is not pinned", stranger, EvidencePolicyError),
    ("altered evidence", lambda world: world.request(edit=lambda data: data[:-9] + b"A" + data[-8:]), EvidenceError),
    ("another measurement", described(software="bulkhead-worker 0.0.9; sandbox: none"), EvidencePolicyError),
    ("a tier below the policy's", described(tier=Tier.MIG), EvidencePolicyError),
    ("another tenant's partition", described(tenant="tenant_01h455vb4pex5vsknk084sn02q"), EvidenceBindingError),
    ("another model's partition", described(model="other"), EvidenceBindingError),
    ("another digest's partition", described(model_digest=bytes(32)), EvidenceBindingError),
    ("a worker that serves already", described(phase=Phase.SERVING), EvidenceBindingError),
    ("evidence of another session", lambda world: world.request(context=b"other"), EvidenceBindingError),
    ("evidence for another nonce", other_nonce, EvidenceBindingError),
    ("a nonce used before", used_nonce, EvidenceBindingError),
    ("a nonce too old", old_nonce, EvidenceBindingError),
    ("a nonce of nobody's", lambda world: world.request(nonce=bytes(32)), EvidenceBindingError),
    ("expired evidence", expired, EvidenceExpiredError),
    ("keys that have ended", old_keys, EvidenceExpiredError),
    ("asked for another tenant", other_tenant, KeyReleaseError),
    ("denied by policy", decided(decision=Decision.DENY), KeyReleaseError),
    ("policy engine in error", decided(decision=Decision.ERROR), KeyReleaseError),
    ("decided for another model", decided(model="other"), KeyReleaseError),
    ("decided for another digest", decided(policy_input={"resource": {"properties": {}}}), KeyReleaseError),
    ("a decision of a forged log", forged_log, CheckpointError),
    ("a decision that is not in the log", not_in_the_log, InclusionError),
    ("a manifest of a stranger", signed_by(Ed25519PrivateKey.generate()), ModelSignatureError),
    ("no manifest", lambda world: world.request(manifest=b"{}"), ModelManifestError),
    ("a key encryption key that is not here", other_kek, ModelKeyError),
]


@pytest.mark.parametrize(("_name", "make", "error"), REFUSALS, ids=[item[0] for item in REFUSALS])
def test_everybody_else_gets_no_key(
    world: ReleaseWorld, _name: str, make: Callable[[ReleaseWorld], ReleaseRequest], error: type[BulkheadError]
) -> None:
    """Each refusal has its own error, and none releases anything or raises a floor."""
    request = make(world)
    before = (world.directory / "floors.json").exists()
    with pytest.raises(error):
        world.release(request)
    assert (world.directory / "floors.json").exists() == before


OWN_ROOT = b"\x51" * 32


@pytest.mark.parametrize(
    ("named", "listed", "released"),
    [
        (OWN_ROOT, {OWN_ROOT}, True),
        (OWN_ROOT, {b"\x52" * 32, OWN_ROOT}, True),
        (OWN_ROOT, None, True),
        (None, None, True),
        (None, {OWN_ROOT}, False),
        (b"\x52" * 32, {OWN_ROOT}, False),
        (OWN_ROOT, set(), False),
        (None, set(), False),
    ],
    ids=["own", "replaced", "open", "open, none", "none", "another's", "nothing listed", "nothing listed, none"],
)
def test_a_worker_of_no_listed_root_gets_no_key(
    world: ReleaseWorld, named: bytes | None, listed: set[bytes] | None, *, released: bool
) -> None:
    """Where the broker's policy lists tenant roots, boot evidence that names none of them releases nothing."""
    world.policy = dataclasses.replace(world.policy, tenant_roots=None if listed is None else frozenset(listed))
    request = world.request(tenant_root=named)
    if released:
        assert world.open(world.release(request), request)
        return
    with pytest.raises(EvidencePolicyError, match="tenant root"):
        world.release(request)
    assert not (world.directory / "floors.json").exists()


def test_simulated_workers_get_keys_in_development_mode_only(tmp_path: Path) -> None:
    """Whoever makes the broker decides that, never the request or the policy."""
    world = ReleaseWorld(tmp_path, kind=EvidenceKind.SIMULATED)
    with pytest.raises(SimulatedEvidenceError):
        world.release(world.request())
    world.broker = world.make_broker(development_mode=True)
    request = world.request()
    assert world.open(world.release(request), request)


@pytest.fixture(params=[Technology.SNP, Technology.TDX], ids=["snp", "tdx"])
def confidential(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ReleaseWorld, HardwareWorld]:
    """A release to a confidential worker with a GPU, and the hardware that proves it."""
    world = ReleaseWorld(tmp_path, now_s=NOW_S)
    hardware = HardwareWorld(directory=tmp_path / "cache", technology=request.param, gpus=(0,), keys=world.keys)
    world.software, world.policy = None, hardware.policy()
    world.broker = world.make_broker(hardware=hardware.verifier())
    return world, hardware


def hardware_request(world: ReleaseWorld, hardware: HardwareWorld) -> ReleaseRequest:
    """Return an honest request with hardware evidence."""
    leaf, nonce = world.leaf(), world.broker.challenge()
    evidence = hardware.evidence(
        requests=[AttestationRequest(nonce=nonce, context=world.terms(world.sealed, leaf).context)],
        not_after_s=world.now_s + 600,
        phase=Phase.BOOT,
        tenant=world.tenant,
        model="tiny",
        model_digest=world.sealed.manifest().model_digest,
    )
    return dataclasses.replace(world.request(leaf=leaf), nonce=nonce, evidence=evidence)


def test_a_confidential_worker_gets_its_key_by_its_measurement(
    confidential: tuple[ReleaseWorld, HardwareWorld],
) -> None:
    """SEV-SNP or TDX with an attested GPU, under a policy that names what was measured."""
    world, hardware = confidential
    request = hardware_request(world, hardware)
    released = world.release(request)
    assert released.worker.tier is Tier.CONFIDENTIAL
    assert world.open(released, request)


def test_another_measurement_gets_no_key(confidential: tuple[ReleaseWorld, HardwareWorld]) -> None:
    """The same hardware with software that the policy does not name: refused, and no floor is raised."""
    world, hardware = confidential
    snp = dataclasses.replace(hardware.policy().snp, measurements=frozenset({b"\x13" * 48}))
    image = dataclasses.replace(next(iter(hardware.policy().tdx.images or ())), mr_td=b"\x13" * 48)
    tdx = dataclasses.replace(hardware.policy().tdx, images=(image,))
    world.policy = hardware.policy(snp=snp, tdx=tdx)
    with pytest.raises(EvidencePolicyError) as caught:
        world.release(hardware_request(world, hardware))
    assert obligation_of(caught.value) is not None
    assert not (world.directory / "floors.json").exists()


def test_an_older_version_is_never_released_again(world: ReleaseWorld) -> None:
    """Also by a broker that was restarted; the newer version still is, as often as asked."""
    old, world.sealed = world.sealed, world.seal(2)
    for _ in range(2):
        world.release(world.request())
    world.broker = world.make_broker()
    with pytest.raises(ModelRolledBackError) as caught:
        world.release(world.request(sealed=old))
    assert caught.value.details == {"version": "1", "floor": "2"}
    world.release(world.request())


def test_a_refusal_raises_no_floor(world: ReleaseWorld) -> None:
    """A manifest of a high version with evidence that does not hold cannot lock out the versions in use."""
    high = world.seal(9)
    with pytest.raises(EvidencePolicyError):
        world.release(world.request(sealed=high, software="evil"))
    world.release(world.request())


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"floors":{"tiny":0}}', b'{"floors":{"tiny":"9"}}', b"\xff"])
def test_a_broker_that_lost_its_floors_does_not_start(world: ReleaseWorld, damage: bytes) -> None:
    """Its file missing means a new broker; its file damaged means a person must look."""
    (world.directory / "floors.json").write_bytes(damage)
    with pytest.raises(KeyBrokerError):
        world.make_broker()


def test_floors_that_cannot_be_noted_release_nothing(world: ReleaseWorld) -> None:
    """A full or lost disk closes the broker; the key does not leave first."""
    (world.directory / ".floors.json.new").mkdir()
    with pytest.raises(KeyBrokerError):
        world.release(world.request())
    (world.directory / ".floors.json.new").rmdir()
    world.release(world.request())
    assert json.loads((world.directory / "floors.json").read_bytes()) == {"floors": {"tiny": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": bytes(32)},
        {"manifest_digest": bytes(32)},
        {"version": 2},
        {"evidence_digest": bytes(32)},
        {"decision_leaf_hash": bytes(32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_released_key_opens_for_its_own_terms_only(world: ReleaseWorld, change: dict[str, object]) -> None:
    """A key for another nonce, manifest, version, evidence or decision does not open in the worker."""
    request = world.request()
    released = world.release(request)
    with pytest.raises(SealError):
        world.open(released, request, **change)


def test_a_released_key_opens_in_its_worker_only(world: ReleaseWorld) -> None:
    """Whoever relays it (control plane, agent, network) has no use for it, nor has another key of the same worker."""
    request = world.request()
    released = world.release(request)
    world.keys = WorkerKeys.generate(authority="other.example", now_s=world.now_s)
    with pytest.raises(SealError):
        world.open(released, request)


def test_open_requests_are_bounded(world: ReleaseWorld) -> None:
    """Nonces that nobody comes back for are refused beyond a limit, and forgotten after two minutes."""
    for _ in range(4096):
        world.broker.challenge()
    with pytest.raises(ExhaustedError):
        world.broker.challenge()
    world.monotonic_s += 121
    world.release(world.request())
