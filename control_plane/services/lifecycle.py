"""Steps of partitions: one at a time each, fenced in SQL, recorded in the tenant's audit log.

A step that lets something begin (``reserved``, ``creating``, ``attesting``, ``ready``) is recorded first and not taken
if that fails. A step that follows from what has already happened (``draining`` to ``cordoned``) is taken and then
reported. When a partition stops serving, its sessions are lost before the step's caller goes on.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from audit.records import Action, PlatformReason, Record, partition_step, platform_cause
from bulkhead.encoding import Json
from bulkhead.errors import BulkheadError, ConflictError, NotFoundError
from bulkhead.transparency.leaf import Cause
from control_plane.domain.partitions import TRANSITIONS, Partition, PartitionState, WorkerEndpoint
from control_plane.services.book import PartitionBook
from control_plane.services.journal import Journal
from control_plane.services.session_end import SessionEnder
from control_plane.storage.engine import Database
from control_plane.storage.partitions import Partitions

__all__ = ["Lifecycle", "Origin", "platform_origin"]

_S = PartitionState

_ACTIONS: Final[Mapping[PartitionState, Action]] = MappingProxyType(
    {
        _S.RESERVED: Action.PARTITION_RESERVED,
        _S.CREATING: Action.PARTITION_CREATING,
        _S.ATTESTING: Action.PARTITION_ATTESTING,
        _S.READY: Action.PARTITION_READY,
        _S.DRAINING: Action.PARTITION_DRAINING,
        _S.SCRUBBING: Action.PARTITION_SCRUBBING,
        _S.FREE: Action.PARTITION_FREED,
        _S.LOST: Action.PARTITION_LOST,
        _S.CORDONED: Action.PARTITION_CORDONED,
    }
)
_RECORDED_FIRST: Final = frozenset({_S.CREATING, _S.ATTESTING, _S.READY})
_SERVES_NO_MORE: Final = frozenset({_S.DRAINING, _S.SCRUBBING, _S.LOST})


@dataclass(frozen=True, slots=True)
class Origin:
    """What brings a step about, as its record says it: the cause, and the session it is taken for."""

    cause: Cause
    session_id: str = ""
    pair_id: str = ""


def platform_origin(reason: PlatformReason) -> Origin:
    """Return the origin of a step of the platform's own."""
    return Origin(platform_cause(reason))


class Lifecycle:
    """Takes partitions from one state to the next.

    Args:
        database: the state.
        journal: the audit log.
        book: this process's view, kept current here.
        ender: ends the sessions of a partition that serves no more.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        book: PartitionBook,
        ender: SessionEnder,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._book = book
        self._ender = ender
        self._now_us = now_us
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def reserve(self, partition: Partition, origin: Origin, *, process_slots: int) -> None:
        """Take the place of a new partition, and record it.

        Raises:
            ConflictError: the place was taken meanwhile; the view is current again, look once more.
            CapacityError: no process slot is free.
            AuditUnavailableError: it could not be recorded; the place is given back.
        """
        try:
            await self._database.write(
                lambda tx: Partitions(tx.connection).reserve(partition, process_slots=process_slots)
            )
        except ConflictError:
            await self.reload()
            raise
        self._book.put(partition)
        try:
            await self._journal.write(self._record(partition, origin))
        except BulkheadError:
            await self.step(partition.partition_id, _S.FREE, origin, reason="the reservation could not be recorded")
            raise

    async def reload(self) -> None:
        """Read the view from SQL again."""
        self._book.load(await self._database.read(lambda tx: Partitions(tx.connection).holding()))

    async def step(
        self,
        partition_id: str,
        state: PartitionState,
        origin: Origin,
        *,
        reason: str,
        endpoint: WorkerEndpoint | None = None,
    ) -> Partition:
        """Take a partition to ``state`` and return it.

        Raises:
            ConflictError: it is in no state from which that step leads.
            NotFoundError: it holds no place any more.
            AuditUnavailableError: the step must be recorded first, and could not be; it was not taken.
            StateUnavailableError: it was not taken.
        """
        async with self._locks[partition_id]:
            before = self._book.get(partition_id)
            if before is None:
                raise NotFoundError("the partition is free, or never was")
            after = before.advance(state, now_us=self._now_us(), reason=reason)
            if endpoint is not None:
                after = replace(after, endpoint=endpoint)
            record = self._record(after, origin)
            if state in _RECORDED_FIRST:
                await self._journal.write(record)
            try:
                await self._database.write(lambda tx: Partitions(tx.connection).replace(before, after))
            except ConflictError:
                await self.reload()
                raise
            self._book.put(after)
        if state is _S.FREE:
            self._locks.pop(partition_id, None)
        if state in _SERVES_NO_MORE:
            await self._ender.lose(after, reason=reason)
        if state not in _RECORDED_FIRST:
            await self._journal.report(record)
        return after

    async def follow(self, partition_id: str, state: PartitionState, origin: Origin, *, reason: str) -> bool:
        """Take the step if the life cycle has it; return whether it was taken.

        For what others report: it may have been noted already, or be overtaken.
        """
        partition = self._book.get(partition_id)
        if partition is None or state not in TRANSITIONS[partition.state]:
            return False
        try:
            await self.step(partition_id, state, origin, reason=reason)
        except (ConflictError, NotFoundError):
            return False
        return True

    def _record(self, partition: Partition, origin: Origin) -> Record:
        place = partition.placement
        details: dict[str, Json] = {
            "agent": place.agent_id,
            "simulated": partition.simulated,
            "fence": partition.version,
        }
        if partition.reason:
            details["reason"] = partition.reason
        if partition.state is _S.RESERVED:
            details |= {
                "gpus": list(place.gpu_uuids),
                "mig_profile_id": place.mig_profile_id,
                "memory_slice_start": place.memory_slice_start,
                "memory_slices": place.memory_slices,
                "score": place.score,
                "model": partition.model,
            }
        return partition_step(
            self._journal.stamp(),
            action=_ACTIONS[partition.state],
            tenant=partition.tenant_id,
            cause=origin.cause,
            partition=partition.partition_id,
            tier=partition.tier.label,
            session=origin.session_id,
            pair_id=origin.pair_id,
            details=details,
        )
