"""The running parts of a control plane: sessions, fleet, administration, and the services that ports offer of them."""

from collections.abc import Coroutine
from typing import Any, Final

from bulkhead.v1 import audit_pb2_grpc, fleet_pb2_grpc, session_pb2_grpc
from control_plane.assembly import (
    Offered,
    administration,
    authorisation,
    now_us,
    policy_services,
    tenancy_services,
)
from control_plane.core import Core
from control_plane.issuance import IssuanceRecorder
from control_plane.key_broker import key_broker
from control_plane.resources import Resources
from control_plane.rpc.audit import AuditServicer
from control_plane.rpc.fleet import FleetServicer
from control_plane.rpc.fleet_admin import FleetAdminServicer, FleetQueryServicer
from control_plane.rpc.session import SessionQueryServicer, SessionServicer
from control_plane.services.audit_reads import AuditReads
from control_plane.services.fleet_admin import FleetAdmin, FleetQuery
from control_plane.services.hardware import HardwareTrust
from control_plane.services.issuers import IssuerAdmin, Issuers
from control_plane.services.sessions import SessionService
from service.bulkhead_fleet.v1 import fleet_pb2_grpc as agents_pb2_grpc
from service.files import make_private_directory

__all__ = ["Runtime", "build_runtime"]

UNLIMITED_METHODS: Final = frozenset({"/bulkhead_fleet.v1.FleetService/Connect"})
"""Methods of the internal port that live as long as their connection."""


class _SessionsOfRevokedCredentials:
    """Ends the sessions that a revoked credential opened."""

    def __init__(self, *, sessions: SessionService) -> None:
        self._sessions = sessions

    async def credential_revoked(self, credential_id: str) -> None:
        """See :class:`control_plane.services.credentials.RevocationObserver`."""
        await self._sessions.revoke_credential(credential_id)


class Runtime:
    """Sessions, fleet and administration, and the services that make them reachable.

    Args:
        resources: open.
    """

    unlimited_methods = UNLIMITED_METHODS

    def __init__(self, *, resources: Resources) -> None:
        self._resources = resources
        hardware = HardwareTrust.from_settings(resources.config.fleet)
        self.core = Core(
            database=resources.database,
            journal=resources.journal,
            policy=resources.policy,
            issuers=Issuers(database=resources.database, keys=resources.keys.ticket_issuers, now_us=now_us),
            session_settings=resources.config.sessions,
            fleet_settings=resources.config.fleet,
            platform_broker=key_broker(resources.config, hardware),
            now_us=now_us,
            hardware=hardware,
        )

    async def load(self) -> None:
        """Take up where the process before ended; before any port is open."""
        await self.core.load()

    async def close(self) -> None:
        """Finish what has no caller any more; ports and background work have stopped."""
        await self.core.close()

    def background(self) -> tuple[tuple[str, Coroutine[Any, Any, None]], ...]:
        """Return the work that must run as long as the process serves."""
        recorder = IssuanceRecorder(
            directory=make_private_directory(self._resources.config.issuances_directory),
            journal=self._resources.journal,
        )
        return (*self.core.background(), ("issuances", recorder.run()))

    def public_services(self) -> tuple[Offered, ...]:
        """Return what the ports of tenants, officers and admins offer."""
        resources, core = self._resources, self.core
        asks = authorisation(resources, platform_facts=core.fleet.platform_facts)
        changes = administration(resources, asks)
        reads = AuditReads(journal=resources.journal, database=resources.database, authorisation=asks)
        admin = FleetAdmin(administration=changes, fleet=core.fleet, book=core.book, releaser=core.releaser)
        query = FleetQuery(database=resources.database, authorisation=asks, fleet=core.fleet, book=core.book)
        issuers = IssuerAdmin(
            administration=changes,
            authorisation=asks,
            database=resources.database,
            issuers=core.issuers,
            ticket_s=resources.config.sessions.ticket_s,
            now_us=now_us,
        )
        revoked = _SessionsOfRevokedCredentials(sessions=core.sessions)
        return (
            Offered(
                "bulkhead.v1.SessionService",
                session_pb2_grpc.add_SessionServiceServicer_to_server,
                SessionServicer(sessions=core.sessions),
            ),
            Offered(
                "bulkhead.v1.SessionQueryService",
                session_pb2_grpc.add_SessionQueryServiceServicer_to_server,
                SessionQueryServicer(sessions=core.sessions),
            ),
            Offered(
                "bulkhead.v1.AuditService",
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditServicer(reads=reads),
            ),
            Offered(
                "bulkhead.v1.FleetAdminService",
                fleet_pb2_grpc.add_FleetAdminServiceServicer_to_server,
                FleetAdminServicer(fleet=admin, issuers=issuers),
            ),
            Offered(
                "bulkhead.v1.FleetQueryService",
                fleet_pb2_grpc.add_FleetQueryServiceServicer_to_server,
                FleetQueryServicer(fleet=query, issuers=issuers),
            ),
            *tenancy_services(resources, asks, changes, revocations=revoked),
            *policy_services(resources, asks, changes),
        )

    def internal_services(self) -> tuple[Offered, ...]:
        """Return what the agents' port offers."""
        return (
            Offered(
                "bulkhead_fleet.v1.FleetService",
                agents_pb2_grpc.add_FleetServiceServicer_to_server,
                FleetServicer(fleet=self.core.fleet),
            ),
        )


def build_runtime(resources: Resources) -> Runtime:
    """Return the runtime of an opened control plane."""
    return Runtime(resources=resources)
