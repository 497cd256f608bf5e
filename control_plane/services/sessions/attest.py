"""Fresh evidence of a worker for one session, appraised before any ticket exists.

Obligations of :meth:`Attestor.appraise`; a tenant's SDK checks the same again, and trusts nothing of this:

1. The evidence answers this client's nonce and this session's context, and is of the kind that the agent reports.
2. It is signed with the key that the agent showed under its certificate (pinned in configuration, where it is), or
   quoted by hardware that the platform's own policy accepts.
3. Tenant, its root, partition, agent, model, tier, region and simulation in the descriptor are those that were ordered,
   and the worker takes this control plane's tickets.
4. The keyset is sound and alive, is the one the evidence covers, and holds the key of the TLS certificate.
5. The appraised tier is at least what was decided.
"""

import asyncio
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from bulkhead.attestation import (
    AppraisedWorker,
    EvidenceKind,
    SimulatedWorker,
    TrustPolicy,
    appraise,
)
from bulkhead.attestation.policy import MAX_EVIDENCE_AGE_S
from bulkhead.encoding import b64url_encode
from bulkhead.errors import (
    AgentUnavailableError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
)
from bulkhead.protocol.context import session_context
from bulkhead.sealing import Keyset
from control_plane.domain.fleet import Attested, AttestOrder
from control_plane.domain.partitions import Partition
from control_plane.domain.sessions import Session
from control_plane.domain.tiers import Tier
from control_plane.services.agents import Agent
from control_plane.services.fleet import Fleet
from control_plane.services.hardware import HardwareTrust
from control_plane.services.issuers import Issuers
from control_plane.services.pool import certificate_der
from control_plane.services.sessions.decide import Allowed, Decided
from control_plane.services.settings import FleetSettings

__all__ = ["AttestedWorker", "Attestor"]

US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedWorker:
    """A worker whose evidence was appraised for one session.

    Attributes:
        worker: the appraisal.
        keyset: the worker's keys.
        evidence: as the agent sent it.
        certificate: DER.
        kind: of the evidence.
        ingress_address: host:port of the tray's ingress.
        authority: the worker's TLS server name.
    """

    worker: AppraisedWorker
    keyset: Keyset
    evidence: bytes
    certificate: bytes
    kind: EvidenceKind
    ingress_address: str
    authority: str

    @property
    def simulated(self) -> bool:
        """Whether any part is simulated."""
        return isinstance(self.worker, SimulatedWorker)

    @property
    def tier(self) -> Tier:
        """The tier that the evidence shows."""
        return self.worker.tier


