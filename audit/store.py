"""The ports between the log and its database, and its lock store.

A store has a writing side, used by one thread at a time, and a reading side, used by any thread. Every method blocks
for a bounded time. A database that cannot be reached, is locked, read-only, full or damaged is an
:class:`~bulkhead.errors.AuditUnavailableError`; nothing is known then about the fate of a commit in progress, and
sending the same leaves again finds out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from audit.chain import LockState
from audit.model import Head, IndexRow, LogInfo, Page, RecordFilter, RoundHead, StoredLeaf
from bulkhead.errors import BulkheadError

__all__ = [
    "AuditReader",
    "AuditStore",
    "Committed",
    "IndexedLeaf",
    "IndexedLeaves",
    "LockStore",
    "NewLeaf",
    "Placed",
    "Survey",
]


class NewLeaf(NamedTuple):
    """A leaf to be committed.

    Attributes:
        log_id: the log.
        record_id: the record's TypeID.
        leaf: exact bytes.
        leaf_hash: their RFC 6962 leaf hash.
        opens: for leaf 0: the log that it opens, registered in the same commit.
        round_heads: for a round: the heads that changed, stored in the same commit.
    """

    log_id: int
    record_id: str
    leaf: bytes
    leaf_hash: bytes
    opens: LogInfo | None = None
    round_heads: tuple[RoundHead, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a leaf stands, whether new or sent again."""

    log_id: int
    index: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit's result.

    Attributes:
        last: the database's last commit, which the lock store must reach before anything is acknowledged.
        places: for each leaf, in order, its place or the error that concerns it alone.
        heads: of the logs named in the batch.
        wrote: whether ``last`` is this commit; else nothing in the batch was new.
    """

    last: LockState
    places: tuple[Placed | BulkheadError, ...]
    heads: tuple[Head, ...]
    wrote: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What every writer together has committed.

    Attributes:
        last: the database's last commit, which the lock store must reach before any of it is spoken of.
        logs: every log by id; none if the caller knows them.
        heads: every log's head after ``last``; likewise.
        last_round: number of the last round, or None.
    """

    last: LockState
    logs: tuple[LogInfo, ...]
    heads: tuple[Head, ...]
    last_round: int | None


@dataclass(frozen=True, slots=True)
class IndexedLeaf:
    """A row of the index and the leaf that it points to; None if there is no such leaf. Not compared yet."""

    row: IndexRow
    stored: StoredLeaf | None


@dataclass(frozen=True, slots=True)
class IndexedLeaves:
    """A page from the index.

    Attributes:
        rows: in the order asked for.
        next: token of the next page, or empty.
        indexed: records of the log (of all logs) that the index holds.
        size: records of the log (of all logs) in the database.
    """

    rows: tuple[IndexedLeaf, ...]
    next: str
    indexed: int
    size: int


