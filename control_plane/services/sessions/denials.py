"""Records of denials, limited: the first few of a principal in a minute one by one, the rest as one sum.

A flood of requests that policy denies must not cost a durable commit each, nor fill a tenant's log. What is left out is
counted by reason and recorded when the minute is over, so the log says how many there were.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from audit.records import Action, Decision, PlatformReason, Record, Subject, build_record, platform_cause
from bulkhead.encoding import Json
from control_plane.domain.roles import Caller
from control_plane.services.journal import Journal

__all__ = ["DenialLimiter"]

WINDOW_US: Final = 60 * 1_000_000
MAX_CODES: Final = 64  # of one window, beside the others' sum: a policy may make codes up as it goes
OTHER_CODES: Final = "OTHER"
MAX_PRINCIPALS: Final = 4_096  # windows open at once; beyond that the oldest is summed up early


@dataclass(slots=True)
class _Window:
    since_us: int
    tenant_id: str
    subject: Subject
    recorded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class DenialLimiter:
    """Says which denials are recorded one by one, and sums up the others.

    Args:
        journal: the audit log.
        per_minute: denials of one principal recorded one by one.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(self, *, journal: Journal, per_minute: int, now_us: Callable[[], int]) -> None:
        self._journal = journal
        self._per_minute = per_minute
        self._now_us = now_us
        self._windows: dict[str, _Window] = {}

    def admit(self, caller: Caller, code: str) -> bool:
        """Return whether this denial gets a record of its own; else it is counted."""
        window = self._windows.get(caller.principal_id)
        if window is None:
            subject = Subject(caller.subject_id, (caller.role.value,))
            window = _Window(since_us=self._now_us(), tenant_id=caller.tenant_id, subject=subject)
            self._windows[caller.principal_id] = window
        if window.recorded < self._per_minute:
            window.recorded += 1
            return True
        known = code in window.left_out or len(window.left_out) < MAX_CODES
        window.left_out[code if known else OTHER_CODES] += 1
        return False

    async def sum_up(self, *, everything: bool = False) -> None:
        """Record the sums of windows that are over (of all, on a stop). Called every second."""
        over_us = self._now_us() - WINDOW_US
        surplus = max(len(self._windows) - MAX_PRINCIPALS, 0)
        for number, (principal_id, window) in enumerate(tuple(self._windows.items())):
            if everything or number < surplus or window.since_us <= over_us:
                del self._windows[principal_id]
                if window.left_out:
                    await self._journal.report(self._sum(window))

    def _sum(self, window: _Window) -> Record:
        codes: dict[str, Json] = dict(sorted(window.left_out.items()))
        return build_record(
            self._journal.stamp(),
            action=Action.ACCESS_DENIED,
            tenant=window.tenant_id or None,
            cause=platform_cause(PlatformReason.RECONCILER),
            subject=window.subject,
            decision=Decision.DENY,
            data={"left_out": window.left_out.total(), "codes": codes, "since_us": window.since_us},
        )
