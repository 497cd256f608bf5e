import asyncio
import hashlib

import grpc
import jwt
import pytest

from bulkhead.errors import AuditUnavailableError, StateUnavailableError
from bulkhead.v1 import session_pb2
from control_plane.authz.decision import Reason
from control_plane.domain.partitions import PartitionState
from control_plane.domain.roles import Caller
from control_plane.rpc import session as session_rpc
from tests.simulator.fake_agent import FakeAgent
from tests.simulator.session_world import SessionWorld, code_of, request

PHASES = session_pb2.OpenPhase


@pytest.fixture
async def warm(world: SessionWorld, acme: Caller, agent: FakeAgent) -> session_pb2.SessionGrant:
    return (await world.open("acme", request())).grant


def attestations(agent: FakeAgent) -> list:
    return [command for command in agent.commands if command.WhichOneof("command") == "attest"]


class HeldLog:
    """Keeps the records of one action from being written until told."""

    def __init__(self, world: SessionWorld, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
        self.reached, self.go_on, self.fails = asyncio.Event(), asyncio.Event(), False
        write = world.audit.write

        async def held(record):
            if record.fields.action == action:
                self.reached.set()
                await self.go_on.wait()
                if self.fails:
                    raise AuditUnavailableError("the audit database is locked")
            return await write(record)

        monkeypatch.setattr(world.audit, "write", held)


@pytest.mark.parametrize("action", ["decision", "outcome"])
async def test_nothing_is_handed_out_before_its_record_is_durable(world, warm, agent, monkeypatch, action) -> None:
    """Evidence, proof and ticket may be ready sooner; the grant leaves when decision and outcome are both durable."""
    log = HeldLog(world, monkeypatch, action)
    opening = asyncio.create_task(world.open("acme", request()))
    await log.reached.wait()
    await agent.until(lambda: len(attestations(agent)) == 2)
    done, _ = await asyncio.wait({opening}, timeout=0.3)
    assert not done
    log.go_on.set()
    assert (await opening).grant.partition_id == warm.partition_id


@pytest.mark.parametrize("action", ["decision", "outcome"])
async def test_evidence_asked_for_ahead_is_of_no_use_without_the_record(
    world, acme, warm, agent, monkeypatch, action
) -> None:
    """When the log fails the caller gets AUDIT_UNAVAILABLE, although the worker has shown itself, and no ticket."""
    with monkeypatch.context() as patch:
        log = HeldLog(world, patch, action)
        opening = asyncio.create_task(world.open("acme", request()))
        await log.reached.wait()
        await agent.until(lambda: len(attestations(agent)) == 2)
        log.fails = True
        log.go_on.set()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await opening
    assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    await agent.until(lambda: not world.core.opener._background)
    assert world.core.book.users(warm.partition_id) == 1
    assert (await world.open("acme", request())).grant.session_id


async def test_evidence_is_asked_for_once_and_bound_to_the_decision(world, warm, agent) -> None:
    """What was asked for ahead is what is used, and it answers for the record that the grant proves."""
    second = (await world.open("acme", request())).grant
    assert len(attestations(agent)) == 2
    assert second.decision.leaf != warm.decision.leaf
    leaf_hash = hashlib.sha256(b"\x00" + second.decision.leaf).hexdigest()
    assert attestations(agent)[1].attest.session_context != attestations(agent)[0].attest.session_context
    assert jwt.decode(second.ticket, options={"verify_signature": False})["decision_leaf_hash"] == leaf_hash


async def test_a_partition_that_changed_meanwhile_is_asked_anew(world, acme, warm, agent, monkeypatch) -> None:
    """A partition that goes while the decision is recorded is not served from the answer that it gave before."""
    log = HeldLog(world, monkeypatch, "decision")
    opening = asyncio.create_task(world.open("acme", request()))
    await log.reached.wait()
    await agent.until(lambda: len(attestations(agent)) == 2)
    partition = world.core.book.get(warm.partition_id)
    world.core.pool.distrust(partition, reason="for the test")
    await world.eventually(lambda: _ended(world, warm.partition_id))
    log.go_on.set()
    opened = await opening
    assert opened.grant.partition_id != warm.partition_id
    assert len(attestations(agent)) == 3
    assert opened.grant.partition_id in {command.partition_id for command in attestations(agent)[2:]}


async def test_no_worker_is_asked_ahead_while_the_log_takes_nothing(world, warm, agent, monkeypatch) -> None:
    """Opens during an outage of the log leave no evidence behind; each waits for its own record first."""
    monkeypatch.setattr(world.journal, "vouches", lambda: False)
    log = HeldLog(world, monkeypatch, "decision")
    opening = asyncio.create_task(world.open("acme", request()))
    await log.reached.wait()
    await asyncio.wait({opening}, timeout=0.2)
    assert len(attestations(agent)) == 1
    log.go_on.set()
    assert (await opening).grant.partition_id == warm.partition_id
    assert len(attestations(agent)) == 2


async def test_policy_is_asked_once_about_what_was_reserved(world, warm) -> None:
    """The question that goes out while the slot is being committed is the one whose answer is recorded."""
    asked = len(world.policy.asked)
    await world.open("acme", request())
    assert len(world.policy.asked) == asked + 1
    assert world.policy.asked[-1].context.tenant.sessions_open == 1


async def test_an_answer_about_a_slot_that_was_not_committed_is_dropped(world, acme, warm, agent, monkeypatch) -> None:
    """When the reservation fails at its end nothing is decided, recorded or asked of a worker, and no slot is held."""
    write = world.database.write

    async def failing(work):
        def broken(tx):
            work(tx)
            raise StateUnavailableError("the disk is full")

        return await write(broken)

    with monkeypatch.context() as patch:
        patch.setattr(world.database, "write", failing)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.open("acme", request())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(await world.records(acme.tenant_id, "decision")) == 1
    assert len(attestations(agent)) == 1
    await world.open("acme", request())
    assert world.policy.asked[-1].context.tenant.sessions_open == 1


async def test_a_denial_asks_no_worker(world, acme, warm, agent) -> None:
    """Only an allow is acted on ahead of its record."""
    world.policy.deny = (Reason("NOT_PERMITTED", "session", "Not today."),)
    with pytest.raises(grpc.aio.AioRpcError):
        await world.open("acme", request())
    assert len(attestations(agent)) == 1


@pytest.mark.parametrize(
    ("quiet_s", "told"),
    [(60.0, []), (0.0, [PHASES.OPEN_PHASE_DECIDED, PHASES.OPEN_PHASE_PLACING, PHASES.OPEN_PHASE_ATTESTING])],
)
async def test_steps_of_a_warm_open_are_told_when_it_takes_long(world, warm, monkeypatch, quiet_s, told) -> None:
    """An open that is ready within the quiet time is one message; a slower one tells each step, in order."""
    monkeypatch.setattr(session_rpc, "QUIET_S", quiet_s)
    assert (await world.open("acme", request())).phases == told


async def _ended(world: SessionWorld, partition_id: str) -> bool:
    partition = world.core.book.get(partition_id)
    return partition is None or partition.state is not PartitionState.READY
