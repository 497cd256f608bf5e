"""Principals and their credentials: made, revoked, read."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from audit.records import Action
from bulkhead import ids
from bulkhead.encoding import Json, JsonObject
from bulkhead.errors import (
    AlreadyExistsError,
    CredentialInvalidError,
    InvalidRequestError,
    NotFoundError,
)
from control_plane.authz.input import AdminResource
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.roles import CredentialKind, Role, parse_scopes
from control_plane.domain.tenancy import Credential, Principal
from control_plane.services.administration import Administration, Change, Step
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.paging import page_size
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.tenancy import Credentials, Principals, Tenants
from service.tls import parse_certificate

__all__ = ["CredentialAdmin", "CredentialQuery", "PrincipalAdmin", "RevocationObserver"]

US_PER_S: Final = 1_000_000
DEFAULT_LIFETIME_S: Final = 90 * 86_400
MAX_LIFETIME_S: Final = 366 * 86_400


class RevocationObserver(Protocol):
    """Told of revoked credentials, so that sessions which they opened end; a server that serves none tells nobody."""

    async def credential_revoked(self, credential_id: str) -> None:
        """End what the credential opened; idempotent."""


class PrincipalAdmin:
    """Creates principals.

    Args:
        administration: makes the changes.
        now_us: Unix time in microseconds.
    """

    def __init__(self, *, administration: Administration, now_us: Callable[[], int]) -> None:
        self._administration = administration
        self._now_us = now_us

    async def create(self, call: AdminCall, *, tenant_id: str, name: str, role: Role) -> Principal:
        """Create a principal, and return it.

        Args:
            call: the administrator's call.
            tenant_id: empty for admins and platform officers.
            name: unique within the tenant.
            role: for good; another role is another principal.

        Raises:
            InvalidRequestError: name, or role and tenant together, do not fit.
            NotFoundError: no such tenant.
            AlreadyExistsError: the name is taken.
            BulkheadError: as :meth:`Administration.change`.
        """
        principal = Principal(
            principal_id=ids.new_id(ids.PRINCIPAL),
            tenant_id=tenant_id,
            name=name,
            role=role,
            subject_id=ids.new_id(ids.SUBJECT),
            created_us=self._now_us(),
        )

        def plan(tx: Transaction) -> Change:
            if tenant_id and Tenants.of(tx).find(tenant_id) is None:
                raise NotFoundError("no such tenant")
            if Principals.of(tx).find_by_name(tenant_id, name) is not None:
                raise AlreadyExistsError("a principal of this name exists")
            question = Question(
                action="principal.create",
                resource=AdminResource(type="principal", tenant=tenant_id or None),
                named=("principal", principal.principal_id),
                tenant_id=tenant_id,
            )
            step = Step(
                action=Action.PRINCIPAL_CREATED,
                details={"role": role.value, "subject": principal.subject_id},
                result_id=principal.principal_id,
                tenant_id=tenant_id,
                write=lambda tx: Principals.of(tx).insert(principal),
            )
            return Change.of(question, step)

        content: JsonObject = {"method": "CreatePrincipal", "tenant": tenant_id, "name": name, "role": role.value}
        return (await self._administration.change(call, content=content, plan=plan, load=_principal)).value


class CredentialAdmin:
    """Issues and revokes credentials.

    Args:
        administration: makes the changes.
        revocations: told after a revocation is committed.
        now_us: Unix time in microseconds.
        random_bytes: source of the keys' secrets.
    """

    def __init__(
        self,
        *,
        administration: Administration,
        revocations: RevocationObserver,
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._administration = administration
        self._revocations = revocations
        self._now_us = now_us
        self._random_bytes = random_bytes

    async def create_api_key(
        self, call: AdminCall, *, principal_id: str, scopes: Sequence[str], lifetime_s: int
    ) -> tuple[Credential, str]:
        """Issue an API key; return the credential and the key, which is kept nowhere.

        Args:
            call: the administrator's call.
            principal_id: who will hold it.
            scopes: empty gives every scope of the principal's role.
            lifetime_s: 0 means 90 days.

        Raises:
            InvalidRequestError: a scope that the role cannot have, or a lifetime above 366 days.
            NotFoundError: no such principal.
            AlreadyExistsError: this request was carried out already; its key cannot be shown again.
            BulkheadError: as :meth:`Administration.change`.
        """
        if not 0 <= lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequestError(f"lifetime_s: at most {MAX_LIFETIME_S} (366 days)")
        now_us = self._now_us()
        expires_us = now_us + (lifetime_s or DEFAULT_LIFETIME_S) * US_PER_S
        key = ApiKey.new(ids.new_id(ids.CREDENTIAL), random_bytes=self._random_bytes)

        def plan(tx: Transaction) -> Change:
            principal = _principal(tx, principal_id)
            credential = Credential(
                credential_id=key.credential_id,
                principal_id=principal_id,
                kind=CredentialKind.API_KEY,
                scopes=parse_scopes(principal.role, scopes),
                created_us=now_us,
                expires_us=expires_us,
            )
            return _issue(principal, credential, secret_sha256=key.secret_sha256())

        content: JsonObject = {
            "method": "CreateApiKey",
            "principal": principal_id,
            "scopes": sorted(set(scopes)),
            "lifetime_s": lifetime_s,
        }
        made = await self._administration.change(call, content=content, plan=plan, load=_credential)
        if made.again:
            raise AlreadyExistsError(
                "this request made an API key already, which cannot be shown again: revoke it and make another",
                details={"credential_id": made.value.credential_id},
            )
        return made.value, key.text()

    async def register_certificate(
        self, call: AdminCall, *, principal_id: str, certificate: bytes, scopes: Sequence[str]
    ) -> Credential:
        """Register a client certificate's fingerprint for a principal, until the certificate expires.

        Args:
            call: the administrator's call.
            principal_id: who holds the private key.
            certificate: PEM or DER, untrusted.
            scopes: empty gives every scope of the principal's role.

        Raises:
            InvalidRequestError: not a certificate, expired, or a scope that the role cannot have.
            NotFoundError: no such principal.
            AlreadyExistsError: the certificate is registered already.
            BulkheadError: as :meth:`Administration.change`.
        """
        try:
            parsed = parse_certificate(certificate)
        except CredentialInvalidError as error:
            raise InvalidRequestError(f"certificate: {error.message}") from error
        now_us = self._now_us()
        expires_us = int(parsed.not_after.timestamp()) * US_PER_S
        if expires_us <= now_us:
            raise InvalidRequestError("certificate: it has expired")

        def plan(tx: Transaction) -> Change:
            principal = _principal(tx, principal_id)
            if Credentials.of(tx).find_with_principal(fingerprint=parsed.fingerprint) is not None:
                raise AlreadyExistsError("this certificate is registered already")
            credential = Credential(
                credential_id=ids.new_id(ids.CREDENTIAL),
                principal_id=principal_id,
                kind=CredentialKind.CERTIFICATE,
                scopes=parse_scopes(principal.role, scopes),
                created_us=now_us,
                expires_us=expires_us,
                fingerprint=parsed.fingerprint,
            )
            return _issue(principal, credential, secret_sha256=None)

        content: JsonObject = {
            "method": "RegisterCertificate",
            "principal": principal_id,
            "fingerprint": parsed.fingerprint,
            "scopes": sorted(set(scopes)),
        }
        return (await self._administration.change(call, content=content, plan=plan, load=_credential)).value

    async def revoke(self, call: AdminCall, credential_id: str) -> Credential:
        """Revoke a credential: it is refused from the next call on, and sessions that it opened end. Return it.

        Raises:
            NotFoundError: no such credential.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_id(credential_id, ids.CREDENTIAL)

        def plan(tx: Transaction) -> Change:
            principal = _principal(tx, _credential(tx, credential_id).principal_id)
            question = Question(
                action="credential.revoke",
                resource=AdminResource(type="credential", id=credential_id, tenant=principal.tenant_id or None),
                named=("credential", credential_id),
                tenant_id=principal.tenant_id,
            )
            step = Step(
                action=Action.CREDENTIAL_REVOKED,
                details={"subject": principal.subject_id},
                result_id=credential_id,
                tenant_id=principal.tenant_id,
                write=lambda tx: Credentials.of(tx).revoke(credential_id, now_us=self._now_us()),
            )
            return Change.of(question, step)

        content: JsonObject = {"method": "RevokeCredential", "credential": credential_id}
        made = await self._administration.change(call, content=content, plan=plan, load=_credential)
        await self._revocations.credential_revoked(credential_id)
        return made.value


