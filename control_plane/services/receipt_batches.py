"""Receipts under records of the audit log, each receipt under one.

1. A range of a session's receipts is *claimed*: stored with the bytes of the record that will cover it.
2. The record is written to the log. Its id and bytes are fixed, so a repetition finds the place that it has.
3. Its place is noted, in the transaction that moves the mark of the agent's spool.

A crash, or a log that is out of reach, after 1 or 2 leaves an unrecorded claim: what the agent sends again falls under
it, and :meth:`Batches.record` writes the same record again. So no receipt is counted twice, whenever the process ends.
A receipt that comes again with another digest contradicts its agent and is reported, not recorded.

Digests are kept for proofs (`audit prove --receipt`) until a while after their session's end, and then forgotten; the
record stays in the log. From that moment on nothing of the session is recorded any more, so that forgetting opens no
way to count a receipt twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from audit.model import Appended
from audit.records import PlatformReason, Record, Stamp, platform_cause, receipts
from bulkhead.transparency import parse_leaf, receipts_root
from control_plane.domain.fleet import ReceiptReported, SpooledEvent
from control_plane.domain.partitions import Partition
from control_plane.domain.receipts import StoredBatch
from control_plane.domain.sessions import HOLDING, Session
from control_plane.services.journal import Journal
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.receipts import ReceiptBatches

__all__ = ["MAX_BATCH", "Batches", "Told"]

MAX_BATCH: Final = 1_024  # receipts under one root
MAX_FORGOTTEN: Final = 1_000  # batches in one transaction, 33 kB each at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Receipts of one session that an agent told of and that are due; believable as far as the agent goes."""

    partition: Partition
    session: Session | None
    events: Sequence[SpooledEvent]


@dataclass(frozen=True, slots=True)
class _Receipt:
    event: SpooledEvent
    told: ReceiptReported


class Batches:
    """Claims ranges and writes their records.

    Args:
        database: the state.
        journal: the audit log.
        failpoint: called with ``claimed`` and ``recorded`` between the steps; a test's way to end the process there.
    """

    def __init__(
        self, *, database: Database, journal: Journal, failpoint: Callable[[str], None] = lambda _step: None
    ) -> None:
        self._database = database
        self._journal = journal
        self._failpoint = failpoint
        self._unrecorded: dict[str, StoredBatch] | None = None  # None: not read yet
        self._placed: list[Appended] = []

    async def claim(self, told: Sequence[Told]) -> tuple[SpooledEvent, ...]:
        """Claim what is told and not claimed yet; return the events that contradict earlier ones.

        Raises:
            StateUnavailableError: nothing is claimed.
        """
        if not told:
            return ()
        stamps = self._journal.stamp

        def work(tx: Transaction) -> tuple[list[StoredBatch], list[SpooledEvent]]:
            stored = ReceiptBatches(tx.connection)
            new: list[StoredBatch] = []
            contradicting: list[SpooledEvent] = []
            for item in told:
                fresh, against = _unclaimed(stored, item)
                contradicting += against
                for run in _runs(fresh):
                    batch = _batch(item, run, _record(item, run, stamp=stamps()))
                    stored.add(batch)
                    new.append(batch)
            return new, contradicting

        claimed, contradicting = await self._database.write(work)
        if self._unrecorded is not None:
            self._unrecorded.update((batch.record_id, batch) for batch in claimed)
        self._failpoint("claimed")
        return tuple(contradicting)

    async def record(self) -> None:
        """Write every claimed record that is not known to be in the log.

        Raises:
            AuditUnavailableError: some may be there; they are written again the next time.
            StateUnavailableError: what an earlier process claimed cannot be read.
        """
        if self._unrecorded is None:
            left = await self._database.read(lambda tx: ReceiptBatches(tx.connection).unrecorded())
            self._unrecorded = {batch.record_id: batch for batch in left}
        for batch in tuple(self._unrecorded.values()):
            self._placed.append(await self._journal.write(Record(batch.leaf, parse_leaf(batch.leaf))))
            del self._unrecorded[batch.record_id]
        if self._placed:
            self._failpoint("recorded")

    async def forget(self, *, before_us: int) -> int:
        """Forget the digests of sessions that ended before a time (Unix, microseconds); return how many batches.

        Raises:
            StateUnavailableError: the next call goes on.
        """
        forgotten = 0
        while True:
            count = await self._database.write(
                lambda tx: ReceiptBatches(tx.connection).forget(before_us=before_us, limit=MAX_FORGOTTEN)
            )
            forgotten += count
            if count < MAX_FORGOTTEN:
                return forgotten

    @property
    def has_marks(self) -> bool:
        """Whether records were written whose places :meth:`mark` has not noted."""
        return bool(self._placed)

    def mark(self, tx: Transaction) -> Callable[[], None]:
        """Note the places of written records; call what is returned once the transaction is committed."""
        placed = tuple(self._placed)
        for item in placed:
            ReceiptBatches(tx.connection).recorded(item.record_id, log_id=item.log_id, log_index=item.index)

        def committed() -> None:
            self._placed = [item for item in self._placed if item not in placed]

        return committed


