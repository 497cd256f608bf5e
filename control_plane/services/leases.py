"""Audit leases: for how long workers may begin requests (docs/protocol.md, "Audit lease").

Every second, and at once when something is revoked, each connected agent gets a lease that vouches for two things:
what it reported is in the audit log or has been on its way for less than the lease, and the revocation list is
complete. When the control plane cannot vouch (the log does not take records) no lease is sent, and workers stop taking
requests when the last one runs out.
"""

from collections.abc import Callable
from typing import Final

import structlog

from bulkhead.errors import AgentUnavailableError
from control_plane.domain.fleet import LeaseGrant
from control_plane.services.agents import Agent
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.receipts import Receipts
from control_plane.services.revocations import Revocations
from control_plane.services.settings import FleetSettings

__all__ = ["Leases"]

US_PER_S: Final = 1_000_000

log = structlog.get_logger(__name__)


class Leases:
    """Renews leases.

    Args:
        fleet: the agents.
        book: which partitions are whose.
        journal: whether the log takes records.
        receipts: since when events wait.
        revocations: what leases carry.
        issuers: likewise: whose tickets workers take.
        settings: validity and interval.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        book: PartitionBook,
        journal: Journal,
        receipts: Receipts,
        revocations: Revocations,
        issuers: Issuers,
        settings: FleetSettings,
        now_us: Callable[[], int],
    ) -> None:
        self._fleet = fleet
        self._book = book
        self._journal = journal
        self._receipts = receipts
        self._revocations = revocations
        self._issuers = issuers
        self._settings = settings
        self._now_us = now_us

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            self.renew()
            await self._revocations.wait(self._settings.lease_interval_s)

    def renew(self) -> None:
        """Send every connected agent a lease, if the control plane can vouch."""
        self._revocations.expire()
        if not self._journal.vouches():
            log.warning("lease.withheld", reason="the audit log does not take records")
            return
        for agent in self._fleet.agents():
            if agent.connected and self._recorded_in_time(agent):
                self._send(agent)

    def _recorded_in_time(self, agent: Agent) -> bool:
        oldest_us = self._receipts.oldest_us(agent.agent_id)
        return oldest_us is None or self._now_us() - oldest_us < self._settings.lease_s * US_PER_S

    def _send(self, agent: Agent) -> None:
        partitions = frozenset(partition.partition_id for partition in self._book.of_agent(agent.agent_id))
        grant = LeaseGrant(
            valid_until_unix_ms=self._now_us() // 1_000 + int(self._settings.lease_s * 1_000),
            committed_event_seq=0 if agent.spool is None else agent.spool.stored_seq,
            revoked_sessions=self._revocations.on(partitions),
            ticket_issuers=self._issuers.accepted,
        )
        try:
            agent.notify(grant)
        except AgentUnavailableError:
            agent.drop_stream()  # it does not read: its lease must not look renewed