class CredentialQuery:
    """Reads principals and credentials, never secrets. Policy is asked about each read; refusals are recorded.

    Args:
        database: the state.
        authorisation: asks policy.
    """

    def __init__(self, *, database: Database, authorisation: Authorisation) -> None:
        self._database = database
        self._authorisation = authorisation

    async def principals(self, call: AdminCall, *, tenant_id: str, after: str, limit: int) -> list[Principal]:
        """Return a page of a tenant's principals; an empty tenant id stands for every principal.

        Raises:
            NotFoundError: no such tenant.
        """
        limit = page_size(limit)
        if tenant_id:
            ids.check_id(tenant_id, ids.TENANT)
        question = Question(
            action="principal.read",
            resource=AdminResource(type="principal", tenant=tenant_id or None),
            named=("principal", "*"),
            tenant_id=tenant_id,
        )
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(
            lambda tx: Principals.of(tx).page(tenant_id=tenant_id, after=after, limit=limit)
        )

    async def credentials(self, call: AdminCall, *, principal_id: str, after: str, limit: int) -> list[Credential]:
        """Return a page of a principal's credentials; an empty principal id stands for every credential.

        Raises:
            NotFoundError: no such principal.
        """
        limit = page_size(limit)
        tenant_id = ""
        if principal_id:
            ids.check_id(principal_id, ids.PRINCIPAL)
            tenant_id = (await self._database.read(lambda tx: _principal(tx, principal_id))).tenant_id
        question = Question(
            action="credential.read",
            resource=AdminResource(type="credential", tenant=tenant_id or None),
            named=("credential", "*"),
            tenant_id=tenant_id,
        )
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(
            lambda tx: Credentials.of(tx).page(principal_id=principal_id, after=after, limit=limit)
        )