def _unclaimed(stored: ReceiptBatches, item: Told) -> tuple[list[_Receipt], list[SpooledEvent]]:
    """Return what no batch covers, in order of number and once each, and what contradicts a batch or itself."""
    receipts_told = sorted(_receipts(item.events), key=lambda receipt: receipt.told.session_number)
    if not receipts_told:
        return [], []
    low, high = receipts_told[0].told.session_number, receipts_told[-1].told.session_number
    session_id, partition_id = receipts_told[0].told.session_id, item.partition.partition_id
    covered = {
        number: digest
        for batch in stored.overlapping(session_id, partition_id, low=low, high=high)
        for number, digest in zip(batch.numbers, batch.digests, strict=True)
    }
    fresh: dict[int, _Receipt] = {}
    contradicting: list[SpooledEvent] = []
    for receipt in receipts_told:
        number, digest = receipt.told.session_number, receipt.told.receipt_digest
        again = fresh.get(number)
        earlier = again.told.receipt_digest if again is not None else covered.get(number)
        if earlier is None:
            fresh[number] = receipt
        elif earlier != digest:
            contradicting.append(receipt.event)
    return list(fresh.values()), contradicting


def _runs(numbered: Sequence[_Receipt]) -> list[list[ReceiptReported]]:
    """Return receipts, in order of number, in parts without a gap of at most :data:`MAX_BATCH`."""
    runs: list[list[ReceiptReported]] = []
    for receipt in numbered:
        follows = runs and runs[-1][-1].session_number == receipt.told.session_number - 1
        if not follows or len(runs[-1]) == MAX_BATCH:
            runs.append([])
        runs[-1].append(receipt.told)
    return runs


def _batch(item: Told, run: Sequence[ReceiptReported], record: Record) -> StoredBatch:
    return StoredBatch(
        tenant_id=item.partition.tenant_id,
        session_id=run[0].session_id,
        partition_id=item.partition.partition_id,
        first=run[0].session_number,
        digests=tuple(told.receipt_digest for told in run),
        record_id=record.record_id,
        leaf=record.leaf,
    )


def _record(item: Told, run: Sequence[ReceiptReported], *, stamp: Stamp) -> Record:
    partition, session = item.partition, item.session
    return receipts(
        stamp,
        tenant=partition.tenant_id,
        cause=platform_cause(PlatformReason.SPOOL),
        session=run[0].session_id,
        pair_id="" if session is None else session.pair_id,
        partition=partition.partition_id,
        model=partition.model,
        tier=partition.tier.label,
        root=receipts_root([told.receipt_digest for told in run]),
        first=run[0].session_number,
        count=len(run),
        prompt_tokens=sum(told.prompt_tokens for told in run),
        completion_tokens=sum(told.completion_tokens for told in run),
        final=session is None or session.state not in HOLDING,
    )


def _receipts(events: Iterable[SpooledEvent]) -> Iterable[_Receipt]:
    for event in events:
        if isinstance(event.event, ReceiptReported):
            yield _Receipt(event, event.event)
