import io
import json

import grpc
import pytest
from structlog.testing import capture_logs

from audit.model import Head
from bulkhead import ids
from bulkhead.client import convert
from bulkhead.errors import AuditUnavailableError, PolicyEngineError
from bulkhead.transparency import (
    AuditReceipt,
    RoundsSeen,
    open_checkpoint,
    verify_consistency,
    verify_receipt,
    verify_round_page,
)
from bulkhead.transparency.merkle import Frontier
from bulkhead.v1 import audit_pb2, audit_pb2_grpc, common_pb2
from control_plane.domain.roles import Caller, Role
from tests.simulator.monitored import make_round
from tests.simulator.session_world import SessionWorld, as_caller, code_of, request


@pytest.fixture
async def acme(world: SessionWorld) -> Caller:
    caller = await world.tenant("acme")
    await world.agent()
    await world.open("acme", request())
    return caller


def audit(world: SessionWorld) -> audit_pb2_grpc.AuditServiceStub:
    return audit_pb2_grpc.AuditServiceStub(world.channel)


async def code(call) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return code_of(error.value)


async def listed(world: SessionWorld, name: str, **filters) -> list[audit_pb2.Record]:
    """All pages of two records each, once the index has caught up."""
    stub, token, found = audit(world), "", []
    while True:
        message = audit_pb2.ListRecordsRequest(
            filter=audit_pb2.RecordFilter(**filters), page=common_pb2.PageRequest(size=2, token=token)
        )
        page = await stub.ListRecords(message, metadata=as_caller(name), timeout=10)
        found.extend(page.records)
        if not (token := page.next_page_token):
            return found


def proven(receipt: audit_pb2.AuditReceipt, vkey: str):
    return verify_receipt(
        AuditReceipt(receipt.leaf, receipt.index, tuple(receipt.proof), receipt.checkpoint),
        vkey=vkey,
        origin=receipt.origin,
    )


async def test_officer_lists_the_own_log_page_by_page_and_the_read_is_recorded(world, acme) -> None:
    """Every record of the session comes once, newest first; each page is a record of its own."""
    await world.eventually(lambda: _indexed(world))
    found = await listed(world, "acme-officer", action="partition.")
    assert [json.loads(record.leaf)["action"] for record in found] == [
        "partition.ready",
        "partition.attesting",
        "partition.creating",
        "partition.reserved",
    ]
    reads = await world.records(acme.tenant_id, "audit.read")
    assert [read.data["returned"] for read in reads] == [2, 2, 0][: len(reads)]
    assert reads[0].subject == world.callers["acme-officer"].subject_id
    assert reads[0].data["query"] == {"action": "partition."}


async def test_a_list_is_bounded_by_time(world, acme) -> None:
    """The first time is inclusive, the last is not; what no record can be compared with is refused."""
    await world.eventually(lambda: _indexed(world))
    times = [json.loads(record.leaf)["ts_us"] for record in await listed(world, "acme-officer", action="partition.")]
    since = await listed(world, "acme-officer", action="partition.", from_us=times[1])
    until = await listed(world, "acme-officer", action="partition.", until_us=times[1])
    expected = [time_us >= times[1] for time_us in times].count(True)
    assert (len(since), len(until)) == (expected, len(times) - expected)
    for bounds in ({"from_us": -1}, {"until_us": 1 << 53}):
        request = audit_pb2.ListRecordsRequest(filter=audit_pb2.RecordFilter(**bounds))
        call = audit(world).ListRecords(request, metadata=as_caller("acme-officer"), timeout=10)
        assert await code(call) == "INVALID_REQUEST"


async def _indexed(world: SessionWorld) -> bool:
    return world.audit.health().unindexed == 0


async def test_record_with_its_proof_verifies_by_id_and_by_index(world, acme) -> None:
    """A developer fetches the own decision with a proof that holds under the tenant's key."""
    decision = (await world.records(acme.tenant_id, "decision"))[0]
    stub = audit(world)
    by_id = await stub.GetRecord(
        audit_pb2.GetRecordRequest(record_id=decision.record_id), metadata=as_caller("acme"), timeout=10
    )
    by_index = await stub.GetRecord(
        audit_pb2.GetRecordRequest(index=by_id.receipt.index), metadata=as_caller("acme"), timeout=10
    )
    head = await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), metadata=as_caller("acme"), timeout=10)
    assert proven(by_id.receipt, head.vkey).fields.record_id == decision.record_id
    assert by_index.receipt.leaf == by_id.receipt.leaf
    assert len(await world.records(acme.tenant_id, "audit.read")) == 2


