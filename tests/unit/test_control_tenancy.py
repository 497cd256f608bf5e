import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bulkhead import ids
from bulkhead.errors import (
    AlreadyExistsError,
    AuditUnavailableError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PolicyDeniedError,
    PolicyEngineError,
    StateUnavailableError,
    UnknownModelError,
    UnknownObligationError,
)
from control_plane.authz.decision import Exclusive, Reason
from control_plane.domain.roles import Role, Scope
from control_plane.domain.tenancy import MAX_FACTS_BYTES, Model, ModelStatus, TenantStatus
from control_plane.domain.tiers import Tier
from control_plane.services.paging import page_size, page_token
from control_plane.storage.tenancy import Tenants
from tests.simulator.administered import BUNDLE, Administered, administered, wanted_tenant


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Administered]:
    async with administered(tmp_path) as opened:
        yield opened


def _model(**changes: object) -> Model:
    fields: dict[str, object] = {
        "name": "tiny",
        "digest": b"d" * 32,
        "path": "tiny",
        "status": ModelStatus.ACTIVE,
        "context_length": 128,
        "memory_mib": 64,
        "created_us": 0,
        **changes,
    }
    return Model(**fields)  # type: ignore[arg-type]


async def test_a_tenant_is_created_with_its_log(world: Administered) -> None:
    """A new tenant is active at revision 1 and has a log of its own, whose key it names."""
    tenant = await world.tenant()
    assert (tenant.status, tenant.revision, tenant.name) == (TenantStatus.ACTIVE, 1, "acme")
    log = await world.audit.ensure_log(tenant.tenant_id)
    assert tenant.log_vkey == world.audit.vkey(log.log_id)
    (created,) = await world.records(tenant.tenant_id, "tenant.created")
    assert created.subject == world.admin.subject_id
    assert created.bundle == BUNDLE
    assert created.cause.credential == world.admin.credential_id


async def test_the_decision_is_recorded_before_the_change(world: Administered) -> None:
    """A change's decision, with the policy's whole input, stands in the log before the change's own record."""
    tenant = await world.tenant()
    call = world.call()
    await world.tenants.update(call, tenant.tenant_id, {"session_limit": 3})
    log = await world.records(tenant.tenant_id)
    assert [fields.action for fields in log[-2:]] == ["decision", "tenant.updated"]
    decision = log[-2]
    assert (decision.decision, decision.bundle) == ("allow", BUNDLE)
    assert decision.data["on"] == "tenant.update"
    assert decision.data["input"] == world.policy.asked[-1].to_json()
    assert decision.cause.request_id == call.request_id


async def test_the_life_of_credentials_is_recorded(world: Administered) -> None:
    """A principal's and each credential's beginning and end stand in the tenant's log; no secret and no name does."""
    tenant = await world.tenant()
    credential_id, key = await world.api_key(tenant_id=tenant.tenant_id, role=Role.OFFICER, name="kim-the-officer")
    await world.credentials.revoke(world.call(), credential_id)
    log = await world.records(tenant.tenant_id)
    life = [fields for fields in log if fields.action.startswith(("principal.", "credential."))]
    assert [fields.action for fields in life] == ["principal.created", "credential.issued", "credential.revoked"]
    assert {fields.subject for fields in life} == {world.admin.subject_id}
    assert life[1].resource is not None
    assert life[2].resource is not None
    assert life[1].resource.id == life[2].resource.id == credential_id
    log_id = (await world.audit.ensure_log(tenant.tenant_id)).log_id
    leaves = [(await world.audit.receipt(log_id, index)).leaf for index in range(len(log))]
    assert not any(key.encode() in leaf or b"kim-the-officer" in leaf for leaf in leaves)


async def test_an_update_changes_the_named_fields_only(world: Administered) -> None:
    """An update writes what it names, raises the revision, and is recorded with the new values."""
    tenant = await world.tenant()
    updated = await world.tenants.update(
        world.call(), tenant.tenant_id, {"minimum_tier": Tier.GPU, "regions": ("us-east",)}
    )
    assert updated == dataclasses.replace(tenant, minimum_tier=Tier.GPU, regions=("us-east",), revision=2)
    (record,) = await world.records(tenant.tenant_id, "tenant.updated")
    assert record.data == {"revision": 2, "minimum_tier": "gpu", "regions": ["us-east"]}


