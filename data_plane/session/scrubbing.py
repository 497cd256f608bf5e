"""What becomes of a partition's place when its worker has ended, and of what an earlier agent process left.

A scrub is proven when the process is gone, its directory removed, and the backend has read its memory back as clear.
Otherwise the place is cordoned, across restarts, until a later start can prove it. Steps that the agent takes without
being ordered go to the audit log as events.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from bulkhead.errors import BulkheadError
from data_plane.ports import PartitionBackend, PartitionSpec, PartitionState
from data_plane.session.commands import Released
from data_plane.session.events import PartitionStep
from data_plane.session.process import end_stranger
from data_plane.session.rundir import PartitionRecord, RunDirectory
from data_plane.session.spool import Spool
from data_plane.session.worker import ORPHAN_S

__all__ = ["Scrubber", "final_state"]

_log = structlog.get_logger(__name__)

MAX_ENDED: Final = 4_096
ORPHAN_PATIENCE_S: Final = ORPHAN_S + 3.0  # a worker that saw its agent go ends by itself within ORPHAN_S


def final_state(released: Released) -> PartitionState:
    """Return the state of a partition whose scrub ended so."""
    return PartitionState.FREE if released.scrubbed else PartitionState.CORDONED


class Scrubber:
    """Scrubs places and remembers how that went.

    Args:
        backend: clears memory and keeps the ledger.
        run: the run directory.
        spool: takes events.
        wall_s: Unix seconds.
    """

    def __init__(
        self, *, backend: PartitionBackend, run: RunDirectory, spool: Spool, wall_s: Callable[[], float]
    ) -> None:
        self._backend = backend
        self._run = run
        self._spool = spool
        self._wall_s = wall_s
        self._ended: OrderedDict[str, Released] = OrderedDict()

    def outcome(self, partition_id: str) -> Released | None:
        """Return how the scrub of a partition ended that was on this tray."""
        return self._ended.get(partition_id)

    async def scrub(self, spec: PartitionSpec, *, fence: int, gone: bool) -> Released:
        """Free the partition's place if nothing of it is left, else cordon it.

        Args:
            spec: the place, taken in the backend.
            fence: under which the partition was created.
            gone: whether the worker's process is proven to have ended.
        """
        released = await self._scrub(spec, gone=gone)
        if released.scrubbed:
            self._run.forget(spec.partition_id)
        else:
            await self._backend.cordon(spec.partition_id)
            self._run.write(PartitionRecord(spec=spec, fence=fence, state=PartitionState.CORDONED, process=None))
        self._remember(spec.partition_id, released)
        _log.info(
            "partition.scrubbed",
            partition_id=spec.partition_id,
            proven=released.scrubbed,
            simulated=self._backend.inventory().simulated,
            detail=released.detail,
        )
        return released

    async def recover(self, record: PartitionRecord) -> None:
        """End and scrub one partition of an earlier agent process, and report what became of it."""
        spec, fence = record.spec, record.fence
        gone = record.process is None or await end_stranger(record.process, patience_s=ORPHAN_PATIENCE_S)
        try:
            await self._backend.adopt(spec)
            released = await self.scrub(spec, fence=fence, gone=gone)
        except BulkheadError as error:  # the tray is divided otherwise than before: its record stays for a person
            _log.error("partition.not_recovered", partition_id=spec.partition_id, reason=error.message)
            released = Released(scrubbed=False, detail=error.message)
            self._remember(spec.partition_id, released)
        before = record.state
        if before is not PartitionState.CORDONED:
            await self.report(spec, fence, before, PartitionState.LOST, "the agent was restarted")
            before = PartitionState.LOST
        if final_state(released) is not before:
            await self.report(spec, fence, before, final_state(released), released.detail)

    async def report(
        self, spec: PartitionSpec, fence: int, before: PartitionState, after: PartitionState, reason: str
    ) -> None:
        """Spool a step that nobody ordered; a spool that does not take it is logged."""
        step = PartitionStep(
            partition_id=spec.partition_id,
            ts_us=int(self._wall_s() * 1_000_000),
            tenant_id=spec.tenant_id,
            from_state=before.value,
            to_state=after.value,
            reason=reason,
            fence=fence,
        )
        try:
            await self._spool.append(step)
        except BulkheadError as error:  # the control plane also learns of it from heartbeats
            _log.error("spool.step_dropped", partition_id=spec.partition_id, code=error.code)

    async def _scrub(self, spec: PartitionSpec, *, gone: bool) -> Released:
        if not gone:
            return Released(scrubbed=False, detail="the worker's process could not be ended")
        if not self._run.remove(spec.partition_id):
            return Released(scrubbed=False, detail="the worker's directory could not be removed")
        report = await self._backend.scrub(spec.partition_id)
        if not report.proven:
            return Released(scrubbed=False, detail=report.detail)
        return Released(scrubbed=True, detail=f"process ended, directory removed, {report.detail}")

    def _remember(self, partition_id: str, released: Released) -> None:
        self._ended[partition_id] = released
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
