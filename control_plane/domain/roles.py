"""Roles, scopes and the caller: who asks, and what their credential is good for.

A role belongs to a principal, a scope to a credential. A credential never has a scope that its principal's role lacks,
so that taking a role away takes its credentials' scopes away too: :func:`effective_scopes` intersects at each use.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bulkhead.errors import InvalidRequestError

__all__ = ["ROLE_SCOPES", "Caller", "CredentialKind", "Role", "Scope", "effective_scopes", "parse_scopes"]


class Role(StrEnum):
    """Role of a principal."""

    DEVELOPER = "developer"  # opens sessions for one tenant
    OFFICER = "officer"  # reads one tenant's audit log, or every log when it belongs to no tenant
    ADMIN = "admin"  # administers tenants, models, policies and the fleet; belongs to no tenant


class Scope(StrEnum):
    """What a credential is good for. One scope per service, except that developers' audit access is its own."""

    SESSIONS_OPEN = "sessions:open"
    SESSIONS_READ = "sessions:read"
    AUDIT_READ = "audit:read"
    AUDIT_PROVE = "audit:prove"  # proofs of the tenant's own records, for developers
    TENANCY_WRITE = "tenancy:write"
    TENANCY_READ = "tenancy:read"
    POLICY_WRITE = "policy:write"
    POLICY_READ = "policy:read"
    FLEET_WRITE = "fleet:write"
    FLEET_READ = "fleet:read"


class CredentialKind(StrEnum):
    """How a caller proved who they are."""

    API_KEY = "api_key"
    CERTIFICATE = "certificate"


ROLE_SCOPES: Final[Mapping[Role, frozenset[Scope]]] = MappingProxyType(
    {
        Role.DEVELOPER: frozenset({Scope.SESSIONS_OPEN, Scope.SESSIONS_READ, Scope.AUDIT_PROVE}),
        Role.OFFICER: frozenset({Scope.SESSIONS_READ, Scope.AUDIT_READ, Scope.AUDIT_PROVE, Scope.POLICY_READ}),
        Role.ADMIN: frozenset(
            {
                Scope.TENANCY_WRITE,
                Scope.TENANCY_READ,
                Scope.POLICY_WRITE,
                Scope.POLICY_READ,
                Scope.FLEET_WRITE,
                Scope.FLEET_READ,
            }
        ),
    }
)
"""The scopes that each role can have at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated caller: verified by the server that admitted the call, for this call only.

    Attributes:
        principal_id: who.
        subject_id: the pseudonym under which audit records name them.
        tenant_id: the tenant they belong to; empty for admins and platform officers.
        role: of the principal.
        scopes: of the credential, within the role's.
        credential_id: with what they authenticated.
        credential_kind: how.
        network: class of the peer's address, ``loopback``, ``private`` or ``public``; the address itself is personal
            data and goes no further.
    """

    principal_id: str
    subject_id: str
    tenant_id: str
    role: Role
    scopes: frozenset[Scope]
    credential_id: str
    credential_kind: CredentialKind
    network: str


def effective_scopes(role: Role, granted: Iterable[Scope]) -> frozenset[Scope]:
    """Return the part of ``granted`` that ``role`` can have."""
    return ROLE_SCOPES[role] & frozenset(granted)


def parse_scopes(role: Role, names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes that ``names`` ask for; none at all asks for every scope of ``role``.

    Raises:
        InvalidRequestError: an unknown scope, or one that the role cannot have.
    """
    asked = list(names)
    if not asked:
        return ROLE_SCOPES[role]
    known = {str(scope): scope for scope in ROLE_SCOPES[role]}
    if any(name not in known for name in asked):
        raise InvalidRequestError(f"scopes of a {role}: {', '.join(sorted(known))}")
    return frozenset(known[name] for name in asked)
