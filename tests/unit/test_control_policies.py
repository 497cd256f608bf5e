import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from bulkhead import ids
from bulkhead.errors import (
    BundleError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    PolicyEngineError,
    StateUnavailableError,
)
from control_plane.authz.bundle import BundleInfo, VerifiedBundle
from control_plane.authz.input import BundleResource
from control_plane.domain.bundles import BundleStatus, PolicyBundle
from control_plane.services.authorisation import AdminCall
from control_plane.services.policies import PolicyAdmin, PolicyQuery
from control_plane.storage.engine import Transaction
from control_plane.storage.policy import Bundles
from tests.simulator.administered import Administered, administered

FIRST = "11" * 32


def _info(data: bytes) -> BundleInfo:
    number, digest = data.decode().split(":")
    return BundleInfo(digest=digest, number=int(number), created_us=1, files=("a.rego",))


class _Server:
    """Serves what it is told to, unless it is broken."""

    def __init__(self, active: bytes) -> None:
        self.active = _info(active)
        self.broken = False

    async def switch(self, data: bytes, *, rollback: bool = False) -> BundleInfo:
        if self.broken:
            raise PolicyEngineError("self-test failed")
        found = _info(data)
        if found.number <= self.active.number and not rollback:
            raise ConflictError("older")
        self.active = found
        return found


def _build(files: Mapping[str, bytes], number: int, created_us: int) -> VerifiedBundle:
    if "bad.rego" in files:
        raise BundleError("does not compile")
    data = f"{number}:{number:064x}".encode()
    return VerifiedBundle(info=_info(data), data=data)


class _Policies:
    """Policy administration over an administered world whose first bundle is active."""

    def __init__(self, world: Administered) -> None:
        self.world = world
        self.server = _Server(f"1:{FIRST}".encode())
        self.admin = PolicyAdmin(
            administration=world.administration,
            database=world.database,
            server=self.server,
            build=_build,
            now_us=world.clock,
        )
        self.query = PolicyQuery(database=world.database, authorisation=world.authorisation, server=self.server)

    def second(self) -> AdminCall:
        """Return a call of another administrator."""
        other = dataclasses.replace(
            self.world.admin, principal_id=ids.new_id(ids.PRINCIPAL), subject_id=ids.new_id(ids.SUBJECT)
        )
        return AdminCall(other, ids.new_id(ids.REQUEST))

    async def active(self) -> PolicyBundle:
        """Return what the state names active."""
        found = await self.world.database.read(lambda tx: Bundles.of(tx).active())
        assert found is not None
        return found


@pytest.fixture
async def policies(tmp_path: Path) -> AsyncIterator[_Policies]:
    async with administered(tmp_path) as world:
        bundle = PolicyBundle(
            bundle_id=ids.new_id(ids.BUNDLE),
            digest=FIRST,
            number=1,
            status=BundleStatus.ACTIVE,
            published_by=ids.new_id(ids.SUBJECT),
            activated_by=ids.new_id(ids.SUBJECT),
            created_us=1,
            activated_us=1,
        )

        def put(tx: Transaction) -> None:
            Bundles.of(tx).insert(bundle, f"1:{FIRST}".encode())

        await world.database.write(put)
        yield _Policies(world)


async def test_a_candidate_serves_nothing(policies: _Policies) -> None:
    """Publishing stores a candidate under the next number, records its digest, and leaves the active bundle."""
    bundle = await policies.admin.publish(policies.world.call(), {"a.rego": b"x"})
    assert (bundle.status, bundle.number, bundle.activated_us) == (BundleStatus.CANDIDATE, 2, 0)
    assert policies.server.active.number == 1
    (record,) = await policies.world.records(action="policy.uploaded")
    assert record.bundle == bundle.digest


async def test_sources_that_do_not_pass_are_recorded_and_not_stored(policies: _Policies) -> None:
    """Sources that fail are refused with the reason, recorded as policy.refused, and leave no candidate."""
    with pytest.raises(BundleError, match="does not compile"):
        await policies.admin.publish(policies.world.call(), {"bad.rego": b"x"})
    assert [found.number for found in await policies.query.bundles(policies.world.call(), after="", limit=0)] == [1]
    (record,) = await policies.world.records(action="policy.refused")
    assert record.data["message"] == "does not compile"


async def test_activation_takes_a_second_person(policies: _Policies) -> None:
    """The publisher may not activate even where policy allows it; another person may, and is recorded."""
    bundle = await policies.admin.publish(policies.world.call(), {"a.rego": b"x"})
    with pytest.raises(PermissionDeniedError, match="other than its publisher"):
        await policies.admin.activate(policies.world.call(), bundle.bundle_id)
    assert policies.server.active.number == 1
    call = policies.second()
    active = await policies.admin.activate(call, bundle.bundle_id)
    assert (active.status, active.activated_by) == (BundleStatus.ACTIVE, call.caller.subject_id)
    assert policies.server.active.number == 2
    (record,) = await policies.world.records(action="policy.activated")
    assert (record.subject, record.bundle) == (call.caller.subject_id, bundle.digest)
    with pytest.raises(ConflictError, match="active"):
        await policies.admin.activate(policies.second(), bundle.bundle_id)
    with pytest.raises(NotFoundError):
        await policies.admin.activate(policies.second(), ids.new_id(ids.BUNDLE))


async def test_an_engine_that_does_not_come_up_changes_nothing(policies: _Policies) -> None:
    """A bundle whose engine fails leaves the one before active in engine and state, and the record says undone."""
    bundle = await policies.admin.publish(policies.world.call(), {"a.rego": b"x"})
    policies.server.broken = True
    with pytest.raises(PolicyEngineError):
        await policies.admin.activate(policies.second(), bundle.bundle_id)
    assert (policies.server.active.number, (await policies.active()).number) == (1, 1)
    records = await policies.world.records(action="policy.activated")
    assert [record.data.get("undone") for record in records] == [None, "POLICY_ENGINE"]


async def test_a_state_that_cannot_be_written_takes_the_engine_back(
    policies: _Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the activation cannot be stored the engine goes back to the bundle that the state names."""
    bundle = await policies.admin.publish(policies.world.call(), {"a.rego": b"x"})

    async def unavailable(_work: object) -> object:
        raise StateUnavailableError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(policies.world.database, "write", unavailable)
        with pytest.raises(StateUnavailableError):
            await policies.admin.activate(policies.second(), bundle.bundle_id)
    assert (policies.server.active.number, (await policies.active()).number) == (1, 1)


async def test_a_rollback_goes_back_and_forth(policies: _Policies) -> None:
    """A rollback activates the bundle before; a second one returns; without a bundle before there is nothing to do."""
    with pytest.raises(ConflictError, match="no bundle was active before"):
        await policies.admin.roll_back(policies.world.call())
    bundle = await policies.admin.publish(policies.world.call(), {"a.rego": b"x"})
    await policies.admin.activate(policies.second(), bundle.bundle_id)
    policies.world.clock.advance_s(1)
    assert (await policies.admin.roll_back(policies.world.call())).number == 1
    asked = policies.world.policy.asked[-1].resource
    assert isinstance(asked, BundleResource)
    assert (asked.was_active, asked.number, asked.active_number) == (True, 1, 2)
    policies.world.clock.advance_s(1)
    assert (await policies.admin.roll_back(policies.world.call())).number == 2
    assert policies.server.active.number == 2
    recorded = await policies.world.records(action="policy.rolled_back")
    assert [record.subject for record in recorded] == [policies.world.admin.subject_id] * 2
    assert recorded[1].bundle == bundle.digest
