"""Sessions on an agent in a confidential guest: the control plane admits, appraises and tickets hardware evidence."""

import dataclasses
import time
from pathlib import Path

import grpc
import pytest

from bulkhead.attestation import EvidenceBatch, EvidenceKind, HardwareVerifier, Tier, TrustPolicy, VerifiedWorker
from bulkhead.attestation.collateral import CollateralPolicy
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.parts import ProcessorPart
from bulkhead.attestation.policy import Technology
from bulkhead.protocol.grant import Expectation, SessionOffer, TrustAnchors, verify_grant
from bulkhead.transparency.receipt import AuditReceipt
from bulkhead.v1 import common_pb2
from control_plane.services.hardware import HardwareTrust
from control_plane.services.settings import FleetSettings
from tests.simulator import snp_machine
from tests.simulator.fake_agent import inventory
from tests.simulator.hardware_world import certificate_table, roots
from tests.simulator.session_world import FAST, MODEL, code_of, request, session_world
from tests.simulator.snp_machine import Machine

ADMITTING = dataclasses.replace(FAST, allow_simulated=False, hardware_policy=Path("given-to-the-core"))
GUEST = inventory(1, simulated=False, evidence_kind="hardware", tiers=["process"], gpus=[], mig_profiles=[])


def trust(**changes):
    """A platform's policy for the guest, under the test roots."""
    cache = CollateralCache(store=None, policy=CollateralPolicy(), now_s=lambda: int(time.time()))
    policy = TrustPolicy(snp=snp_machine.policy(**changes))
    return HardwareTrust(policy=policy, verifier=HardwareVerifier(collateral=cache, roots=roots()))


def quoted(callers, *, keyset, descriptor, not_after_s):
    """What the guest's hardware says, through the container of the protocol."""
    batch = EvidenceBatch(callers, keyset=keyset)
    statement = batch.statement(device=b"", descriptor=descriptor, not_after_s=not_after_s)
    part = ProcessorPart(
        technology=Technology.SNP,
        quote=Machine().report(changes=[(0x50, statement)]),
        auxiliary=certificate_table(Machine()),
    )
    return batch.evidence(
        kind=EvidenceKind.HARDWARE, descriptor=descriptor, device=b"", not_after_s=not_after_s, quote=part.encode()
    )


async def guest_of(world):
    """An agent in the guest."""
    agent = await world.agent(inventory=GUEST)
    agent.quoted = quoted
    return agent


async def test_session_rests_on_hardware(tmp_path):
    """The open succeeds, the grant says hardware, and the tenant's SDK verifies it under its own policy."""
    async with session_world(tmp_path, fleet=ADMITTING, hardware=trust()) as world:
        acme = await world.tenant("acme", minimum_tier=Tier.PROCESS)
        await guest_of(world)
        message = request(minimum_tier=common_pb2.TIER_PROCESS)
        grant = (await world.open("acme", message)).grant
        vkey = world.audit.vkey((await world.audit.ensure_log(acme.tenant_id)).log_id)

        assert (grant.evidence_kind, grant.simulated) == (common_pb2.EVIDENCE_KIND_HARDWARE, False)
        own = trust()
        verified = verify_grant(
            SessionOffer(
                session=grant.session_id, ticket=grant.ticket, authority=grant.endpoint.authority,
                worker_certificate=grant.worker_certificate, evidence=grant.evidence, model_digest=grant.model_digest,
                policy_digest=grant.policy_digest,
                decision=AuditReceipt(
                    leaf=grant.decision.leaf, index=grant.decision.index, proof=tuple(grant.decision.proof),
                    checkpoint=grant.decision.checkpoint,
                ),
            ),
            expectation=Expectation(
                tenant=acme.tenant_id, request_id=message.request_id, model=MODEL, minimum_tier=Tier.PROCESS,
                nonce=message.nonce, cnf=message.session_public_key,
            ),
            anchors=TrustAnchors(
                log_vkey=vkey, ticket_issuers=[world.issuer.public_key], hardware=own.verifier,
                trust_policy=dataclasses.replace(own.policy, minimum_tier=Tier.PROCESS),
            ),
            now_s=int(time.time()),
        )  # fmt: skip
        assert isinstance(verified.worker, VerifiedWorker)
        assert verified.worker.kind is EvidenceKind.HARDWARE
        assert verified.worker.hardware.measurement == snp_machine.MEASUREMENT


async def test_guest_that_the_platform_does_not_know_gets_no_session(tmp_path):
    """Genuine hardware of a guest that the platform's policy does not name: no ticket exists."""
    async with session_world(tmp_path, fleet=ADMITTING, hardware=trust(measurements=frozenset())) as world:
        await world.tenant("acme", minimum_tier=Tier.PROCESS)
        await guest_of(world)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.open("acme", request(minimum_tier=common_pb2.TIER_PROCESS))
        assert code_of(error.value) == "EVIDENCE_POLICY"


async def test_without_a_policy_no_guest_is_admitted(tmp_path):
    """A platform that names no policy for hardware evidence admits no agent that would issue it."""
    async with session_world(tmp_path, fleet=dataclasses.replace(ADMITTING, hardware_policy=None)) as world:
        agent = await world.agent(inventory=GUEST)
        assert agent.failure is not None
        assert code_of(agent.failure) == "EVIDENCE_POLICY"


def test_settings_read_the_policy(tmp_path):
    """The configuration names the policy's file, which is read when the process starts."""
    (tmp_path / "trust.toml").write_text("")
    trusted = HardwareTrust.from_settings(FleetSettings(hardware_policy=tmp_path / "trust.toml"))

    assert trusted is not None
    assert trusted.policy == TrustPolicy()
    assert HardwareTrust.from_settings(FleetSettings()) is None
