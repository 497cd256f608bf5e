import asyncio
import time
from dataclasses import replace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.records import Action, PlatformReason, platform_event
from bulkhead import ids
from bulkhead.errors import (
    AgentUnavailableError,
    AuditUnavailableError,
    ConfigError,
    ConflictError,
    StateUnavailableError,
)
from bulkhead.transparency import receipts_root
from bulkhead.v1 import fleet_pb2, fleet_pb2_grpc
from control_plane.domain.partitions import TRANSITIONS, Partition, PartitionState
from control_plane.domain.roles import Role
from control_plane.domain.tiers import Tier
from control_plane.placement import Placement
from control_plane.services.settings import FleetSettings, SessionSettings
from service.bulkhead_fleet.v1 import fleet_pb2 as agents_pb2
from tests.simulator.fake_agent import FakeAgent, inventory
from tests.simulator.session_world import FAST, SessionWorld, as_caller, code_of, request, session_world


def states(world: SessionWorld) -> list[str]:
    return sorted(partition.state.value for partition in world.core.book.all())


def waiting(world: SessionWorld) -> int:
    return len(world.core.receipts._spools["rack1-tray01"].waiting())


async def test_hello_registers_an_agent_and_welcomes_it(world) -> None:
    """The agent is listed with its inventory, told the ticket issuers, and its enrolment is in the platform's log."""
    agent = await world.agent()
    assert agent.welcomes[0].ticket_issuers == [world.issuer.public_key]
    assert agent.welcomes[0].committed_event_seq == 0
    (known,) = world.core.fleet.agents()
    assert known.connected
    assert len(known.inventory.gpus) == 4
    assert [record.resource.id for record in await world.records("", "agent.enrolled")] == ["rack1-tray01"]


async def test_hello_of_another_name_than_the_certificates_is_refused(world) -> None:
    """An agent speaks for itself only."""
    agent = world.adopt(FakeAgent(address=world.address, tray=1))
    await agent.start(identity="rack1-tray02")
    assert agent.failure is not None
    assert agent.failure.code() is grpc.StatusCode.UNAUTHENTICATED
    assert world.core.fleet.agents() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"mig_profiles": [agents_pb2.MigProfile(profile_id=9, compute_slices=3, memory_slices=3, memory_mib=100_000)]},
        {"tiers": ["confidential"]},
        {"tiers": ["mainframe"]},
        {"tiers": []},
        {"simulated": False},
        {"evidence_kind": "hardware"},
        {"gpus": []},
        {"process_slots": 10_000},
        {"ingress_address": "nowhere"},
        {"region": "EU Central!"},
    ],
)
async def test_inventory_that_cannot_be_planned_with_is_refused(world, changes) -> None:
    """Unknown geometry, tiers nobody can show, hidden simulation, missing parts: no agent, a typed error."""
    agent = world.adopt(FakeAgent(address=world.address, inventory=inventory(1, **changes)))
    await agent.start()
    assert agent.failure is not None
    assert agent.failure.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
    assert world.core.fleet.agents() == ()


async def test_simulated_tray_is_refused_where_it_is_not_allowed(tmp_path) -> None:
    """Outside development no simulated agent connects."""
    async with session_world(tmp_path, fleet=FleetSettings()) as strict:
        agent = await strict.agent()
        assert agent.failure is not None
        assert code_of(agent.failure) == "EVIDENCE_SIMULATED"


async def test_pinned_evidence_key_is_the_only_one_accepted(tmp_path) -> None:
    """With a pin in the configuration another key is refused, the pinned one welcome."""
    key = Ed25519PrivateKey.generate()
    pinned = replace(FAST, evidence_keys={"rack1-tray01": key.public_key().public_bytes_raw().hex()})
    async with session_world(tmp_path, fleet=pinned) as strict:
        stranger = await strict.agent()
        assert stranger.failure is not None
        assert code_of(stranger.failure) == "EVIDENCE_POLICY"
        assert (await strict.agent(evidence_key=key)).failure is None


async def test_newer_stream_replaces_the_older(world, acme) -> None:
    """One live stream per agent: the older one ends, and commands go to the newer."""
    older = await world.agent()
    newer = world.adopt(replace(older, welcomes=[], commands=[], changed=asyncio.Event()))
    await newer.start()
    await older.until(lambda: older.failure is not None)
    assert code_of(older.failure) == "CONFLICT"
    await world.open("acme", request())
    assert newer.commands
    assert not older.commands


