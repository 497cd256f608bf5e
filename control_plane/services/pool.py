"""Finding a session its partition: one that runs and may be shared, one that is being made, or a new one.

Sessions share a partition when tenant, model, demanded tier and the obligations that bind a partition (regions, key
custody) are equal, and the purpose too where the decision demands exclusivity: all of that is the share key. What binds
a single session (tokens, padding) stands in its ticket. Opens that need the same partition at the same time wait for
one creation, which goes on when its first caller goes away, since others may wait and the next session will want it.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from audit.model import Appended
from audit.records import PlatformReason
from bulkhead import ids
from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    CapacityError,
    ConflictError,
    EvidenceError,
)
from control_plane.domain.fleet import CreateOrder, PartitionBooted, PartitionCreated
from control_plane.domain.partitions import Partition, PartitionState, WorkerEndpoint, authority_of
from control_plane.domain.tenancy import Custody, SealedModel
from control_plane.domain.tiers import Tier
from control_plane.placement import Demand, choose
from control_plane.services.agents import Agent
from control_plane.services.book import PartitionBook
from control_plane.services.commands import ProgressSink
from control_plane.services.fleet import Fleet
from control_plane.services.key_release import KeyReleaser, ReleaseAsked
from control_plane.services.lifecycle import Lifecycle, Origin, platform_origin
from control_plane.services.release import Releaser
from control_plane.services.settings import FleetSettings
from control_plane.storage.engine import Database
from control_plane.storage.partitions import Partitions
from control_plane.storage.sessions import ModelFacts
from control_plane.storage.tenancy import Models

__all__ = ["PartitionPool", "Wanted"]

_S = PartitionState

PLACEMENT_TRIES: Final = 3  # a conflict means that another replica took the place; the next look sees it
MAX_CERTIFICATE_BYTES: Final = 8_192  # a self-signed P-256 leaf has about 400
MAX_KEYSET_BYTES: Final = 8_192

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a decided session needs of its partition.

    Attributes:
        tier: least tier: the highest of request, tenant and obligations.
        regions: where it may stand; empty means anywhere.
        exclusive: shared only by sessions of the same purpose.
        custody: who holds the key of the model's weights: ``none``, ``platform`` or ``tenant``.
        max_output_tokens: per request, of the tenant; what a single session may is in its ticket.
        tenant_root: fingerprint of the root that certifies the tenant's session keys; empty where it has none.
    """

    tenant_id: str
    model: ModelFacts
    tier: Tier
    regions: frozenset[str]
    exclusive: bool
    purpose: str
    custody: str
    max_output_tokens: int
    tenant_root: bytes = b""

    @property
    def share_key(self) -> str:
        """SHA-256 (hexadecimal) over everything that must be equal for sessions to share a partition."""
        value: dict[str, Json] = {
            "tenant": self.tenant_id,
            "model": self.model.name,
            "model_digest": self.model.digest.hex(),
            "tier": self.tier.label,
            "regions": sorted(self.regions),
            "purpose": self.purpose if self.exclusive else None,
            "custody": self.custody,
            "max_output_tokens": self.max_output_tokens,
        }
        if self.tenant_root:
            value["tenant_root"] = self.tenant_root.hex()
        return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(slots=True)
class _Creation:
    task: asyncio.Task[Partition]
    sinks: list[ProgressSink] = field(default_factory=list)

    def tell(self, phase: str, text: str) -> None:
        for sink in self.sinks:
            sink(phase, text)


