"""A real agent with real workers on a simulated tray: orders, leases, revocations, and what happens when things die."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bulkhead.attestation.tiers import Tier
from bulkhead.client.status import Peer, error_from_rpc
from bulkhead.errors import BulkheadError, TruncatedError
from bulkhead.ids import COMMAND, PARTITION, TENANT, new_id
from bulkhead.protocol.client import ClientEvent
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import Delta, EmbedRequest, End, Failure, encode_embed_request
from bulkhead.protocol.receipts import SignedReceipt
from bulkhead.v1 import inference_pb2
from service.bulkhead_fleet.v1 import fleet_pb2
from tests.simulator.tray import Placed, Tray, is_alive, kill, running_tray, worker_pids

pytestmark = [pytest.mark.alone, pytest.mark.asyncio(loop_scope="module")]

LONG = {"max_tokens": 400, "temperature": 1.0, "seed": 3, "ignore_eos": True}  # hundreds of milliseconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tray(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tray]:
    async with running_tray(tmp_path_factory.mktemp("tray")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def placed(tray: Tray) -> Placed:
    """One partition of tier mig that tests leave as they found it."""
    uuid = tray.plane.hellos[-1].inventory.gpus[0].uuid
    return await tray.place(
        tier=Tier.MIG, gpu_uuids=[uuid], mig_profile_id=9, memory_slice_start=4, memory_slices=4, memory_mib=142_104
    )


def failure(result: fleet_pb2.Result) -> str:
    assert result.WhichOneof("result") == "failure", result
    return result.failure.code


async def code_of(call: Any) -> str:
    """Return our code of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return error_from_rpc(caught.value, Peer.WORKER).code


def steps(tray: Tray, partition_id: str) -> list[tuple[str, str]]:
    events = [event for event in tray.plane.of_kind("partition") if event.partition_id == partition_id]
    return [(event.partition.from_state, event.partition.to_state) for event in events]


async def test_the_greeting_tells_what_the_tray_is(tray: Tray) -> None:
    """The agent shows its identity, a simulated GB300 tray with its geometry, and its evidence key."""
    hello = tray.plane.hellos[0]
    assert tray.plane.peers[0] == (f"spiffe://test.bulkhead/agent/{hello.agent_id}",)
    assert hello.inventory.simulated
    assert hello.inventory.evidence_kind == "simulated"
    assert len(hello.inventory.gpus) == 4
    assert {profile.profile_id for profile in hello.inventory.mig_profiles} == {19, 20, 15, 14, 9, 5, 0}
    assert len(hello.evidence_public_key) == 32


async def test_a_verified_session_gets_an_answer_and_the_log_its_receipt(tray: Tray, placed: Placed) -> None:
    """Evidence, ticket, sealed request, streamed answer, verified receipt; its digest reaches the control plane."""
    session = await tray.session(placed, seed=1)
    answer = await session.ask("hello", max_tokens=12)
    assert isinstance(answer.end, End)
    assert answer.complete is not None
    assert answer.complete.receipt.simulated
    assert answer.complete.receipt.tier is Tier.MIG
    digest = answer.complete.signed.digest
    await tray.plane.until(lambda: digest in [event.receipt.receipt_digest for event in tray.plane.of_kind("receipt")])
    event = next(e.receipt for e in tray.plane.of_kind("receipt") if e.receipt.receipt_digest == digest)
    assert (event.session_id, event.tenant_id, event.status) == (session.session_id, placed.tenant, "ok")
    assert event.completion_tokens == answer.tokens
    await session.close()


async def test_requests_share_a_batch(tray: Tray, placed: Placed) -> None:
    """Several requests of two sessions run at once, each with the answer that it gets alone."""
    first, second = await tray.session(placed, seed=2), await tray.session(placed, seed=3)
    alone = [await session.ask(text, max_tokens=40) for session, text in ((first, "one"), (second, "two"))]
    together = await asyncio.gather(
        *(session.ask(text, max_tokens=40) for session, text in ((first, "one"), (second, "two")) * 2)
    )
    assert [answer.text for answer in together] == [alone[0].text, alone[1].text] * 2
    await first.close()
    await second.close()