async def test_command_survives_a_broken_stream(world, acme) -> None:
    """The agent reconnects as the same process while a worker starts: it gets the same command again."""
    agent = await world.agent(answers=False)
    opening = asyncio.create_task(world.open("acme", request()))
    await agent.until(lambda: bool(agent.commands))
    await agent.stop()
    again = world.adopt(replace(agent, answers=True, welcomes=[], changed=asyncio.Event()))
    await again.start()
    opened = await opening
    assert opened.grant.session_id
    assert again.commands[0].command_id == again.commands[1].command_id


async def test_agent_that_was_restarted_ends_the_wait(world, acme) -> None:
    """A new process knows nothing of the command: the open fails at once instead of at its deadline."""
    agent = await world.agent(answers=False)
    opening = asyncio.create_task(world.open("acme", request()))
    await agent.until(lambda: bool(agent.commands))
    await agent.stop()
    started = time.monotonic()
    await world.adopt(agent.restarted()).start()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await opening
    assert code_of(error.value) == "AGENT_UNAVAILABLE"
    assert time.monotonic() - started < 3


async def test_gone_agent_loses_its_partitions_after_the_grace(world, acme) -> None:
    """Within the grace nothing is lost; after it partition and session are; the request is placed anew."""
    first = await world.agent(1)
    message = request()
    opened = await world.open("acme", message)
    await first.stop()
    await world.core.fleet.watch()
    assert states(world) == ["ready"]
    await asyncio.sleep(0.3)
    await world.core.fleet.watch()
    assert states(world) == ["lost"]
    assert (await world.session("acme", opened.grant.session_id)).state == "lost"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.renew("acme", opened.grant.session_id)
    assert code_of(error.value) == "WORKER_LOST"
    await world.agent(2)
    again = await world.open("acme", message)
    assert again.grant.session_id == opened.grant.session_id
    assert again.grant.partition_id != opened.grant.partition_id
    assert [r.data["code"] for r in await world.records(acme.tenant_id, "session.closed")] == ["WORKER_LOST"]
    assert len(await world.records("", "agent.lost")) == 1


async def test_silent_agent_counts_as_disconnected(tmp_path) -> None:
    """Without a message within the heartbeat's time-out nothing is placed there any more."""
    async with session_world(tmp_path, fleet=replace(FAST, heartbeat_timeout_s=0.2)) as world:
        agent = await world.agent()
        await asyncio.sleep(0.15)
        agent.heartbeat()
        await asyncio.sleep(0.1)
        await world.core.fleet.watch()
        assert world.core.fleet.agents()[0].connected
        await asyncio.sleep(0.3)
        await world.core.fleet.watch()
        assert not world.core.fleet.agents()[0].connected
        with pytest.raises(AgentUnavailableError):
            world.core.fleet.agent("rack1-tray01")


