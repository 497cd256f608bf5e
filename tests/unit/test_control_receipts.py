"""Receipts under records of the log: each under one, whatever ends the process; proofs for whom they concern."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from bulkhead import ids
from bulkhead.transparency import AuditReceipt, ReceiptBatch, receipts_root, verify_receipt
from bulkhead.v1 import audit_pb2, audit_pb2_grpc
from control_plane.domain.roles import Caller
from control_plane.storage.engine import Database
from control_plane.storage.receipts import ReceiptBatches
from tests.simulator.receipts_crash import event, record, records
from tests.simulator.session_world import SessionWorld, as_caller, code_of, now_us, request
from tests.unit.test_control_sessions_audit import code

ROOT = Path(__file__).parents[2]
DAY_US = 86_400 * 1_000_000


def run(directory: Path, step: str, count: int) -> int:
    """Run the recording process to its end or death; return its exit status."""
    command = [sys.executable, "-m", "tests.simulator.receipts_crash", str(directory), step, str(count)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode


@pytest.mark.parametrize("step", ["claimed", "recorded"])
async def test_killed_between_record_and_mark_counts_each_receipt_once(tmp_path: Path, step: str) -> None:
    """SIGKILL after the claim, or after the record and before the mark: what comes again is under the same record."""
    assert run(tmp_path, step, 5) == -9
    assert await record(tmp_path, [event(number) for number in range(1, 8)]) == ()
    found = [ReceiptBatch.of(leaf) for leaf in await records(tmp_path)]
    assert [batch.numbers for batch in found] == [range(1, 6), range(6, 8)]
    assert found[0].root == receipts_root([number.to_bytes(32, "big") for number in range(1, 6)])
    assert [batch.completion_tokens for batch in found] == [15, 13]


async def test_what_a_dead_process_claimed_is_recorded_without_being_told_again(tmp_path: Path) -> None:
    """A claim is finished by the next process even if the agent's spool is lost."""
    assert run(tmp_path, "claimed", 3) == -9
    assert await record(tmp_path, []) == ()
    assert [leaf.data["count"] for leaf in await records(tmp_path)] == [3]


async def test_gaps_split_records_and_orders_do_not_matter(tmp_path: Path) -> None:
    """A record covers numbers without a gap; numbers that arrive late get a record of their own."""
    await record(tmp_path, [event(number) for number in (5, 1, 2, 6, 2)])
    await record(tmp_path, [event(number) for number in (1, 2, 3, 4, 5, 6, 7)])
    found = [ReceiptBatch.of(leaf).numbers for leaf in await records(tmp_path)]
    assert found == [range(1, 3), range(5, 7), range(3, 5), range(7, 8)]


async def test_another_receipt_under_a_used_number_is_reported(tmp_path: Path) -> None:
    """A second digest for one number is no second receipt, in one report or in two."""
    twice = event(2, b"x" * 32)
    assert await record(tmp_path, [event(1), event(2), twice]) == (twice,)
    assert await record(tmp_path, [twice, event(3)]) == (twice,)
    assert [ReceiptBatch.of(leaf).numbers for leaf in await records(tmp_path)] == [range(1, 3), range(3, 4)]


async def reported(world: SessionWorld, caller: Caller) -> tuple[str, str]:
    """Open a session, have three receipts of it recorded, and return partition and session."""
    agent = await world.agent()
    opened = await world.open("acme", request())
    for number in range(3):
        agent.receipt(
            opened.grant.partition_id,
            opened.grant.session_id,
            tenant_id=caller.tenant_id,
            digest=bytes([number]) * 32,
        )
    await agent.until(lambda: sum(len(spool.waiting()) for spool in world.core.receipts._spools.values()) == 3)
    await world.core.receipts.flush(everything=True)
    return opened.grant.partition_id, opened.grant.session_id


def asked(partition_id: str, session_id: str, **changes: object) -> audit_pb2.GetReceiptProofRequest:
    fields = {"session_id": session_id, "partition_id": partition_id, "number": 2, "receipt_digest": b"\1" * 32}
    return audit_pb2.GetReceiptProofRequest(**(fields | changes))


