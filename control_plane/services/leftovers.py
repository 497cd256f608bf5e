"""What processes that are gone left half done: sessions that nobody opens any more, decisions without an outcome.

1. An opening whose process is gone is given up, and its slot is free.
2. An allowed decision without an outcome gets one, ``unknown``: nobody was given a ticket that a record does not show.

Who is alone, since its audit log takes one writer only, finds nothing at its start but leftovers. Where control planes
share their databases, an opening may be another's that lives, and rows do not say whose they are. It is a leftover once
it has been there, unchanged, for longer than any open or renewal takes, by the clock of the process that watches; and
so is what a decision that was there at the start still lacks by then.

A log is looked through from its end, part by part; the start waits for the newest part, the others follow while the
process serves. An index that is behind is waited for, at the start for a while.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from audit.model import LogInfo, RecordPage
from audit.records import PlatformReason, outcome, platform_cause
from bulkhead.transparency.leaf import LeafFields
from control_plane.domain.sessions import SessionState
from control_plane.services.journal import Journal
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.sessions import Sessions

__all__ = ["Leftovers"]

INDEX_WAIT_S: Final = 10.0  # at a start, for the audit index to reach the ends of all logs after a crash
PLACES: Final = 1_000  # of a log in one look, some hundred opens: milliseconds, well within the limit on a read
LOOKS: Final = 50  # in one second, in all logs together
SETTLE_S: Final = 120.0  # beyond an open's own limit: what is undone and recorded after it; a renewal takes less
_INDEX_PAUSE_S: Final = 0.05

log = structlog.get_logger(__name__)

_Opening = tuple[str, str]  # session and pair: another attempt at the same session is another opening


@dataclass(slots=True)
class _Rest:
    """The part of a log that is still to be looked through.

    Attributes:
        end: places below it are.
        first_end: where it began.
        indexed: so many records the index must hold, so that no outcome is overlooked; 0 until it is known.
        closed: pairs that got their outcome here; a decision that was made twice has one.
    """

    end: int
    first_end: int
    indexed: int = 0
    closed: set[str] = field(default_factory=set)


class Leftovers:
    """Ends what nobody else will.

    Args:
        database: the state.
        journal: the audit log.
        open_timeout_s: longest that an open may take, in every control plane on these databases.
        monotonic_s: clock in seconds.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        open_timeout_s: float,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._journal = journal
        self._longest_s = open_timeout_s + SETTLE_S
        self._monotonic_s = monotonic_s
        self._due_s = 0.0
        self._seen_s: dict[_Opening, float] = {}
        self._rests: dict[LogInfo, _Rest] = {}

    async def at_start(self) -> None:
        """Take up what may be taken up before any port is open.

        Raises:
            StateUnavailableError, AuditUnavailableError: this process must not serve yet.
        """
        audit = self._journal.audit
        for info in audit.logs():
            if info.tenant is not None:
                size = audit.size(info.log_id)
                self._rests[info] = _Rest(end=size, first_end=size)
        if audit.shared:
            self._due_s = self._monotonic_s() + self._longest_s
            return
        await self._database.write(lambda tx: _give_up(tx, None))  # 1
        waited_s = 0.0
        while waiting := [(info, rest) for info, rest in self._rests.items() if rest.end == rest.first_end]:
            for info, rest in waiting:
                await self._look(info, rest)  # 2
            if not any(rest.end == rest.first_end for rest in self._rests.values()):
                break
            if waited_s >= INDEX_WAIT_S:
                log.warning("reconcile.index_behind", logs=len(self._rests), unindexed=audit.health().unindexed)
                break
            await asyncio.sleep(_INDEX_PAUSE_S)
            waited_s += _INDEX_PAUSE_S

    async def give_up_openings(self) -> None:
        """Give up openings that have been there for longer than any takes; called every few seconds.

        Raises:
            StateUnavailableError: not now.
        """
        now_s = self._monotonic_s()
        there = await self._database.read(_openings)
        self._seen_s = {opening: self._seen_s.get(opening, now_s) for opening in there}
        overdue = {opening for opening, since_s in self._seen_s.items() if now_s - since_s > self._longest_s}
        if overdue:
            given_up = await self._database.write(lambda tx: _give_up(tx, overdue))
            log.warning("reconcile.openings_given_up", count=given_up)

    async def close_decisions(self) -> None:
        """Go on looking through the logs; called every second.

        Raises:
            AuditUnavailableError, RecordError: not now.
        """
        if self._monotonic_s() < self._due_s:
            return
        looks = 0
        for info, rest in list(self._rests.items()):
            while looks < LOOKS:
                looks += 1
                if not await self._look(info, rest) or rest.end == 0:
                    break

    async def _look(self, info: LogInfo, rest: _Rest) -> bool:
        """Look through one part of a log; return False if its index is not there yet."""
        start = max(0, rest.end - PLACES)
        page: RecordPage = await self._journal.audit.open_pairs(info.log_id, start, rest.end)
        rest.indexed = rest.indexed or page.size
        if page.indexed < rest.indexed:
            return False
        for record in page.records:
            if record.fields.pair_id not in rest.closed:
                await self._close(record.fields)
                rest.closed.add(record.fields.pair_id)
        rest.end = start
        if start == 0:
            del self._rests[info]
        return True

    async def _close(self, fields: LeafFields) -> None:
        await self._journal.write(
            outcome(
                self._journal.stamp(),
                tenant=fields.tenant or "",
                subject=None,
                cause=platform_cause(PlatformReason.RECONCILER),
                session=fields.session,
                pair_id=fields.pair_id,
                result="unknown",
                model=fields.model,
                message="the control plane ended before the outcome was recorded",
            )
        )


def _openings(tx: Transaction) -> tuple[_Opening, ...]:
    found = Sessions(tx.connection).in_state(SessionState.OPENING)
    return tuple((session.session_id, session.pair_id) for session in found)


def _give_up(tx: Transaction, which: set[_Opening] | None) -> int:
    """Give up openings that are still there, all with None; return their number."""
    found = [opening for opening in _openings(tx) if which is None or opening in which]
    for session_id, pair_id in found:
        Sessions(tx.connection).abandon(session_id, pair_id, before=None)
    return len(found)