async def test_restarted_agent_loses_what_it_no_longer_runs(world, acme) -> None:
    """A hello without the worker loses the partition at once, and the place is free again once the agent says so."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    await agent.stop()
    fresh = world.adopt(agent.restarted())
    await fresh.start()
    assert (await world.session("acme", opened.grant.session_id)).state == "lost"
    connected = await world.records("", "agent.enrolled", "agent.connected")
    assert [record.action for record in connected] == ["agent.enrolled", "agent.connected"]
    await world.eventually(lambda: world.records(acme.tenant_id, "partition.freed"))
    assert world.core.book.all() == ()
    found = [r.action for r in await world.records(acme.tenant_id) if r.action.startswith("partition.")]
    assert found[-3:] == ["partition.lost", "partition.scrubbing", "partition.freed"]


async def test_restarted_control_plane_takes_live_workers_over(tmp_path) -> None:
    """Sessions stay open over a restart; the worker that its agent still reports serves the next open too."""
    async with session_world(tmp_path) as before:
        caller = await before.tenant("acme")
        agent = await before.agent()
        opened = await before.open("acme", request())
        await agent.stop()
    async with session_world(tmp_path) as after:
        after.callers["acme"] = caller
        back = after.adopt(replace(agent, address=after.address, welcomes=[], commands=[], changed=asyncio.Event()))
        await back.start()
        assert states(after) == ["ready"]
        assert (await after.session("acme", opened.grant.session_id)).state == "open"
        assert (await after.renew("acme", opened.grant.session_id)).ticket
        assert (await after.open("acme", request())).grant.partition_id == opened.grant.partition_id


async def test_worker_that_the_control_plane_does_not_know_is_released(world, acme) -> None:
    """A partition that SQL has never heard of is ended, under a fence above its own."""
    agent = await world.agent()
    await world.open("acme", request())
    stranger = ids.new_id(ids.PARTITION)
    agent.workers[stranger] = replace(next(iter(agent.workers.values())), fence=7)
    await agent.stop()
    back = world.adopt(replace(agent, welcomes=[], commands=[], changed=asyncio.Event()))
    await back.start()
    await back.until(lambda: bool(back.commands))
    (command,) = back.commands
    assert (command.partition_id, command.fence, command.WhichOneof("command")) == (stranger, 8, "release")
    assert states(world) == ["ready"]


async def test_fence_that_this_database_never_gave_is_not_taken_over(world, acme) -> None:
    """An agent that has seen newer commands than SQL knows (a restored backup) is told to release the worker."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    agent.workers[opened.grant.partition_id].fence = 1_000
    await agent.stop()
    back = world.adopt(replace(agent, welcomes=[], commands=[], changed=asyncio.Event()))
    await back.start()
    await back.until(lambda: world.core.book.all() == ())
    assert (await world.session("acme", opened.grant.session_id)).state == "lost"


async def test_worker_death_is_followed(world, acme) -> None:
    """What the agent reports step by step ends the sessions and frees the place, each step recorded once."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    partition_id = opened.grant.partition_id
    agent.workers.clear()
    for before, after in (("ready", "lost"), ("lost", "scrubbing"), ("scrubbing", "free")):
        step = agents_pb2.PartitionEvent(
            tenant_id=acme.tenant_id, from_state=before, to_state=after, reason="signal 9", fence=2
        )
        agent.event(partition_id, partition=step)
    await agent.until(lambda: waiting(world) == 3)
    await world.core.receipts.flush()
    assert world.core.book.all() == ()
    assert (await world.session("acme", opened.grant.session_id)).state == "lost"
    found = [r.action for r in await world.records(acme.tenant_id) if r.action.startswith("partition.")]
    assert found[-3:] == ["partition.lost", "partition.scrubbing", "partition.freed"]
    await agent.until(lambda: agent.acknowledged == 3)


async def test_scrub_that_is_not_proven_cordons_the_place(world, acme) -> None:
    """The slice stays taken, and says so."""
    await world.agent(scrubbed=False)
    await world.open("acme", request())
    await world.core.sessions.suspend_tenant(acme.tenant_id)
    await world.eventually(lambda: world.records(acme.tenant_id, "partition.cordoned"))
    assert states(world) == ["cordoned"]


async def test_unused_partition_is_released_after_its_grace(tmp_path) -> None:
    """Not while a session uses it, not before the grace is over, and then completely."""
    async with session_world(tmp_path, sessions=SessionSettings(idle_grace_s=0)) as world:
        await world.tenant("acme")
        agent = await world.agent()
        opened = await world.open("acme", request())
        await world.core.reconciler._release_idle()
        assert states(world) == ["ready"]
        await world.close_session("acme", opened.grant.session_id)
        await world.core.reconciler._release_idle()
        await agent.until(lambda: world.core.book.all() == ())
        assert agent.commands[-1].WhichOneof("command") == "release"


async def test_receipts_become_one_leaf_and_are_acknowledged_after_it(world, acme) -> None:
    """Count, totals and root of a session's receipts; the acknowledgement follows the commit, never precedes it."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    partition_id, session_id = opened.grant.partition_id, opened.grant.session_id
    digests = [bytes([number]) * 32 for number in range(3)]
    for digest in digests:
        agent.receipt(partition_id, session_id, tenant_id=acme.tenant_id, digest=digest)
    await agent.until(lambda: waiting(world) == 3)
    await world.core.receipts.flush()
    assert agent.acknowledged == 0
    assert await world.records(acme.tenant_id, "receipts") == []
    await world.close_session("acme", session_id)
    await world.core.receipts.flush()
    (leaf,) = await world.records(acme.tenant_id, "receipts")
    assert dict(leaf.data) == {
        "root": receipts_root(digests).hex(),
        "first": 1,
        "count": 3,
        "prompt_tokens": 15,
        "completion_tokens": 21,
        "final": True,
    }
    outcome = (await world.records(acme.tenant_id, "outcome"))[0]
    assert (leaf.session, leaf.partition, leaf.pair_id) == (session_id, partition_id, outcome.pair_id)
    await agent.until(lambda: agent.acknowledged == 3)