class PartitionPool:
    """Hands out partitions.

    Args:
        database: the state.
        fleet: agents and what they offer.
        book: partitions in memory.
        lifecycle: takes their steps.
        releaser: ends those whose start failed.
        keys: gets sealed models' keys.
        settings: time-outs.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        fleet: Fleet,
        book: PartitionBook,
        lifecycle: Lifecycle,
        releaser: Releaser,
        keys: KeyReleaser,
        settings: FleetSettings,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._book = book
        self._lifecycle = lifecycle
        self._releaser = releaser
        self._keys = keys
        self._settings = settings
        self._now_us = now_us
        self._creations: dict[str, _Creation] = {}

    async def acquire(self, wanted: Wanted, origin: Origin, progress: ProgressSink, *, decision: Appended) -> Partition:
        """Return a partition whose worker runs; its evidence is still to be appraised.

        Args:
            wanted: what the decision demands.
            origin: of the steps that are taken for it.
            progress: told of phases ``placing``, ``creating`` and ``loading``.
            decision: the record that allowed it; a sealed model's key is released on its strength.

        Raises:
            CapacityError: there is no place for it, on agents that are away neither.
            AgentUnavailableError: the agent failed or went away, or the only places are on agents that are away.
            AuditUnavailableError, StateUnavailableError: nothing was created.
        """
        share_key = wanted.share_key
        running = self._running(share_key)
        if running is not None:
            return running
        creation = self._creations.get(share_key)
        if creation is None:
            creation = _Creation(
                asyncio.create_task(self._create(wanted, share_key, origin, decision), name="create-partition")
            )
            creation.task.add_done_callback(lambda task: self._created(share_key, task))
            self._creations[share_key] = creation
        creation.sinks.append(progress)
        try:
            return await asyncio.shield(creation.task)
        finally:
            creation.sinks.remove(progress)

    def ready(self, wanted: Wanted) -> Partition | None:
        """Return the partition that :meth:`acquire` would, if it is ready; nothing is begun otherwise."""
        partition = self._running(wanted.share_key)
        return partition if partition is not None and partition.state is _S.READY else None

    async def confirm(self, partition_id: str, origin: Origin) -> Partition:
        """Return the partition as ``ready``, after evidence of it was appraised.

        Raises:
            AgentUnavailableError: it serves no more.
            AuditUnavailableError: the step could not be recorded.
        """
        partition = self._book.get(partition_id)
        if partition is not None and partition.state is _S.ATTESTING:
            await self._lifecycle.follow(partition_id, _S.READY, origin, reason="evidence appraised")
            partition = self._book.get(partition_id)
        if partition is None or partition.state is not _S.READY:
            raise AgentUnavailableError("the partition was released meanwhile: try again")
        return partition

    def distrust(self, partition: Partition, *, reason: str) -> None:
        """Release a partition whose evidence did not hold."""
        log.error("partition.distrusted", partition_id=partition.partition_id, reason=reason)
        self._releaser.release_soon(partition, platform_origin(PlatformReason.PLACEMENT), reason=reason)

    async def lose(self, partition: Partition, *, reason: str) -> None:
        """Note that a partition's worker is gone, before its agent's report of that was recorded."""
        await self._lifecycle.follow(
            partition.partition_id, PartitionState.LOST, platform_origin(PlatformReason.AGENT), reason=reason
        )
        self._releaser.release_soon(partition, platform_origin(PlatformReason.AGENT), reason=reason)

    async def stop(self) -> None:
        """Give up creations under way; the agents' next hellos settle what they began."""
        tasks = [creation.task for creation in self._creations.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _created(self, share_key: str, task: asyncio.Task[Partition]) -> None:
        del self._creations[share_key]
        if not task.cancelled() and (error := task.exception()) is not None:  # also when nobody waits any more
            log.warning("partition.creation_failed", reason=type(error).__name__)

    def _running(self, share_key: str) -> Partition | None:
        return next((partition for partition in self._book.running(share_key) if self._serves(partition)), None)

    def _serves(self, partition: Partition) -> bool:
        try:
            return not self._fleet.agent(partition.agent_id).cordoned
        except AgentUnavailableError:
            return False

    async def _create(self, wanted: Wanted, share_key: str, origin: Origin, decision: Appended) -> Partition:
        # Another replica may have made one that this process has not heard of.
        shared = await self._database.read(lambda tx: Partitions(tx.connection).shared(share_key))
        if shared is not None and self._book.get(shared.partition_id) is None and self._serves(shared):
            self._book.put(shared)
            return shared
        partition = await self._reserve(wanted, share_key, origin)
        agent = self._fleet.agent(partition.agent_id)
        try:
            return await self._start(agent, partition, wanted, origin, decision)
        except BaseException as error:
            await asyncio.shield(self._undo(partition, origin, error))
            raise

    async def _reserve(self, wanted: Wanted, share_key: str, origin: Origin) -> Partition:
        demand = Demand(
            tenant_id=wanted.tenant_id,
            minimum_tier=wanted.tier,
            memory_mib=wanted.model.memory_mib,
            regions=wanted.regions,
        )
        for _ in range(PLACEMENT_TRIES):
            placement = choose(self._fleet.hosts(), demand)
            agent = self._fleet.agent(placement.agent_id)
            now_us = self._now_us()
            partition = Partition(
                partition_id=ids.new_id(ids.PARTITION),
                tenant_id=wanted.tenant_id,
                model=wanted.model.name,
                model_digest=wanted.model.digest,
                placement=placement,
                region=agent.inventory.region,
                simulated=agent.inventory.simulated,
                share_key=share_key,
                exclusive=wanted.exclusive,
                memory_mib=wanted.model.memory_mib,
                max_output_tokens=wanted.max_output_tokens,
                state=_S.RESERVED,
                version=1,
                created_us=now_us,
                changed_us=now_us,
                tenant_root=wanted.tenant_root,
            )
            try:
                await self._lifecycle.reserve(partition, origin, process_slots=agent.inventory.process_slots)
            except ConflictError:
                continue
            return partition
        raise CapacityError("places are being taken faster than this request could take one: try again")

    async def _start(
        self, agent: Agent, partition: Partition, wanted: Wanted, origin: Origin, decision: Appended
    ) -> Partition:
        creation = self._creations[partition.share_key]
        creation.tell("creating", f"a {partition.tier.label} partition on {partition.agent_id}")
        partition_id = partition.partition_id
        partition = await self._lifecycle.step(partition_id, _S.CREATING, origin, reason="")
        sealed = await self._sealed(wanted)
        outcome = await agent.commands.run(
            _order(partition, wanted, sealed),
            partition_id=partition_id,
            fence=partition.version,
            timeout_s=self._settings.create_timeout_s,
            progress=creation.tell,
        )
        if sealed is not None and isinstance(outcome, PartitionBooted):
            asked = ReleaseAsked(partition=partition, sealed=sealed, decision=decision, origin=origin)
            outcome = await self._keys.unlock(agent, asked, creation.tell)
        if not isinstance(outcome, PartitionCreated) or outcome.authority != authority_of(partition_id):
            raise AgentUnavailableError("the node agent answered with another partition")
        endpoint = WorkerEndpoint(
            authority=outcome.authority,
            certificate=certificate_der(outcome.worker_certificate),
            keyset=outcome.keyset,
        )
        if not 0 < len(outcome.keyset) <= MAX_KEYSET_BYTES:
            raise EvidenceError("the worker's keyset is empty or too long")
        return await self._lifecycle.step(partition_id, _S.ATTESTING, origin, reason="", endpoint=endpoint)

    async def _sealed(self, wanted: Wanted) -> SealedModel | None:
        """Return how the wanted model is sealed, if it is, as the decision knew it.

        Raises:
            ConflictError: it was registered anew since.
        """
        if wanted.custody == Custody.NONE.value:
            return None
        model = await self._database.read(lambda tx: Models.of(tx).find(wanted.model.name))
        if model is None or model.digest != wanted.model.digest or model.custody.value != wanted.custody:
            raise ConflictError("the model was registered anew meanwhile: try again")
        return model.sealed

    async def _undo(self, partition: Partition, origin: Origin, error: BaseException) -> None:
        reason = error.message if isinstance(error, BulkheadError) else "the control plane stops"
        current = self._book.get(partition.partition_id)
        if current is None:
            return
        if current.state is _S.RESERVED:
            await self._lifecycle.follow(partition.partition_id, _S.FREE, origin, reason=reason)
        else:
            self._releaser.release_soon(current, origin, reason=reason)


def certificate_der(certificate: bytes) -> bytes:
    """Return a worker's certificate as DER; agents may send PEM.

    Raises:
        EvidenceError: it is neither, or too long.
    """
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"the worker's certificate is longer than {MAX_CERTIFICATE_BYTES} bytes")
    try:
        if certificate.startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
        return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.DER)
    except ValueError as error:
        raise EvidenceError("the worker's certificate cannot be read") from error


def _order(partition: Partition, wanted: Wanted, sealed: SealedModel | None) -> CreateOrder:
    place, mig = partition.placement, partition.tier is Tier.MIG
    return CreateOrder(
        tenant_id=partition.tenant_id,
        tier=partition.tier,
        gpu_uuids=place.gpu_uuids,
        mig_profile_id=place.mig_profile_id if mig else 0,
        memory_slice_start=place.memory_slice_start if mig else 0,
        memory_slices=place.memory_slices if mig else 0,
        model_name=wanted.model.name,
        model_path=wanted.model.path,
        model_digest=wanted.model.digest,
        memory_mib=wanted.model.memory_mib,
        max_output_tokens=wanted.max_output_tokens,
        manifest_digest=b"" if sealed is None else sealed.manifest_digest,
        manifest_version=0 if sealed is None else sealed.version,
        tenant_root=partition.tenant_root,
    )
