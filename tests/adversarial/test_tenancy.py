"""Tenant against tenant at the control plane: what is somebody else's does not exist, and asking for it is recorded."""

import asyncio

import grpc
import pytest

from bulkhead import ids
from bulkhead.v1 import audit_pb2, audit_pb2_grpc, session_pb2, session_pb2_grpc
from control_plane.domain.roles import Caller
from service.bulkhead_fleet.v1 import fleet_pb2
from tests.simulator.session_world import SessionWorld, as_caller, code_of, request

SESSION_METHODS = ("get", "renew", "close")


@pytest.fixture
async def mallory(world: SessionWorld) -> Caller:
    return await world.tenant("mallory")


async def refusal(call) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), code_of(error.value), error.value.details() or ""


@pytest.mark.parametrize("method", SESSION_METHODS)
async def test_another_tenants_session_does_not_exist(world, agent, acme, mallory, method) -> None:
    """NOT_FOUND in the words of a session that never was; recorded in the asker's log, and not in the owner's."""
    session_id = (await world.open("acme", request())).grant.session_id
    calls = {"get": world.session, "renew": world.renew, "close": world.close_session}
    theirs = await refusal(calls[method]("mallory", session_id))
    nobodys = await refusal(calls[method]("mallory", ids.new_id(ids.SESSION)))
    assert theirs == nobodys
    assert theirs[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    denied = await world.records(mallory.tenant_id, "access.denied")
    assert [record.reasons[0]["code"] for record in denied] == ["NOT_FOUND", "NOT_FOUND"]
    assert denied[0].subject == mallory.subject_id
    assert await world.records(acme.tenant_id, "access.denied") == []
    assert (await world.session("acme", session_id)).state == "open"
    owned = b"".join(str(record).encode() for record in await world.records(mallory.tenant_id))
    assert session_id.encode() not in owned


async def test_lists_hold_the_own_sessions_only(world, agent, acme, mallory) -> None:
    """Neither list shows the other tenant's session."""
    mine = (await world.open("mallory", request())).grant.session_id
    await world.open("acme", request())
    stub = session_pb2_grpc.SessionQueryServiceStub(world.channel)
    found = await stub.ListSessions(session_pb2.ListSessionsRequest(), metadata=as_caller("mallory"), timeout=10)
    assert [session.session_id for session in found.sessions] == [mine]


@pytest.mark.parametrize("name", ["mallory", "mallory-officer"])
async def test_another_tenants_log_does_not_exist(world, agent, acme, mallory, name) -> None:
    """No method of the audit service reaches it, for developers and officers alike."""
    await world.open("acme", request())
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)
    call = {"metadata": as_caller(name), "timeout": 10}
    refusals = [
        await refusal(stub.GetRecord(audit_pb2.GetRecordRequest(tenant_id=acme.tenant_id, index=0), **call)),
        await refusal(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(tenant_id=acme.tenant_id), **call)),
        await refusal(stub.GetRoundPath(audit_pb2.GetRoundPathRequest(tenant_id=acme.tenant_id), **call)),
        await refusal(stub.ListRoundPaths(audit_pb2.ListRoundPathsRequest(tenant_id=acme.tenant_id), **call)),
        await refusal(stub.GetConsistencyProof(audit_pb2.GetConsistencyProofRequest(tenant_id=acme.tenant_id), **call)),
        await refusal(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(tenant_id="platform"), **call)),
    ]
    assert {found[:2] for found in refusals} == {(grpc.StatusCode.NOT_FOUND, "NOT_FOUND")}
    assert await world.records(mallory.tenant_id, "access.denied")
    assert await world.records(acme.tenant_id, "audit.read") == []


async def test_officer_cannot_list_or_export_another_log(world, agent, acme, mallory) -> None:
    """Asking by name is refused, and a filter of the own list does not widen it."""
    await world.open("acme", request())
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)
    call = {"metadata": as_caller("mallory-officer"), "timeout": 10}
    theirs = audit_pb2.ListRecordsRequest(filter=audit_pb2.RecordFilter(tenant_id=acme.tenant_id))
    assert (await refusal(stub.ListRecords(theirs, **call)))[1] == "NOT_FOUND"
    export = stub.ExportLog(audit_pb2.ExportLogRequest(tenant_id=acme.tenant_id), **call)
    assert (await refusal(export.read()))[1] == "NOT_FOUND"
    by_subject = audit_pb2.ListRecordsRequest(filter=audit_pb2.RecordFilter(subject=acme.subject_id))
    assert list((await stub.ListRecords(by_subject, **call)).records) == []


async def test_record_id_of_another_log_is_not_found_in_the_own(world, agent, acme, mallory) -> None:
    """Record ids are unique over all logs, and still open only the log they stand in."""
    await world.open("acme", request())
    decision = (await world.records(acme.tenant_id, "decision"))[0]
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)
    message = audit_pb2.GetRecordRequest(record_id=decision.record_id)
    assert (await refusal(stub.GetRecord(message, metadata=as_caller("mallory"), timeout=10)))[1] == "NOT_FOUND"