async def test_prompts_beyond_the_context_are_refused_under_the_seal(tray: Tray, placed: Placed) -> None:
    """A prompt that is too long gets a sealed CONTEXT_LENGTH and a receipt; so does an impossible max_tokens."""
    session = await tray.session(placed, seed=4)
    for text, options in (("x" * 2000, {}), ("y" * 300, {"max_tokens": 400})):
        answer = await session.ask(text, **options)
        assert isinstance(answer.end, Failure)
        assert answer.end.code == "CONTEXT_LENGTH"
        assert answer.complete is not None
    await session.close()


async def test_embedding_needs_an_encoder(tray: Tray, placed: Placed) -> None:
    """Embed on a chat model is a sealed UNSUPPORTED with a receipt."""
    session = await tray.session(placed, seed=5)
    payload = encode_embed_request(EmbedRequest(inputs=("a text",)))
    request = session.client.begin(Method.EMBED, payload, now_s=int(time.time()))
    message = inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks)
    found = [event async for event in session.events(request, session.stub.Embed(message, timeout=20))]
    assert [event.code for event in found if isinstance(event, Failure)] == ["UNSUPPORTED"]
    assert request.complete
    await session.close()


async def test_a_cancelled_request_leaves_a_receipt(tray: Tray, placed: Placed) -> None:
    """When the client goes away mid-stream the engine stops, and the receipt of what ran can be fetched."""
    session = await tray.session(placed, seed=6)
    request = session.begin("tell me a lot", **LONG)
    call = session.call(request)
    async for _ in session.events(request, call):
        break
    call.cancel()
    fetch = inference_pb2.GetReceiptRequest(
        ticket=session.client.grant.ticket,
        request_id=request.request_id,
        signature=session.client.sign_receipt_fetch(request.request_id),
    )
    async with asyncio.timeout(10):
        while True:
            try:
                found = await session.stub.GetReceipt(fetch, timeout=5)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.05)
    signed = SignedReceipt(receipt=found.receipt, signature=found.signature)
    receipt = session.client.check_fetched_receipt(signed, request_id=request.request_id)
    assert receipt.status.value == "cancelled"
    assert receipt.usage.completion_tokens < LONG["max_tokens"]
    await session.close()


async def test_without_a_lease_nothing_begins_and_service_returns_by_itself(tray: Tray, placed: Placed) -> None:
    """When the control plane stops vouching requests are refused as AUDIT_LEASE_EXPIRED; with it they are served."""
    session = await tray.session(placed, seed=7)
    tray.plane.granting = False
    tray.plane.send(tray.plane.lease(valid_s=0))
    await asyncio.sleep(0.6)
    assert await code_of(session.call(session.begin())) == "AUDIT_LEASE_EXPIRED"
    tray.plane.granting = True
    await asyncio.sleep(0.8)
    assert (await session.ask("hello", max_tokens=4)).complete is not None
    await session.close()


async def test_a_revocation_ends_a_running_stream_and_the_session(tray: Tray, placed: Placed) -> None:
    """A revoked session's answer ends with TICKET_REVOKED within a second; its ticket is refused and that reported."""
    session, other = await tray.session(placed, seed=8), await tray.session(placed, seed=9)
    request = session.begin("tell me a lot", **LONG)
    found: list[ClientEvent] = []
    async for event in session.events(request):
        if not found:
            tray.plane.revoked = [session.session_id]
            tray.plane.send(tray.plane.lease())
        found.append(event)
    assert [event.code for event in found if isinstance(event, Failure)] == ["TICKET_REVOKED"]
    assert await code_of(session.call(session.begin())) == "TICKET_REVOKED"
    await tray.plane.until(
        lambda: [e for e in tray.plane.of_kind("refusal") if e.refusal.session_id == session.session_id]
    )
    assert (await other.ask("hello", max_tokens=4)).complete is not None
    tray.plane.revoked = []
    await session.close()
    await other.close()