async def test_two_checkpoints_are_proven_consistent(world, acme) -> None:
    """What was seen before is in what is seen now."""
    stub = audit(world)
    first = await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), metadata=as_caller("acme"), timeout=10)
    await world.open("acme", request())
    origin = first.vkey.partition("+")[0]
    old = open_checkpoint(first.checkpoint, vkey=first.vkey, origin=origin)
    proof = await stub.GetConsistencyProof(
        audit_pb2.GetConsistencyProofRequest(old_size=old.size), metadata=as_caller("acme"), timeout=10
    )
    new = open_checkpoint(proof.checkpoint, vkey=first.vkey, origin=origin)
    verify_consistency(
        old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=tuple(proof.proof)
    )
    assert new.size > old.size


async def test_export_is_recorded_before_its_first_byte(world, acme) -> None:
    """An officer's export holds the whole log, its own record included."""
    stream = io.BytesIO()
    call = audit(world).ExportLog(audit_pb2.ExportLogRequest(), metadata=as_caller("acme-officer"), timeout=10)
    async for chunk in call:
        assert len(chunk.data) <= 64 * 1024
        stream.write(chunk.data)
    (exported,) = await world.records(acme.tenant_id, "audit.exported")
    assert exported.record_id.encode() in stream.getvalue()


async def test_round_path_reaches_the_platforms_log(world, acme) -> None:
    """Once a round holds the tenant's head, its path is handed out."""
    stub = audit(world)

    async def path():
        try:
            return await stub.GetRoundPath(
                audit_pb2.GetRoundPathRequest(), metadata=as_caller("acme-officer"), timeout=10
            )
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE

    found = await world.eventually(path)
    assert found.checkpoint.startswith(world.audit.vkey((await world.audit.ensure_log(acme.tenant_id)).log_id)[:10])


async def test_past_rounds_are_handed_out_in_pages(world, acme) -> None:
    """Every round from the one that is asked for on comes once, verifies, and is no record."""
    stub = audit(world)
    log = await world.audit.ensure_log(acme.tenant_id)
    for _ in range(3):
        await make_round(world.audit)
    size = world.audit.size(log.log_id)
    own = Frontier().extend(world.audit._store.leaf_hashes(log.log_id, 0, size))
    platform = world.audit.vkey(world.audit.platform_log.log_id)
    newest = await stub.GetRoundPath(audit_pb2.GetRoundPathRequest(), metadata=as_caller("acme-officer"), timeout=10)
    last = json.loads(newest.round.leaf)["data"]["round"]
    seen = RoundsSeen(round=last - 3, size=0, root=b"", platform_size=0, platform_root=b"")
    numbers: list[int] = []
    while len(numbers) < 3:
        asked = audit_pb2.ListRoundPathsRequest(
            after_round=seen.round, limit=2, size=size, platform_size=seen.platform_size
        )
        page = convert.round_page(await stub.ListRoundPaths(asked, metadata=as_caller("acme"), timeout=10))
        cosigned, rounds = verify_round_page(
            page, seen=seen, own=own, slot=log.slot, origin=log.origin, platform_vkey=platform
        )
        numbers += [one.round for one in rounds]
        head = rounds[-1].checkpoint
        seen = RoundsSeen(
            round=numbers[-1], size=head.size, root=head.root,
            platform_size=cosigned.checkpoint.size, platform_root=cosigned.checkpoint.root,
        )  # fmt: skip
    assert numbers[:3] == [last - 2, last - 1, last]
    assert world.audit.size(log.log_id) == size


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"after_round": 1 << 53}, "INVALID_REQUEST"),
        ({"after_round": (1 << 53) - 1}, "UNAVAILABLE"),
        ({"size": 1_000_000}, "INVALID_REQUEST"),
        ({"platform_size": 1_000_000}, "UNAVAILABLE"),
        ({"tenant_id": "platform"}, "NOT_FOUND"),
    ],
)
async def test_rounds_that_there_are_not(world, acme, asked, expected) -> None:
    """Numbers and sizes that are not, or not yet, and a log that is in no round, are errors of their own."""
    await make_round(world.audit)
    call = audit(world).ListRoundPaths(
        audit_pb2.ListRoundPathsRequest(**asked), metadata=as_caller("acme-officer"), timeout=10
    )
    assert await code(call) == expected


