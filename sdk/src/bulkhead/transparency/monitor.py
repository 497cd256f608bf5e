"""What a tenant's monitor remembers of its own log, and how it judges what it is shown. No I/O.

A server that may not be trusted shows a log bit by bit. The monitor holds each bit against what it has seen before and
against what the tenant knows of itself, and raises an :class:`Alarm` for

- ``fork``: two histories of the log, by a checkpoint, an export, any of the rounds, a proof somebody kept, or gossip;
- ``rewind``: the log is smaller than before, or in a round than in the one before, or the newest round is older;
- ``gap``: an answered request without its record; a round that is not shown; a platform that has stopped making rounds
  over the log;
- ``stranger``: a record whose cause names a request that no journal of the tenant holds;
- ``invalid``: a signature, a record or a proof that does not hold.

A fork is never taken over: what is remembered stays what it was before it. What waits for a time to pass waits from
when it was first seen, at the latest: the platform's clock, which may be wrong or lie, shortens a wait or does nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bulkhead.errors import BulkheadError, ConsistencyError, InclusionError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.export import VerifiedLog
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.rounds import RoundsSeen, VerifiedRound

__all__ = ["RECORDED_CALLS", "Alarm", "Followed", "JournalEntries", "Records", "alarm_of"]

RECORDED_CALLS: Final = frozenset({"OpenSession", "ListRecords", "GetRecord", "ExportLog", "GetReceiptProof"})
"""Calls of which every one that succeeds leaves a record that names it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that must not be.

    Attributes:
        kind: ``fork``, ``rewind``, ``gap``, ``stranger`` or ``invalid``.
        message: one sentence.
        subject: what it is about (a record, a request, a size), so that it is told once.
    """

    kind: str
    message: str
    subject: str


def alarm_of(error: BulkheadError, subject: str) -> Alarm:
    """Return the alarm that a failed proof is."""
    fork = "fork" if isinstance(error, (ConsistencyError, InclusionError)) else "invalid"
    return Alarm(error.details.get("kind", fork), error.message, subject)


@dataclass(slots=True)
class JournalEntries:
    """What the tenant's journals say.

    Attributes:
        sent: every request id.
        answered: ids whose answer is known.
        due: ids of recorded calls that succeeded and were not asked for in the log yet.
    """

    sent: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    due: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Records:
    """What new records say of requests; gathered while they are verified.

    Attributes:
        requests: request id of each record that a tenant's request caused, with the record's place and time (µs).
        slot: the log's slot, if leaf 0 is among them.
    """

    requests: list[tuple[str, int, str, int]] = field(default_factory=list)
    slot: int | None = None
    next_index: int = 0

    def add(self, fields: LeafFields) -> None:
        """Take the next record."""
        if self.next_index == 0 and fields.action == "log.opened":
            slot = fields.data.get("slot")
            self.slot = slot if type(slot) is int else None
        if fields.cause.kind == "tenant":
            self.requests.append((fields.cause.request_id, self.next_index, fields.record_id, fields.ts_us))
        self.next_index += 1


@dataclass(slots=True)
class Followed:
    """The log as far as it was followed.

    Attributes:
        frontier: of all records that were verified.
        note: the checkpoint over them, as signed.
        since_us: when the first check was, microseconds.
        slot: the log's place in the platform's rounds, from its leaf 0.
        first_round: the round that was verified first; every one from there to ``round`` was. 0 before that.
        round: the newest round that was verified; 0 before the first.
        round_ts_us: when the platform made it, or when it was first seen if that is earlier (µs).
        round_size: size of the log in it; 0 if that is not known.
        round_root: root of that tree, hexadecimal.
        behind_us: since when checks have ended before the newest round (µs); 0 if the last one reached it.
        platform_size: size of the platform's log with it.
        platform_root: its root, hexadecimal.
        found: requests that have their record and, as far as the journals say, no answer yet; strangers among them.
        strangers: records whose request no journal held when they were seen, by request id: place, id, and when the
            platform wrote them, or when they were first seen if that is earlier (µs).
        alarms: what was raised and not acknowledged, by subject.
    """

    frontier: Frontier = field(default_factory=Frontier)
    note: str = ""
    since_us: int = 0
    slot: int | None = None
    first_round: int = 0
    round: int = 0
    round_ts_us: int = 0
    round_size: int = 0
    round_root: str = ""
    behind_us: int = 0
    platform_size: int = 0
    platform_root: str = ""
    found: set[str] = field(default_factory=set)
    strangers: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    alarms: dict[str, Alarm] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Records that were verified."""
        return self.frontier.size

    def alarm(self, alarm: Alarm) -> None:
        """Remember an alarm."""
        self.alarms.setdefault(f"{alarm.kind} {alarm.subject}", alarm)

    def check_head(self, checkpoint: Checkpoint) -> bool:
        """Hold a verified checkpoint of now against what is remembered; return whether there are new records.

        Raises:
            ConsistencyError: the log is smaller than before, or another at the same size.
        """
        if checkpoint.size < self.size:
            raise ConsistencyError(
                f"a rewind: the log has {checkpoint.size} records, {self.size} were verified before",
                details={"kind": "rewind"},
            )
        if checkpoint.size == self.size and self.size and checkpoint.root != self.frontier.root():
            raise ConsistencyError(f"a fork: two roots for size {self.size}")
        return checkpoint.size > self.size

    def extend(self, log: VerifiedLog, records: Records) -> None:
        """Take over new records from a verified export that begins where the last one ended.

        Raises:
            ConsistencyError: it begins elsewhere, or on another history.
        """
        if log.first != self.size or log.before.nodes != self.frontier.nodes:
            raise ConsistencyError(f"a fork: the records from {log.first} on do not continue those that were verified")
        self.frontier, self.note = log.after, log.note
        self.slot = records.slot if self.slot is None else self.slot

    def take(self, records: Records, journals: JournalEntries, *, now_us: int) -> None:
        """Hold new records against the journals; strangers are kept until :meth:`overdue` decides."""
        for request_id, index, record_id, ts_us in records.requests:
            if request_id in journals.sent:
                self.found.add(request_id)
            else:
                self.strangers.setdefault(request_id, (index, record_id, min(ts_us, now_us)))

    def overdue(self, journals: JournalEntries, *, now_us: int, grace_us: int) -> None:
        """Raise what has no excuse any more, and forget what is settled.

        Args:
            journals: all of the tenant's.
            now_us: wall clock, microseconds.
            grace_us: how long a journal of another machine may take to get here.
        """
        for request_id, (index, record_id, ts_us) in list(self.strangers.items()):
            if request_id in journals.sent:
                del self.strangers[request_id]
                self.found.add(request_id)
            elif now_us - ts_us >= grace_us:
                del self.strangers[request_id]
                self.found.add(request_id)  # its journal may still come: then the record is there
                what = f"names the request {request_id or '(none)'}, which no journal holds"
                self.alarm(Alarm("stranger", f"record {index} ({record_id}) {what}", record_id))
        for request_id in journals.due - self.found - self.strangers.keys():
            self.alarm(Alarm("gap", f"the request {request_id} was answered, but no record names it", request_id))
        journals.due.clear()
        self.found -= journals.answered

    @property
    def rounds_seen(self) -> RoundsSeen:
        """How far the rounds were followed."""
        return RoundsSeen(
            round=self.round,
            size=self.round_size,
            root=bytes.fromhex(self.round_root),
            platform_size=self.platform_size,
            platform_root=bytes.fromhex(self.platform_root),
        )

    def check_newest(self, newest: VerifiedRound, platform: Checkpoint) -> None:
        """Hold what was shown as the newest round against the rounds that were followed; nothing is taken over.

        Raises:
            ConsistencyError: it is older, or the platform's log has forked.
        """
        if newest.round < self.round or platform.size < self.platform_size:
            raise ConsistencyError(
                f"a rewind: round {newest.round} of a platform log of {platform.size} records was shown, "
                f"round {self.round} of one of {self.platform_size} before",
                details={"kind": "rewind"},
            )
        if platform.size == self.platform_size and platform.root.hex() != self.platform_root:
            raise ConsistencyError(f"a fork of the platform's log: two roots for size {platform.size}")

    def begin_rounds(self, first: int) -> None:
        """Follow rounds from this one on."""
        self.first_round, self.round = first, first - 1

    def take_rounds(self, rounds: Sequence[VerifiedRound], platform: Checkpoint, *, now_us: int) -> None:
        """Take over verified rounds that come next (at least one), and the platform's checkpoint over them."""
        last = rounds[-1]
        self.round, self.round_ts_us = last.round, min(last.ts_us, now_us)
        self.round_size, self.round_root = last.checkpoint.size, last.checkpoint.root.hex()
        self.platform_size, self.platform_root = platform.size, platform.root.hex()