async def test_a_changed_root_is_a_record_of_its_own(world: Administered) -> None:
    """Setting, replacing and taking away a root each name the root before and the one after, in the tenant's log."""
    tenant = await world.tenant()
    for root in (b"1" * 32, b"2" * 32, b""):
        changed = await world.tenants.update(world.call(), tenant.tenant_id, {"tenant_root": root})
        assert changed.tenant_root == root
    first, second, last = await world.records(tenant.tenant_id, "tenant.root_changed")
    one, two = (b"1" * 32).hex(), (b"2" * 32).hex()
    assert first.data == {"revision": 2, "tenant_root": one, "replaced_root": ""}
    assert second.data == {"revision": 3, "tenant_root": two, "replaced_root": one}
    assert last.data == {"revision": 4, "tenant_root": "", "replaced_root": two}
    same = await world.tenants.update(world.call(), tenant.tenant_id, {"tenant_root": b"", "session_limit": 3})
    assert same.revision == 5
    assert len(await world.records(tenant.tenant_id, "tenant.root_changed")) == 3


async def test_suspension_and_resumption_have_names_of_their_own(world: Administered) -> None:
    """Suspending and resuming a tenant are recorded as such, not as any update."""
    tenant = await world.tenant()
    await world.tenants.update(world.call(), tenant.tenant_id, {"status": TenantStatus.SUSPENDED})
    await world.tenants.update(world.call(), tenant.tenant_id, {"status": TenantStatus.ACTIVE})
    actions = [fields.action for fields in await world.records(tenant.tenant_id)]
    assert [name for name in actions if name.startswith("tenant.")] == [
        "tenant.created",
        "tenant.suspended",
        "tenant.resumed",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tenant_id": "x"},
        {"session_limit": 0},
        {"session_limit": -1},
        {"max_output_tokens": 0},
        {"regions": ("Not A Region",)},
        {"packs": ("hipaa",) * 17},
        {"models": ("../model",)},
        {"tenant_root": b"1" * 31},
    ],
)
async def test_bad_updates_are_refused_and_change_nothing(world: Administered, changes: dict[str, object]) -> None:
    """No field, an unknown one, zero, negative or malformed values: INVALID_REQUEST, nothing asked, nothing changed."""
    tenant = await world.tenant()
    asked = len(world.policy.asked)
    with pytest.raises(InvalidRequestError):
        await world.tenants.update(world.call(), tenant.tenant_id, changes)
    assert (await world.tenancy_query.tenant(world.call(), "acme")) == tenant
    assert len(world.policy.asked) == asked + 1  # the read just above


def _words(count: int, characters: int) -> tuple[str, ...]:
    return tuple(f"{chr(97 + number // 26)}{chr(97 + number % 26)}{'x' * (characters - 2)}" for number in range(count))


async def test_facts_that_no_decision_could_hold_are_refused(world: Administered) -> None:
    """Within each bound but together too long: INVALID_REQUEST with the sizes, at the limit they fit."""
    tenant = await world.tenant()
    full: dict[str, object] = {"models": _words(88, 60), "regions": ("eu-central", "us-east"), "packs": ()}
    missing = MAX_FACTS_BYTES - dataclasses.replace(tenant, **full).facts_bytes  # type: ignore[arg-type]
    full["packs"] = ("p" * (missing - 2),)  # and its quotes
    with pytest.raises(InvalidRequestError, match="open no session") as caught:
        await world.tenants.update(world.call(), tenant.tenant_id, {**full, "packs": ("p" * (missing - 1),)})
    assert caught.value.details == {"bytes": str(MAX_FACTS_BYTES + 1), "limit": str(MAX_FACTS_BYTES)}
    with pytest.raises(InvalidRequestError, match="open no session"):
        await world.tenants.create(world.call(), dataclasses.replace(tenant, name="b", models=_words(128, 60)))
    assert await world.tenancy_query.tenant(world.call(), "acme") == tenant
    assert (await world.tenants.update(world.call(), tenant.tenant_id, full)).facts_bytes == MAX_FACTS_BYTES


async def test_a_tenant_with_too_many_facts_can_be_suspended_and_mended(world: Administered) -> None:
    """What an earlier build took is not stuck: other fields may change, and the lists may become shorter."""
    tenant = await world.tenant()
    large = dataclasses.replace(tenant, models=_words(128, 60), revision=2)
    await world.database.write(lambda tx: Tenants.of(tx).update(large, from_revision=1))
    await world.tenants.update(world.call(), tenant.tenant_id, {"status": TenantStatus.SUSPENDED})
    await world.tenants.update(world.call(), tenant.tenant_id, {"models": _words(127, 60)})
    with pytest.raises(InvalidRequestError, match="open no session"):
        await world.tenants.update(world.call(), tenant.tenant_id, {"models": _words(128, 60)})
    await world.tenants.update(world.call(), tenant.tenant_id, {"models": ("tiny",)})


