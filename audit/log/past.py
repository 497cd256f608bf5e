"""Answers for past rounds: which are published, under which checkpoint, and by whose turn.

One page at a time is made, on a thread of its own: neither the event loop nor what a session waits for (its own proof)
waits for it.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from audit.log.history import PastRound, RoundHistory
from audit.log.publishing import Publisher
from audit.log.serving import Serving
from audit.model import Head, LogInfo
from bulkhead.errors import InvalidRequestError, NotFoundError, RecordError, UnavailableError
from bulkhead.transparency.rounds import RoundPage, RoundPath

__all__ = ["PastRounds", "RoundsAsked"]

_MAX_WAITING: Final = 64  # requests, of which each takes its turn: half a second at the most


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
    """

    def __init__(self, *, history: RoundHistory, publisher: Publisher, serving: Serving) -> None:
        self._history = history
        self._publisher = publisher
        self._serving = serving
        self._turn = ThreadPoolExecutor(1, thread_name_prefix="audit-rounds")
        self._waiting = 0
        self.failure = ""
        """Why the last page that was asked for could not be made from the database; empty if it was."""

    def close(self) -> None:
        """Make no more pages."""
        self._turn.shutdown(wait=False, cancel_futures=True)

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
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError("too many ask for past rounds just now: try again in a few seconds")
        self._waiting += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._turn, self._page, platform, own[0], own[0].slot, logs, asked
            )
        except RecordError as error:
            self.failure = error.message
            raise
        finally:
            self._waiting -= 1
        self.failure = ""
        return found

    def _page(
        self,
        platform: tuple[LogInfo, Head],
        info: LogInfo,
        slot: int,
        logs: Mapping[int, LogInfo],
        asked: RoundsAsked,
    ) -> RoundPage:
        log, frontier, note = platform[0], platform[1].frontier, None
        if self._publisher.witnessed:
            published = self._publisher.published
            if published is None:
                raise UnavailableError("no checkpoint of the platform's log is published yet: try again in a second")
            frontier, note = published.frontier, published.note
        if asked.platform_size > frontier.size:
            raise UnavailableError("this control plane has not published as much of the platform's log: try again")
        try:
            rounds = self._history.rounds(log, frontier.size, logs, asked.after + 1, asked.limit)
            receipts = [self._serving.prove(log, frontier, made.record) for made in rounds]
        except RecordError:
            self._history.forget()  # nothing that was read may outlive the database's repair
            raise
        if not rounds:
            raise UnavailableError(f"round {asked.after + 1} is not published yet: try again in a second")
        if note is not None:
            receipts = [replace(receipt, checkpoint=note) for receipt in receipts]
        paths, heads, proven = [], [], 0
        for made, receipt in zip(rounds, receipts, strict=True):
            size = _size(made, slot, info)
            known = size in (proven, 0) or size > asked.size
            heads.append(() if known else self._serving.consistency(info, size, asked.size))
            proven = size
            paths.append(
                RoundPath(slot, self._history.salt(made, slot), made.head(slot).text(), made.path(slot), receipt)
            )
        return RoundPage(
            receipts[0].checkpoint,
            self._serving.consistency(log, asked.platform_size, frontier.size),
            tuple(paths),
            tuple(heads),
        )


def _size(made: PastRound, slot: int, info: LogInfo) -> int:
    if slot >= len(made.logs) or made.logs[slot] != info:
        raise NotFoundError(f"round {made.number} does not hold this log")
    return made.sizes[slot]
