"""The services of a control plane, built on its resources: constructors and nothing else."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from bulkhead.v1 import policy_pb2_grpc, tenancy_pb2_grpc
from control_plane.authz.bundle import VerifiedBundle, build_bundle
from control_plane.authz.check import check_policies
from control_plane.authz.input import PlatformFacts
from control_plane.authz.opa_tool import find_opa
from control_plane.resources import Resources
from control_plane.rpc.admission import AgentAdmission, ApiKeyPresented, CallerAdmission, CertificatePresented
from control_plane.rpc.policy import PolicyAdminServicer, PolicyQueryServicer
from control_plane.rpc.tenancy import TenancyAdminServicer, TenancyQueryServicer
from control_plane.services.administration import Administration
from control_plane.services.authentication import Authenticator
from control_plane.services.authorisation import Authorisation
from control_plane.services.credentials import (
    CredentialAdmin,
    CredentialQuery,
    PrincipalAdmin,
    RevocationObserver,
)
from control_plane.services.policies import PolicyAdmin, PolicyQuery
from control_plane.services.refusals import RefusalRecorder
from control_plane.services.tenancy import ModelAdmin, TenancyQuery, TenantAdmin

__all__ = ["Admissions", "Offered", "admissions", "now_us", "policy_services", "tenancy_services"]


def now_us() -> int:
    """Return Unix time in microseconds."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, slots=True)
class Offered:
    """A service that a port offers.

    Attributes:
        name: full name, for reflection and health.
        register: generated function that adds it to a server.
        servicer: its implementation.
    """

    name: str
    register: Callable[[Any, grpc.aio.Server], None]
    servicer: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Admissions:
    """Who gets in, by port."""

    api_key: CallerAdmission
    certificate: CallerAdmission
    agent: AgentAdmission


def admissions(resources: Resources) -> Admissions:
    """Return the admission of each port."""
    authenticator = Authenticator(database=resources.database, now_us=now_us)
    refusals = RefusalRecorder(journal=resources.journal, monotonic_s=time.monotonic)
    return Admissions(
        api_key=CallerAdmission(presented=ApiKeyPresented(authenticator=authenticator), refusals=refusals),
        certificate=CallerAdmission(presented=CertificatePresented(authenticator=authenticator), refusals=refusals),
        agent=AgentAdmission(trust_domain=resources.config.trust_domain, refusals=refusals, now_us=now_us),
    )


def authorisation(resources: Resources, *, platform_facts: Callable[[], PlatformFacts]) -> Authorisation:
    """Return what asks policy about administrative actions."""
    return Authorisation(
        database=resources.database,
        journal=resources.journal,
        policy=resources.policy,
        platform_facts=platform_facts,
        now_us=now_us,
    )


def administration(resources: Resources, asks: Authorisation) -> Administration:
    """Return what makes administrative changes."""
    return Administration(database=resources.database, journal=resources.journal, authorisation=asks, now_us=now_us)


def tenancy_services(
    resources: Resources, asks: Authorisation, changes: Administration, *, revocations: RevocationObserver
) -> tuple[Offered, ...]:
    """Return the services of tenants, principals, credentials and models."""
    admin = TenancyAdminServicer(
        tenants=TenantAdmin(administration=changes, audit=resources.journal.audit, now_us=now_us),
        principals=PrincipalAdmin(administration=changes, now_us=now_us),
        credentials=CredentialAdmin(
            administration=changes, revocations=revocations, now_us=now_us, random_bytes=secrets.token_bytes
        ),
        models=ModelAdmin(administration=changes, now_us=now_us),
    )
    query = TenancyQueryServicer(
        tenancy=TenancyQuery(database=resources.database, authorisation=asks),
        credentials=CredentialQuery(database=resources.database, authorisation=asks),
    )
    return (
        Offered("bulkhead.v1.TenancyAdminService", tenancy_pb2_grpc.add_TenancyAdminServiceServicer_to_server, admin),
        Offered("bulkhead.v1.TenancyQueryService", tenancy_pb2_grpc.add_TenancyQueryServiceServicer_to_server, query),
    )


def policy_services(resources: Resources, asks: Authorisation, changes: Administration) -> tuple[Offered, ...]:
    """Return the services of policy bundles."""

    def build(sources: Mapping[str, bytes], number: int, created_us: int) -> VerifiedBundle:
        opa = resources.config.policy.opa or find_opa()
        check_policies(sources, opa=opa)
        key = resources.keys.bundle_signing
        return build_bundle(sources, number=number, created_us=created_us, signing_key=key, opa=opa)

    admin = PolicyAdminServicer(
        policies=PolicyAdmin(
            administration=changes,
            database=resources.database,
            server=resources.supervisor,
            build=build,
            now_us=now_us,
        )
    )
    query = PolicyQueryServicer(
        policies=PolicyQuery(database=resources.database, authorisation=asks, server=resources.supervisor)
    )
    return (
        Offered("bulkhead.v1.PolicyAdminService", policy_pb2_grpc.add_PolicyAdminServiceServicer_to_server, admin),
        Offered("bulkhead.v1.PolicyQueryService", policy_pb2_grpc.add_PolicyQueryServiceServicer_to_server, query),
    )