async def test_repeating_a_request_gives_the_same_answer(world: Administered) -> None:
    """The same request id with the same content returns what was made, without a second change or record."""
    request_id = ids.new_id(ids.REQUEST)
    first = await world.tenants.create(world.call(request_id), wanted_tenant())
    again = await world.tenants.create(world.call(request_id), wanted_tenant())
    assert again == first
    assert len(await world.records(first.tenant_id, "tenant.created")) == 1


async def test_a_request_id_belongs_to_its_content(world: Administered) -> None:
    """The same request id with other content, or for another method, is ALREADY_EXISTS and does nothing."""
    request_id = ids.new_id(ids.REQUEST)
    tenant = await world.tenants.create(world.call(request_id), wanted_tenant())
    with pytest.raises(AlreadyExistsError):
        await world.tenants.create(world.call(request_id), wanted_tenant("other"))
    with pytest.raises(AlreadyExistsError):
        await world.tenants.update(world.call(request_id), tenant.tenant_id, {"session_limit": 3})
    assert len(await world.tenancy_query.tenants(world.call(), after="", limit=0)) == 1


async def test_the_same_request_twice_at_once_is_made_once(world: Administered) -> None:
    """Two concurrent calls with one request id get the same tenant."""
    request_id = ids.new_id(ids.REQUEST)
    found = await asyncio.gather(*(world.tenants.create(world.call(request_id), wanted_tenant()) for _ in range(2)))
    assert found[0] == found[1]


@pytest.mark.parametrize("request_id", ["", "req_", "req_01h455vb4pex5vsknk084sn02q\n", "x" * 200])
async def test_a_change_needs_a_well_formed_request_id(world: Administered, request_id: str) -> None:
    """A missing or malformed request id is refused before anything is asked or recorded."""
    call = dataclasses.replace(world.call(), request_id=request_id)
    with pytest.raises(InvalidRequestError):
        await world.tenants.create(call, wanted_tenant())
    assert world.policy.asked == []


async def test_names_are_taken_once(world: Administered) -> None:
    """A second tenant, principal or active model of a name is ALREADY_EXISTS."""
    tenant = await world.tenant()
    with pytest.raises(AlreadyExistsError):
        await world.tenant()
    await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    with pytest.raises(AlreadyExistsError):
        await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    await world.models.register(world.call(), _model())
    with pytest.raises(AlreadyExistsError):
        await world.models.register(world.call(), _model())


async def test_a_denial_is_recorded_and_nothing_happens(world: Administered) -> None:
    """What policy denies is recorded as deny with its reasons, told to the caller, and not done."""
    tenant = await world.tenant()
    world.policy.deny = (Reason(code="NOT_PERMITTED", policy="tenancy", message="Not you."),)
    with pytest.raises(PolicyDeniedError, match="Not you") as caught:
        await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    assert json.loads(caught.value.details["reasons"])[0]["code"] == "NOT_PERMITTED"
    world.policy.deny = ()
    last = (await world.records(tenant.tenant_id))[-1]
    assert (last.action, last.decision, last.reasons[0]["code"]) == ("decision", "deny", "NOT_PERMITTED")
    assert (await world.tenancy_query.tenant(world.call(), "acme")).session_limit == tenant.session_limit


async def test_an_engine_without_an_answer_is_recorded_as_error(world: Administered) -> None:
    """An engine that is down means UNAVAILABLE and a record of decision `error`; nothing is done."""
    tenant = await world.tenant()
    world.policy.fail = PolicyEngineError("down")
    with pytest.raises(PolicyEngineError):
        await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    last = (await world.records(tenant.tenant_id))[-1]
    assert (last.action, last.decision, last.bundle) == ("decision", "error", "")


async def test_an_obligation_on_administration_is_a_refusal(world: Administered) -> None:
    """An allow with an obligation that an administrative change cannot keep is recorded as deny and not done."""
    world.policy.obligations = (Exclusive(),)
    with pytest.raises(UnknownObligationError):
        await world.tenant()
    last = (await world.records())[-1]
    assert (last.action, last.decision) == ("decision", "deny")