async def test_pressing_spool_is_recorded_at_once(tmp_path) -> None:
    """At the threshold the receipts of an open session do not wait for the interval."""
    async with session_world(tmp_path, fleet=replace(FAST, receipts_pressing=2)) as world:
        caller = await world.tenant("acme")
        agent = await world.agent()
        opened = await world.open("acme", request())
        for _ in range(2):
            agent.receipt(opened.grant.partition_id, opened.grant.session_id, tenant_id=caller.tenant_id)
        await agent.until(lambda: waiting(world) == 2)
        await world.core.receipts.flush()
        assert [r.data["final"] for r in await world.records(caller.tenant_id, "receipts")] == [False]


async def test_unacknowledged_receipts_come_again_and_are_counted_once(world, acme, monkeypatch) -> None:
    """The log is down: nothing is acknowledged and no lease is sent; what the agent repeats is recorded once, later."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    await world.close_session("acme", opened.grant.session_id)
    arguments = (opened.grant.partition_id, opened.grant.session_id)
    agent.receipt(*arguments, tenant_id=acme.tenant_id)
    await agent.until(lambda: world.core.receipts.oldest_us("rack1-tray01") is not None)

    async def broken(_record: object) -> None:
        raise AuditUnavailableError("the audit database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(world.audit, "write", broken)
        await world.core.receipts.flush()
        assert agent.acknowledged == 0
    await agent.stop()
    back = world.adopt(replace(agent, welcomes=[], commands=[], changed=asyncio.Event()))
    await back.start()
    back.event(
        arguments[0],
        seq=1,
        receipt=agents_pb2.ReceiptEvent(
            session_id=arguments[1], tenant_id=acme.tenant_id, receipt_digest=b"r" * 32, status="ok"
        ),
    )
    await asyncio.sleep(0.05)
    await world.core.receipts.flush()
    await back.until(lambda: back.acknowledged == 1)
    assert [r.data["count"] for r in await world.records(acme.tenant_id, "receipts")] == [1]


async def test_committed_mark_survives_a_restart(tmp_path) -> None:
    """The welcome of a restarted control plane says how far the same spool is recorded, and 0 for a new spool."""
    async with session_world(tmp_path) as before:
        caller = await before.tenant("acme")
        agent = await before.agent()
        opened = await before.open("acme", request())
        agent.receipt(opened.grant.partition_id, opened.grant.session_id, tenant_id=caller.tenant_id)
        await agent.until(lambda: before.core.receipts.oldest_us("rack1-tray01") is not None)
        await before.core.receipts.flush(everything=True)
        await agent.stop()
    async with session_world(tmp_path) as after:
        back = after.adopt(replace(agent, address=after.address, welcomes=[], changed=asyncio.Event()))
        await back.start()
        assert back.welcomes[0].committed_event_seq == 1
        await back.stop()
        anew = after.adopt(replace(back, spool_id=ids.new_id("spool"), welcomes=[], changed=asyncio.Event()))
        await anew.start()
        assert anew.welcomes[0].committed_event_seq == 0


async def test_event_of_a_foreign_spool_ends_the_stream(world) -> None:
    """Events of another spool than the hello's cannot be told apart by number: the stream ends with an error."""
    agent = await world.agent()
    agent.spool_id = ids.new_id("spool")
    agent.event(ids.new_id(ids.PARTITION), refusal=agents_pb2.RefusalEvent(code="TICKET_INVALID"))
    await agent.until(lambda: agent.failure is not None)
    assert agent.failure.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_lease_vouches_and_carries_the_agents_revocations(world, acme) -> None:
    """A lease is valid for its time; a closed session is on it at once, and only for the agent that serves it."""
    first = await world.agent(1)
    opened = await world.open("acme", request())
    second = await world.agent(2)
    await world.close_session("acme", opened.grant.session_id)
    world.core.leases.renew()
    await first.until(lambda: bool(first.leases))
    await second.until(lambda: bool(second.leases))
    assert list(first.leases[-1].revoked_sessions) == [opened.grant.session_id]
    assert list(second.leases[-1].revoked_sessions) == []
    remaining_s = first.leases[-1].valid_until_unix_ms / 1_000 - time.time()
    assert 25 < remaining_s <= 30


