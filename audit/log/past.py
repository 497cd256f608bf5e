"""Answers for the rounds that were made: which are published, under which checkpoint, and by whose turn.

Rounds are made again one after the other, on a thread of its own: neither the event loop nor what a session waits for
(its own proof) waits for that. Nor does who asks for the newest one, if this process made it or has shown it before.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from audit.log.history import RoundHistory
from audit.log.publishing import Publisher
from audit.log.rounds import PastRound, Round
from audit.log.serving import Serving
from audit.model import Head, LogInfo
from bulkhead.errors import InvalidRequestError, NotFoundError, RecordError, UnavailableError
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.rounds import RoundPage, RoundPath

__all__ = ["PastRounds", "RoundsAsked"]

_MAX_WAITING: Final = 32  # requests, each of which takes half a second at the most: inside a client's patience
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RoundsAsked:
    """Which rounds somebody wants, and what they have.

    Attributes:
        after: rounds from the next one on.
        limit: at most so many.
        size: of the tree of the own log that they hold; 0: nothing is proven about it.
        platform_size: of the platform's log that they have seen; 0: none.
    """

    after: int
    limit: int
    size: int
    platform_size: int


class PastRounds:
    """Used on the event loop.

    Args:
        history: makes rounds again.
        publisher: knows what is published of the platform's log.
        serving: proves and signs.
        readers: threads for what takes a moment.
    """

    def __init__(
        self, *, history: RoundHistory, publisher: Publisher, serving: Serving, readers: ThreadPoolExecutor
    ) -> None:
        self._history = history
        self._publisher = publisher
        self._serving = serving
        self._readers = readers
        self._newest: tuple[int, PastRound] | None = None  # under the size of the platform's log that it was shown in
        self._turn = ThreadPoolExecutor(1, thread_name_prefix="audit-rounds")
        self._waiting = 0
        self.failure = ""
        """Why a round could not be shown as the platform's log has it, the last time; empty if that never happened."""

    def close(self) -> None:
        """Make no more rounds again."""
        self._turn.shutdown(wait=False, cancel_futures=True)

    def remember(self, made: PastRound) -> None:
        """Take a round that this process has just made."""
        self._history.remember(made)

    async def page(
        self, platform: tuple[LogInfo, Head], own: tuple[LogInfo, Head], logs: Mapping[int, LogInfo], asked: RoundsAsked
    ) -> RoundPage:
        """Return a log's paths into the rounds that are asked for.

        Args:
            platform: the platform's log and its acknowledged head.
            own: the log whose paths are wanted, and its acknowledged head.
            logs: every log by id.
            asked: which rounds.

        Raises:
            InvalidRequestError: the own log has no tree of that size.
            NotFoundError: a round does not hold this log, or is of an earlier epoch of the platform's log.
            UnavailableError: the rounds are not published (yet), or too many ask for rounds.
            RecordError: the database does not say what the platform's log says.
            AuditUnavailableError: the database cannot be read.
        """
        if own[0].slot is None:
            raise NotFoundError("the platform's own log is in no round")
        if asked.size > own[1].size:
            raise InvalidRequestError("the size is not one of this log")
        work = partial(self._page, platform, own[0], own[0].slot, logs, asked)
        found = await self._in_turn(work)
        if found is None:
            raise UnavailableError(f"round {asked.after + 1} is not published yet: try again in a second")
        return found

    async def newest(
        self, platform: tuple[LogInfo, Head], info: LogInfo, logs: Mapping[int, LogInfo]
    ) -> RoundPath | None:
        """Return a log's path into the newest published round, whoever made it; None if none holds the log yet.

        Raises:
            UnavailableError, RecordError, AuditUnavailableError: as :meth:`page`.
        """
        if info.slot is None or (self._publisher.witnessed and self._publisher.published is None):
            return None
        log = platform[0]
        frontier, note = self._published(platform[1])
        made = await self._newest_in(log, frontier.size, logs)
        if made is None or not _holds(made.round, info.slot, info):
            return None
        return await self._read(partial(self._path, log, frontier, note, made, info.slot))

    async def _newest_in(self, log: LogInfo, size: int, logs: Mapping[int, LogInfo]) -> PastRound | None:
        """Return the newest round among the first ``size`` records of the platform's log, which never changes."""
        if self._newest is not None and self._newest[0] == size:
            return self._newest[1]
        made = await self._read(partial(self._history.known_newest, log, size))
        if made is None:
            made = await self._in_turn(partial(self._history.newest, log, size, logs))
        if made is not None:
            self._newest = (size, made)
        return made

    async def _in_turn(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError("too many ask for past rounds just now: try again in a few seconds")
        self._waiting += 1
        try:
            return await self._run(self._turn, work)
        finally:
            self._waiting -= 1

    async def _read(self, work: Callable[[], _T]) -> _T:
        return await self._run(self._readers, work)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, self._guarded, work)
        except RecordError as error:
            self.failure, self._newest = error.message, None
            raise

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except RecordError:
            self._history.forget()  # nothing that was read may outlive the database's repair
            raise

    def _published(self, head: Head) -> tuple[Frontier, str | None]:
        """Return what is published of the platform's log, and the note if it is cosigned."""
        if not self._publisher.witnessed:
            return head.frontier, None
        published = self._publisher.published
        if published is None:
            raise UnavailableError("no checkpoint of the platform's log is published yet: try again in a second")
        return published.frontier, published.note

    def _path(self, log: LogInfo, frontier: Frontier, note: str | None, made: PastRound, slot: int) -> RoundPath:
        receipt = self._serving.prove(log, frontier, made.record)
        if note is not None:
            receipt = replace(receipt, checkpoint=note)
        of = made.round
        return RoundPath(slot, self._history.salt(of, slot), of.head(slot).text(), of.path(slot), receipt)

    def _page(
        self,
        platform: tuple[LogInfo, Head],
        info: LogInfo,
        slot: int,
        logs: Mapping[int, LogInfo],
        asked: RoundsAsked,
    ) -> RoundPage | None:
        log = platform[0]
        frontier, note = self._published(platform[1])
        if asked.platform_size > frontier.size:
            raise UnavailableError("this control plane has not published as much of the platform's log: try again")
        paths, heads, before = [], [], 0
        for made in self._history.rounds(log, frontier.size, logs, asked.after + 1, asked.limit):
            if not _holds(made.round, slot, info):
                raise NotFoundError(f"round {made.round.number} does not hold this log")
            size = made.round.sizes[slot]
            known = size == before or size > asked.size
            heads.append(() if known else self._serving.consistency(info, size, asked.size))
            paths.append(self._path(log, frontier, note, made, slot))
            before = size
        if not paths:
            return None
        extension = self._serving.consistency(log, asked.platform_size, frontier.size)
        return RoundPage(paths[0].receipt.checkpoint, extension, tuple(paths), tuple(heads))


def _holds(made: Round, slot: int, info: LogInfo) -> bool:
    return slot < len(made.logs) and made.logs[slot] == info
