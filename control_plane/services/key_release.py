"""The key of a sealed model for a partition that boots: nonce, evidence, broker, record, and only then the worker.

The broker is the platform's own, in this process, or the tenant's, which the model's registration names. Either way the
broker judges the evidence itself and seals the key to the worker, so that this process relays what it cannot open. A
release is recorded in the tenant's log before the key goes on; a refusal is recorded with its code, whoever refused.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from audit.model import Appended
from audit.records import Action, Decision, Reason, build_record
from bulkhead.attestation import EvidenceKind, TrustPolicy
from bulkhead.attestation import Tier as EvidenceTier
from bulkhead.attestation.policy import MAX_EVIDENCE_AGE_S
from bulkhead.broker import KeyBroker
from bulkhead.encoding import Json
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    EvidencePolicyError,
    KeyBrokerError,
    ModelRolledBackError,
)
from bulkhead.protocol.release import ReleaseRequest, ReleaseTerms
from bulkhead.transparency import AuditReceipt
from control_plane.domain.fleet import Attested, AttestOrder, LoadOrder, PartitionCreated
from control_plane.domain.partitions import Partition
from control_plane.domain.tenancy import Custody, SealedModel
from control_plane.services.agents import Agent
from control_plane.services.commands import ProgressSink
from control_plane.services.hardware import HardwareTrust
from control_plane.services.journal import Journal
from control_plane.services.lifecycle import Origin
from control_plane.services.settings import FleetSettings
from control_plane.storage.engine import Database
from control_plane.storage.tenancy import ModelFloors

__all__ = ["KeyReleaser", "ReleaseAsked", "SqlFloors", "TenantBroker"]

US_PER_S: Final = 1_000_000
BOOT_EVIDENCE_S: Final = 300  # a broker sees it at once
_OWN_POLICY: Final = "key_broker"

log = structlog.get_logger(__name__)


class TenantBroker(Protocol):
    """A tenant's broker, reached over the network."""

    async def challenge(self) -> bytes:
        """Return a nonce, or raise KeyBrokerError."""

    async def release(self, request: ReleaseRequest, *, evidence_digest: bytes) -> bytes:
        """Return the sealed key, or raise what the broker refused with."""

    async def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAsked:
    """What a key is asked for: the partition that waits, its model, and the decision that it was created on."""

    partition: Partition
    sealed: SealedModel
    decision: Appended
    origin: Origin


