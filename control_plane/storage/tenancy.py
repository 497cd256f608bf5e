"""Rows of tenants, principals, credentials and models. Plain functions of one transaction; no rule lives here."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, Select, bindparam, delete, insert, select, update

from control_plane.domain.roles import CredentialKind, Role, Scope
from control_plane.domain.tenancy import (
    Credential,
    Custody,
    Model,
    ModelStatus,
    Principal,
    SealedModel,
    Tenant,
    TenantStatus,
)
from control_plane.domain.tiers import tier_from_label
from control_plane.storage import schema
from control_plane.storage.engine import Transaction

__all__ = ["Credentials", "ModelFloors", "Models", "Principals", "Tenants"]

_T: Final = schema.tenants.c
_P: Final = schema.principals.c
_C: Final = schema.credentials.c
_M: Final = schema.models.c


_WITH_PRINCIPAL: Final = select(
    schema.credentials, _P.tenant_id, _P.name, _P.role, _P.subject_id, _P.created_us.label("principal_created_us")
).join(schema.principals, _C.principal_id == _P.principal_id)
# Built once: every call of every API authenticates with one of them, and building costs more than running.
_BY_ID: Final = _WITH_PRINCIPAL.where(_C.credential_id == bindparam("key"), _C.kind == CredentialKind.API_KEY.value)
_BY_FINGERPRINT: Final = _WITH_PRINCIPAL.where(
    _C.fingerprint == bindparam("key"), _C.kind == CredentialKind.CERTIFICATE.value
)


class _Rows:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def of(cls, tx: Transaction) -> Self:
        """Return the rows as one transaction sees them."""
        return cls(tx.connection)

    def _one(self, query: Select[Any]) -> Row[Any] | None:
        return self._connection.execute(query).one_or_none()

    def _page(self, query: Select[Any], key: Any, *, after: str, limit: int) -> Iterable[Row[Any]]:
        """Keyset paging by the primary key: stable while rows are added, unlike an offset."""
        return self._connection.execute(query.where(key > after).order_by(key).limit(limit))


class Tenants(_Rows):
    """The tenants."""

    def insert(self, tenant: Tenant) -> None:
        """Add a tenant; a taken name violates a constraint."""
        self._connection.execute(
            insert(schema.tenants).values(
                tenant_id=tenant.tenant_id, name=tenant.name, created_us=tenant.created_us, **_tenant_values(tenant)
            )
        )

    def update(self, tenant: Tenant, *, from_revision: int) -> bool:
        """Write every changeable field where the row still has ``from_revision``; return whether it had."""
        done = self._connection.execute(
            update(schema.tenants)
            .where(_T.tenant_id == tenant.tenant_id, _T.revision == from_revision)
            .values(**_tenant_values(tenant))
        )
        return done.rowcount == 1

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant of that identifier."""
        row = self._one(select(schema.tenants).where(_T.tenant_id == tenant_id))
        return None if row is None else _tenant(row)

    def find_by_name(self, name: str) -> Tenant | None:
        """Return the tenant of that name."""
        row = self._one(select(schema.tenants).where(_T.name == name))
        return None if row is None else _tenant(row)

    def page(self, *, after: str, limit: int) -> list[Tenant]:
        """Return up to ``limit`` tenants in order of identifier, beginning behind ``after``."""
        return [_tenant(row) for row in self._page(select(schema.tenants), _T.tenant_id, after=after, limit=limit)]


