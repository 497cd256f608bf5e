"""Tenants and models: created, changed, read."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from audit.log import AuditLog
from audit.records import Action
from bulkhead import ids
from bulkhead.encoding import Json, JsonObject
from bulkhead.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError, UnknownModelError
from control_plane.authz.input import AdminResource
from control_plane.domain.tenancy import UPDATABLE, Model, ModelStatus, Tenant, TenantStatus, check_facts_fit
from control_plane.domain.tiers import Tier
from control_plane.services.administration import Administration, Change, Step
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.paging import page_size
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.tenancy import Models, Tenants

__all__ = ["ModelAdmin", "TenancyQuery", "TenantAdmin", "tenant_facts"]


class TenantAdmin:
    """Creates and changes tenants.

    Args:
        administration: makes the changes.
        audit: a new tenant's log is opened in it.
        now_us: Unix time in microseconds.
    """

    def __init__(self, *, administration: Administration, audit: AuditLog, now_us: Callable[[], int]) -> None:
        self._administration = administration
        self._audit = audit
        self._now_us = now_us

    async def create(self, call: AdminCall, wanted: Tenant) -> Tenant:
        """Create a tenant with its audit log, and return it.

        Args:
            call: the administrator's call.
            wanted: identifier, status, revision, key and time of it are ignored.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidRequestError: regions, packs and models are together too long for a policy input.
            BulkheadError: as :meth:`Administration.change`.
        """
        tenant = dataclasses.replace(
            wanted,
            tenant_id=ids.new_id(ids.TENANT),
            status=TenantStatus.ACTIVE,
            revision=1,
            log_vkey="",
            created_us=self._now_us(),
        )
        check_facts_fit(tenant)
        named = ("tenant", tenant.tenant_id)

        def plan(tx: Transaction) -> Change:
            if Tenants.of(tx).find_by_name(tenant.name) is not None:
                raise AlreadyExistsError("a tenant of this name exists")
            resource = AdminResource(type="tenant")
            return Change(Question(action="tenant.create", resource=resource, named=named), open_log)

        async def open_log() -> Step:
            log = await self._audit.ensure_log(tenant.tenant_id)
            complete = dataclasses.replace(tenant, log_vkey=self._audit.vkey(log.log_id))
            return Step(
                action=Action.TENANT_CREATED,
                details={"name": tenant.name, **tenant_facts(tenant)},
                result_id=tenant.tenant_id,
                tenant_id=tenant.tenant_id,
                write=lambda tx: Tenants.of(tx).insert(complete),
            )

        content: JsonObject = {"method": "CreateTenant", "name": tenant.name, **tenant_facts(wanted)}
        return (await self._administration.change(call, content=content, plan=plan, load=_tenant)).value

    async def update(self, call: AdminCall, tenant_id: str, changes: Mapping[str, Any]) -> Tenant:
        """Change the named fields of a tenant, and return it; open sessions keep what they were granted.

        A changed root is a record of its own kind; workers that were started for the one before serve until their
        sessions' tickets end, and are renewed no more.

        Args:
            call: the administrator's call.
            tenant_id: which tenant.
            changes: field of :data:`UPDATABLE` -> its new value.

        Raises:
            InvalidRequestError: no field, an unknown one, a value out of its bounds, or facts that are together too
                long for a policy input.
            NotFoundError: no such tenant.
            ConflictError: it changed meanwhile.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_id(tenant_id, ids.TENANT)
        if not changes or not set(changes) <= set(UPDATABLE):
            raise InvalidRequestError(f"fields: at least one of {', '.join(UPDATABLE)}")

        def plan(tx: Transaction) -> Change:
            before = _tenant(tx, tenant_id)
            after = dataclasses.replace(before, **changes, revision=before.revision + 1)
            check_facts_fit(after, before)
            known = tenant_facts(after)
            details: dict[str, Json] = {"revision": after.revision, **{name: known[name] for name in sorted(changes)}}
            if before.tenant_root != after.tenant_root:
                details["replaced_root"] = before.tenant_root.hex()
            step = Step(
                action=_update_action(before, after),
                details=details,
                result_id=tenant_id,
                tenant_id=tenant_id,
                write=lambda tx: _update(tx, after, from_revision=before.revision),
            )
            return Change.of(_about_tenant("tenant.update", tenant_id), step)

        facts = {name: _plain(value) for name, value in changes.items()}
        content: JsonObject = {"method": "UpdateTenant", "tenant": tenant_id, "changes": facts}
        return (await self._administration.change(call, content=content, plan=plan, load=_tenant)).value