async def test_orders_that_cannot_be_carried_out_fail_typed(tray: Tray, placed: Placed) -> None:
    """Taken or unknown places, unknown models, strange tiers, late and overtaken orders: a code, and nothing left."""
    uuid = tray.plane.hellos[-1].inventory.gpus[0].uuid
    tenant = new_id(TENANT)

    async def code(**changes: Any) -> str:
        timeout_s = changes.pop("timeout_s", 60)
        order = tray.create_order(tenant=tenant, **changes)
        return failure(await tray.plane.order(partition_id=new_id(PARTITION), create=order, timeout_s=timeout_s))

    mig = {"tier": Tier.MIG, "gpu_uuids": [uuid], "mig_profile_id": 9, "memory_slices": 4}
    assert await code(**mig, memory_slice_start=4) == "CONFLICT"
    assert await code(**mig, memory_slice_start=1) == "INVALID_REQUEST"
    assert await code(tier=Tier.GPU, gpu_uuids=["GPU-elsewhere"]) == "INVALID_REQUEST"
    assert await code(tier=Tier.CONFIDENTIAL) == "INVALID_REQUEST"
    assert await code(model_path="no-such-model") == "CONFIG"
    assert await code(model_path="../../etc") == "INVALID_REQUEST"
    assert await code(timeout_s=-1) == "DEADLINE_EXCEEDED"
    overtaken = await tray.plane.order(
        partition_id=placed.partition_id, fence=0, release=fleet_pb2.Release(reason="late")
    )
    assert failure(overtaken) == "CONFLICT"


async def test_a_model_with_another_digest_is_not_served(tray: Tray) -> None:
    """The worker computes the digest itself; files that are not the registered ones are a failure, and undone."""
    partition_id = new_id(PARTITION)
    order = tray.create_order(tenant=new_id(TENANT), model_digest=bytes(32))
    result = await tray.plane.order(partition_id=partition_id, create=order)
    assert failure(result) == "CONFIG"
    assert "digest" in result.failure.message
    assert not (tray.run / partition_id.rpartition("_")[2]).exists()
    again = await tray.plane.order(
        partition_id=partition_id, fence=2, release=fleet_pb2.Release(reason="undo", drain_until_unix_ms=0)
    )
    assert again.released.scrubbed


async def test_a_repeated_command_is_answered_from_memory(tray: Tray, placed: Placed) -> None:
    """The same command id gives the same evidence, byte for byte; another id gives other evidence."""
    order = fleet_pb2.Attest(nonce=bytes(32), session_context=b"c", not_after_unix_s=int(time.time()) + 60)
    command_id = new_id(COMMAND)
    first = await tray.plane.order(partition_id=placed.partition_id, command_id=command_id, attest=order)
    second = await tray.plane.order(partition_id=placed.partition_id, command_id=command_id, attest=order)
    assert first.attested.evidence == second.attested.evidence


async def test_an_open_stream_survives_the_control_plane(tray: Tray, placed: Placed) -> None:
    """While the control plane is away a running answer completes; its receipt is reported once that is back."""
    session = await tray.session(placed, seed=10)
    port = tray.plane.port
    request = session.begin("tell me a lot", **LONG)
    found: list[ClientEvent] = []
    async for event in session.events(request):
        if not found:
            await tray.plane.stop()
        found.append(event)
    assert request.complete
    digest = request.end_of_stream().digest
    assert digest not in [event.receipt.receipt_digest for event in tray.plane.of_kind("receipt")]
    await tray.plane.start(port=port)
    await tray.plane.connected()
    await tray.plane.until(lambda: digest in [event.receipt.receipt_digest for event in tray.plane.of_kind("receipt")])
    assert sorted(tray.plane.events) == list(range(1, max(tray.plane.events) + 1))
    assert [status.partition_id for status in tray.plane.hellos[-1].partitions] == [placed.partition_id]
    assert tray.plane.hellos[-1].boot_id == tray.plane.hellos[0].boot_id
    await session.close()