class Principals(_Rows):
    """The principals."""

    def insert(self, principal: Principal) -> None:
        """Add a principal; a name taken within its tenant violates a constraint."""
        self._connection.execute(
            insert(schema.principals).values(
                principal_id=principal.principal_id,
                tenant_id=principal.tenant_id or None,
                name=principal.name,
                role=principal.role.value,
                subject_id=principal.subject_id,
                created_us=principal.created_us,
            )
        )

    def find(self, principal_id: str) -> Principal | None:
        """Return the principal of that identifier."""
        row = self._one(select(schema.principals).where(_P.principal_id == principal_id))
        return None if row is None else _principal(row)

    def find_by_name(self, tenant_id: str, name: str) -> Principal | None:
        """Return the principal of that name in the tenant; an empty tenant is the platform."""
        row = self._one(
            select(schema.principals).where(_P.name == name, _P.tenant_id.is_not_distinct_from(tenant_id or None))
        )
        return None if row is None else _principal(row)

    def page(self, *, tenant_id: str, after: str, limit: int) -> list[Principal]:
        """Return principals of a tenant; an empty tenant id stands for every principal."""
        query = select(schema.principals)
        if tenant_id:
            query = query.where(_P.tenant_id == tenant_id)
        return [_principal(row) for row in self._page(query, _P.principal_id, after=after, limit=limit)]

    def any_admin(self) -> bool:
        """Return whether some principal is an admin: false on a platform that was never initialised."""
        return self._one(select(_P.principal_id).where(_P.role == Role.ADMIN.value).limit(1)) is not None


class Credentials(_Rows):
    """The credentials."""

    def insert(self, credential: Credential, *, secret_sha256: bytes | None) -> None:
        """Add a credential; a fingerprint that is registered already violates a constraint."""
        self._connection.execute(
            insert(schema.credentials).values(
                credential_id=credential.credential_id,
                principal_id=credential.principal_id,
                kind=credential.kind.value,
                secret_sha256=secret_sha256,
                fingerprint=credential.fingerprint or None,
                scopes=sorted(scope.value for scope in credential.scopes),
                created_us=credential.created_us,
                expires_us=credential.expires_us,
            )
        )

    def revoke(self, credential_id: str, *, now_us: int) -> None:
        """Mark as revoked; a credential that is revoked already keeps its time."""
        self._connection.execute(
            update(schema.credentials)
            .where(_C.credential_id == credential_id, _C.revoked_us.is_(None))
            .values(revoked_us=now_us)
        )

    def find(self, credential_id: str) -> Credential | None:
        """Return the credential of that identifier."""
        row = self._one(select(schema.credentials).where(_C.credential_id == credential_id))
        return None if row is None else _credential(row)

    def find_with_principal(
        self, *, credential_id: str = "", fingerprint: str = ""
    ) -> tuple[Credential, Principal, bytes | None] | None:
        """Return an API key's (by id) or a certificate's (by fingerprint) credential, principal and stored hash."""
        query, key = (_BY_ID, credential_id) if credential_id else (_BY_FINGERPRINT, fingerprint)
        row = self._connection.execute(query, {"key": key}).one_or_none()
        if row is None:
            return None
        principal = Principal(
            principal_id=row.principal_id,
            tenant_id=row.tenant_id or "",
            name=row.name,
            role=Role(row.role),
            subject_id=row.subject_id,
            created_us=row.principal_created_us,
        )
        return _credential(row), principal, row.secret_sha256

    def page(self, *, principal_id: str, after: str, limit: int) -> list[Credential]:
        """Return credentials of a principal; an empty principal id stands for every credential."""
        query = select(schema.credentials)
        if principal_id:
            query = query.where(_C.principal_id == principal_id)
        return [_credential(row) for row in self._page(query, _C.credential_id, after=after, limit=limit)]


