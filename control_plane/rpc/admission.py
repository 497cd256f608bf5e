"""Admission of calls: who is calling, and whether their credential reaches this method at all.

Every method but health and reflection needs a credential. A method that no table below names is refused: a new
service is closed until somebody says which scope opens it. Finer decisions are policy's.
"""

import ipaddress
import urllib.parse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from bulkhead.errors import (
    BulkheadError,
    CredentialExpiredError,
    CredentialInvalidError,
    CredentialMissingError,
    InvalidRequestError,
    ScopeError,
    UnauthenticatedError,
)
from bulkhead.ids import check_name
from control_plane.domain.roles import Scope
from control_plane.rpc.caller import agent_if_any, caller_if_any, set_agent, set_caller
from control_plane.services.authentication import Authenticator, Verdict
from control_plane.services.refusals import RefusalRecorder
from service.interceptors import Context, current_request_id
from service.server import OPEN_METHODS
from service.tls import peer_certificate, spiffe_uri

__all__ = [
    "AgentAdmission",
    "ApiKeyPresented",
    "CallerAdmission",
    "CertificatePresented",
    "network_class",
    "scopes_of",
]

MAX_AUTHORIZATION_CHARACTERS: Final = 256  # "Bearer " and a key of 74
BEARER: Final = "Bearer "

_PROOFS: Final = frozenset({Scope.AUDIT_READ, Scope.AUDIT_PROVE})

_SERVICE_SCOPES: Final[Mapping[str, frozenset[Scope]]] = MappingProxyType(
    {
        "bulkhead.v1.SessionService": frozenset({Scope.SESSIONS_OPEN}),
        "bulkhead.v1.SessionQueryService": frozenset({Scope.SESSIONS_READ}),
        "bulkhead.v1.AuditService": frozenset({Scope.AUDIT_READ}),
        "bulkhead.v1.TenancyAdminService": frozenset({Scope.TENANCY_WRITE}),
        "bulkhead.v1.TenancyQueryService": frozenset({Scope.TENANCY_READ}),
        "bulkhead.v1.PolicyAdminService": frozenset({Scope.POLICY_WRITE}),
        "bulkhead.v1.PolicyQueryService": frozenset({Scope.POLICY_READ}),
        "bulkhead.v1.FleetAdminService": frozenset({Scope.FLEET_WRITE}),
        "bulkhead.v1.FleetQueryService": frozenset({Scope.FLEET_READ}),
    }
)

# Methods whose scopes differ from their service's.
_METHOD_SCOPES: Final[Mapping[str, frozenset[Scope]]] = MappingProxyType(
    {
        "/bulkhead.v1.AuditService/GetRecord": _PROOFS,
        "/bulkhead.v1.AuditService/GetCheckpoint": _PROOFS,
        "/bulkhead.v1.AuditService/GetConsistencyProof": _PROOFS,
        "/bulkhead.v1.AuditService/GetReceiptProof": _PROOFS,
        "/bulkhead.v1.AuditService/GetRoundPath": _PROOFS,
        "/bulkhead.v1.AuditService/ListRoundPaths": _PROOFS,
    }
)


def scopes_of(method: str) -> frozenset[Scope]:
    """Return the scopes that open a method, any one of which is enough; none for an unknown method."""
    service = method.strip("/").rpartition("/")[0]
    return _METHOD_SCOPES.get(method, _SERVICE_SCOPES.get(service, frozenset()))


class Presented(Protocol):
    """How the callers of one port show who they are."""

    async def verdict(self, context: Context, *, network: str) -> Verdict:
        """Return the verdict on what the call presents.

        Raises:
            CredentialMissingError: it presents nothing.
            StateUnavailableError: nobody can be authenticated now.
        """


