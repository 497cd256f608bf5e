"""Platform custody with confidential workers: the key goes by what `fleet.hardware_policy` names, and the log tells."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from audit.model import Appended
from audit.records import Decision, PlatformReason
from bulkhead.attestation import EvidenceKind, Phase
from bulkhead.attestation.policy import Technology
from bulkhead.errors import BulkheadError
from bulkhead.models import read_manifest
from bulkhead.transparency.merkle import leaf_hash
from control_plane.domain.fleet import Attested, LoadOrder, PartitionCreated
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.domain.tenancy import Custody, SealedModel
from control_plane.domain.tiers import Tier
from control_plane.placement.place import Placement
from control_plane.services.hardware import HardwareTrust
from control_plane.services.key_release import KeyReleaser, ReleaseAsked
from control_plane.services.lifecycle import platform_origin
from control_plane.services.settings import FleetSettings
from tests.simulator.audit_world import stamper
from tests.simulator.hardware_world import NOW_S, HardwareWorld
from tests.simulator.release_world import ReleaseWorld

DIGEST_CHANGED = b"\x13" * 48


@dataclass
class Log:
    """An audit log that keeps what is written and proves the one decision."""

    world: ReleaseWorld
    leaf: bytes
    records: list = field(default_factory=list)

    def __post_init__(self):
        self.audit = self
        self._stamps = stamper(start_us=NOW_S * 1_000_000)

    def stamp(self):
        """Return the next stamp."""
        return self._stamps.stamp()

    def vkey(self, _log_id):
        """Return the log's key."""
        return self.world.log.vkey

    async def prove(self, _decision):
        """Return the decision's proof."""
        return self.world.audit_receipt(self.leaf)

    async def write(self, record):
        """Keep a record."""
        self.records.append(record.fields)

    report = write


@dataclass
class Guest:
    """The agent of a confidential guest; its one worker boots, and takes a key when it is given one."""

    world: ReleaseWorld
    hardware: HardwareWorld
    orders: list = field(default_factory=list)

    def __post_init__(self):
        self.inventory = SimpleNamespace(evidence_kind="hardware")
        self.row = SimpleNamespace(evidence_public_key=self.world.evidence_issuer.public_key)
        self.commands = self

    async def run(self, order, *, partition_id, fence, timeout_s, progress=None):
        """Do what is ordered."""
        self.orders.append(order)
        if isinstance(order, LoadOrder):
            return PartitionCreated(authority="a", worker_certificate=b"c", keyset=b"k", context_length=1)
        evidence = self.hardware.evidence(
            requests=[SimpleNamespace(nonce=order.nonce, context=order.session_context)],
            not_after_s=order.not_after_unix_s,
            phase=Phase.BOOT,
            tenant=self.world.tenant,
            model="tiny",
            model_digest=self.world.sealed.manifest().model_digest,
        )
        return Attested(evidence=evidence, keyset=b"", worker_certificate=b"")


@dataclass
class Platform:
    """What a release of platform custody takes."""

    world: ReleaseWorld
    hardware: HardwareWorld

    def __post_init__(self):
        self.stand_on(self.world.leaf())

    def deny(self):
        """Let the recorded decision be a denial."""
        self.stand_on(self.world.leaf(decision=Decision.DENY))

    def stand_on(self, leaf):
        """Ask for the key on the strength of a decision's record."""
        self.log, self.guest = Log(self.world, leaf), Guest(self.world, self.hardware)
        manifest = self.world.sealed.manifest()
        partition = Partition(
            partition_id="part_1", tenant_id=self.world.tenant, model="tiny", model_digest=manifest.model_digest,
            placement=Placement(agent_id="agent-1", tier=Tier.CONFIDENTIAL, gpu_uuids=self.hardware.uuids),
            region="eu-central", simulated=False, share_key="", exclusive=False, memory_mib=1, max_output_tokens=1,
            state=PartitionState.CREATING, version=1, created_us=0, changed_us=0,
        )  # fmt: skip
        sealed = SealedModel(
            custody=Custody.PLATFORM,
            manifest=read_manifest(self.world.sealed.directory),
            manifest_digest=manifest.digest,
            version=manifest.version,
        )
        decision = Appended(log_id=1, index=1, leaf_hash=leaf_hash(leaf), record_id="rec_1", leaf=leaf)
        self.asked = ReleaseAsked(
            partition=partition, sealed=sealed, decision=decision, origin=platform_origin(PlatformReason.PLACEMENT)
        )

    async def unlock(self, trust):
        """Release under ``trust`` and return the order that brings the key."""
        self.world.broker = self.world.make_broker(hardware=trust.verifier if trust else None)
        releaser = KeyReleaser(
            journal=self.log, settings=FleetSettings(), platform=self.world.broker, tenants=None, hardware=trust,
            now_us=lambda: NOW_S * 1_000_000,
        )  # fmt: skip
        await releaser.unlock(self.guest, self.asked, lambda _phase, _text: None)
        return self.guest.orders[-1]

    def trust(self, **changes):
        """Return what `fleet.hardware_policy` names."""
        return HardwareTrust(policy=self.hardware.policy(**changes), verifier=self.hardware.verifier())