class _Unwritable:
    """The audit log, out of order after a number of further records."""

    def __init__(self, world: Administered, *, after: int) -> None:
        self._write = world.journal.audit.write
        self._left = after

    async def __call__(self, record: object) -> object:
        self._left -= 1
        if self._left < 0:
            raise AuditUnavailableError("disk full")
        return await self._write(record)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1])
async def test_without_a_record_there_is_no_change(
    world: Administered, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """If decision or change cannot be recorded the caller gets UNAVAILABLE and nothing has changed."""
    tenant = await world.tenant()
    write = _Unwritable(world, after=after)
    with monkeypatch.context() as patch:
        patch.setattr(type(world.audit), "write", lambda _, record: write(record))
        with pytest.raises(AuditUnavailableError):
            await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    assert (await world.tenancy_query.tenant(world.call(), "acme")) == tenant
    updated = await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    assert updated.session_limit == 3


async def test_a_change_that_could_not_be_written_is_recorded_as_undone(
    world: Administered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change whose record stands and whose write failed gets a second record that says so."""
    tenant = await world.tenant()

    async def unavailable(_work: object) -> object:
        raise StateUnavailableError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(world.database, "write", unavailable)
        with pytest.raises(StateUnavailableError):
            await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    first, second = await world.records(tenant.tenant_id, "tenant.updated")
    assert "undone" not in first.data
    assert second.data["undone"] == "STATE_UNAVAILABLE"
    assert (await world.tenancy_query.tenant(world.call(), "acme")) == tenant


async def test_roles_have_their_place(world: Administered) -> None:
    """A developer belongs to a tenant, an admin to none, an officer to either; the tenant must exist."""
    tenant = await world.tenant()
    for tenant_id, role in (("", Role.DEVELOPER), (tenant.tenant_id, Role.ADMIN)):
        with pytest.raises(InvalidRequestError):
            await world.principals.create(world.call(), tenant_id=tenant_id, name="kim", role=role)
    for tenant_id, name in (("", "platform-officer"), (tenant.tenant_id, "officer")):
        made = await world.principals.create(world.call(), tenant_id=tenant_id, name=name, role=Role.OFFICER)
        assert made.subject_id.startswith("subj_")
    with pytest.raises(NotFoundError):
        await world.principals.create(world.call(), tenant_id=ids.new_id(ids.TENANT), name="kim", role=Role.DEVELOPER)


async def test_records_hold_no_name_of_a_person(world: Administered) -> None:
    """A principal's name stands in the state database only; records name the pseudonym."""
    tenant = await world.tenant()
    await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER, name="grace-hopper")
    leaves = [
        (await world.audit.receipt(log.log_id, index)).leaf
        for log in world.audit.logs()
        for index in range(world.audit.size(log.log_id))
    ]
    assert not any(b"hopper" in leaf for leaf in leaves)


async def test_an_api_key_is_shown_once(world: Administered) -> None:
    """The key is in the first reply only: repeating the request names the credential, and no row or record has it."""
    principal = await world.principals.create(world.call(), tenant_id="", name="kim", role=Role.ADMIN)
    request_id = ids.new_id(ids.REQUEST)

    async def create() -> tuple[object, str]:
        return await world.credentials.create_api_key(
            world.call(request_id), principal_id=principal.principal_id, scopes=("tenancy:read",), lifetime_s=60
        )

    credential, key = await create()
    assert credential.scopes == frozenset({Scope.TENANCY_READ})  # type: ignore[attr-defined]
    with pytest.raises(AlreadyExistsError) as caught:
        await create()
    assert caught.value.details["credential_id"] == credential.credential_id  # type: ignore[attr-defined]
    stored = b"".join(
        path.read_bytes() for path in Path(world.database.url.removeprefix("sqlite:///")).parent.glob("*.db*")
    )
    assert key.rpartition("_")[2].encode() not in stored


@pytest.mark.parametrize(
    ("scopes", "lifetime_s"), [(("sessions:open",), 0), (("everything",), 0), ((), 367 * 86_400), ((), -1)]
)
async def test_keys_stay_within_role_and_lifetime(
    world: Administered, scopes: tuple[str, ...], lifetime_s: int
) -> None:
    """A scope that the role cannot have, an unknown one, or a lifetime beyond a year is refused."""
    principal = await world.principals.create(world.call(), tenant_id="", name="kim", role=Role.ADMIN)
    with pytest.raises(InvalidRequestError):
        await world.credentials.create_api_key(
            world.call(), principal_id=principal.principal_id, scopes=scopes, lifetime_s=lifetime_s
        )


async def test_revoking_is_recorded_told_and_idempotent(world: Administered) -> None:
    """A revocation takes effect once, is told to the sessions each time, and a second request changes nothing."""
    tenant = await world.tenant()
    credential_id, _ = await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    first = await world.credentials.revoke(world.call(), credential_id)
    world.clock.advance_s(60)
    second = await world.credentials.revoke(world.call(), credential_id)
    assert first.revoked_us == second.revoked_us > 0
    assert world.revocations.credentials == [credential_id, credential_id]
    assert len(await world.records(tenant.tenant_id, "credential.revoked")) == 2
    with pytest.raises(NotFoundError):
        await world.credentials.revoke(world.call(), ids.new_id(ids.CREDENTIAL))


async def test_models_are_registered_retired_and_renewed(world: Administered) -> None:
    """A retired name can be registered again with another digest; an active one cannot, an unknown one not retired."""
    await world.models.register(world.call(), _model())
    assert (await world.models.retire(world.call(), "tiny")).status is ModelStatus.RETIRED
    renewed = await world.models.register(world.call(), _model(digest=b"e" * 32))
    assert (renewed.status, renewed.digest) == (ModelStatus.ACTIVE, b"e" * 32)
    with pytest.raises(UnknownModelError):
        await world.models.retire(world.call(), "absent")
    actions = [fields.action for fields in await world.records() if fields.action.startswith("model.")]
    assert actions == ["model.registered", "model.retired", "model.updated"]


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": b"short"},
        {"path": "/etc"},
        {"path": "a/../../b"},
        {"path": ""},
        {"path": "a\nb"},
        {"context_length": 0},
        {"memory_mib": -1},
        {"name": "../x"},
    ],
)
def test_models_are_checked(changes: dict[str, object]) -> None:
    """A digest of another size, a path that leaves the model directory, zero and negative sizes are refused."""
    with pytest.raises(InvalidRequestError):
        _model(**changes)


