"""The node agent: carries out the control plane's orders on one compute tray.

- A command that is repeated gets the first one's result, also while that is still under way. An older fence than the
  partition has seen is refused. Nothing is begun after a command's deadline; a creation that would end after it is
  undone.
- A partition is created by taking its place, starting its worker and waiting until that listens. Whatever fails in
  between is undone: worker ended, place scrubbed.
- A worker that dies makes its partition ``lost``; it is scrubbed and given back without being asked. Steps that the
  agent takes by itself go to the audit log as events; those that it was ordered to take are the control plane's.
- Workers that an earlier agent process left are ended and scrubbed before anything else.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bulkhead.attestation import AttestationRequest
from bulkhead.errors import (
    BulkheadError,
    ConflictError,
    EvidenceExpiredError,
    ExhaustedError,
    InternalError,
    ShuttingDownError,
    WorkerLostError,
)
from bulkhead.sealing.keyset import Keyset
from data_plane.evidence.issuing import EvidencePort, IssuedEvidence
from data_plane.ingress import Ingress
from data_plane.ports import PartitionBackend, PartitionState
from data_plane.session.commands import (
    Attest,
    Attested,
    Command,
    CreatePartition,
    Failed,
    LoadModel,
    PartitionBooted,
    PartitionCreated,
    PartitionStatus,
    Release,
    Released,
    Result,
)
from data_plane.session.descriptors import describe_partition, evidence_digest
from data_plane.session.exposition import Observed
from data_plane.session.lease import AgentLease
from data_plane.session.messages import LeaseGrant, ModelKey, NamedEvidence, WorkerBooted, WorkerReady
from data_plane.session.ordering import CommandMemory
from data_plane.session.partition import Partition, PartitionPorts, Progress
from data_plane.session.rundir import RunDirectory
from data_plane.session.scrubbing import Scrubber, final_state
from data_plane.session.spool import Spool
from data_plane.session.starting import WorkerStarter, authority_of, spec_of

__all__ = ["Agent", "AgentFacts"]

_log = structlog.get_logger(__name__)

MAX_EVIDENCE: Final = 16_384  # opens and renewals within the life of evidence; agent and worker keep some 150 B of each
SILENCE_S: Final = 30.0  # a worker reports every second
MAX_PARTITIONS: Final = 256  # the control plane refuses a greeting with more
_MS: Final = 1000
_US: Final = 1_000_000
_ATTESTABLE: Final = frozenset({PartitionState.ATTESTING, PartitionState.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """What evidence says of the agent itself."""

    agent_id: str
    software: str


class Agent:
    """See the module docstring. All methods run on one event loop, in the main thread.

    Args:
        facts: names the agent in evidence.
        backend: divides the tray.
        scrubber: gives places back.
        evidence: vouches for workers.
        starter: starts workers.
        ports: of partitions.
        spool: takes events.
        lease: what the control plane granted.
        ingress: relays to workers.
        run: the run directory.
        wall_s: Unix seconds.
    """

    def __init__(
        self,
        *,
        facts: AgentFacts,
        backend: PartitionBackend,
        scrubber: Scrubber,
        evidence: EvidencePort,
        starter: WorkerStarter,
        ports: PartitionPorts,
        spool: Spool,
        lease: AgentLease,
        ingress: Ingress,
        run: RunDirectory,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._facts = facts
        self._backend = backend
        self._scrubber = scrubber
        self._evidence = evidence
        self._starter = starter
        self._ports = ports
        self._spool = spool
        self._lease = lease
        self._ingress = ingress
        self._run = run
        self._wall_s = wall_s
        self._partitions: dict[str, Partition] = {}
        self._memory = CommandMemory(wall_s=wall_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._push = asyncio.Event()
        self._stopping = False

    async def handle(self, command: Command, progress: Progress) -> Result:
        """Carry out a command, or return what became of it before.

        Args:
            command: from the control plane; its fields are checked here.
            progress: takes phase and sentence while a worker starts.
        """
        try:
            return await self._memory.once(command.command_id, lambda: self._carry_out(command, progress))
        except ExhaustedError as error:
            return Failed.of(error)

    def statuses(self) -> tuple[PartitionStatus, ...]:
        """Return the partitions whose workers are alive."""
        unacknowledged = self._spool.unacknowledged_receipts
        return tuple(
            PartitionStatus(
                partition_id=partition.partition_id,
                fence=partition.fence,
                state=partition.state.value,
                running_requests=partition.load.running_requests,
                unacknowledged_receipts=unacknowledged,
            )
            for partition in self._partitions.values()
            if partition.process is not None and not partition.process.is_gone
        )

    def observed(self) -> tuple[Observed, ...]:
        """Return what is known of the load of each partition that serves."""
        return tuple(
            Observed(
                partition_id=partition.partition_id,
                model_name=partition.model_name,
                load=partition.load,
                metrics=partition.metrics,
                taken_s=partition.metrics_us / _US,
            )
            for partition in self._partitions.values()
            if partition.ready is not None
        )

    def renew_soon(self) -> None:
        """Hand the lease to every worker now: it was renewed, or something was revoked."""
        self._push.set()

    async def recover(self) -> None:
        """End and scrub what an earlier agent process left; call before anything is ordered."""
        records = self._run.records()
        for record in records:
            self._memory.note_fence(record.spec.partition_id, record.fence)
        await asyncio.gather(*(self._scrubber.recover(record) for record in records))

    async def keep_leases(self, *, every_s: float) -> None:
        """Hand leases to workers until cancelled, at least every ``every_s`` seconds."""
        while True:
            self._push.clear()
            if not self._spool.sound:
                await self._spool.repair()
            for partition in list(self._partitions.values()):
                self._tend(partition)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._push.wait()

    def _tend(self, partition: Partition) -> None:
        """Hand a partition its lease, without waiting for its worker; end a worker that has fallen silent."""
        if partition.is_silent(SILENCE_S):
            _log.error("partition.silent", partition_id=partition.partition_id, silence_s=SILENCE_S)
            self._watch(partition.kill())
        elif not partition.is_being_granted:
            self._watch(partition.grant(self._grant(partition)))

    async def stop(self, *, drain_s: float) -> None:
        """Take no further orders, let running requests finish for ``drain_s``, and scrub everything."""
        self._stopping = True
        until_ms = int((self._wall_s() + drain_s) * _MS)
        endings = [
            self._leave(partition, PartitionState.DRAINING, "the agent stops", until_ms)
            for partition in list(self._partitions.values())
        ]
        await asyncio.gather(*endings)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_out(self, command: Command, progress: Progress) -> Result:
        try:
            self._memory.check(command)
            match command.order:
                case CreatePartition():
                    return await self._create(command, command.order, progress)
                case LoadModel():
                    return await self._load(command, command.order, progress)
                case Attest():
                    return await self._attest(command, command.order)
                case Release():
                    return await self._release(command, command.order)
        except BulkheadError as error:
            _log.warning("command.failed", command_id=command.command_id, code=error.code, reason=error.message)
            return Failed.of(error)
        except Exception as error:  # noqa: BLE001  the command's boundary: the agent and its other partitions go on
            _log.exception("command.defect", command_id=command.command_id, exc_info=error)
            return Failed.of(InternalError("the agent failed on this command; its log has the details"))

    async def _create(self, command: Command, order: CreatePartition, progress: Progress) -> Result:
        if self._stopping:
            raise ShuttingDownError("the agent is shutting down")
        if command.partition_id in self._partitions or self._scrubber.outcome(command.partition_id) is not None:
            raise ConflictError("a partition of that id exists, or existed")
        if len(self._partitions) >= MAX_PARTITIONS:
            raise ExhaustedError(f"the agent runs at most {MAX_PARTITIONS} partitions")
        spec = spec_of(command.partition_id, order)
        progress("creating", f"taking a place of tier {spec.tier.value}")
        partition = Partition(
            spec=spec,
            fence=command.fence,
            slot=self._free_slot(),
            assignment=await self._backend.create(spec),
            ports=self._ports,
        )
        self._partitions[spec.partition_id] = partition
        try:
            timeout_s = command.deadline_ms / _MS - self._wall_s()
            said = await self._starter.start(
                partition, order, active=len(self._partitions), timeout_s=timeout_s, progress=progress
            )
        except (BulkheadError, OSError) as error:
            await self._give_up(partition)
            if isinstance(error, OSError):
                raise WorkerLostError("the worker could not be started") from error
            raise
        if isinstance(said, WorkerBooted):
            return PartitionBooted(keyset=said.keyset)
        return self._listens(partition, said)

    async def _load(self, command: Command, order: LoadModel, progress: Progress) -> Result:
        partition = self._booted(command.partition_id)
        key = ModelKey(
            sealed_key=order.sealed_key,
            nonce=order.nonce,
            evidence_digest=order.evidence_digest,
            decision_leaf_hash=order.decision_leaf_hash,
        )
        try:
            timeout_s = command.deadline_ms / _MS - self._wall_s()
            ready = await partition.load_model(key, timeout_s=timeout_s, progress=progress)
        except BulkheadError:
            await self._give_up(partition)
            raise
        return self._listens(partition, ready)

    def _booted(self, partition_id: str) -> Partition:
        partition = self._partitions.get(partition_id)
        if partition is None or partition.booted is None or partition.state is not PartitionState.CREATING:
            raise WorkerLostError("the partition has no worker here that waits for its model's key")
        return partition

    async def _give_up(self, partition: Partition) -> None:
        partition.state = PartitionState.SCRUBBING
        await self._scrub(partition)

    def _listens(self, partition: Partition, ready: WorkerReady) -> PartitionCreated:
        """Open the partition's way to its worker."""
        spec = partition.spec
        partition.state = PartitionState.ATTESTING
        self._ingress.add_route(authority_of(spec.partition_id), self._run.socket(spec.partition_id))
        self._watch(self._supervise(partition))
        self.renew_soon()
        return PartitionCreated(
            authority=authority_of(spec.partition_id),
            certificate=ready.certificate,
            keyset=ready.keyset,
            context_length=ready.context_length,
        )

    def _free_slot(self) -> int:
        taken = {partition.slot for partition in self._partitions.values()}
        return next(slot for slot in range(MAX_PARTITIONS + 1) if slot not in taken)

    async def _attest(self, command: Command, order: Attest) -> Result:
        if order.boot:
            return await self._attest_boot(command, order)
        partition = self._partitions.get(command.partition_id)
        if partition is None or partition.ready is None:
            raise WorkerLostError("the partition has no worker here")
        if partition.state not in _ATTESTABLE:
            raise ConflictError(f"the partition is {partition.state.value}")
        partition.evidence.expire(self._wall_s())
        if len(partition.evidence) >= MAX_EVIDENCE:
            raise ExhaustedError(f"the partition has {MAX_EVIDENCE} pieces of evidence that hold still")
        ready = partition.ready
        issued = await self._issue(partition, ready, order)
        if self._partitions.get(command.partition_id) is not partition or partition.state not in _ATTESTABLE:
            raise WorkerLostError("the partition ended while its evidence was made")
        named = NamedEvidence(digest=evidence_digest(issued.evidence), not_after_s=issued.not_after_s)
        partition.evidence.add(named.digest, named.not_after_s)
        partition.state = PartitionState.READY
        await partition.grant(self._grant(partition, named))  # before anybody can hold a ticket on this evidence
        return Attested(evidence=issued.evidence, keyset=ready.keyset, certificate=ready.certificate)

    async def _attest_boot(self, command: Command, order: Attest) -> Attested:
        """Show a worker that waits for its model's key; no ticket may name this evidence."""
        partition = self._booted(command.partition_id)
        if (booted := partition.booted) is None:
            raise WorkerLostError("the worker has its key")
        issued = await self._issue(partition, booted, order)
        return Attested(evidence=issued.evidence, keyset=booted.keyset, certificate=booted.certificate)

    async def _issue(self, partition: Partition, said: WorkerReady | WorkerBooted, order: Attest) -> IssuedEvidence:
        not_after_s = min(order.not_after_s, Keyset.parse(said.keyset).not_after_s)
        if not_after_s <= self._wall_s():
            raise EvidenceExpiredError("the worker's keys have ended: place the session anew")
        self._follow_issuers(partition)
        return await self._evidence.issue(
            AttestationRequest(nonce=order.nonce, context=order.session_context),
            keyset=said.keyset,
            descriptor=describe_partition(
                partition,
                said=said,
                inventory=self._backend.inventory(),
                agent_id=self._facts.agent_id,
                software=self._facts.software,
            ),
            not_after_s=not_after_s,
        )

    def _grant(self, partition: Partition, *named: NamedEvidence) -> LeaseGrant:
        """Return the lease as it is now, with evidence that no grant named yet."""
        now_s = self._wall_s()
        rest_s = self._lease.remaining_s if self._spool.sound else 0.0
        self._follow_issuers(partition)
        return LeaseGrant(
            valid_until_ms=int((now_s + max(0.0, rest_s)) * _MS),
            revoked_sessions=self._lease.revoked,
            unacknowledged_receipts=self._spool.unacknowledged_receipts,
            ticket_issuers=partition.ticket_issuers,
            evidence=named,
        )

    def _follow_issuers(self, partition: Partition) -> None:
        """Have the worker take tickets of whom the control plane names now; evidence and the next lease say so."""
        partition.ticket_issuers = self._starter.ticket_issuers() or partition.ticket_issuers

    async def _release(self, command: Command, order: Release) -> Result:
        partition = self._partitions.get(command.partition_id)
        if partition is None:
            known = self._scrubber.outcome(command.partition_id)
            return known or Released(scrubbed=True, detail="nothing of the partition is on this tray")
        if partition.state in {PartitionState.LOST, PartitionState.SCRUBBING}:
            return await self._scrub(partition)
        return await self._leave(partition, PartitionState.DRAINING, order.reason, order.drain_until_ms)

    async def _leave(self, partition: Partition, state: PartitionState, reason: str, until_ms: int) -> Released:
        _log.info("partition.draining", partition_id=partition.partition_id, reason=reason)
        partition.state = state
        self._ingress_closes(partition, until_ms)
        await partition.drain(until_ms=until_ms, rest_s=until_ms / _MS - self._wall_s())
        partition.state = PartitionState.SCRUBBING
        return await self._scrub(partition)

    def _ingress_closes(self, partition: Partition, until_ms: int) -> None:
        """Relay nothing new to a worker that has no time left; one that drains answers newcomers itself."""
        if until_ms / _MS <= self._wall_s():
            self._ingress.remove_route(authority_of(partition.partition_id))

    async def _supervise(self, partition: Partition) -> None:
        """Wait for the worker's end; one that was not ordered loses the partition."""
        status = await partition.exited()
        if partition.state not in {PartitionState.ATTESTING, PartitionState.READY}:
            return
        reason = f"the worker was ended by signal {-status}" if status < 0 else f"the worker exited with {status}"
        _log.error("partition.lost", partition_id=partition.partition_id, reason=reason)
        await self._step(partition, PartitionState.LOST, reason)
        await self._step(partition, PartitionState.SCRUBBING, reason)
        released = await self._scrub(partition)
        before = PartitionState.SCRUBBING
        await self._scrubber.report(partition.spec, partition.fence, before, final_state(released), released.detail)

    async def _scrub(self, partition: Partition) -> Released:
        """Prove that nothing of the partition is left, and give its place back or cordon it; once per partition."""
        if partition.scrub is None:
            partition.scrub = asyncio.create_task(self._scrub_once(partition))
        return await asyncio.shield(partition.scrub)

    async def _scrub_once(self, partition: Partition) -> Released:
        self._ingress.remove_route(authority_of(partition.partition_id))
        gone = await partition.end()
        released = await self._scrubber.scrub(partition.spec, fence=partition.fence, gone=gone)
        partition.state = final_state(released)
        self._partitions.pop(partition.partition_id, None)
        return released

    async def _step(self, partition: Partition, state: PartitionState, reason: str) -> None:
        before, partition.state = partition.state, state
        await self._scrubber.report(partition.spec, partition.fence, before, state, reason)

    def _watch(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
