"""The agent's evidence port: hardware behind it quotes once for all who wait, and what it issues verifies."""

import asyncio
import dataclasses
import threading

import pytest

from bulkhead.attestation import (
    AttestationRequest,
    EvidenceKind,
    HardwareVerifier,
    Tier,
    TrustPolicy,
    VerifiedWorker,
    appraise,
)
from bulkhead.attestation.collateral import CollateralKind, CollateralPolicy
from bulkhead.attestation.collateral.cache import Answer, CollateralCache
from bulkhead.attestation.collateral.store import CollateralStore
from bulkhead.attestation.policy import Technology
from bulkhead.client.config import TicketIssuerPin
from bulkhead.client.opening import ReceivedGrant
from bulkhead.client.trust import Trust
from bulkhead.errors import (
    ConfigError,
    EvidenceBindingError,
    EvidenceError,
    EvidencePolicyError,
    InternalError,
    SimulatedEvidenceError,
    TenantRootRequiredError,
    UnavailableError,
)
from bulkhead.protocol.context import session_context
from bulkhead.transparency.merkle import leaf_hash
from data_plane.evidence.issuing import HardwareEvidence
from data_plane.evidence.nvml import GpuQuote
from data_plane.evidence.tsm import TsmQuotes
from tests.simulator.fake_kernel import FakeKernel
from tests.simulator.hardware_world import CONTEXT, NONCE, NOW_S, HardwareWorld, descriptor, keys_of, roots
from tests.simulator.sealed_world import MODEL_DIGEST, POLICY_DIGEST, World

KEY = bytes(32)


class Gpus:
    """The world's GPUs behind the port; counts and may hold up what is asked."""

    def __init__(self, world):
        self.world = world
        self.asked = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.error = None

    def report(self, uuid, nonce):
        """A report of the GPU of that name."""
        self.asked.append((uuid, nonce))
        self.started.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        part = self.world.gpu(int(uuid.removeprefix("GPU-")), nonce)
        return GpuQuote(uuid=part.uuid, report=part.report, certificates=part.certificates)


class Host:
    """A confidential guest: kernel, GPUs, and the port over them."""

    def __init__(self, tmp_path, technology):
        self.world = HardwareWorld(directory=tmp_path / "cache", technology=technology)
        (tmp_path / "tsm").mkdir()
        provider = {Technology.SNP: "sev_guest", Technology.TDX: "tdx_guest"}[technology]
        self.kernel = FakeKernel(root=tmp_path / "tsm", provider=provider, firmware=self._firmware)
        self.gpus = Gpus(self.world)
        self.port = HardwareEvidence(processor=TsmQuotes(self.kernel), gpus=self.gpus, public_key=KEY)
        self.descriptor = descriptor(self.world.uuids)

    def _firmware(self, report_data, level):
        part = self.world.processor(report_data)
        return part.quote, part.auxiliary

    async def issue(self, *, nonce=NONCE, context=CONTEXT, keyset=None, about=None, not_after_s=NOW_S + 600):
        """Ask the port as an agent does."""
        return await self.port.issue(
            AttestationRequest(nonce=nonce, context=context),
            keyset=keyset if keyset is not None else self.world.keys.keyset.encoded,
            descriptor=about if about is not None else self.descriptor,
            not_after_s=not_after_s,
        )

    def check(self, issued, *, nonce=NONCE, context=CONTEXT):
        """Verify as a tenant does."""
        return appraise(
            issued.evidence, nonce=nonce, context=context, trust_policy=self.world.policy(), now_s=NOW_S,
            hardware=self.world.verifier(),
        )  # fmt: skip


@pytest.fixture(params=[Technology.SNP, Technology.TDX], ids=["snp", "tdx"])
def host(request, tmp_path):
    """A host of each technology."""
    return Host(tmp_path, request.param)


async def test_what_the_hardware_issues_verifies(host):
    """From kernel and driver to the tenant: a verified confidential worker."""
    worker = host.check(await host.issue())

    assert isinstance(worker, VerifiedWorker)
    assert (host.port.kind, worker.kind, worker.tier) == (
        EvidenceKind.HARDWARE,
        EvidenceKind.HARDWARE,
        Tier.CONFIDENTIAL,
    )
    assert host.port.public_key == KEY
    assert host.kernel.entries == []


async def test_callers_that_wait_share_the_next_quote(host):
    """While one quote is in flight all who come wait, and the next quote serves them all."""
    host.gpus.gate.clear()
    first = asyncio.create_task(host.issue())
    assert await asyncio.to_thread(host.gpus.started.wait, 10)
    waiting = [
        asyncio.create_task(host.issue(nonce=bytes([n]) * 32, context=bytes([n]), not_after_s=NOW_S + 600 - n))
        for n in range(1, 6)
    ]
    await asyncio.sleep(0)
    host.gpus.gate.set()

    host.check(await first)
    issued = await asyncio.gather(*waiting)
    assert host.kernel.quotes == 2
    assert {item.not_after_s for item in issued} == {NOW_S + 595}
    for n, item in enumerate(issued, start=1):
        host.check(item, nonce=bytes([n]) * 32, context=bytes([n]))
        with pytest.raises(EvidenceBindingError):
            host.check(item, nonce=bytes([9]) * 32, context=bytes([n]))