class ApiKeyPresented:
    """API keys, in the call's metadata as ``authorization: Bearer <key>``."""

    def __init__(self, *, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def verdict(self, context: Context, *, network: str) -> Verdict:
        """See :class:`Presented`."""
        values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not values:
            raise CredentialMissingError("this method needs an API key: authorization: Bearer bhk_…")
        value = values[0]
        if len(values) > 1 or not isinstance(value, str) or len(value) > MAX_AUTHORIZATION_CHARACTERS:
            return Verdict(None, CredentialInvalidError("the authorization metadata is not one API key"))
        if not value.startswith(BEARER):
            return Verdict(None, CredentialInvalidError("the authorization metadata is not one API key"))
        return await self._authenticator.api_key(value.removeprefix(BEARER), network=network)


class CertificatePresented:
    """Client certificates, registered by their fingerprint; the port's handshake demanded and verified one."""

    def __init__(self, *, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def verdict(self, context: Context, *, network: str) -> Verdict:
        """See :class:`Presented`."""
        peer = peer_certificate(context)
        if peer is None:
            raise CredentialMissingError("this port needs a client certificate")
        return await self._authenticator.certificate(peer, network=network)


class CallerAdmission:
    """Admits calls of tenants, officers and admins on one public port.

    Args:
        presented: how callers of this port show who they are.
        refusals: takes the record of each refusal.
    """

    def __init__(self, *, presented: Presented, refusals: RefusalRecorder) -> None:
        self._presented = presented
        self._refusals = refusals

    async def admit(self, method: str, context: Context) -> None:
        """Authenticate the call, name its caller, and check that the credential reaches the method.

        Raises:
            UnauthenticatedError: one of its classes; recorded.
            ScopeError: the credential lacks every scope that would open the method.
            StateUnavailableError: nobody can be authenticated now.
        """
        if method in OPEN_METHODS:
            return
        peer = context.peer()
        try:
            verdict = await self._presented.verdict(context, network=network_class(peer))
        except UnauthenticatedError as error:
            verdict = Verdict(None, error)
        if verdict.caller is None or verdict.refusal is not None:
            refusal = verdict.refusal or CredentialInvalidError("the credential is not one of ours")
            await self._refusals.unauthenticated(
                method=method, error=refusal, caller=verdict.caller, source=_host(peer)
            )
            raise refusal
        set_caller(verdict.caller)
        needed = scopes_of(method)
        if not needed & verdict.caller.scopes:
            names = ", ".join(sorted(needed)) or "none: no credential opens it"
            raise ScopeError(f"the credential does not reach this method; it needs scope {names}")

    async def on_refusal(self, method: str, error: BulkheadError) -> None:
        """Record that a known caller was refused; see :class:`RefusalRecorder`."""
        caller = caller_if_any()
        if caller is not None:
            await self._refusals.denied(method=method, error=error, caller=caller, request_id=current_request_id())


class AgentAdmission:
    """Admits node agents on the internal port, by the URI of the certificate that the handshake verified.

    Args:
        trust_domain: agents are ``spiffe://<trust domain>/agent/<agent id>``.
        refusals: takes the record of each refusal.
        now_us: Unix time in microseconds.
    """

    def __init__(self, *, trust_domain: str, refusals: RefusalRecorder, now_us: Callable[[], int]) -> None:
        self._prefix = spiffe_uri(trust_domain, "agent", "")
        self._refusals = refusals
        self._now_us = now_us

    async def admit(self, method: str, context: Context) -> None:
        """Name the call's agent.

        Raises:
            CredentialMissingError: no client certificate.
            CredentialInvalidError: it names no agent of this trust domain, or more than one identity.
            CredentialExpiredError: it expired while the connection was open.
        """
        if method in OPEN_METHODS:
            return
        try:
            set_agent(self._agent_of(context))
        except UnauthenticatedError as error:
            await self._refusals.unauthenticated(method=method, error=error, caller=None, source=_host(context.peer()))
            raise

    async def on_refusal(self, method: str, error: BulkheadError) -> None:
        """Record that a known agent was refused; see :class:`RefusalRecorder`."""
        agent_id = agent_if_any()
        if agent_id is not None:
            await self._refusals.agent_denied(method=method, error=error, agent_id=agent_id)

    def _agent_of(self, context: Context) -> str:
        peer = peer_certificate(context)
        if peer is None:
            raise CredentialMissingError("this port needs a node agent's certificate")
        if len(peer.uris) != 1 or not peer.uris[0].startswith(self._prefix):
            raise CredentialInvalidError("the certificate names no node agent of this platform")
        if self._now_us() >= peer.not_after.timestamp() * 1_000_000:
            raise CredentialExpiredError("the node agent's certificate has expired")
        try:
            return check_name(peer.uris[0].removeprefix(self._prefix), "agent id")
        except InvalidRequestError as error:
            raise CredentialInvalidError("the certificate names no node agent of this platform") from error


def network_class(peer: str) -> str:
    """Return ``loopback``, ``private`` or ``public`` for a gRPC peer such as ``ipv4:10.0.0.7:51234``.

    What is neither an address nor a Unix socket counts as public, the class that policy trusts least.
    """
    if peer.startswith("unix:"):
        return "loopback"
    try:
        address = ipaddress.ip_address(_host(peer))
    except ValueError:
        return "public"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private else "public"


def _host(peer: str) -> str:
    scheme, _, rest = urllib.parse.unquote(peer).partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    return rest.rpartition(":")[0].strip("[]").partition("%")[0]