async def test_no_lease_while_the_log_takes_no_records(world, monkeypatch) -> None:
    """Without an audit log nothing is vouched for."""
    agent = await world.agent()

    async def broken(_record: object) -> None:
        raise AuditUnavailableError("the audit database is read-only")

    with monkeypatch.context() as patch:
        patch.setattr(world.audit, "write", broken)
        await world.journal.report(await _some_record(world))
        world.core.leases.renew()
        await asyncio.sleep(0.1)
        assert agent.leases == []
    await world.journal.retry()
    world.core.leases.renew()
    await agent.until(lambda: bool(agent.leases))


async def _some_record(world: SessionWorld):
    return platform_event(world.journal.stamp(), action=Action.PLATFORM_CONFIGURED, reason=PlatformReason.STARTUP)


@pytest.mark.alone
async def test_revocation_reaches_the_agent_at_once(world, acme) -> None:
    """The lease loop does not wait for its interval when a credential is revoked."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    running = asyncio.create_task(world.core.leases.run())
    try:
        await agent.until(lambda: bool(agent.leases))
        started = time.monotonic()
        assert await world.core.sessions.revoke_credential(acme.credential_id) == 1
        await agent.until(lambda: opened.grant.session_id in agent.leases[-1].revoked_sessions)
        assert time.monotonic() - started < 0.9
    finally:
        running.cancel()
    assert (await world.records(acme.tenant_id, "session.closed"))[-1].data["code"] == "CREDENTIAL_REVOKED"


async def test_revocations_survive_a_restart(tmp_path) -> None:
    """A restarted control plane still carries the sessions whose tickets live."""
    async with session_world(tmp_path) as before:
        caller = await before.tenant("acme")
        agent = await before.agent()
        opened = await before.open("acme", request())
        await before.close_session("acme", opened.grant.session_id)
        await agent.stop()
    async with session_world(tmp_path) as after:
        after.callers["acme"] = caller
        back = after.adopt(replace(agent, address=after.address, welcomes=[], leases=[], changed=asyncio.Event()))
        await back.start()
        after.core.leases.renew()
        await back.until(lambda: bool(back.leases))
        assert list(back.leases[-1].revoked_sessions) == [opened.grant.session_id]


async def test_session_that_is_not_renewed_is_closed(tmp_path) -> None:
    """After ticket and grace the session is closed, and its slot is free."""
    settings = SessionSettings(ticket_s=10, expiry_grace_s=0)
    async with session_world(tmp_path, sessions=settings) as world:
        caller = await world.tenant("acme", session_limit=1)
        await world.agent()
        opened = await world.open("acme", request())
        assert await world.core.sessions.sweep_expired() == 0
        await world.database.write(lambda tx: tx.connection.exec_driver_sql("UPDATE sessions SET expires_us = 1"))
        assert await world.core.sessions.sweep_expired() == 1
        assert (await world.session("acme", opened.grant.session_id)).state == "closed"
        assert (await world.records(caller.tenant_id, "session.closed"))[-1].data["code"] == "TICKET_EXPIRED"
        assert (await world.open("acme", request())).grant.session_id


async def _nothing(*_: object) -> None:
    return None


async def test_an_abandoned_open_has_its_outcome_though_the_state_is_away(world, acme, monkeypatch) -> None:
    """A decision of which nothing came is closed in the log, even while the session's row cannot be given back."""

    class Away:
        async def write(self, _work: object) -> None:
            raise StateUnavailableError("the state database is locked")

    agent = await world.agent(answers=False)
    opening = asyncio.create_task(world.open("acme", request()))
    await agent.until(lambda: bool(agent.commands))
    monkeypatch.setattr(world.core.opener, "_database", Away())
    opening.cancel()
    outcomes = await world.eventually(lambda: world.records(acme.tenant_id, "outcome"))
    assert [record.data["result"] for record in outcomes] == ["failed"]