def _issue(principal: Principal, credential: Credential, *, secret_sha256: bytes | None) -> Change:
    details: dict[str, Json] = {
        "kind": credential.kind.value,
        "scopes": sorted(scope.value for scope in credential.scopes),
        "expires_us": credential.expires_us,
        "subject": principal.subject_id,
    }
    if credential.fingerprint:
        details["fingerprint"] = credential.fingerprint
    question = Question(
        action="credential.create",
        resource=AdminResource(type="credential", tenant=principal.tenant_id or None),
        named=("credential", credential.credential_id),
        tenant_id=principal.tenant_id,
    )
    step = Step(
        action=Action.CREDENTIAL_ISSUED,
        details=details,
        result_id=credential.credential_id,
        tenant_id=principal.tenant_id,
        write=lambda tx: Credentials.of(tx).insert(credential, secret_sha256=secret_sha256),
    )
    return Change.of(question, step)


def _principal(tx: Transaction, principal_id: str) -> Principal:
    found = Principals.of(tx).find(principal_id)
    if found is None:
        raise NotFoundError("no such principal")
    return found


def _credential(tx: Transaction, credential_id: str) -> Credential:
    found = Credentials.of(tx).find(credential_id)
    if found is None:
        raise NotFoundError("no such credential")
    return found