class ModelAdmin:
    """Registers and retires models.

    Args:
        administration: makes the changes.
        now_us: Unix time in microseconds.
    """

    def __init__(self, *, administration: Administration, now_us: Callable[[], int]) -> None:
        self._administration = administration
        self._now_us = now_us

    async def register(self, call: AdminCall, wanted: Model) -> Model:
        """Register a model, or a new version under the name of a retired one, and return it.

        Raises:
            AlreadyExistsError: the name belongs to an active model; retire it first.
            BulkheadError: as :meth:`Administration.change`.
        """
        model = dataclasses.replace(wanted, status=ModelStatus.ACTIVE, created_us=self._now_us())

        def plan(tx: Transaction) -> Change:
            known = Models.of(tx).find(model.name)
            if known is not None and known.status is ModelStatus.ACTIVE:
                raise AlreadyExistsError("an active model of this name exists: retire it first")
            step = Step(
                action=Action.MODEL_REGISTERED if known is None else Action.MODEL_UPDATED,
                details=_model_facts(model),
                result_id=model.name,
                write=lambda tx: (Models.of(tx).insert if known is None else Models.of(tx).update)(model),
            )
            return Change.of(_about_model("model.register", model.name), step)

        content: JsonObject = {"method": "RegisterModel", "name": model.name, **_model_facts(model)}
        return (await self._administration.change(call, content=content, plan=plan, load=_model)).value

    async def retire(self, call: AdminCall, name: str) -> Model:
        """Retire a model: it takes no new session. Return it; retiring twice changes nothing.

        Raises:
            UnknownModelError: no such model.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_name(name, "name")

        def plan(tx: Transaction) -> Change:
            retired = dataclasses.replace(_model(tx, name), status=ModelStatus.RETIRED)
            step = Step(
                action=Action.MODEL_RETIRED,
                details={"digest": retired.digest.hex()},
                result_id=name,
                write=lambda tx: Models.of(tx).update(retired),
            )
            return Change.of(_about_model("model.retire", name), step)

        content: JsonObject = {"method": "RetireModel", "name": name}
        return (await self._administration.change(call, content=content, plan=plan, load=_model)).value


class TenancyQuery:
    """Reads tenants and models. Policy is asked about each read; refusals are recorded.

    Args:
        database: the state.
        authorisation: asks policy.
    """

    def __init__(self, *, database: Database, authorisation: Authorisation) -> None:
        self._database = database
        self._authorisation = authorisation

    async def tenants(self, call: AdminCall, *, after: str, limit: int) -> list[Tenant]:
        """Return a page of tenants in order of identifier, beginning behind ``after``."""
        limit = page_size(limit)
        question = Question(action="tenant.read", resource=AdminResource(type="tenant"), named=("tenant", "*"))
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(lambda tx: Tenants.of(tx).page(after=after, limit=limit))

    async def tenant(self, call: AdminCall, tenant: str) -> Tenant:
        """Return a tenant by identifier or name.

        Raises:
            NotFoundError: there is none.
        """
        found = await self._database.read(lambda tx: Tenants.of(tx).find(tenant) or Tenants.of(tx).find_by_name(tenant))
        if found is None:
            raise NotFoundError("no such tenant")
        await self._authorisation.authorise(call, _about_tenant("tenant.read", found.tenant_id), record_allow=False)
        return found

    async def models(self, call: AdminCall, *, after: str, limit: int) -> list[Model]:
        """Return a page of models in order of name, beginning behind ``after``."""
        limit = page_size(limit)
        question = Question(action="model.read", resource=AdminResource(type="model"), named=("model", "*"))
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(lambda tx: Models.of(tx).page(after=after, limit=limit))


def tenant_facts(tenant: Tenant) -> dict[str, Json]:
    """Return what records say of a tenant: everything that decisions depend on."""
    return {name: _plain(getattr(tenant, name)) for name in UPDATABLE}


def _plain(value: Any) -> Json:
    if isinstance(value, tuple):
        return sorted(set(value))
    if isinstance(value, Tier):
        return value.label
    if isinstance(value, bytes):
        return value.hex()
    plain: Json = value
    return plain


def _model_facts(model: Model) -> dict[str, Json]:
    facts: dict[str, Json] = {
        "digest": model.digest.hex(),
        "path": model.path,
        "context_length": model.context_length,
        "memory_mib": model.memory_mib,
        "custody": model.custody.value,
    }
    if (sealed := model.sealed) is not None:
        facts |= {
            "manifest_digest": sealed.manifest_digest.hex(),
            "version": sealed.version,
            "broker": sealed.broker_address,
            "broker_certificate_sha256": hashlib.sha256(sealed.broker_certificate).hexdigest(),
        }
    return facts


def _about_tenant(action: str, tenant_id: str) -> Question:
    return Question(
        action=action,
        resource=AdminResource(type="tenant", id=tenant_id, tenant=tenant_id),
        named=("tenant", tenant_id),
        tenant_id=tenant_id,
    )


def _about_model(action: str, name: str) -> Question:
    return Question(action=action, resource=AdminResource(type="model", id=name), named=("model", name))


def _update_action(before: Tenant, after: Tenant) -> Action:
    if before.status is after.status:
        return Action.TENANT_UPDATED if before.tenant_root == after.tenant_root else Action.TENANT_ROOT_CHANGED
    return Action.TENANT_SUSPENDED if after.status is TenantStatus.SUSPENDED else Action.TENANT_RESUMED


def _update(tx: Transaction, tenant: Tenant, *, from_revision: int) -> None:
    if not Tenants.of(tx).update(tenant, from_revision=from_revision):
        raise ConflictError("the tenant changed meanwhile: read it again")


def _tenant(tx: Transaction, tenant_id: str) -> Tenant:
    found = Tenants.of(tx).find(tenant_id)
    if found is None:
        raise NotFoundError("no such tenant")
    return found


def _model(tx: Transaction, name: str) -> Model:
    found = Models.of(tx).find(name)
    if found is None:
        raise UnknownModelError("no model of this name is registered")
    return found