async def test_request_id_of_another_tenant_opens_a_session_of_ones_own(world, agent, acme, mallory) -> None:
    """Naming somebody's request id gives neither their session nor a hint that it is used."""
    message = request()
    theirs = (await world.open("acme", message)).grant
    mine = (await world.open("mallory", message)).grant
    assert mine.session_id != theirs.session_id
    assert mine.partition_id != theirs.partition_id
    assert mine.tenant_id == mallory.tenant_id


async def test_repeating_a_request_with_another_key_takes_no_session_over(world, agent, acme) -> None:
    """A colleague with another session key cannot enter an open session by its request id."""
    message = request()
    await world.open("acme", message)
    stolen = session_pb2.OpenSessionRequest()
    stolen.CopyFrom(message)
    stolen.session_public_key = request().session_public_key
    assert (await refusal(world.open("acme", stolen)))[1] == "ALREADY_EXISTS"


async def test_refusal_at_a_worker_is_recorded_for_worker_and_ticket(world, agent, acme, mallory) -> None:
    """A's ticket at B's worker: B's log tells of a foreign ticket, A's that its session's was tried."""
    session_id = (await world.open("acme", request())).grant.session_id
    partition_id = (await world.open("mallory", request())).grant.partition_id
    refused = fleet_pb2.RefusalEvent(code="TICKET_INVALID", session_id=session_id, tenant_id=acme.tenant_id)
    agent.event(partition_id, refusal=refused)
    await agent.until(lambda: world.core.receipts.oldest_us(agent.agent_id) is not None)
    await world.core.receipts.flush()
    (at_worker,) = await world.records(mallory.tenant_id, "access.denied")
    (at_owner,) = await world.records(acme.tenant_id, "access.denied")
    assert at_worker.session == ""
    assert acme.tenant_id not in str(at_worker)
    assert at_owner.session == session_id
    assert mallory.tenant_id not in str(at_owner)


@pytest.mark.parametrize("lie", ["tenant", "session", "digest"])
async def test_lying_agent_writes_into_no_tenants_log(world, agent, acme, mallory, lie) -> None:
    """Receipts of another tenant, of another tenant's session, or without a digest go to the platform's log only."""
    mine = (await world.open("mallory", request())).grant
    theirs = (await world.open("acme", request())).grant
    agent.receipt(
        mine.partition_id,
        theirs.session_id if lie == "session" else mine.session_id,
        tenant_id=acme.tenant_id if lie == "tenant" else mallory.tenant_id,
        digest=b"short" if lie == "digest" else b"d" * 32,
    )
    await agent.until(lambda: world.core.receipts.oldest_us(agent.agent_id) is not None)
    await world.core.receipts.flush(everything=True)
    assert await world.records(acme.tenant_id, "receipts") == []
    assert await world.records(mallory.tenant_id, "receipts") == []
    (record,) = await world.records("", "access.denied")
    assert record.resource.id == agent.agent_id
    await agent.until(lambda: agent.acknowledged == 1)


async def test_agent_cannot_end_another_agents_partition(world, agent, acme) -> None:
    """A step reported for a partition of another tray changes nothing and is recorded against the agent."""
    partition_id = (await world.open("acme", request())).grant.partition_id
    other = await world.agent(2)
    owner = world.core.book.get(partition_id).agent_id
    liar = other if owner == agent.agent_id else agent
    step = fleet_pb2.PartitionEvent(tenant_id=acme.tenant_id, from_state="ready", to_state="lost", reason="", fence=9)
    liar.event(partition_id, partition=step)
    await liar.until(lambda: world.core.receipts.oldest_us(liar.agent_id) is not None)
    await world.core.receipts.flush()
    assert world.core.book.get(partition_id).state.value == "ready"
    assert len(await world.records("", "access.denied")) == 1


async def test_revoked_credentials_sessions_end_and_an_open_under_way_with_them(world, agent, acme) -> None:
    """Revocation closes what is open, and an open that is still starting its worker gets no ticket."""
    opened = (await world.open("acme", request())).grant
    agent.create_delay_s = 0.3
    opening = asyncio.create_task(refusal(world.open("acme", request(minimum_tier=3))))
    await agent.until(lambda: [c.WhichOneof("command") for c in agent.commands].count("create") == 2)
    await world.core.sessions.revoke_credential(acme.credential_id)
    assert (await opening)[1] in {"NOT_FOUND", "CONFLICT"}
    assert (await world.session("acme", opened.session_id)).state == "closed"
    assert (await refusal(world.renew("acme", opened.session_id)))[1] == "SESSION_CLOSED"