async def test_reads_are_decided_and_only_refusals_recorded(world: Administered) -> None:
    """A read asks policy; an allowed one leaves no decision record, a denied one does and returns nothing."""
    tenant = await world.tenant()
    before = len(await world.records(tenant.tenant_id))
    assert (await world.tenancy_query.tenant(world.call(), tenant.tenant_id)) == tenant
    assert len(await world.records(tenant.tenant_id)) == before
    world.policy.deny = (Reason(code="NOT_PERMITTED", policy="tenancy", message="No."),)
    with pytest.raises(PolicyDeniedError):
        await world.tenancy_query.tenant(world.call(), tenant.tenant_id)
    assert (await world.records(tenant.tenant_id))[-1].decision == "deny"
    with pytest.raises(NotFoundError):
        await world.tenancy_query.tenant(world.call(), "absent")


async def test_policy_sees_the_tenants_facts(world: Administered) -> None:
    """The question about a tenant's thing carries that tenant's facts of one snapshot, revision included."""
    tenant = await world.tenant()
    await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    facts = world.policy.asked[-1].context.tenant
    assert facts is not None
    assert (facts.id, facts.revision, facts.sessions_open) == (tenant.tenant_id, 1, 0)


async def test_two_processes_change_one_tenant(world: Administered) -> None:
    """A change planned on a revision that another process has replaced is a CONFLICT, and says it was undone."""
    tenant = await world.tenant()
    decide = world.policy.decide

    async def meanwhile(request: object) -> object:
        world.policy.decide = decide  # type: ignore[method-assign]
        newer = dataclasses.replace(tenant, session_limit=7, revision=2)
        from control_plane.storage.tenancy import Tenants

        await world.database.write(lambda tx: Tenants.of(tx).update(newer, from_revision=1))
        return await decide(request)  # type: ignore[arg-type]

    world.policy.decide = meanwhile  # type: ignore[method-assign, assignment]
    with pytest.raises(ConflictError):
        await world.tenants.update(world.call(), tenant.tenant_id, {"session_limit": 3})
    assert (await world.tenancy_query.tenant(world.call(), "acme")).session_limit == 7


def test_page_bounds() -> None:
    """A page is 100 unless asked for, at most 1,000; a token is short printable text."""
    assert (page_size(0), page_size(7), page_size(1_000)) == (100, 7, 1_000)
    for size in (1_001, -1):
        with pytest.raises(InvalidRequestError):
            page_size(size)
    for token in ("x" * 65, "é", "a\n"):
        with pytest.raises(InvalidRequestError):
            page_token(token)