@pytest.fixture(params=[Technology.SNP, Technology.TDX], ids=["snp", "tdx"])
def platform(request, tmp_path: Path):
    """A platform with one confidential guest."""
    world = ReleaseWorld(tmp_path, now_s=NOW_S)
    world.software = None
    return Platform(
        world, HardwareWorld(directory=tmp_path / "cache", technology=request.param, gpus=(0,), keys=world.keys)
    )


async def test_a_confidential_worker_that_the_policy_names_gets_its_key(platform) -> None:
    """The measurement is one of `fleet.hardware_policy`: the key opens in the worker, and the log has the release."""
    order = await platform.unlock(platform.trust())
    world = platform.world
    request = SimpleNamespace(nonce=order.nonce, evidence=b"", decision=SimpleNamespace(leaf=platform.log.leaf))
    released = SimpleNamespace(sealed_key=order.sealed_key)
    assert world.open(released, request, evidence_digest=order.evidence_digest)
    (record,) = platform.log.records
    assert (record.action, record.decision, record.model) == ("key.released", "allow", "tiny")


async def test_a_worker_of_another_measurement_gets_none_and_the_log_says_so(platform) -> None:
    """Genuine hardware with software that the policy does not name: EVIDENCE_POLICY, a denial, and nothing is sent."""
    snp = replace(platform.hardware.policy().snp, measurements=frozenset({DIGEST_CHANGED}))
    image = replace(next(iter(platform.hardware.policy().tdx.images or ())), mr_td=DIGEST_CHANGED)
    tdx = replace(platform.hardware.policy().tdx, images=(image,))
    await refused(platform, platform.trust(snp=snp, tdx=tdx))


async def test_without_a_policy_confidential_workers_get_no_keys(platform) -> None:
    """A platform that names no policy for hardware evidence releases nothing on it, and the log says so."""
    await refused(platform, None)


async def test_an_unattested_worker_gets_none_and_the_log_says_so(platform) -> None:
    """What is no evidence, or evidence for another nonce, is refused by name, and the log has the denial."""
    honest = platform.hardware.evidence
    platform.hardware.evidence = lambda **_: b"{}"
    await refused(platform, platform.trust(), "EVIDENCE_INVALID")
    platform.log.records.clear()
    platform.hardware.evidence = lambda *, requests, **fields: honest(
        requests=[SimpleNamespace(nonce=bytes(32), context=requests[0].context)], **fields
    )
    await refused(platform, platform.trust(), "EVIDENCE_BINDING")


async def test_a_decision_that_denies_releases_nothing_and_the_log_says_so(platform) -> None:
    """The broker reads the decision itself: a record of a denial opens nothing, though everything else is genuine."""
    platform.deny()
    await refused(platform, platform.trust(), "KEY_RELEASE_DENIED")


async def test_the_agents_own_key_vouches_for_no_hardware(platform) -> None:
    """An operator's signature in place of the quote does not pass where the agent is one of a confidential guest."""
    platform.hardware.evidence = lambda *, requests, not_after_s, **_: platform.world.evidence_issuer.issue(
        requests, keyset=platform.world.keys.keyset.encoded, not_after_s=not_after_s,
        descriptor=platform.world.boot_descriptor(),
    )[0]  # fmt: skip
    assert platform.world.kind is EvidenceKind.OPERATOR
    await refused(platform, platform.trust())


@pytest.mark.parametrize("shown", [None, b"\x52" * 32], ids=["none", "another's"])
async def test_a_worker_of_another_root_than_its_partitions_gets_none(platform, shown) -> None:
    """Where the partition was started for a tenant root, boot evidence names it, or the key goes nowhere."""
    own, honest = b"\x51" * 32, platform.hardware.evidence
    platform.asked = replace(platform.asked, partition=replace(platform.asked.partition, tenant_root=own))
    platform.hardware.evidence = lambda **fields: honest(**fields, tenant_root=shown)
    await refused(platform, platform.trust(tenant_roots=None if shown is None else frozenset({shown})))
    platform.hardware.evidence = lambda **fields: honest(**fields, tenant_root=own)
    assert isinstance(await platform.unlock(platform.trust()), LoadOrder)


async def refused(platform, trust, code="EVIDENCE_POLICY") -> None:
    with pytest.raises(BulkheadError) as error:
        await platform.unlock(trust)
    assert error.value.code == code
    (record,) = platform.log.records
    assert (record.action, record.decision) == ("key.refused", "deny")
    assert record.reasons[0]["code"] == code
    assert not any(isinstance(order, LoadOrder) for order in platform.guest.orders)