async def test_partitions_share_no_quote(host):
    """Callers of another worker or partition get a quote of their own."""
    other = keys_of("part-2.tray-1.example", 5).keyset.encoded
    host.gpus.gate.clear()
    tasks = [
        asyncio.create_task(work)
        for work in (host.issue(), host.issue(keyset=other), host.issue(about=descriptor(("GPU-0",))))
    ]
    await asyncio.sleep(0)
    host.gpus.gate.set()
    await asyncio.gather(*tasks)

    assert host.kernel.quotes == 3


async def test_gpus_answer_the_batch_before_the_quote(host):
    """The order of work is GPU reports first, each asked once per batch with the batch's nonce."""
    await host.issue()

    assert [uuid for uuid, _ in host.gpus.asked] == ["GPU-0", "GPU-1"]
    assert len({nonce for _, nonce in host.gpus.asked}) == 1


@pytest.mark.parametrize("error", [UnavailableError("busy"), ConfigError("off")])
async def test_failure_reaches_every_caller_and_the_next_is_tried_again(host, error):
    """A quote that fails fails for those who shared it, and for nobody after."""
    host.gpus.error = error
    results = await asyncio.gather(host.issue(), host.issue(nonce=b"\x01" * 32), return_exceptions=True)
    assert all(isinstance(result, type(error)) for result in results)

    host.gpus.error = None
    host.check(await host.issue())


async def test_defect_of_a_collector_leaves_nobody_waiting(host):
    """An unforeseen error is an internal one for the callers, never silence."""
    host.gpus.error = ZeroDivisionError()

    with pytest.raises(InternalError):
        async with asyncio.timeout(5):
            await host.issue()
    with pytest.raises(ZeroDivisionError):
        await host.port._working


async def test_caller_who_left_is_passed_over(host):
    """A caller who gives up changes nothing for the others."""
    host.gpus.gate.clear()
    first = asyncio.create_task(host.issue())
    await asyncio.sleep(0.05)
    left, stays = asyncio.create_task(host.issue()), asyncio.create_task(host.issue(nonce=b"\x01" * 32))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    host.gpus.gate.set()

    await first
    host.check(await stays, nonce=b"\x01" * 32)


async def test_hardware_vouches_for_nothing_simulated(host):
    """A partition with a simulated part gets no hardware evidence."""
    with pytest.raises(EvidenceError):
        await host.issue(about=descriptor(host.world.uuids, simulated=True))


class HardwareSession(World):
    """A session whose worker's evidence the host's hardware issues, through the agent's port."""

    def __init__(self, host):
        super().__init__(kind=EvidenceKind.OPERATOR, tier=Tier.CONFIDENTIAL, now_s=NOW_S, rooted=True)
        self.host = host

    def descriptor(self):
        """The partition, with the host's GPUs."""
        return dataclasses.replace(super().descriptor(), gpus=self.host.world.uuids)

    def evidence(self, leaf, descriptor=None):
        """Evidence from the port for this session's nonce and context."""
        context = session_context(
            tenant=self.tenant, session=self.session, cnf=self.cnf, model_digest=MODEL_DIGEST,
            decision_leaf_hash=leaf_hash(leaf), policy_digest=POLICY_DIGEST,
        )  # fmt: skip
        issue = self.host.issue(
            nonce=self.nonce, context=context, keyset=self.keys.keyset.encoded, about=descriptor or self.descriptor()
        )
        return asyncio.run(issue).evidence

    def received(self, **changes):
        """What a control plane hands out."""
        offer = dataclasses.replace(self.offer(), **changes)
        return ReceivedGrant(offer=offer, address="host:1", ticket_issuer=self.issuer.public_key, obligations=())

    def trust(self, **changes):
        """The tenant's own configuration: its policy, and the test roots in place of the vendors'."""
        values = {
            "tenant_id": self.tenant,
            "log_vkey": self.log.vkey,
            "ticket_issuer": TicketIssuerPin(fingerprints=frozenset({self.issuer.fingerprint})),
            "trust_policy": self.host.world.policy(),
            "development_mode": False,
            "model_digests": {},
            "tenant_roots": (self.tenant_root,),
            "hardware": self.host.world.verifier(),
        }
        return Trust(**{**values, **changes})