class Models(_Rows):
    """The registered models."""

    def insert(self, model: Model) -> None:
        """Add a model; a taken name violates a constraint."""
        self._connection.execute(insert(schema.models).values(name=model.name, **_model_values(model)))
        self._put_sealed(model)

    def update(self, model: Model) -> None:
        """Write every field of the model of that name."""
        self._connection.execute(update(schema.models).where(_M.name == model.name).values(**_model_values(model)))
        self._connection.execute(delete(schema.sealed_models).where(schema.sealed_models.c.name == model.name))
        self._put_sealed(model)

    def find(self, name: str) -> Model | None:
        """Return the model of that name, retired ones included."""
        row = self._one(select(schema.models).where(_M.name == name))
        return None if row is None else replace(_model(row), sealed=self.sealed(name))

    def sealed(self, name: str) -> SealedModel | None:
        """Return how the model of that name is sealed, None for a plain one."""
        columns = schema.sealed_models.c
        row = self._one(select(schema.sealed_models, _M.custody).join(schema.models).where(columns.name == name))
        if row is None:
            return None
        return SealedModel(
            custody=Custody(row.custody),
            manifest=row.manifest,
            manifest_digest=row.manifest_digest,
            version=row.version,
            broker_address=row.broker_address,
            broker_name=row.broker_name,
            broker_certificate=row.broker_certificate,
        )

    def _put_sealed(self, model: Model) -> None:
        if (sealed := model.sealed) is not None:
            self._connection.execute(
                insert(schema.sealed_models).values(
                    name=model.name,
                    manifest=sealed.manifest,
                    manifest_digest=sealed.manifest_digest,
                    version=sealed.version,
                    broker_address=sealed.broker_address,
                    broker_name=sealed.broker_name,
                    broker_certificate=sealed.broker_certificate,
                )
            )

    def page(self, *, after: str, limit: int) -> list[Model]:
        """Return models in order of name, beginning behind ``after``."""
        rows = self._page(select(schema.models), _M.name, after=after, limit=limit)
        return [replace(_model(row), sealed=self.sealed(row.name)) for row in rows]


class ModelFloors(_Rows):
    """The highest version of each sealed model whose key was released."""

    def raise_to(self, name: str, version: int) -> int:
        """Raise the floor of ``name`` to ``version`` if it is lower, and return it."""
        floors = schema.model_floors
        row = self._one(select(floors).where(floors.c.name == name))
        if row is None:
            self._connection.execute(insert(floors).values(name=name, version=version))
        elif row.version < version:
            self._connection.execute(update(floors).where(floors.c.name == name).values(version=version))
        return version if row is None else max(version, int(row.version))


def _tenant_values(tenant: Tenant) -> dict[str, Any]:
    return {
        "status": tenant.status.value,
        "regions": list(tenant.regions),
        "packs": list(tenant.packs),
        "models": list(tenant.models),
        "minimum_tier": tenant.minimum_tier.label,
        "session_limit": tenant.session_limit,
        "max_output_tokens": tenant.max_output_tokens,
        "revision": tenant.revision,
        "log_vkey": tenant.log_vkey,
        "tenant_root": tenant.tenant_root or None,
    }


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        tenant_id=row.tenant_id,
        name=row.name,
        status=TenantStatus(row.status),
        regions=tuple(row.regions),
        packs=tuple(row.packs),
        models=tuple(row.models),
        minimum_tier=tier_from_label(row.minimum_tier),
        session_limit=row.session_limit,
        max_output_tokens=row.max_output_tokens,
        revision=row.revision,
        log_vkey=row.log_vkey,
        created_us=row.created_us,
        tenant_root=row.tenant_root or b"",
    )


def _principal(row: Row[Any]) -> Principal:
    return Principal(
        principal_id=row.principal_id,
        tenant_id=row.tenant_id or "",
        name=row.name,
        role=Role(row.role),
        subject_id=row.subject_id,
        created_us=row.created_us,
    )


def _credential(row: Row[Any]) -> Credential:
    return Credential(
        credential_id=row.credential_id,
        principal_id=row.principal_id,
        kind=CredentialKind(row.kind),
        scopes=frozenset(Scope(name) for name in row.scopes),
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us or 0,
        fingerprint=row.fingerprint or "",
    )


def _model_values(model: Model) -> dict[str, Any]:
    return {
        "digest": model.digest,
        "path": model.path,
        "status": model.status.value,
        "context_length": model.context_length,
        "memory_mib": model.memory_mib,
        "created_us": model.created_us,
        "custody": model.custody.value,
    }


def _model(row: Row[Any]) -> Model:
    return Model(
        name=row.name,
        digest=row.digest,
        path=row.path,
        status=ModelStatus(row.status),
        context_length=row.context_length,
        memory_mib=row.memory_mib,
        created_us=row.created_us,
    )
