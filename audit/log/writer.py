"""The thread that commits: takes what is queued, commits it at once, moves the lock store, acknowledges.

There is no timer: while one batch is being written the next gathers. A batch is acknowledged only when the database
has committed it and the lock store holds its chain. When anything fails, the whole batch fails with
AuditUnavailableError and the next batch simply tries again; a fork (LogForkError) ends writing for good. When nobody
has waited for a moment, the thread indexes, keeps checkpoints and lets the database tidy up.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from audit.chain import LockState
from audit.model import Failpoint
from audit.store import AuditStore, Committed, LockStore, NewLeaf, Placed, Survey
from bulkhead.errors import (
    AuditUnavailableError,
    BulkheadError,
    ConfigError,
    LogForkError,
    ShuttingDownError,
)

__all__ = ["CommitThread"]

MAX_BATCH_RECORDS: Final = 1_024  # docs/audit.md section 3: what waits costs one wait for the disk, not four
MAX_BATCH_BYTES: Final = 1024 * 1024
MAX_QUEUED: Final = 16_384  # at a thousand commits a second nothing waits longer than the append's time-out allows
_IDLE_S: Final = 0.02  # nobody has waited for this long: time for housekeeping
_REST_S: Final = 0.1  # between two of them: each is two more commits, which the next record would wait for
_RETRY_S: Final = 0.5  # between two tries of housekeeping that fails, and of a database that does
_INDEX_CHUNK: Final = 512
_INDEX_LAG_LIMIT: Final = (
    131_072  # some seconds of a burst; the index catches up under load, too, when it is this far behind
)
_COMMITS_PER_MAINTENANCE: Final = 256
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Waiting:
    leaf: NewLeaf
    future: "asyncio.Future[Placed]"


@dataclass(slots=True, eq=False)
class _Asking:
    """Somebody who waits for a survey."""

    future: "asyncio.Future[Survey]"


@dataclass(slots=True)
class _Taken:
    """What the thread does next."""

    batch: list[_Waiting] = field(default_factory=list)
    asking: list[_Asking] = field(default_factory=list)
    ending: bool = False


class CommitThread:
    """Owns the store's writing side and the lock store. Methods without a note are called on the event loop."""

    def __init__(
        self,
        *,
        store: AuditStore,
        lock: LockStore,
        locked: LockState,
        loop: asyncio.AbstractEventLoop,
        acknowledged: Callable[[Committed, Sequence[tuple[NewLeaf, Placed]]], None],
        failpoint: Failpoint,
    ) -> None:
        """Take over a store whose lock state has been checked.

        Args:
            store: its writing side.
            lock: the lock store.
            locked: what the lock store holds.
            loop: the event loop of the callers.
            acknowledged: called on the loop for each batch before its callers are told.
            failpoint: see :data:`~audit.model.Failpoint`.
        """
        self._store = store
        self._lock = lock
        self._locked = locked
        self._loop = loop
        self._acknowledged = acknowledged
        self._failpoint = failpoint
        self._queue: queue.SimpleQueue[_Waiting | _Asking | None] = queue.SimpleQueue()
        self._notes: dict[tuple[int, int], str] = {}
        self._cosignatures: dict[tuple[int, int], str] = {}
        self._notes_guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="audit-commit", daemon=True)
        self._closed = False
        self._unindexed = store.unindexed()
        self._since_maintenance = 0
        self._resting_until_s = 0.0  # monotonic
        self._reread_lock = False
        self._known = -1  # the commit up to which the event loop is told of everything
        self._index_failure: BulkheadError | None = None
        self.housekeeping_failure: BulkheadError | None = None
        self.failure: BulkheadError | None = None
        self.fork: LogForkError | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def queued(self) -> int:
        """Records that wait for a commit."""
        return self._queue.qsize()

    @property
    def unindexed(self) -> int:
        """Records behind which the index is."""
        return self._unindexed

    def submit(self, leaf: NewLeaf) -> "asyncio.Future[Placed]":
        """Queue a leaf; the future ends when it is acknowledged or has failed. Cancelling it gives up waiting.

        Raises:
            LogForkError: writing has stopped for good.
            ShuttingDownError: the log is closed.
            AuditUnavailableError: too many wait already.
        """
        self._check_open()
        if self._queue.qsize() >= MAX_QUEUED:
            raise AuditUnavailableError(f"{MAX_QUEUED} records wait for the audit database already")
        waiting = _Waiting(leaf, self._loop.create_future())
        self._queue.put(waiting)
        return waiting.future

    def survey(self) -> "asyncio.Future[Survey]":
        """Find out what all writers have committed; the lock store has it when the future ends.

        Raises:
            LogForkError, ShuttingDownError: as :meth:`submit`.
        """
        self._check_open()
        asking = _Asking(self._loop.create_future())
        self._queue.put(asking)
        return asking.future

    def _check_open(self) -> None:
        if self.fork is not None:
            raise LogForkError(self.fork.message)
        if self._closed:
            raise ShuttingDownError("the audit log is closed")

    def keep_checkpoint(self, log_id: int, size: int, note: str) -> None:
        """Keep a signed checkpoint in the database, some time soon. Any thread."""
        with self._notes_guard:
            self._notes[log_id, size] = note

    def keep_cosignatures(self, log_id: int, size: int, lines: str) -> None:
        """Keep witnesses' signature lines of a checkpoint that is kept, some time soon. Any thread."""
        with self._notes_guard:
            self._cosignatures[log_id, size] = lines

    async def close(self) -> None:
        """Commit what is queued and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # On the thread.

    def _run(self) -> None:
        while True:
            taken = self._take()
            if taken.batch:
                self._commit(taken.batch)
            if taken.asking:
                self._survey(taken.asking)
            if taken.ending:
                self._housekeeping(idle=True)
                return
            if not taken.batch:
                self._housekeeping(idle=True)
            elif self._unindexed > _INDEX_LAG_LIMIT or self._since_maintenance > _COMMITS_PER_MAINTENANCE:
                self._housekeeping(idle=False)

    def _take(self) -> _Taken:
        """Wait for the first record, then take what is there; an empty batch means that no record waits."""
        taken = _Taken()
        batch, take = taken.batch, self._queue.get_nowait
        size = 0
        try:
            item = self._queue.get(timeout=self._patience_s())
            while item is not None:
                if item.future.done():
                    pass  # whoever gave up waiting was told that nothing was recorded
                elif isinstance(item, _Asking):
                    taken.asking.append(item)
                else:
                    batch.append(item)
                    size += len(item.leaf.leaf)
                if len(batch) >= MAX_BATCH_RECORDS or size >= MAX_BATCH_BYTES:
                    return taken
                item = take()
        except queue.Empty:
            return taken
        taken.ending = True
        return taken

    def _patience_s(self) -> float | None:
        """Return how long to wait for a record before housekeeping; None if there is nothing to do."""
        if self.failure is not None or self.housekeeping_failure is not None:
            return _RETRY_S
        if self._unindexed or self._notes or self._cosignatures or self._since_maintenance:
            return max(_IDLE_S, self._resting_until_s - time.monotonic())
        return None

    def _commit(self, batch: list[_Waiting]) -> None:
        committed = self._tried(lambda: self._commit_and_lock([item.leaf for item in batch]))
        if isinstance(committed, BulkheadError):
            self._call(self._fail, batch, committed)
            return
        self._unindexed += sum(isinstance(place, Placed) for place in committed.places)
        self._since_maintenance += 1
        self._call(self._acknowledge, batch, committed)

    def _survey(self, asking: list[_Asking]) -> None:
        found = self._tried(self._survey_and_lock)
        if isinstance(found, BulkheadError):
            self._call(self._fail, asking, found)
        else:
            self._call(_tell, asking, found)

    def _tried(self, work: Callable[[], _T]) -> _T | BulkheadError:
        error: BulkheadError
        try:
            done = work()
        except LogForkError as fork:
            self.fork = self.failure = error = fork
        except AuditUnavailableError as failure:
            self.failure = error = failure
        except ConfigError as wrong:  # another server answers, and would lose what it acknowledges
            self.failure = error = AuditUnavailableError(wrong.message)
        except Exception as defect:  # noqa: BLE001 - the thread's boundary: a defect fails its callers, it never hangs them
            self.failure = error = AuditUnavailableError(f"the audit log failed: {type(defect).__name__}: {defect}")
        else:
            self.failure = None
            return done
        return error

    def _commit_and_lock(self, leaves: list[NewLeaf]) -> Committed:
        self._failpoint("batch.taken")
        self._look_at_lock()
        committed = self._store.commit(leaves, self._locked)
        self._move_lock(committed.last)
        if committed.wrote and committed.last.seq == self._known + 1:
            self._known += 1
        return committed

    def _survey_and_lock(self) -> Survey:
        self._look_at_lock()
        survey = self._store.survey(self._locked, known=self._known)
        self._move_lock(survey.last)
        self._known = survey.last.seq
        return survey

    def _look_at_lock(self) -> None:
        if self._reread_lock or self._store.shared:  # a move of it failed, or another writer may have moved it
            self._locked = self._lock.read()
            self._reread_lock = False

    def _move_lock(self, target: LockState) -> None:
        """Bring the lock store to a commit of this database, or find that another writer took it further.

        It may leave a state only if this database holds that commit; the store has checked the state that it was
        handed, and what another writer put there meanwhile is checked here.
        """
        while self._locked.seq < target.seq:
            self._failpoint("lock.moving")
            self._reread_lock = True
            held = self._lock.move(self._locked, target)
            if held != target and any(self._store.chain_at(state.seq) != state.chain for state in (held, target)):
                raise LogForkError(  # theirs is of another history, or ours was lost in a fail-over and theirs stands
                    "another writer moved the lock store to a commit that does not go with ours; writing has stopped"
                )
            self._reread_lock = False
            self._failpoint("lock.moved")
            self._locked = held

    def _housekeeping(self, *, idle: bool) -> None:
        try:
            if self.failure is not None and self.fork is None:
                self._tried(lambda: self._commit_and_lock([]))  # finds out whether the database can be written again
            if self.failure is not None:
                return
            with self._notes_guard:
                notes, self._notes = self._notes, {}
                cosignatures, self._cosignatures = self._cosignatures, {}
            self._put_notes(notes, cosignatures)
            if not self._project(idle=idle):
                return
            self._store.maintain(idle=idle)
            self._since_maintenance = 0
            self._resting_until_s = time.monotonic() + _REST_S
            self.housekeeping_failure = self._index_failure
        except LogForkError as fork:
            self.fork = self.failure = fork
        except AuditUnavailableError as failure:
            self.housekeeping_failure = failure
        except Exception as defect:  # noqa: BLE001 - the thread's boundary: housekeeping must not end commits
            self.housekeeping_failure = AuditUnavailableError(f"housekeeping failed: {type(defect).__name__}: {defect}")

    def _project(self, *, idle: bool) -> bool:
        """Bring the index up to date; return whether there is time for more, that is, whether nobody came to wait.

        A leaf that is no record to this build stops the index, and no other housekeeping.
        """
        self._index_failure = None
        try:
            while self._unindexed and (idle or self._unindexed > _INDEX_LAG_LIMIT):
                done = self._store.project(_INDEX_CHUNK)
                if done is None:  # another process has the turn, and may not see what was committed here just now
                    break
                self._unindexed = max(self._unindexed - done, 1) if done == _INDEX_CHUNK else 0
                if not self._queue.empty() and self._unindexed <= _INDEX_LAG_LIMIT:
                    return False
        except AuditUnavailableError as failure:
            self._index_failure = failure
        return True

    def _put_notes(self, notes: Mapping[tuple[int, int], str], cosignatures: Mapping[tuple[int, int], str]) -> None:
        if not notes and not cosignatures:
            return
        try:
            self._store.put_checkpoints(notes)
            self._store.put_cosignatures(cosignatures)
        except AuditUnavailableError:
            with self._notes_guard:
                self._notes = {**notes, **self._notes}
                self._cosignatures = {**cosignatures, **self._cosignatures}
            raise

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    # Back on the event loop.

    def _acknowledge(self, batch: list[_Waiting], committed: Committed) -> None:
        self._acknowledged(
            committed,
            [
                (item.leaf, place)
                for item, place in zip(batch, committed.places, strict=True)
                if isinstance(place, Placed)
            ],
        )
        self._failpoint("batch.acknowledged")
        for item, place in zip(batch, committed.places, strict=True):
            if item.future.done():
                continue
            if isinstance(place, BulkheadError):
                item.future.set_exception(place)
            else:
                item.future.set_result(place)

    def _fail(self, batch: Sequence[_Waiting | _Asking], error: BulkheadError) -> None:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(type(error)(error.message, details=error.details))


def _tell(asking: Sequence[_Asking], found: Survey) -> None:
    for item in asking:
        if not item.future.done():
            item.future.set_result(found)