async def test_a_round_that_is_not_in_the_database(world, acme) -> None:
    """A round whose heads are not those in the database is an error of the data for who asks, and told of once."""
    log = await world.audit.ensure_log(acme.tenant_id)
    made = await make_round(world.audit, forged=Head(log.log_id, Frontier().extend([bytes(32)] * 2)))
    asked = audit_pb2.ListRoundPathsRequest(after_round=made.round.number - 1, limit=1)
    with capture_logs() as told:
        for _ in range(2):
            call = audit(world).ListRoundPaths(asked, metadata=as_caller("acme-officer"), timeout=10)
            assert await code(call) == "RECORD_INVALID"
            world.core.reconciler._tell_of_rounds()
    (event,) = (entry for entry in told if entry["event"] == "audit.round_changed")
    assert f"round {made.round.number} cannot be made again" in event["reason"]


async def test_developers_list_nothing_and_export_nothing(world, acme) -> None:
    """A developer's records come one by one, with proofs."""
    stub = audit(world)
    assert await code(stub.ListRecords(audit_pb2.ListRecordsRequest(), metadata=as_caller("acme"), timeout=10)) == (
        "PERMISSION_DENIED"
    )
    call = stub.ExportLog(audit_pb2.ExportLogRequest(), metadata=as_caller("acme"), timeout=10)
    assert await code(call.read()) == "PERMISSION_DENIED"


async def test_platform_officer_reads_every_log_and_admins_none(world, acme) -> None:
    """A tenant's log, the platform's, and all of them at once; the tenant sees who has read."""
    officer = await world.person("watch", Role.OFFICER)
    await world.person("root", Role.ADMIN)
    await world.eventually(lambda: _indexed(world))
    assert await listed(world, "watch", tenant_id=acme.tenant_id)
    assert await listed(world, "watch", tenant_id="platform")
    assert await listed(world, "watch")
    assert (await world.records(acme.tenant_id, "audit.read"))[0].subject == officer.subject_id
    assert await world.records("", "audit.read")
    head = audit(world).GetCheckpoint(
        audit_pb2.GetCheckpointRequest(tenant_id=acme.tenant_id), metadata=as_caller("root"), timeout=10
    )
    assert await code(head) == "NOT_FOUND"


async def test_read_that_cannot_be_recorded_is_not_answered(world, acme, monkeypatch) -> None:
    """The log is down for writing: no record leaves the server."""

    async def broken(_record: object) -> None:
        raise AuditUnavailableError("the audit database is read-only")

    monkeypatch.setattr(world.audit, "write", broken)
    call = audit(world).GetRecord(audit_pb2.GetRecordRequest(index=0), metadata=as_caller("acme"), timeout=10)
    assert await code(call) == "AUDIT_UNAVAILABLE"


async def test_list_needs_policy(world, acme) -> None:
    """Without an engine nobody lists."""
    world.policy.fail = PolicyEngineError("The policy engine cannot be reached.")
    call = audit(world).ListRecords(audit_pb2.ListRecordsRequest(), metadata=as_caller("acme-officer"), timeout=10)
    assert await code(call) == "POLICY_ENGINE"


@pytest.mark.parametrize(
    "message",
    [
        audit_pb2.GetRecordRequest(),
        audit_pb2.GetRecordRequest(record_id="rec_nonsense"),
    ],
)
async def test_unnamed_records_are_bad_requests(world, acme, message) -> None:
    """A record needs an index or an id of the right form."""
    assert await code(audit(world).GetRecord(message, metadata=as_caller("acme"), timeout=10)) == "INVALID_REQUEST"


async def test_absent_records_are_not_found(world, acme) -> None:
    """An index beyond the log, an id nobody has."""
    stub = audit(world)
    for message in (
        audit_pb2.GetRecordRequest(index=10_000),
        audit_pb2.GetRecordRequest(record_id=ids.new_id(ids.RECORD)),
    ):
        assert await code(stub.GetRecord(message, metadata=as_caller("acme"), timeout=10)) == "NOT_FOUND"