async def test_suspended_tenants_and_revoked_credentials_are_found_by_themselves(world, acme) -> None:
    """What an administrator wrote to SQL takes effect without being told, too."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    await world.database.write(lambda tx: tx.connection.exec_driver_sql("UPDATE tenants SET status = 'suspended'"))
    await world.core.reconciler._end_sessions()
    assert (await world.session("acme", opened.grant.session_id)).state == "closed"
    await agent.until(lambda: world.core.book.all() == ())


async def test_cordoned_agent_takes_nothing_new_and_admins_see_the_fleet(world, acme) -> None:
    """Cordon, list, uncordon and release, as an administrator; each change is recorded."""
    await world.person("root", Role.ADMIN)
    agent = await world.agent()
    opened = await world.open("acme", request())
    admin = fleet_pb2_grpc.FleetAdminServiceStub(world.channel)
    query = fleet_pb2_grpc.FleetQueryServiceStub(world.channel)
    call = {"metadata": as_caller("root"), "timeout": 10}
    cordon = fleet_pb2.CordonAgentRequest(request_id=ids.new_id(ids.REQUEST), agent_id="rack1-tray01")
    assert (await admin.CordonAgent(cordon, **call)).agent.cordoned
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.open("acme", request())
    assert code_of(error.value) == "NO_CAPACITY"
    (listed,) = (await query.ListAgents(fleet_pb2.ListAgentsRequest(), **call)).agents
    assert (listed.cordoned, listed.simulated, listed.partitions, listed.gpus) == (True, True, 1, 4)
    uncordon = fleet_pb2.UncordonAgentRequest(request_id=ids.new_id(ids.REQUEST), agent_id="rack1-tray01")
    assert not (await admin.UncordonAgent(uncordon, **call)).agent.cordoned
    (partition,) = (await query.ListPartitions(fleet_pb2.ListPartitionsRequest(live_only=True), **call)).partitions
    assert (partition.partition_id, partition.sessions, partition.state) == (opened.grant.partition_id, 1, "ready")
    release = fleet_pb2.ReleasePartitionRequest(request_id=ids.new_id(ids.REQUEST), partition_id=partition.partition_id)
    await admin.ReleasePartition(release, **call)
    await agent.until(lambda: world.core.book.all() == ())
    assert (await world.session("acme", opened.grant.session_id)).state == "lost"
    assert [r.action for r in await world.records("", "agent.cordoned", "agent.uncordoned")] == [
        "agent.cordoned",
        "agent.uncordoned",
    ]
    steps = [r.action for r in await world.records(acme.tenant_id) if r.action.startswith("partition.")]
    assert steps[-4:] == ["partition.released", "partition.draining", "partition.scrubbing", "partition.freed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"receipts_interval_s": 20.0},
        {"lease_s": 0.5},
        {"receipts_pressing": 5_000},
        {"create_timeout_s": 0.0},
        {"evidence_keys": {"rack1-tray01": "zz"}},
        {"evidence_keys": {"rack1-tray01": "q" * 64}},
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes) -> None:
    """A configuration under which leases would lapse, or no command could end, does not start."""
    with pytest.raises(ConfigError):
        FleetSettings(**changes)


def test_every_step_outside_the_life_cycle_raises() -> None:
    """The table alone decides: from each state exactly its steps are possible."""
    partition = Partition(
        partition_id=ids.new_id(ids.PARTITION),
        tenant_id=ids.new_id(ids.TENANT),
        model="tiny",
        model_digest=b"m" * 32,
        placement=Placement(agent_id="rack1-tray01", tier=Tier.PROCESS),
        region="eu-central",
        simulated=True,
        share_key="k",
        exclusive=False,
        memory_mib=1,
        max_output_tokens=1,
        state=PartitionState.RESERVED,
        version=1,
        created_us=0,
        changed_us=0,
    )
    for state in PartitionState:
        for following in PartitionState:
            held = replace(partition, state=state)
            if following in TRANSITIONS[state]:
                assert held.advance(following, now_us=1, reason="").version == 2
            else:
                with pytest.raises(ConflictError):
                    held.advance(following, now_us=1, reason="")
