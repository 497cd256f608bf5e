"""The audit log as the control plane uses it: append, prove, list, export.

One instance per process, used from the event loop that opened it. Writing is the commit thread's; reading and proving
run on a few threads of their own, so that the loop never waits for the database. Sizes and roots that are handed out
are those that database and lock store agreed on.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Final, Self, TypeVar

from audit.config import AuditConfig
from audit.keys import LogKeys
from audit.log.deadlines import Deadlines
from audit.log.history import RoundHistory
from audit.log.known import KnownLogs
from audit.log.listing import list_open_pairs, list_records
from audit.log.opening import Opened, open_parts, platform_log
from audit.log.past import PastRounds, RoundsAsked
from audit.log.prover import Prover
from audit.log.publishing import Publisher, keep_publishing
from audit.log.rounds import PastRound, Round, RoundMaker, RoundState, make_rounds
from audit.log.serving import Serving
from audit.log.writer import CommitThread
from audit.model import (
    Appended,
    AuditHealth,
    Failpoint,
    Head,
    LogInfo,
    Page,
    Progress,
    RecordFilter,
    RecordPage,
    no_failpoint,
)
from audit.records import Record, Stamp, Stamper, log_opened
from audit.store import AuditStore, Committed, LockStore, NewLeaf, Placed, Survey
from bulkhead.errors import (
    AuditUnavailableError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
)
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.receipt import AuditReceipt
from bulkhead.transparency.rounds import RoundPage, RoundPath

__all__ = ["AuditLog"]

_READ_THREADS: Final = 2
_OPENING_TRIES: Final = 16  # each lost to another process that opened some tenant's log
_T = TypeVar("_T")


class AuditLog:
    """One writing process's audit log. Make it with :meth:`open`, end it with :meth:`close`."""

    def __init__(self, *, config: AuditConfig, parts: Opened, stamper: Stamper, failpoint: Failpoint) -> None:
        self._config = config
        self._store: AuditStore = parts.store
        self._lock: LockStore = parts.lock
        self._keys: LogKeys = parts.keys
        self._stamper = stamper
        self._prover = Prover(parts.store)
        self._known = KnownLogs(parts.logs, parts.heads)
        self._rounds = RoundMaker(keys=parts.keys, next_round=parts.next_round)
        self._making: tuple[str, Round] | None = None  # the round that was sent last, by its record's id
        self._opening = asyncio.Lock()
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="audit-read")
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._deadlines = Deadlines(asyncio.get_running_loop(), config.append_timeout_s, self._late)
        self._writer = CommitThread(
            store=parts.store,
            lock=parts.lock,
            locked=parts.locked,
            loop=asyncio.get_running_loop(),
            acknowledged=self._acknowledged,
            failpoint=failpoint,
        )
        self._serving = Serving(
            store=parts.store, keys=parts.keys, prover=self._prover, keep=self._writer.keep_checkpoint
        )
        self._publisher = Publisher(
            targets=config.witnesses,
            quorum=config.witness_quorum,
            sign=self._serving.note,
            extension=lambda old, new: self.extension(self.platform_log.log_id, old, new),
            keep=self._writer.keep_cosignatures,
        )
        self._past = PastRounds(
            history=RoundHistory(store=parts.store, keys=parts.keys, prover=self._prover),
            publisher=self._publisher,
            serving=self._serving,
            readers=self._readers,
        )

    @classmethod
    async def open(
        cls,
        config: AuditConfig,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        failpoint: Failpoint = no_failpoint,
    ) -> Self:
        """Open (and, the first time, create) the log; the platform's own log is there afterwards.

        Args:
            config: where and how.
            wall_ns: wall clock, nanoseconds since the epoch.
            monotonic_ns: monotonic clock, nanoseconds.
            random_bytes: randomness for keys, ids and names.
            failpoint: called at each step of a commit.

        Raises:
            AuditUnavailableError: the database cannot be opened, or another process writes to it.
            LogForkError: database and lock store disagree; nothing may be written.
            ConfigError: the key file is malformed or not private to this user.
        """
        parts = await asyncio.to_thread(open_parts, config, random_bytes=random_bytes, failpoint=failpoint)
        stamper = Stamper(
            writer=random_bytes(8).hex(),
            wall_ns=wall_ns,
            monotonic_ns=monotonic_ns,
            started_ns=monotonic_ns(),
            random_bytes=random_bytes,
        )
        log = cls(config=config, parts=parts, stamper=stamper, failpoint=failpoint)
        await log._start()
        return log

    async def close(self) -> None:
        """Finish what is queued and release the database. Appends fail afterwards."""
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer.fork is None:  # the database keeps a signed checkpoint of all that was acknowledged
            heads = [(self._known.info(log_id), head) for log_id, head in self._known.heads().items() if head.size]
            await self._read(lambda: [self._serving.note(info, head.frontier) for info, head in heads])
        await self._writer.close()
        self._readers.shutdown(wait=False)
        self._past.close()
        await asyncio.to_thread(self._store.close)
        self._lock.close()

    def stamp(self) -> Stamp:
        """Return identity and time for one record."""
        return self._stamper.stamp()

    @property
    def platform_log(self) -> LogInfo:
        """The platform's own log."""
        info = self._known.of(None)
        if info is None:
            raise AuditUnavailableError("the platform's log is not open yet")
        return info

    def logs(self) -> tuple[LogInfo, ...]:
        """Return every log, the platform's first."""
        return self._known.every()

    @property
    def shared(self) -> bool:
        """Whether other processes may append to the database, too."""
        return self._store.shared

    def size(self, log_id: int) -> int:
        """Return how many records of a log are acknowledged.

        Raises:
            NotFoundError: no such log.
        """
        return self._known.head(log_id).size

    async def ensure_log(self, tenant_id: str) -> LogInfo:
        """Return the tenant's log, creating it with its leaf 0 at first.

        Raises:
            AuditUnavailableError: it could not be created.
            LogForkError: database and lock store disagree.
        """
        known = self._known.of(tenant_id)
        if known is not None:
            return known
        async with self._opening:
            for _ in range(_OPENING_TRIES):
                known = self._known.of(tenant_id)
                if known is not None:
                    return known
                info = self._known.next_log(self._config.domain, tenant_id, random_bytes=self._stamper.random_bytes)
                await self._open_log(info)
        raise AuditUnavailableError("the tenant's audit log could not be opened")

    async def append(self, log_id: int, record: Record) -> Appended:
        """Append a record and return when it is durable in database and lock store.

        Sending the same record again (same id, same bytes) returns the place it already has.

        Raises:
            AuditUnavailableError: it is not known to be durable; nothing may be done on its strength. Bounded by
                ``append_timeout_s``. Sending the same record again is safe.
            LogForkError: database and lock store disagree.
            InvalidRequestError: the record belongs into another log.
            ConflictError: another record has its id.
            NotFoundError: no such log.
        """
        info = self._known.info(log_id)
        if record.fields.tenant != info.tenant:
            raise InvalidRequestError(
                f"record {record.record_id} belongs into another log", details={"record": record.record_id}
            )
        return await self._submit(NewLeaf(log_id, record.record_id, record.leaf, leaf_hash(record.leaf)))

    async def write(self, record: Record) -> Appended:
        """Append a record to the log of its tenant (created at need), or to the platform's log if it has none.

        Raises:
            AuditUnavailableError, LogForkError, ConflictError: as :meth:`append`.
        """
        tenant = record.fields.tenant
        log = self.platform_log if tenant is None else await self.ensure_log(tenant)
        return await self.append(log.log_id, record)

    def vkey(self, log_id: int) -> str:
        """Return the log's public key as a C2SP vkey, to be pinned by tenants.

        Raises:
            NotFoundError: no such log.
        """
        return self._keys.signer(self._known.info(log_id).origin).vkey

    async def checkpoint(self, log_id: int) -> str:
        """Return the log's signed checkpoint of its acknowledged size.

        Raises:
            NotFoundError: no such log.
        """
        await self._catch_up()
        info, head = self._known.info(log_id), self._known.head(log_id)
        return await self._read(lambda: self._serving.note(info, head.frontier))

    async def receipt(self, log_id: int, index: int, *, size: int | None = None) -> AuditReceipt:
        """Return a record with its inclusion proof under the current checkpoint, or under that of an earlier size.

        What is returned was verified here: a damaged database gives an error, not a proof that fails elsewhere.

        Raises:
            NotFoundError: no such log, or no such record is acknowledged (in a tree of that size).
            RecordError: the stored record is not the one in the tree.
            AuditUnavailableError: the database cannot be read.
        """
        await self._catch_up()
        info, head = self._known.info(log_id), self._known.head(log_id)
        within = head.size if size is None else min(size, head.size)
        if not 0 <= index < within:
            raise NotFoundError(f"there is no record {index} in this log")
        return await self._read(
            lambda: self._serving.receipt(info, self._serving.earlier(info, head.frontier, within), index)
        )

    async def prove(self, appended: Appended) -> AuditReceipt:
        """Return :meth:`receipt` of a record that was just appended, without reading it back; verified likewise."""
        info, head = self._known.info(appended.log_id), self._known.head(appended.log_id)
        return await self._read(lambda: self._serving.prove(info, head.frontier, appended))

    async def index_of(self, log_id: int, record_id: str) -> int:
        """Return the place of a record in a log.

        Raises:
            NotFoundError: the log holds no record of that id; other logs are not told apart from no log.
            AuditUnavailableError: the database cannot be read.
        """
        found = await self._read(lambda: self._store.find(record_id))
        if found is None or found.log_id != log_id:
            raise NotFoundError("there is no record of that id in this log")
        return found.index

    async def extension(self, log_id: int, old_size: int, new_size: int | None = None) -> tuple[tuple[bytes, ...], str]:
        """Return the consistency proof from an acknowledged size to another (by default of now), and its checkpoint.

        Raises:
            NotFoundError: no such log.
            InvalidRequestError: not ``0 <= old_size <= new_size <= size``.
            RecordError: the stored tree is not the acknowledged one.
            AuditUnavailableError: the database cannot be read.
        """
        await self._catch_up()
        info, head = self._known.info(log_id), self._known.head(log_id)
        wanted = head.size if new_size is None else new_size
        if not 0 <= old_size <= wanted <= head.size:
            raise InvalidRequestError("the sizes are not those of this log")
        return await self._read(lambda: self._serving.extension(info, head.frontier, old_size, wanted))

    async def round_path(self, log_id: int) -> RoundPath | None:
        """Return what ties a tenant's log to the platform's latest round.

        None for the platform's own log, and before the log is in a round (a second or two; with witnesses: until a
        quorum of them has cosigned the platform's checkpoint over such a round).

        Raises:
            NotFoundError: no such log.
            RecordError: the database does not say what the platform's log says.
            AuditUnavailableError: the database cannot be read.
        """
        await self._catch_up()
        info, platform = self._known.info(log_id), self.platform_log
        head = self._known.head(platform.log_id)
        return await self._past.newest((platform, head), info, self._known.by_id())

    async def round_paths(self, log_id: int, asked: RoundsAsked) -> RoundPage:
        """Return what ties a tenant's log to successive past rounds; see :meth:`~audit.log.past.PastRounds.page`.

        Raises:
            NotFoundError: no such log, or a round does not hold it.
            InvalidRequestError: the log has no tree of the size that is asked about.
            UnavailableError: the rounds are not published (yet), or too many ask for rounds.
            RecordError: the database does not say what the platform's log says.
        """
        await self._catch_up()
        known, platform = self._known, self.platform_log
        own = (known.info(log_id), known.head(log_id))
        return await self._past.page((platform, known.head(platform.log_id)), own, self._known.by_id(), asked)

    async def records(self, query: RecordFilter, page: Page) -> RecordPage:
        """List records through the index; each is compared with its leaf before it is returned.

        The caller has checked that whoever asks may read ``query.log_id`` (or all logs, if None).

        Raises:
            InvalidRequestError: a bad limit or page token.
            RecordError: the index or a leaf was tampered with; names the record.
            AuditUnavailableError: the database cannot be read.
        """
        return await self._read(lambda: list_records(self._store, query, page))

    async def open_pairs(self, log_id: int, start: int, stop: int) -> RecordPage:
        """List, newest first, a log's open pairs with ``start <= index < stop``, at most 4,096 places.

        That is: allowed decisions on sessions whose pair has neither an outcome nor a renewal in the index;
        ``indexed`` says how far that reaches.

        Raises:
            RecordError: the index or a leaf was tampered with; names the record.
            AuditUnavailableError: the database cannot be read.
        """
        return await self._read(lambda: list_open_pairs(self._store, log_id, start, stop))

    async def export(
        self, log_ids: Sequence[int], stream: BinaryIO, *, first: int = 0, progress: Progress | None = None
    ) -> int:
        """Write logs from leaf ``first`` on as one self-contained export (JSON lines); return how many records it has.

        ``stream`` and ``progress`` are used on another thread.

        Raises:
            NotFoundError: no such log.
            RecordError: a stored record does not hold; names it.
            AuditUnavailableError: the database cannot be read.
        """
        await self._catch_up()
        known = self._known
        parts = [(known.info(log_id), known.head(log_id), await self.round_path(log_id)) for log_id in log_ids]
        return await asyncio.to_thread(self._serving.export, parts, stream, progress, first=first)

    def health(self) -> AuditHealth:
        """Return whether the log can be written, and how far behind its index is."""
        failure = self._writer.failure
        reason = failure or self._writer.housekeeping_failure
        return AuditHealth(
            writable=failure is None,
            forked=self._writer.fork is not None,
            reason="" if reason is None else reason.message,
            queued=self._writer.queued,
            unindexed=self._writer.unindexed,
            witnesses={name: error.message for name, error in self._publisher.failures.items()},
            rounds=self._past.failure,
        )

    async def _start(self) -> None:
        self._writer.start()
        try:
            if self._known.of(None) is None:
                await self._open_log(platform_log(self._config.domain))
        except BaseException:
            await self.close()
            raise
        rounds = make_rounds(
            self._rounds,
            interval_s=self._config.round_interval_s,
            quiet_interval_s=self._config.quiet_round_interval_s,
            monotonic_ns=self._stamper.monotonic_ns,
            stamp=self.stamp,
            state=self._round_state,
            submit=self._submit_round,
            ended=lambda: self._writer.fork is not None,
        )
        publishing = keep_publishing(
            self._publisher,
            interval_s=self._config.publish_interval_s,
            state=self._publication_state,
            ended=lambda: self._writer.fork is not None,
        )
        self._tasks = (
            asyncio.create_task(rounds, name="audit-rounds"),
            asyncio.create_task(publishing, name="audit-publishing"),
        )

    async def _round_state(self) -> RoundState:
        last = await self._catch_up()
        return RoundState(self._known.heads(), self._known.newest(), None if last is None else last + 1)

    async def _publication_state(self) -> tuple[LogInfo, Head]:
        await self._catch_up()  # another process may have published more than this one has seen
        return self.platform_log, self._known.head(self.platform_log.log_id)

    async def _catch_up(self) -> int | None:
        """Learn what other processes have appended; return the last round if there may be such processes.

        Raises:
            AuditUnavailableError: the database cannot be used.
            LogForkError: database and lock store disagree.
        """
        if not self._store.shared:
            return None
        return (await self._survey()).last_round or 0

    async def _open_log(self, info: LogInfo) -> None:
        """Open a log, or learn that it (or its place) is taken."""
        record = log_opened(self.stamp(), tenant=info.tenant, origin=info.origin, epoch=info.epoch, slot=info.slot)
        leaf = NewLeaf(info.log_id, record.record_id, record.leaf, leaf_hash(record.leaf), opens=info)
        try:
            await self._submit(leaf)
        except ConflictError:  # an earlier try was recorded after all, or another process was first
            await self._survey()

    async def _submit(self, leaf: NewLeaf) -> Appended:
        future = self._writer.submit(leaf)
        self._deadlines.watch(future, leaf.record_id)
        placed = await future
        return Appended(placed.log_id, placed.index, leaf.leaf_hash, leaf.record_id, leaf.leaf)

    async def _submit_round(self, leaf: NewLeaf, made: Round) -> Appended:
        self._making = (leaf.record_id, made)
        return await self._submit(leaf)

    async def _survey(self) -> Survey:
        future = self._writer.survey()
        self._deadlines.watch(future, "")
        survey = await future
        self._known.surveyed(survey)
        return survey

    def _late(self, record_id: str) -> AuditUnavailableError:
        limit_s = self._config.append_timeout_s
        if not record_id:
            return AuditUnavailableError(f"the audit database did not answer within {limit_s:g} s")
        return AuditUnavailableError(
            f"record {record_id} was not durable within {limit_s:g} s", details={"record": record_id}
        )

    def _acknowledged(self, committed: Committed, placed: Sequence[tuple[NewLeaf, Placed]]) -> None:
        """Take note of a batch that database and lock store have; called before its callers are told."""
        self._prover.remember((place.log_id, place.index, leaf.leaf_hash) for leaf, place in placed)
        for leaf, place in placed:
            if self._making is not None and leaf.record_id == self._making[0]:  # before anybody can ask for it
                record = Appended(place.log_id, place.index, leaf.leaf_hash, leaf.record_id, leaf.leaf)
                self._past.remember(PastRound(self._making[1], record))
                self._making = None
        self._known.acknowledged(placed, committed.heads)

    async def _read(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)
