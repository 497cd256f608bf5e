"""What a control plane does about opens that another one, gone or alive, has begun."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from audit.sql import SqlAuditStore
from control_plane.services import leftovers
from tests.simulator.audit_world import closing, decision
from tests.simulator.audit_world import config as audit_config
from tests.simulator.fake_agent import FakeAgent
from tests.simulator.session_world import SessionWorld, request, session_world


async def _nothing(*_: object) -> None:
    return None


async def _crashed_open(world: SessionWorld) -> None:
    """Begin an open, and leave it as a process leaves it that dies while the worker starts."""
    agent = await world.agent(answers=False)
    opening = asyncio.create_task(world.open("solo", request()))
    await agent.until(lambda: bool(agent.commands))
    world.core.opener._abandon = _nothing  # nothing of its clean-up happens
    world.core.pool._undo = _nothing
    await agent.stop()
    await world.close()
    await asyncio.gather(opening, return_exceptions=True)


async def test_crash_in_the_middle_of_an_open_is_closed_as_unknown(tmp_path) -> None:
    """A decision without an outcome gets one after a restart, once, and the slot is free."""
    async with session_world(tmp_path) as before:
        caller = await before.tenant("solo", session_limit=1)
        await _crashed_open(before)
    for _ in range(2):
        async with session_world(tmp_path) as after:
            after.callers["solo"] = caller
            outcomes = await after.records(caller.tenant_id, "outcome")
            assert [record.data["result"] for record in outcomes] == ["unknown"]
    async with session_world(tmp_path) as last:
        last.callers["solo"] = caller
        await last.agent(2)
        assert (await last.open("solo", request())).grant.session_id


async def test_a_decision_is_closed_once_the_index_holds_it(tmp_path, monkeypatch) -> None:
    """A start does not wait for an index that is far behind; the decision gets its outcome when the index is there."""
    monkeypatch.setattr(leftovers, "INDEX_WAIT_S", 0.1)
    project = SqlAuditStore.project
    monkeypatch.setattr(SqlAuditStore, "project", lambda *_: None)  # as while another process has the turn
    async with session_world(tmp_path) as before:
        caller = await before.tenant("solo")
        await _crashed_open(before)
    async with session_world(tmp_path) as after:
        assert await after.records(caller.tenant_id, "outcome") == []
        monkeypatch.setattr(SqlAuditStore, "project", project)

        async def outcomes() -> list[str]:
            await after.core.leftovers.close_decisions()  # as every second
            return [str(record.data["result"]) for record in await after.records(caller.tenant_id, "outcome")]

        assert await after.eventually(outcomes) == ["unknown"]
        assert await outcomes() == ["unknown"]


async def test_an_open_decision_is_found_behind_any_number_of_others(tmp_path, monkeypatch) -> None:
    """What others recorded meanwhile hides nothing: the log is looked through to its beginning, part by part."""
    monkeypatch.setattr(leftovers, "PLACES", 40)
    async with session_world(tmp_path) as before:
        caller = await before.tenant("solo")
        await _crashed_open(before)
        info = await before.audit.ensure_log(caller.tenant_id)
        others = [decision(tenant=caller.tenant_id, number=n, allow=n % 2 == 0) for n in range(600)]
        others += [closing(n, tenant=caller.tenant_id, renewed=n % 4 == 0) for n in range(0, 600, 2)]
        await asyncio.gather(*(before.audit.append(info.log_id, record) for record in others))
    async with session_world(tmp_path) as after:

        async def unknown() -> list[str]:
            await after.core.leftovers.close_decisions()  # as every second
            outcomes = await after.records(caller.tenant_id, "outcome")
            return [record.pair_id for record in outcomes if record.data["result"] == "unknown"]

        (pair,) = await after.eventually(unknown)
        opened = await after.records(caller.tenant_id, "decision")
        assert pair == opened[0].pair_id
        for _ in range(3):
            assert await unknown() == [pair]
        assert not after.core.leftovers._rests


@contextlib.asynccontextmanager
async def _beside(directory: Path, audit_url: str) -> AsyncIterator[SessionWorld]:
    """Open a control plane that shares its databases with others."""
    async with session_world(directory, audit=audit_config(directory, database=audit_url)) as world:
        yield world


def _later(world: SessionWorld) -> None:
    """Let the longest time that an open may take pass for one control plane."""
    waited_s = world.core.leftovers._longest_s + 1
    world.core.leftovers._monotonic_s = lambda: time.monotonic() + waited_s


async def _watch(world: SessionWorld) -> None:
    """Do what the reconciler does every few seconds."""
    await world.core.leftovers.give_up_openings()
    await world.core.leftovers.close_decisions()


async def _row_states(world: SessionWorld) -> list[str]:
    rows = await world.database.read(lambda tx: tx.connection.exec_driver_sql("SELECT state FROM sessions").all())
    return [state for (state,) in rows]


def _answer(agent: FakeAgent) -> None:
    """Let an agent obey what it was told while it did not answer."""
    agent.answers = True
    for command in agent.commands:
        agent._spawn(agent._obey(command))


async def test_a_control_plane_that_starts_leaves_anothers_openings_alone(tmp_path, audit_url) -> None:
    """An open that is under way elsewhere goes on: its row and its decision stand, and it has one outcome, its own."""
    async with _beside(tmp_path, audit_url) as first:
        caller = await first.tenant("solo", session_limit=1)
        agent = await first.agent(answers=False)
        opening = asyncio.create_task(first.open("solo", request()))
        await agent.until(lambda: bool(agent.commands))
        async with _beside(tmp_path, audit_url) as second:
            await _watch(second)
            assert await _row_states(second) == ["opening"]
            assert await second.records(caller.tenant_id, "outcome") == []
            _answer(agent)
            assert (await opening).grant.session_id
            _later(second)

            async def looked_through() -> bool:
                await _watch(second)
                return not second.core.leftovers._rests

            assert await second.eventually(looked_through)
            assert await _row_states(second) == ["open"]
            found = await first.records(caller.tenant_id, "outcome")
            assert [record.data["result"] for record in found] == ["ready"]


async def test_openings_of_a_control_plane_that_is_gone_are_given_up_in_time(tmp_path, audit_url) -> None:
    """Nothing is taken from it while an open may last; then the slot is free, and the decision has one outcome."""
    async with _beside(tmp_path, audit_url) as first:
        caller = await first.tenant("solo", session_limit=1)
        await _crashed_open(first)
        async with _beside(tmp_path, audit_url) as second:
            await _watch(second)
            assert await _row_states(second) == ["opening"]
            assert await second.records(caller.tenant_id, "outcome") == []
            _later(second)

            async def outcomes() -> list[str]:
                await _watch(second)
                return [str(record.data["result"]) for record in await second.records(caller.tenant_id, "outcome")]

            assert await second.eventually(outcomes) == ["unknown"]
            assert await _row_states(second) == []
            assert await outcomes() == ["unknown"]