class AuditReader(Protocol):
    """The reading side. Indexes and sizes count from 0, epochs, rounds and commits from 1."""

    def last_commit(self) -> LockState:
        """Return the last commit, :data:`~audit.chain.GENESIS` if there is none."""
        ...

    def chain_at(self, seq: int) -> bytes | None:
        """Return the chain value of a commit, or None if there is none with that number."""
        ...

    def logs(self) -> tuple[LogInfo, ...]:
        """Return every log by id."""
        ...

    def heads(self) -> tuple[Head, ...]:
        """Return every log's head."""
        ...

    def leaves(self, log_id: int, start: int, stop: int) -> tuple[StoredLeaf, ...]:
        """Return the leaves with ``start <= index < stop`` that exist, in order."""
        ...

    def find(self, record_id: str) -> StoredLeaf | None:
        """Return the leaf of a record, or None."""
        ...

    def leaf_hashes(self, log_id: int, start: int, stop: int) -> tuple[bytes, ...]:
        """Return the leaf hashes with ``start <= index < stop`` that exist, in order."""
        ...

    def tile(self, log_id: int, level: int, number: int) -> bytes | None:
        """Return the 256 hashes of a full tile, or None."""
        ...

    def checkpoints(self, log_id: int, start: int, stop: int) -> tuple[tuple[int, str], ...]:
        """Return the kept checkpoints with ``start <= size < stop`` as (size, note with cosignatures), in order."""
        ...

    def last_round(self) -> int | None:
        """Return the number of the last round, or None."""
        ...

    def newest_round(self, log_id: int, size: int) -> int | None:
        """Return the last round with a row in which a log was smaller than ``size``, or None."""
        ...

    def sizes_in_round(self, number: int) -> Mapping[int, int]:
        """Return the size that each log had in a round, by log id: that of its last row up to there.

        Logs of which no round up to there has a row are left out. It is not asked whether there is such a round.
        """
        ...

    def round_heads(self, start: int, stop: int) -> tuple[RoundHead, ...]:
        """Return the rows of the rounds with ``start <= round < stop``, by round and log id."""
        ...

    def unindexed(self) -> int:
        """Return how many leaves the index does not hold yet."""
        ...

    def query(self, query: RecordFilter, page: Page) -> IndexedLeaves:
        """Return a page of the index with the leaves it points to.

        Raises:
            InvalidRequestError: the page token is not one of this list.
        """
        ...

    def open_pairs(self, log_id: int, start: int, stop: int) -> IndexedLeaves:
        """Return, newest first, a log's open pairs with ``start <= index < stop``, at most 4,096 places.

        That is: allowed decisions on sessions whose pair has neither an outcome nor a renewal, anywhere in the index.
        """
        ...

    def close(self) -> None:
        """Release the database."""
        ...


class AuditStore(AuditReader, Protocol):
    """The whole store; what is added here belongs to one thread at a time."""

    @property
    def shared(self) -> bool:
        """Whether other processes may append to the database, too."""
        ...

    def commit(self, batch: Sequence[NewLeaf], locked: LockState) -> Committed:
        """Append leaves in order, in one transaction that is durable on return.

        A record id that is there already with the same leaf keeps its place. A round whose number is taken is a
        ConflictError of its leaf alone. ``locked`` is the lock store's state; it must be a commit of this database.

        Raises:
            LogForkError: ``locked`` is not in this database.
            AuditUnavailableError: see the module.
        """
        ...

    def survey(self, locked: LockState, *, known: int) -> Survey:
        """Return what all writers have committed, while none of them commits; ``locked`` as in :meth:`commit`.

        ``known`` is the commit up to which the caller knows everything: if it is the last, logs and heads are left out.

        Raises:
            LogForkError: ``locked`` is not in this database.
            AuditUnavailableError: see the module.
        """
        ...

    def put_checkpoints(self, notes: Mapping[tuple[int, int], str]) -> None:
        """Keep signed checkpoints by (log id, size); one that is there stays."""
        ...

    def put_cosignatures(self, lines: Mapping[tuple[int, int], str]) -> None:
        """Keep witnesses' signature lines of kept checkpoints by (log id, size), in place of earlier ones."""
        ...

    def project(self, limit: int) -> int | None:
        """Bring at most ``limit`` further leaves into the index; return how many it took, None if it is not its turn.

        Another process that has the turn may not see what was committed just now: ask again.
        """
        ...

    def maintain(self, *, idle: bool) -> None:
        """Do the database's own housekeeping; ``idle`` says that nobody waits."""
        ...


class LockStore(Protocol):
    """A second memory beside the database: the last acknowledged commit, replaced by compare-and-swap.

    It must never be restored together with the database. :meth:`read` may be called by any thread.
    """

    def open(self, *, create: bool) -> None:
        """Open it.

        Args:
            create: make it, at genesis, if it is not there; only right for a database without commits.

        Raises:
            LogForkError: it is not there and ``create`` is false.
            AuditUnavailableError: it cannot be opened or created.
        """
        ...

    def read(self) -> LockState:
        """Return the current state.

        Raises:
            LogForkError: it holds no readable state.
            AuditUnavailableError: it cannot be read.
        """
        ...

    def move(self, expected: LockState, new: LockState) -> LockState:
        """Replace ``expected`` by ``new``; return what the store holds then, durably: ``new``, or another's state.

        Raises:
            LogForkError: it holds no readable state.
            AuditUnavailableError: it cannot be written; whether it was is unknown, so read it again.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