async def test_proof_leads_from_receipt_to_checkpoint(world: SessionWorld) -> None:
    """A developer gets the record that covers a receipt, and the path to its root; the read is recorded."""
    acme = await world.tenant("acme")
    place = await reported(world, acme)
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)
    reply = await stub.GetReceiptProof(asked(*place), metadata=as_caller("acme"), timeout=10)
    record = AuditReceipt(reply.record.leaf, reply.record.index, tuple(reply.record.proof), reply.record.checkpoint)
    vkey = world.audit.vkey((await world.audit.ensure_log(acme.tenant_id)).log_id)
    leaf = verify_receipt(record, vkey=vkey, origin=reply.record.origin)
    ReceiptBatch.of(leaf.fields).check_path(number=2, digest=b"\1" * 32, path=tuple(reply.path))
    reads = await world.records(acme.tenant_id, "audit.read")
    assert reads[0].data["query"] == {"session": place[1], "number": 2}


async def test_proof_is_for_the_own_tenant_and_what_was_recorded(world: SessionWorld) -> None:
    """Another tenant, another digest, number or session get NOT_FOUND; nonsense is refused."""
    acme = await world.tenant("acme")
    await world.tenant("globex")
    place = await reported(world, acme)
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)

    async def refused(message: audit_pb2.GetReceiptProofRequest, who: str = "acme") -> str:
        return await code(stub.GetReceiptProof(message, metadata=as_caller(who), timeout=10))

    assert await refused(asked(*place), "globex") == "NOT_FOUND"
    assert await refused(asked(*place, tenant_id=acme.tenant_id), "globex") == "NOT_FOUND"
    assert await refused(asked(*place, receipt_digest=b"\2" * 32)) == "NOT_FOUND"
    assert await refused(asked(*place, number=4)) == "NOT_FOUND"
    assert await refused(asked(place[0], ids.new_id(ids.SESSION))) == "NOT_FOUND"
    assert await refused(asked(*place, number=0)) == "INVALID_REQUEST"
    assert await refused(asked(*place, receipt_digest=b"short")) == "INVALID_REQUEST"


async def test_digests_are_forgotten_a_while_after_their_session(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open sessions' are kept however old; an ended one's go after the time, and the record stays in the log."""
    acme = await world.tenant("acme")
    place = await reported(world, acme)
    stub = audit_pb2_grpc.AuditServiceStub(world.channel)

    async def proof() -> str:
        try:
            await stub.GetReceiptProof(asked(*place), metadata=as_caller("acme"), timeout=10)
        except grpc.aio.AioRpcError as error:
            return code_of(error)
        return "proven"

    days = world.core.receipts._settings.receipts_kept_days
    monkeypatch.setattr(world.core.receipts, "_now_us", lambda: now_us() + (days + 1) * DAY_US)
    await world.core.receipts.forget()
    assert await proof() == "proven"
    await world.close_session("acme", place[1])
    monkeypatch.setattr(world.core.receipts, "_now_us", lambda: now_us() + (days - 1) * DAY_US)
    await world.core.receipts.forget()
    assert await proof() == "proven"
    monkeypatch.setattr(world.core.receipts, "_now_us", lambda: now_us() + (days + 1) * DAY_US)
    await world.core.receipts.forget()
    assert await proof() == "NOT_FOUND"
    (record,) = await world.records(acme.tenant_id, "receipts")
    assert record.data["count"] == 3


async def test_what_was_forgotten_is_not_counted_again(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that tells a long ended session's receipts again is reported; no second record covers them."""
    acme = await world.tenant("acme")
    partition_id, session_id = await reported(world, acme)
    await world.close_session("acme", session_id)
    days = world.core.receipts._settings.receipts_kept_days
    monkeypatch.setattr(world.core.receipts, "_now_us", lambda: now_us() + (days + 1) * DAY_US)
    await world.core.receipts.forget()
    (agent,) = world._agents
    agent.receipt(partition_id, session_id, tenant_id=acme.tenant_id, digest=bytes(32))
    await agent.until(lambda: any(spool.waiting() for spool in world.core.receipts._spools.values()))
    await world.core.receipts.flush(everything=True)
    assert len(await world.records(acme.tenant_id, "receipts")) == 1
    (refused,) = await world.records("", "access.denied")
    assert "ended too long ago" in refused.reasons[0]["message"]


async def test_unrecorded_claims_are_never_forgotten(tmp_path: Path) -> None:
    """What a dead process claimed and never recorded is kept until it is in the log."""
    assert run(tmp_path, "claimed", 3) == -9
    database = Database(url=f"sqlite:///{tmp_path / 'state.db'}")
    for expected in (0, 1):
        forgotten = await database.write(
            lambda tx: ReceiptBatches(tx.connection).forget(before_us=now_us() + DAY_US, limit=10)
        )
        assert forgotten == expected
        await record(tmp_path, [])
    await database.close()