class Attestor:
    """Asks agents for evidence and appraises it.

    Args:
        fleet: the agents.
        issuers: of this control plane's tickets.
        settings: time-outs; whether simulated evidence may be appraised at all.
        hardware: judges hardware evidence; None appraises none.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        issuers: Issuers,
        settings: FleetSettings,
        hardware: HardwareTrust | None,
        now_us: Callable[[], int],
    ) -> None:
        self._hardware = hardware
        self._fleet = fleet
        self._issuers = issuers
        self._settings = settings
        self._now_us = now_us

    async def ask(
        self, partition: Partition, session: Session, allowed: Allowed, *, nonce: bytes, not_after_s: int
    ) -> Attested:
        """Return what the agent sends as evidence of ``partition`` for one session; nothing of it is appraised.

        Args:
            partition: runs.
            session: for which.
            allowed: binds the evidence to the decision's record and bundle.
            nonce: the client's 32 bytes.
            not_after_s: Unix seconds; the evidence need not hold longer.

        Raises:
            AgentUnavailableError: the agent did not answer.
            BulkheadError: what its failure says.
        """
        outcome = await self._fleet.agent(partition.agent_id).commands.run(
            AttestOrder(
                nonce=nonce, session_context=_context(partition, session, allowed), not_after_unix_s=not_after_s
            ),
            partition_id=partition.partition_id,
            fence=partition.version,
            timeout_s=self._settings.attest_timeout_s,
        )
        if not isinstance(outcome, Attested):
            raise AgentUnavailableError("the node agent answered an attestation with something else")
        return outcome

    async def appraise(
        self, outcome: Attested, partition: Partition, session: Session, decided: Decided, *, nonce: bytes
    ) -> AttestedWorker:
        """Return the appraised worker of ``partition`` for one session, from what :meth:`ask` returned for the same.

        Raises:
            EvidenceError: an obligation does not hold; nobody may be given a ticket for this worker.
            AgentUnavailableError: the agent has gone meanwhile.
        """
        agent = self._fleet.agent(partition.agent_id)
        context, now_s = _context(partition, session, decided), self._now_us() // US_PER_S
        worker = await self._appraise(outcome, agent, decided, nonce=nonce, context=context, now_s=now_s)  # 1, 2, 5
        self._check_descriptor(worker, partition, agent)  # 3
        certificate = certificate_der(outcome.worker_certificate)
        return AttestedWorker(
            worker=worker,
            keyset=_check_keyset(worker, outcome, certificate, now_s),  # 4
            evidence=outcome.evidence,
            certificate=certificate,
            kind=EvidenceKind(agent.inventory.evidence_kind),
            ingress_address=agent.inventory.ingress_address,
            authority=partition.endpoint.authority if partition.endpoint else "",
        )

    def check_reachable(self, partition: Partition) -> None:
        """Return if the partition's agent is connected.

        Raises:
            AgentUnavailableError: it is not.
        """
        self._fleet.agent(partition.agent_id)

    async def _appraise(
        self, outcome: Attested, agent: Agent, decided: Decided, *, nonce: bytes, context: bytes, now_s: int
    ) -> AppraisedWorker:
        kind, key = EvidenceKind(agent.inventory.evidence_kind), agent.row.evidence_public_key
        if kind is EvidenceKind.HARDWARE:
            return await self._appraise_hardware(outcome, decided, nonce=nonce, context=context, now_s=now_s)
        worker = appraise(  # 1, 5
            outcome.evidence,
            nonce=nonce,
            context=context,
            trust_policy=TrustPolicy(
                accepted_kinds=frozenset({kind}),
                operator_keys=(key,),  # 2
                minimum_tier=decided.wanted.tier,
                maximum_age_s=MAX_EVIDENCE_AGE_S,
            ),
            now_s=now_s,
            development_mode=self._settings.allow_simulated,
        )
        signer = json.loads(outcome.evidence)["signer"]  # whose form the appraisal has checked
        if not hmac.compare_digest(signer, b64url_encode(key)):  # 2
            raise EvidencePolicyError("the evidence is not signed with the agent's own key")
        return worker

    async def _appraise_hardware(
        self, outcome: Attested, decided: Decided, *, nonce: bytes, context: bytes, now_s: int
    ) -> AppraisedWorker:
        """Appraise under the platform's policy, in a thread: services may be asked, and signatures are many."""
        if self._hardware is None:
            raise EvidencePolicyError("this platform has no policy for hardware evidence (fleet.hardware_policy)")
        policy = replace(
            self._hardware.policy,
            accepted_kinds=frozenset({EvidenceKind.HARDWARE}),
            minimum_tier=decided.wanted.tier,
            maximum_age_s=MAX_EVIDENCE_AGE_S,
        )
        return await asyncio.to_thread(  # 1, 2, 5
            appraise,
            outcome.evidence,
            nonce=nonce,
            context=context,
            trust_policy=policy,
            now_s=now_s,
            hardware=self._hardware.verifier,
        )

    def _check_descriptor(self, worker: AppraisedWorker, partition: Partition, agent: Agent) -> None:
        descriptor = worker.descriptor
        expected = (
            ("tenant", descriptor.tenant, partition.tenant_id),
            ("tenant root", descriptor.tenant_root or b"", partition.tenant_root),
            ("partition", descriptor.partition, partition.partition_id),
            ("agent", descriptor.agent, partition.agent_id),
            ("model", descriptor.model, partition.model),
            ("model digest", descriptor.model_digest, partition.model_digest),
            ("tier", descriptor.tier.value, partition.tier.label),
            ("region", descriptor.region, agent.inventory.region),
            ("simulated flag", descriptor.simulated, agent.inventory.simulated),
        )
        for name, shown, ordered in expected:
            if shown != ordered:
                raise EvidenceBindingError(f"the evidence is of another {name} than was ordered")
        self._issuers.signer_for(descriptor.ticket_issuers)


def _context(partition: Partition, session: Session, allowed: Allowed) -> bytes:
    return session_context(
        tenant=session.tenant_id,
        session=session.session_id,
        cnf=session.session_public_key,
        model_digest=partition.model_digest,
        decision_leaf_hash=allowed.leaf_hash,
        policy_digest=bytes.fromhex(allowed.decision.bundle_digest),
    )


def _check_keyset(worker: AppraisedWorker, outcome: Attested, certificate: bytes, now_s: int) -> Keyset:
    if not hmac.compare_digest(worker.keyset, outcome.keyset):
        raise EvidenceBindingError("the evidence covers another keyset than the agent sent")
    keyset = Keyset.parse(worker.keyset)
    if now_s >= keyset.not_after_s:
        raise EvidenceExpiredError("the worker's keys have expired")
    if worker.not_after_s > keyset.not_after_s:
        raise EvidenceError("the evidence outlives the keys it speaks of")
    keyset.check_certificate(certificate)
    return keyset
