"""Sessions and fleet of a control plane, built on its resources: constructors in the order of their dependence."""

from collections.abc import Callable, Coroutine
from typing import Any

from bulkhead.broker import Floors, KeyBroker
from bulkhead.broker.rpc.client import RemoteBroker
from control_plane.domain.tenancy import SealedModel
from control_plane.services.authorisation import Policy
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.hardware import HardwareTrust
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.key_release import KeyReleaser, SqlFloors, TenantBroker
from control_plane.services.leases import Leases
from control_plane.services.leftovers import Leftovers
from control_plane.services.lifecycle import Lifecycle
from control_plane.services.pool import PartitionPool
from control_plane.services.receipt_batches import Batches
from control_plane.services.receipts import Receipts
from control_plane.services.reconcile import Reconciler
from control_plane.services.release import Releaser
from control_plane.services.revocations import Revocations
from control_plane.services.session_end import SessionEnder
from control_plane.services.sessions import SessionService
from control_plane.services.sessions.attest import Attestor
from control_plane.services.sessions.decide import Decider
from control_plane.services.sessions.denials import DenialLimiter
from control_plane.services.sessions.grant import GrantIssuer
from control_plane.services.sessions.open import SessionOpener
from control_plane.services.sessions.renew import SessionRenewer
from control_plane.services.sessions.serve import Server
from control_plane.services.settings import FleetSettings, SessionSettings
from control_plane.storage.engine import Database

__all__ = ["Core", "FleetCore"]


def _tenant_broker(sealed: SealedModel) -> TenantBroker:
    return RemoteBroker(
        address=sealed.broker_address,
        certificate_pem=sealed.broker_certificate,
        server_name=sealed.broker_name,
    )


class FleetCore:
    """The fleet: agents, partitions, events, leases.

    Args:
        database: the state.
        journal: the audit log.
        issuers: whose tickets workers take.
        settings: of agents and partitions.
        platform_broker: makes the platform's own key broker from its floors; None where no model is in its custody.
        hardware: whose workers the platform's own broker gives keys; None gives them none.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        issuers: Issuers,
        settings: FleetSettings,
        platform_broker: Callable[[Floors], KeyBroker] | None,
        hardware: HardwareTrust | None,
        now_us: Callable[[], int],
    ) -> None:
        self.book = PartitionBook()
        self.revocations = Revocations(now_us=now_us)
        self.ender = SessionEnder(
            revocations=self.revocations, book=self.book, database=database, journal=journal, now_us=now_us
        )
        self.lifecycle = Lifecycle(book=self.book, ender=self.ender, database=database, journal=journal, now_us=now_us)
        self.releaser = Releaser(book=self.book, lifecycle=self.lifecycle, settings=settings, now_us=now_us)
        self.batches = Batches(database=database, journal=journal)
        self.receipts = Receipts(
            batches=self.batches,
            book=self.book,
            lifecycle=self.lifecycle,
            settings=settings,
            database=database,
            journal=journal,
            now_us=now_us,
        )
        self.fleet = Fleet(
            book=self.book,
            lifecycle=self.lifecycle,
            releaser=self.releaser,
            receipts=self.receipts,
            settings=settings,
            issuers=issuers,
            database=database,
            journal=journal,
            now_us=now_us,
        )
        floors = SqlFloors(database=database)
        self.keys = KeyReleaser(
            journal=journal,
            settings=settings,
            platform=platform_broker(floors) if platform_broker is not None else None,
            tenants=_tenant_broker,
            hardware=hardware,
            now_us=now_us,
        )
        self.pool = PartitionPool(
            keys=self.keys,
            database=database,
            fleet=self.fleet,
            book=self.book,
            lifecycle=self.lifecycle,
            releaser=self.releaser,
            settings=settings,
            now_us=now_us,
        )
        self.leases = Leases(
            fleet=self.fleet,
            book=self.book,
            journal=journal,
            receipts=self.receipts,
            revocations=self.revocations,
            issuers=issuers,
            settings=settings,
            now_us=now_us,
        )


class Core(FleetCore):
    """Sessions and fleet.

    Args:
        database: the state.
        journal: the audit log.
        policy: decides.
        issuers: sign tickets.
        session_settings: of sessions.
        fleet_settings: of agents and partitions.
        platform_broker: see :class:`FleetCore`.
        now_us: wall clock, microseconds since the epoch.
        hardware: judges hardware evidence; None appraises none.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        policy: Policy,
        issuers: Issuers,
        session_settings: SessionSettings,
        fleet_settings: FleetSettings,
        now_us: Callable[[], int],
        platform_broker: Callable[[Floors], KeyBroker] | None = None,
        hardware: HardwareTrust | None = None,
    ) -> None:
        super().__init__(
            database=database,
            journal=journal,
            issuers=issuers,
            settings=fleet_settings,
            platform_broker=platform_broker,
            hardware=hardware,
            now_us=now_us,
        )
        self.issuers = issuers
        self.denials = DenialLimiter(journal=journal, per_minute=session_settings.denials_recorded, now_us=now_us)
        decider = Decider(
            policy=policy,
            journal=journal,
            denials=self.denials,
            fleet=self.fleet,
            agent_wait_s=fleet_settings.agent_wait_s,
            now_us=now_us,
        )
        server = Server(
            database=database,
            journal=journal,
            pool=self.pool,
            book=self.book,
            attestor=Attestor(
                fleet=self.fleet, issuers=issuers, settings=fleet_settings, hardware=hardware, now_us=now_us
            ),
            grants=GrantIssuer(issuers=issuers, journal=journal, settings=session_settings, now_us=now_us),
            settings=session_settings,
        )
        renewer = SessionRenewer(database=database, decider=decider, server=server)
        self.opener = SessionOpener(
            database=database,
            decider=decider,
            server=server,
            renewer=renewer,
            revocations=self.revocations,
            book=self.book,
            settings=session_settings,
            now_us=now_us,
        )
        self.sessions = SessionService(
            database=database,
            opener=self.opener,
            renewer=renewer,
            ender=self.ender,
            releaser=self.releaser,
            book=self.book,
            expiry_grace_s=session_settings.expiry_grace_s,
            now_us=now_us,
        )
        self.leftovers = Leftovers(database=database, journal=journal, open_timeout_s=session_settings.open_timeout_s)
        self.reconciler = Reconciler(
            database=database,
            journal=journal,
            sessions=self.sessions,
            ender=self.ender,
            denials=self.denials,
            fleet=self.fleet,
            receipts=self.receipts,
            book=self.book,
            releaser=self.releaser,
            issuers=issuers,
            leftovers=self.leftovers,
            idle_grace_s=session_settings.idle_grace_s,
            now_us=now_us,
        )

    async def load(self) -> None:
        """Take up where the process before ended; before any port is open.

        Raises:
            StateUnavailableError, AuditUnavailableError, ConfigError: this process must not serve yet.
        """
        await self.issuers.load()
        await self.reconciler.at_start()

    def background(self) -> tuple[tuple[str, Coroutine[Any, Any, None]], ...]:
        """Return the work that must run as long as the process serves."""
        return (
            ("leases", self.leases.run()),
            ("receipts", self.reconciler.record_events()),
            ("reconciler", self.reconciler.run()),
        )

    async def close(self) -> None:
        """Finish what has no caller any more; ports and background work have stopped."""
        await self.pool.stop()
        await self.opener.stop()
        await self.releaser.stop()
        await self.reconciler.at_stop()
