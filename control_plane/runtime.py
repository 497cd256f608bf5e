"""The running parts of a control plane: fleet, sessions, administration, and the work behind them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from control_plane.assembly import (
    Offered,
    administration,
    authorisation,
    now_us,
    policy_services,
    tenancy_services,
)
from control_plane.resources import Resources
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.leases import Leases
from control_plane.services.lifecycle import Lifecycle
from control_plane.services.receipts import Receipts
from control_plane.services.release import Releaser
from control_plane.services.revocations import Revocations
from control_plane.services.session_end import SessionEnder

__all__ = ["Runtime", "build_runtime"]


class Runtime:
    def __init__(self, resources: Resources) -> None:
        r = resources
        self.resources = r
        self.book = PartitionBook()
        self.revocations = Revocations(now_us=now_us)
        self.ender = SessionEnder(database=r.database, journal=r.journal, revocations=self.revocations, book=self.book, now_us=now_us)
        self.lifecycle = Lifecycle(database=r.database, journal=r.journal, book=self.book, ender=self.ender, now_us=now_us)
        self.releaser = Releaser(book=self.book, lifecycle=self.lifecycle, settings=r.config.fleet, now_us=now_us)
        self.receipts = Receipts(database=r.database, journal=r.journal, book=self.book, lifecycle=self.lifecycle, settings=r.config.fleet, now_us=now_us)
        self.fleet = Fleet(database=r.database, journal=r.journal, book=self.book, lifecycle=self.lifecycle, releaser=self.releaser, receipts=self.receipts, settings=r.config.fleet, ticket_issuers=(r.keys.ticket_issuer_public,), now_us=now_us)
        self.unlimited_methods: frozenset[str] = frozenset({"/bulkhead_fleet.v1.FleetService/Connect"})

    async def load(self) -> None: ...
    async def close(self) -> None: ...
    def background(self) -> list[Any]: return []
    def public_services(self) -> tuple[Offered, ...]:
        asks = authorisation(self.resources, platform_facts=self.fleet.platform_facts)
        changes = administration(self.resources, asks)
        class N:
            async def credential_revoked(self, credential_id: str) -> None: ...
        return (*tenancy_services(self.resources, asks, changes, revocations=N()), *policy_services(self.resources, asks, changes))
    def internal_services(self) -> tuple[Offered, ...]: return ()

def build_runtime(resources: Resources) -> Runtime:
    return Runtime(resources)