class SqlFloors:
    """The platform's floors, in the state database, for brokers that run in threads of this process.

    Args:
        database: the state; made on the event loop that runs it.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()

    def raise_to(self, model: str, version: int) -> None:
        """See :meth:`bulkhead.broker.Floors.raise_to`."""
        work = self._database.write(lambda tx: ModelFloors.of(tx).raise_to(model, version))
        try:
            floor = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except BulkheadError as error:
            raise KeyBrokerError("the released version cannot be noted") from error
        if version < floor:
            raise ModelRolledBackError(
                f"version {version} of {model} is below {floor}, which was released before",
                details={"version": str(version), "floor": str(floor)},
            )


class KeyReleaser:
    """Gets partitions their models' keys.

    Args:
        journal: the audit log.
        settings: time-outs, and whether simulated trays are admitted.
        platform: the platform's own broker; None where no key encryption key is configured.
        tenants: connects to a tenant's broker.
        hardware: what the platform's own broker believes of confidential workers; None gives them no keys.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        settings: FleetSettings,
        platform: KeyBroker | None,
        tenants: Callable[[SealedModel], TenantBroker],
        hardware: HardwareTrust | None,
        now_us: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._platform = platform
        self._tenants = tenants
        self._hardware = hardware
        self._now_us = now_us

    async def unlock(self, agent: Agent, asked: ReleaseAsked, progress: ProgressSink) -> PartitionCreated:
        """Return what the agent says once the worker has its model's key, has opened the model, and listens.

        Raises:
            EvidenceError, KeyReleaseError, SealedModelError, ProofError: the broker releases nothing; recorded.
            KeyBrokerError: a broker or its key store is out of reach; recorded.
            AuditUnavailableError: the release could not be recorded, so the key went nowhere.
            AgentUnavailableError: the agent failed or went away.
        """
        progress("loading", f"asking the {asked.sealed.custody.value}'s key broker")
        evidence = b""
        broker = self._tenants(asked.sealed) if asked.sealed.custody is Custody.TENANT else None
        try:
            nonce = await self._nonce(broker)
            evidence = await self._evidence(agent, asked, nonce)
            request = await self._request(asked, nonce, evidence)
            sealed_key = await self._release(broker, agent, asked, request)
        except BulkheadError as error:
            await self._record(asked, evidence, refused=error)
            log.warning("key.refused", partition_id=asked.partition.partition_id, code=error.code)
            raise
        finally:
            if broker is not None:
                await broker.close()
        await self._record(asked, evidence, refused=None)
        progress("loading", "the key was released; opening the model")
        order = LoadOrder(
            sealed_key=sealed_key,
            nonce=nonce,
            evidence_digest=hashlib.sha256(evidence).digest(),
            decision_leaf_hash=asked.decision.leaf_hash,
        )
        outcome = await agent.commands.run(
            order,
            partition_id=asked.partition.partition_id,
            fence=asked.partition.version,
            timeout_s=self._settings.create_timeout_s,
            progress=progress,
        )
        if not isinstance(outcome, PartitionCreated):
            raise AgentUnavailableError("the node agent answered a model's key with something else")
        return outcome

    async def _nonce(self, broker: TenantBroker | None) -> bytes:
        if broker is not None:
            return await broker.challenge()
        if self._platform is None:
            raise KeyBrokerError("this platform has no key encryption key: [keys] in its configuration")
        return self._platform.challenge()

    async def _evidence(self, agent: Agent, asked: ReleaseAsked, nonce: bytes) -> bytes:
        partition = asked.partition
        terms = ReleaseTerms(
            tenant=partition.tenant_id,
            model=partition.model,
            manifest_digest=asked.sealed.manifest_digest,
            version=asked.sealed.version,
            decision_leaf_hash=asked.decision.leaf_hash,
        )
        outcome = await agent.commands.run(
            AttestOrder(
                nonce=nonce,
                session_context=terms.context,
                not_after_unix_s=self._now_us() // US_PER_S + BOOT_EVIDENCE_S,
                boot=True,
            ),
            partition_id=partition.partition_id,
            fence=partition.version,
            timeout_s=self._settings.attest_timeout_s,
        )
        if not isinstance(outcome, Attested):
            raise AgentUnavailableError("the node agent answered an attestation with something else")
        return outcome.evidence

    async def _request(self, asked: ReleaseAsked, nonce: bytes, evidence: bytes) -> ReleaseRequest:
        audit = self._journal.audit
        decision: AuditReceipt = await audit.prove(asked.decision)
        return ReleaseRequest(
            nonce=nonce,
            tenant=asked.partition.tenant_id,
            manifest=asked.sealed.manifest,
            evidence=evidence,
            decision=decision,
            origin=audit.vkey(asked.decision.log_id).partition("+")[0],
        )

    async def _release(
        self, broker: TenantBroker | None, agent: Agent, asked: ReleaseAsked, request: ReleaseRequest
    ) -> bytes:
        if broker is not None:
            return await broker.release(request, evidence_digest=hashlib.sha256(request.evidence).digest())
        platform, vkey = self._platform, self._journal.audit.vkey(asked.decision.log_id)
        if platform is None:
            raise KeyBrokerError("this platform has no key encryption key: [keys] in its configuration")
        policy = self._policy(agent, asked.partition)
        released = await asyncio.to_thread(platform.release, request, trust_policy=policy, log_vkey=vkey)
        return released.sealed_key

    def _policy(self, agent: Agent, partition: Partition) -> TrustPolicy:
        """Return what the platform's broker accepts: of hardware what ``fleet.hardware_policy`` names, else the agent.

        A partition that was started for a tenant root shows that root, or gets no key.

        Raises:
            EvidencePolicyError: there is no policy for hardware evidence.
        """
        kind = EvidenceKind(agent.inventory.evidence_kind)
        policy = TrustPolicy(operator_keys=(agent.row.evidence_public_key,))
        if kind is EvidenceKind.HARDWARE:
            if self._hardware is None:
                raise EvidencePolicyError("this platform has no policy for hardware evidence (fleet.hardware_policy)")
            policy = self._hardware.policy
        return replace(
            policy,
            accepted_kinds=frozenset({kind}),
            minimum_tier=EvidenceTier(partition.tier.label),
            maximum_age_s=MAX_EVIDENCE_AGE_S,
            tenant_roots=frozenset({partition.tenant_root}) if partition.tenant_root else policy.tenant_roots,
        )

    async def _record(self, asked: ReleaseAsked, evidence: bytes, *, refused: BulkheadError | None) -> None:
        partition, sealed = asked.partition, asked.sealed
        data: dict[str, Json] = {
            "custody": sealed.custody.value,
            "manifest_digest": sealed.manifest_digest.hex(),
            "version": sealed.version,
            "decision_leaf_hash": asked.decision.leaf_hash.hex(),
            "simulated": partition.simulated,
        }
        record = build_record(
            self._journal.stamp(),
            action=Action.KEY_RELEASED if refused is None else Action.KEY_REFUSED,
            tenant=partition.tenant_id,
            cause=asked.origin.cause,
            resource=("model", partition.model),
            decision=Decision.ALLOW if refused is None else Decision.DENY,
            reasons=[] if refused is None else [Reason(refused.code, _OWN_POLICY, refused.message[:256])],
            data=data,
            model=partition.model,
            tier=partition.tier.label,
            session=asked.origin.session_id,
            partition=partition.partition_id,
            pair_id=asked.origin.pair_id,
            evidence=hashlib.sha256(evidence).hexdigest() if evidence else "",
        )
        if refused is None:
            await self._journal.write(record)
        else:
            await self._journal.report(record)