def test_client_verifies_hardware(host):
    """From the host's hardware to the SDK: decision, evidence, keys, descriptor and ticket hold together."""
    session = HardwareSession(host)
    received, trust = session.received(), session.trust()

    asyncio.run(trust.prepare(received))
    grant = trust.verify(received, expectation=session.expectation(), now_s=NOW_S)

    assert isinstance(grant.worker, VerifiedWorker)
    assert (grant.worker.kind, grant.claims.tier) == (EvidenceKind.HARDWARE, Tier.CONFIDENTIAL)
    assert not grant.simulated
    assert grant.keyset.key_id == session.keys.key_id
    assert [gpu.uuid for gpu in grant.worker.hardware.gpus] == ["GPU-0", "GPU-1"]


def test_client_without_a_root_refuses_tier_confidential(host):
    """All of the hardware's evidence holds, and a tenant without a root takes no session at that tier."""
    session = HardwareSession(host)
    session.rooted = False
    with pytest.raises(TenantRootRequiredError, match="confidential"):
        session.trust(tenant_roots=()).verify(session.received(), expectation=session.expectation(), now_s=NOW_S)


def test_client_without_a_hardware_policy_refuses_it(host):
    """The strict default names no guest: the same grant is refused by a tenant who named none."""
    session = HardwareSession(host)

    with pytest.raises(EvidencePolicyError):
        session.trust(trust_policy=TrustPolicy()).verify(
            session.received(), expectation=session.expectation(), now_s=NOW_S
        )


def test_client_refuses_a_grant_of_another_session(host):
    """Hardware evidence of one session does not carry another's ticket."""
    session, other = HardwareSession(host), HardwareSession(host)
    other.nonce = bytes(32)
    received = session.received(evidence=other.offer().evidence)

    with pytest.raises(EvidenceBindingError):
        session.trust().verify(received, expectation=session.expectation(), now_s=NOW_S)


def test_preparing_fetches_what_is_missing_where_allowed(host, tmp_path):
    """`prepare` has a service asked for what is not at hand, off the event loop, and verification then finds it."""
    session = HardwareSession(host)
    pieces = {item.name: (data, chain) for item, data, chain in host.world.collateral()}
    asked = []

    class Service:
        def fetch(self, item):
            asked.append((item.kind, threading.current_thread() is threading.main_thread()))
            data, chain = pieces[item.name]
            return Answer(data=data, chain=chain, source=item.url)

    rules = CollateralPolicy(fetch=frozenset(CollateralKind))
    cache = CollateralCache(
        store=CollateralStore(tmp_path / "empty"), policy=rules, now_s=lambda: NOW_S, fetcher=Service()
    )
    trust = session.trust(
        trust_policy=host.world.policy(collateral=rules), hardware=HardwareVerifier(collateral=cache, roots=roots())
    )
    received = session.received()
    asyncio.run(trust.prepare(received))
    before = len(asked)

    grant = trust.verify(received, expectation=session.expectation(), now_s=NOW_S)

    assert isinstance(grant.worker, VerifiedWorker)
    assert before > 5
    assert not any(main for _, main in asked[:before])
    assert len(asked) == before


def test_nothing_is_fetched_that_the_policy_does_not_allow(host, tmp_path):
    """A policy that allows no fetch has nobody asked, whatever is missing."""
    session = HardwareSession(host)

    class Service:
        def fetch(self, item):
            raise AssertionError(f"asked for {item.url}")

    cache = CollateralCache(
        store=CollateralStore(tmp_path / "empty"), policy=CollateralPolicy(), now_s=lambda: NOW_S, fetcher=Service()
    )
    trust = session.trust(hardware=HardwareVerifier(collateral=cache, roots=roots()))
    asyncio.run(trust.prepare(session.received()))

    with pytest.raises(EvidenceError, match="is missing: https://"):
        trust.verify(session.received(), expectation=session.expectation(), now_s=NOW_S)


def test_simulated_evidence_is_refused_beside_a_hardware_policy(host):
    """A client that accepts hardware does not take a simulator's word for it, in development mode neither."""
    simulated = World(kind=EvidenceKind.SIMULATED, tier=Tier.CONFIDENTIAL, now_s=NOW_S)
    received = ReceivedGrant(
        offer=simulated.offer(), address="host:1", ticket_issuer=simulated.issuer.public_key, obligations=()
    )
    values = {"tenant_id": simulated.tenant, "log_vkey": simulated.log.vkey, "model_digests": {}}
    pin = TicketIssuerPin(fingerprints=frozenset({simulated.issuer.fingerprint}))

    for development_mode, error in ((False, SimulatedEvidenceError), (True, EvidencePolicyError)):
        trust = Trust(
            **values, ticket_issuer=pin, trust_policy=host.world.policy(), development_mode=development_mode,
            hardware=host.world.verifier(),
        )  # fmt: skip
        with pytest.raises(error):
            trust.verify(received, expectation=simulated.expectation(), now_s=NOW_S)
