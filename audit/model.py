"""The values that the log, its store and its readers exchange."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.merkle import Frontier

__all__ = [
    "MAX_PAGE",
    "Appended",
    "AuditHealth",
    "Failpoint",
    "Head",
    "IndexRow",
    "ListedRecord",
    "LogInfo",
    "Order",
    "Page",
    "Progress",
    "RecordFilter",
    "RecordPage",
    "RoundHead",
    "StoredLeaf",
    "no_failpoint",
]

MAX_PAGE: Final = 1_000  # records in one reply; 16 MiB of leaves at the most

Failpoint: TypeAlias = Callable[[str], None]
"""Called with the name of each step of a commit; tests stop the process there. See docs/audit.md section 3."""

Progress: TypeAlias = Callable[[int, int], None]
"""``(done, total)`` in records, called every few thousand of them."""


def no_failpoint(step: str) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInfo:
    """One log: a tenant's (or the platform's) records of one epoch.

    Attributes:
        log_id: number of the log in this database.
        origin: name of the log and of its key.
        tenant: tenant id, or None for the platform's log.
        epoch: from 1.
        slot: its place in the platform's rounds, or None for the platform's log.
    """

    log_id: int
    origin: str
    tenant: str | None
    epoch: int
    slot: int | None


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a record stands. It is durable: database and lock store have it.

    Attributes:
        log_id: the log.
        index: place in the log, from 0.
        leaf_hash: RFC 6962 leaf hash; other documents cite the record by it.
        record_id: TypeID of the record.
        leaf: its exact bytes.
    """

    log_id: int
    index: int
    leaf_hash: bytes
    record_id: str
    leaf: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The size of a log and the compact range that its root is computed from."""

    log_id: int
    frontier: Frontier

    @property
    def size(self) -> int:
        """Leaves in the log."""
        return self.frontier.size


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """A row of ``audit_leaf``."""

    pos: int
    log_id: int
    index: int
    record_id: str
    leaf: bytes
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A row of ``audit_index``: a copy of leaf fields for queries, never an authority."""

    pos: int
    log_id: int
    index: int
    ts_us: int
    action: str
    decision: str
    subject: str
    session: str
    pair_id: str

    @classmethod
    def of(cls, pos: int, log_id: int, index: int, fields: LeafFields) -> "IndexRow":
        """Return the row that belongs to a leaf."""
        return cls(
            pos, log_id, index, fields.ts_us, fields.action, fields.decision, fields.subject, fields.session,
            fields.pair_id,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RoundHead:
    """The size of a tenant's log that a round commits to; rounds store only the logs that changed."""

    round: int
    log_id: int
    size: int


class Order(enum.Enum):
    """Order of a page: by index within a log, by commit order across logs."""

    OLDEST_FIRST = "oldest_first"
    NEWEST_FIRST = "newest_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records to list; everything that is set must match.

    Attributes:
        log_id: one log; None lists all logs (platform officers only: the caller's authority is checked by the caller).
        action: exact action, or a prefix ending in ``.`` (``partition.``).
        decision: ``allow``, ``deny`` or ``error``.
        subject: subject id.
        session: session id.
        pair_id: pair id.
        since_us: earliest time, inclusive, microseconds.
        until_us: latest time, exclusive, microseconds.
    """

    log_id: int | None = None
    action: str = ""
    decision: str = ""
    subject: str = ""
    session: str = ""
    pair_id: str = ""
    since_us: int | None = None
    until_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list.

    Attributes:
        limit: at most this many records, 1 to 1,000.
        after: ``next`` of the page before, or empty.
        order: of the whole list.
    """

    limit: int = 100
    after: str = ""
    order: Order = Order.NEWEST_FIRST


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """A record found through the index and compared with its leaf."""

    log_id: int
    index: int
    leaf: bytes
    leaf_hash: bytes
    fields: LeafFields


@dataclass(frozen=True, slots=True)
class RecordPage:
    """A page of records.

    Attributes:
        records: in the order asked for.
        next: token of the next page, empty at the end.
        indexed: records of the log (of all logs) that the index holds; later ones were not looked at.
        size: records of the log (of all logs) that are committed.
    """

    records: tuple[ListedRecord, ...]
    next: str
    indexed: int
    size: int


@dataclass(frozen=True, slots=True)
class AuditHealth:
    """Whether the log can be written.

    Attributes:
        writable: the last commit succeeded, or nothing has been tried since the start.
        forked: database and lock store disagree; no retry will help.
        reason: one sentence if it cannot be written.
        queued: records waiting for a commit.
        unindexed: records behind which the index is.
        witnesses: why each witness that did not cosign the platform's last checkpoint did not, by its name.
        rounds: why a past round could not be made again as the platform's log has it, the last time; or empty.
    """

    writable: bool
    forked: bool
    reason: str
    queued: int
    unindexed: int
    witnesses: Mapping[str, str] = field(default_factory=dict)
    rounds: str = ""
