"""Ticket issuers: a change of keys with overlap, what is recorded of it, and what a restart finds."""

from pathlib import Path
from typing import Any

import jwt
import pytest

from bulkhead import ids
from bulkhead.v1 import fleet_pb2 as pb
from bulkhead.v1 import fleet_pb2_grpc
from control_plane.domain.roles import Role
from control_plane.keys import TicketIssuerKeys
from tests.simulator.session_world import SessionWorld, as_caller, request, session_world
from tests.unit.test_control_sessions_audit import code


@pytest.fixture
async def world(world: SessionWorld) -> SessionWorld:
    await world.person("admin", Role.ADMIN)
    return world


async def do(world: SessionWorld, method: str, **fields: Any) -> pb.TicketIssuer:
    """Make a change as an administrator."""
    message = getattr(pb, f"{method}Request")(request_id=ids.new_id(ids.REQUEST), **fields)
    stub = fleet_pb2_grpc.FleetAdminServiceStub(world.channel)
    reply = await getattr(stub, method)(message, metadata=as_caller("admin"), timeout=10)
    return reply.issuer


async def statuses(world: SessionWorld) -> list[str]:
    """Return the issuers' states, the oldest first."""
    stub = fleet_pb2_grpc.FleetQueryServiceStub(world.channel)
    reply = await stub.ListTicketIssuers(pb.ListTicketIssuersRequest(), metadata=as_caller("admin"), timeout=10)
    return [issuer.status for issuer in reply.issuers]


def signer(ticket: str) -> str:
    """Return the fingerprint of a ticket's issuer."""
    return str(jwt.get_unverified_header(ticket)["kid"])


async def test_first_issuer_is_active(world: SessionWorld) -> None:
    """A platform begins with one issuer, whose key is a file that others cannot read."""
    assert await statuses(world) == ["active"]
    assert world.issuers.accepted == (world.issuer.public_key,)


async def test_change_with_overlap(world: SessionWorld) -> None:
    """Added, the new key goes to agents; activated, it signs; the old one is accepted until it is retired."""
    await world.tenant("acme")
    agent = await world.agent()
    opened = await world.open("acme", request())
    assert signer(opened.grant.ticket) == world.issuer.fingerprint.hex()
    added = await do(world, "AddTicketIssuer")
    assert added.status == "next"
    world.core.leases.renew()
    await agent.until(lambda: bool(agent.leases) and added.public_key in agent.leases[-1].ticket_issuers)
    assert signer((await world.open("acme", request())).grant.ticket) == world.issuer.fingerprint.hex()
    assert (await do(world, "ActivateTicketIssuer", issuer_id=added.issuer_id)).status == "active"
    assert await statuses(world) == ["previous", "active"]
    assert world.issuers.accepted == (added.public_key, world.issuer.public_key)
    renewed = await world.renew("acme", opened.grant.session_id)
    assert signer(renewed.ticket) == added.fingerprint
    assert renewed.ticket_issuer == added.public_key


async def test_worker_that_has_not_heard_of_the_new_issuer_gets_tickets_of_the_old(world: SessionWorld) -> None:
    """Between a change and the lease that tells of it no open fails: the ticket is by an issuer the worker knows."""
    await world.tenant("acme")
    agent = await world.agent()
    agent.follows_leases = False
    added = await do(world, "AddTicketIssuer")
    await do(world, "ActivateTicketIssuer", issuer_id=added.issuer_id)
    opened = await world.open("acme", request())
    assert signer(opened.grant.ticket) == world.issuer.fingerprint.hex()
    agent.follows_leases = True
    world.core.leases.renew()
    await agent.until(lambda: bool(agent.leases) and added.public_key in agent.leases[-1].ticket_issuers)
    assert signer((await world.open("acme", request())).grant.ticket) == added.fingerprint


async def test_retiring_waits_for_the_last_ticket(world: SessionWorld) -> None:
    """An issuer that signed a moment ago is retired at once only if that is said; one that never signed at any time."""
    first = world.issuer.fingerprint.hex()[:32]
    added, spare = await do(world, "AddTicketIssuer"), await do(world, "AddTicketIssuer")
    assert await code(do(world, "RetireTicketIssuer", issuer_id=first)) == "CONFLICT"  # it signs
    await do(world, "ActivateTicketIssuer", issuer_id=added.issuer_id)
    assert await code(do(world, "RetireTicketIssuer", issuer_id=first)) == "CONFLICT"  # its tickets live
    assert (await do(world, "RetireTicketIssuer", issuer_id=spare.issuer_id)).status == "retired"
    assert (await do(world, "RetireTicketIssuer", issuer_id=first, at_once=True)).status == "retired"
    assert world.issuers.accepted == (added.public_key,)
    assert await code(do(world, "ActivateTicketIssuer", issuer_id=first)) == "CONFLICT"  # for good
    assert await code(do(world, "RetireTicketIssuer", issuer_id="0" * 32)) == "NOT_FOUND"


async def test_change_can_be_taken_back(world: SessionWorld) -> None:
    """A replaced issuer that is not retired signs again when it is activated."""
    added = await do(world, "AddTicketIssuer")
    await do(world, "ActivateTicketIssuer", issuer_id=added.issuer_id)
    await do(world, "ActivateTicketIssuer", issuer_id=world.issuer.fingerprint.hex()[:32])
    assert await statuses(world) == ["active", "previous"]
    assert world.issuers.active.public_key == world.issuer.public_key


async def test_no_more_issuers_than_a_descriptor_names(world: SessionWorld) -> None:
    """Four are accepted at a time."""
    for _ in range(3):
        await do(world, "AddTicketIssuer")
    assert await code(do(world, "AddTicketIssuer")) == "CONFLICT"


async def test_changes_are_recorded(world: SessionWorld) -> None:
    """Each change stands in the platform's log with the issuer's fingerprint."""
    added = await do(world, "AddTicketIssuer")
    await do(world, "ActivateTicketIssuer", issuer_id=added.issuer_id)
    await do(world, "RetireTicketIssuer", issuer_id=world.issuer.fingerprint.hex()[:32], at_once=True)
    found = await world.records("", "issuer.added", "issuer.activated", "issuer.retired")
    assert [record.action for record in found] == ["issuer.added", "issuer.activated", "issuer.retired"]
    assert [record.data["fingerprint"] for record in found[:2]] == [added.fingerprint] * 2
    assert found[2].data["at_once"] is True


async def test_restart_goes_on_with_the_active_issuer(tmp_path: Path) -> None:
    """State and key files survive the process; without the active key's file it does not start."""
    async with session_world(tmp_path) as before:
        await before.person("admin", Role.ADMIN)
        added = await do(before, "AddTicketIssuer")
        await do(before, "ActivateTicketIssuer", issuer_id=added.issuer_id)
    async with session_world(tmp_path) as after:
        assert after.issuers.active.public_key == added.public_key
    (file,) = (tmp_path / "issuers" / "ticket-issuers").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert TicketIssuerKeys(tmp_path / "issuers").load(added.fingerprint).public_key == added.public_key
    file.unlink()
    with pytest.raises(Exception, match="ticket issuer key"):
        async with session_world(tmp_path):
            pass