async def test_a_worker_that_dies_mid_stream_loses_and_frees_its_partition(tray: Tray, placed: Placed) -> None:
    """The client sees a cut stream that never looks whole; the partition is lost, scrubbed, free; another can be made.

    This is the last test of the shared partition.
    """
    session = await tray.session(placed, seed=11)
    assert tray.process is not None
    (pid,) = worker_pids(tray.process.pid)
    request = session.begin("tell me a lot", **LONG)

    async def read() -> None:
        deltas = 0
        async for event in session.events(request):
            deltas += isinstance(event, Delta)
            if deltas == 1:
                kill(pid)

    with pytest.raises(grpc.aio.AioRpcError):
        await read()
    assert not request.complete
    with pytest.raises((TruncatedError, BulkheadError)):
        request.end_of_stream()
    await tray.plane.until(lambda: ("scrubbing", "free") in steps(tray, placed.partition_id))
    assert steps(tray, placed.partition_id) == [("ready", "lost"), ("lost", "scrubbing"), ("scrubbing", "free")]
    released = await tray.release(placed)
    assert released.released.scrubbed
    assert not (tray.run / placed.partition_id.rpartition("_")[2]).exists()
    await session.close()


async def test_an_agent_that_dies_takes_its_workers_along_and_its_successor_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After kill -9 a running answer fails closed and the worker exits; the next agent frees and reports the place.

    Its spool is the same one, its evidence key too, and on SIGTERM a running answer finishes and nothing is left.
    """
    async with running_tray(tmp_path_factory.mktemp("mortal")) as tray:
        placed = await tray.place()
        session = await tray.session(placed, seed=12)
        assert tray.process is not None
        (pid,) = worker_pids(tray.process.pid)
        request = session.begin("tell me a lot", **LONG)
        killed = False
        try:
            async for _ in session.events(request):
                if not killed:
                    killed = True
                    await tray.kill_agent()
        except grpc.aio.AioRpcError as error:
            assert error.code() is not grpc.StatusCode.OK  # noqa: PT017  the ingress died with the agent
        assert not request.complete
        async with asyncio.timeout(10):
            while is_alive(pid):  # noqa: ASYNC110  it is no child of this process
                await asyncio.sleep(0.05)
        await session.close()
        await tray.start_agent()
        hello, before = tray.plane.hellos[-1], tray.plane.hellos[0]
        assert (hello.spool_id, hello.evidence_public_key) == (before.spool_id, before.evidence_public_key)
        assert hello.boot_id != before.boot_id
        assert list(hello.partitions) == []
        await tray.plane.until(lambda: ("lost", "free") in steps(tray, placed.partition_id))
        assert list((tray.run / "partitions").iterdir()) == []

        again = await tray.place()
        session = await tray.session(again, seed=13)
        request = session.begin("tell me a lot", **LONG)
        found: list[ClientEvent] = []
        async for event in session.events(request):
            if not found:
                tray.process.terminate()
            found.append(event)
        assert request.complete
        assert await tray.process.wait() == 0
        digest = request.end_of_stream().digest
        assert digest in [event.receipt.receipt_digest for event in tray.plane.of_kind("receipt")]
        assert worker_pids(tray.process.pid) == []
        assert [path.name for path in tray.run.rglob("*") if path.is_file() or path.is_socket()] == []
        await session.close()


async def test_a_plain_host_gives_operator_evidence(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On the host backend nothing is simulated: tier process, operator evidence, verified outside development mode."""
    async with running_tray(tmp_path_factory.mktemp("host"), backend="host") as tray:
        inventory = tray.plane.hellos[0].inventory
        assert (inventory.simulated, inventory.evidence_kind, list(inventory.tiers)) == (False, "operator", ["process"])
        placed = await tray.place(tenant=new_id(TENANT))
        session = await tray.session(placed, seed=14)
        answer = await session.ask("hello", max_tokens=4)
        assert answer.complete is not None
        assert not answer.complete.receipt.simulated
        await session.close()
