"""Sessions of the SDK against a control plane and a worker on real gRPC."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from bulkhead.attestation import EvidenceKind, SimulatedWorker, Tier, VerifiedWorker
from bulkhead.client import AsyncBulkhead, Bulkhead
from bulkhead.client.transport import RetryPolicy
from bulkhead.errors import (
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    SessionClosedError,
    SimulatedEvidenceError,
    StaleKeyError,
    StateUnavailableError,
    WorkerLostError,
)
from bulkhead.protocol.receipts import ReceiptStatus, verify_signed_receipt
from tests.simulator.fake_platform import ANSWER, running_platform
from tests.simulator.sealed_world import MODEL


async def test_verified_session_answers_and_closes() -> None:
    """A session opens, streams the answer, gives a verified receipt, and is closed at the control plane."""
    steps = []
    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        async with client.open_session(model=MODEL, on_progress=lambda step: steps.append(step.phase)) as session:
            assert isinstance(session.worker, VerifiedWorker)
            assert (session.tier, session.simulated, session.model) == (Tier.GPU, False, MODEL)
            assert session.decision.fields.session == session.session_id
            generation = session.generate("What is the capital of France?", max_tokens=16, seed=7)
            text = [delta.text async for delta in generation]
        assert tuple(text) == ANSWER
        assert generation.finish_reason == "stop"
        assert generation.receipt.status is ReceiptStatus.OK
        assert generation.receipt.request_id == generation.request_id
        assert generation.usage.completion_tokens == 6
        verify_signed_receipt(generation.signed_receipt, key=session.link.grant.keyset.receipt_key)
        assert platform.closed == [session.session_id]
        assert platform.prompts[0].messages[0].content == "What is the capital of France?"
        assert (platform.prompts[0].max_tokens, platform.prompts[0].seed) == (16, 7)
    assert steps == ["decided", "loading"]


async def test_what_is_asked_for_reaches_the_control_plane() -> None:
    """Arguments beat the profile's defaults, and both travel in OpenSession with fresh key and nonce."""
    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        for _ in range(2):
            session = await client.open_session(
                model=MODEL, tier="mig", region="eu", purpose="treatment", data_classes=["phi"], max_output_tokens=9
            )
            await session.close()
    first, second = platform.opens
    assert (first.model, first.minimum_tier, first.region, first.purpose) == (MODEL, 2, "eu", "treatment")
    assert (list(first.data_classes), first.max_output_tokens, first.padding) == (["phi"], 9, "default")
    assert len(first.nonce) == len(first.session_public_key) == 32
    assert first.nonce != second.nonce
    assert first.session_public_key != second.session_public_key
    assert first.request_id != second.request_id


async def test_whole_answer_and_embeddings() -> None:
    """generate_text returns the whole answer with receipt; embed one vector for each input."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        completion = await session.generate_text([{"role": "user", "content": "hi"}])
        embeddings = await session.embed(["a", "bcd"])
    assert completion.text == "".join(ANSWER)
    assert completion.receipt.usage == completion.usage
    assert embeddings.vectors == ((1.0, 1.0), (3.0, 1.0))


async def test_concurrent_requests_share_a_session() -> None:
    """Forty requests at once over one session each get the whole answer: sequence numbers are never shared."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        answers = await asyncio.gather(*(session.generate_text(f"{n}") for n in range(40)))
    assert {answer.text for answer in answers} == {"".join(ANSWER)}
    assert len({answer.request_id for answer in answers}) == 40


async def test_simulated_worker_is_refused_outside_development_mode() -> None:
    """Simulated evidence ends the open with its own error, the session is closed, and no worker is called."""
    async with running_platform(kind=EvidenceKind.SIMULATED) as platform:
        async with AsyncBulkhead(profile=platform.profile(), development_mode=False) as client:
            with pytest.raises(SimulatedEvidenceError):
                await client.open_session(model=MODEL)
        assert platform.closed == [platform.world.session]
        assert platform.worker_calls == 0


async def test_simulated_worker_in_development_mode_is_named_so(caplog: pytest.LogCaptureFixture) -> None:
    """In development mode the worker is a SimulatedWorker, receipts say simulated, and the log warns."""
    with caplog.at_level(logging.WARNING, logger="bulkhead.client"):
        async with (
            running_platform(kind=EvidenceKind.SIMULATED) as platform,
            AsyncBulkhead(profile=platform.profile(), development_mode=True) as client,
            client.open_session(model=MODEL) as session,
        ):
            completion = await session.generate_text("hi")
            assert isinstance(session.worker, SimulatedWorker)
            assert session.simulated
    assert completion.receipt.simulated
    assert "SIMULATED" in caplog.text


@pytest.mark.parametrize("missing", ["tenant_id", "log_vkey", "ticket_issuer"])
async def test_session_needs_its_pins(missing: str) -> None:
    """Without tenant, log key or ticket issuer in the profile nothing is asked for."""
    async with running_platform() as platform:
        async with AsyncBulkhead(profile=platform.profile(**{missing: None})) as client:
            with pytest.raises(ConfigError, match="tenant, log_vkey and ticket_issuer"):
                await client.open_session(model=MODEL)
        assert platform.opens == []


async def test_stale_key_is_healed_once_by_renewal() -> None:
    """When the worker has new keys, the request renews the session and is sent again under the same id."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        await platform.rotate_keys()
        completion = await session.generate_text("hi")
        assert completion.text == "".join(ANSWER)
        assert completion.receipt.request_id == completion.request_id
    assert (platform.renewals, platform.worker_calls) == (1, 2)


async def test_stale_key_is_healed_only_once() -> None:
    """A worker that always says stale ends the request with StaleKeyError after one renewal."""

    async def stale() -> None:
        raise StaleKeyError("no such key")

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.before_answer = stale
        with pytest.raises(StaleKeyError):
            await session.generate_text("hi")
    assert (platform.renewals, platform.worker_calls) == (1, 2)


async def test_broken_connection_under_an_older_grant_is_made_again() -> None:
    """The worker shows newer keys when the connection breaks: the next requests renew once, and nobody notices."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        first = await session.generate_text("hi")
        await platform.reconnect_with_new_keys()
        answers = await asyncio.gather(*(session.generate_text(f"{number}") for number in range(8)))
        assert {answer.text for answer in answers} == {"".join(ANSWER)}
        assert {answer.receipt.keyset_digest for answer in answers} == {platform.world.keys.key_id}
        assert first.receipt.keyset_digest != platform.world.keys.key_id
    assert platform.renewals == 1


async def test_receipt_is_fetched_over_a_new_connection() -> None:
    """After a break the receipt of an earlier request is fetched under the new grant and checked with its own keys."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        completion = await session.generate_text("hi")
        await platform.reconnect_with_new_keys()
        assert await session.fetch_receipt(completion.request_id) == (completion.receipt, completion.signed_receipt)
    assert platform.renewals == 1


async def test_broken_connection_is_an_error_of_its_own_where_it_cannot_be_made_again() -> None:
    """A worker that stays away is WORKER_LOST after one renewal; a renewal that is refused or away says so itself."""

    async def unavailable() -> None:
        raise StateUnavailableError("the control plane is busy")

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile(), retry=RetryPolicy(attempts=1)) as client,
        client.open_session(model=MODEL) as session,
    ):
        (server,) = platform.workers
        await server.stop(None)
        with pytest.raises(WorkerLostError):
            await session.generate_text("hi")
        assert platform.renewals == 1
        platform.before_renew = unavailable
        with pytest.raises(StateUnavailableError):
            await session.generate_text("hi")


async def test_many_stale_requests_renew_once() -> None:
    """Twenty requests that find the key stale together cause one renewal."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        await platform.rotate_keys()
        answers = await asyncio.gather(*(session.generate_text("hi") for _ in range(20)))
    assert {answer.text for answer in answers} == {"".join(ANSWER)}
    assert platform.renewals == 1


async def test_grant_is_renewed_at_half_life() -> None:
    """An idle session renews by itself at half of its ticket's life, with the same worker and a later expiry."""
    async with running_platform() as platform:
        platform.ticket_life_s = 3
        async with (
            AsyncBulkhead(profile=platform.profile()) as client,
            client.open_session(model=MODEL) as session,
        ):
            first = session.expires_unix_s
            platform.ticket_life_s = 300
            await asyncio.sleep(2)
            assert session.expires_unix_s > first
            assert (await session.generate_text("hi")).text == "".join(ANSWER)
    assert platform.renewals == 1


async def test_refused_renewal_is_not_the_last() -> None:
    """A renewal that was refused is made by the next request in need, and from then on in the background again."""

    async def refused() -> None:
        raise PermissionDeniedError("not now")

    async with running_platform() as platform:
        platform.ticket_life_s = 2
        platform.before_renew = refused
        async with (
            AsyncBulkhead(profile=platform.profile()) as client,
            client.open_session(model=MODEL) as session,
        ):
            await asyncio.sleep(2.2)
            platform.before_renew = None
            assert (await session.generate_text("hi")).text == "".join(ANSWER)
            renewed = platform.renewals
            await asyncio.sleep(1.5)
            assert platform.renewals > renewed


async def test_expired_grant_is_renewed_by_the_next_request() -> None:
    """When the background renewal could not be done, the request that finds the ticket expired renews first."""

    async def away() -> None:
        raise StateUnavailableError("database away")

    async with running_platform() as platform:
        platform.ticket_life_s = 2
        platform.before_renew = away
        async with (
            AsyncBulkhead(profile=platform.profile()) as client,
            client.open_session(model=MODEL) as session,
        ):
            await asyncio.sleep(2.2)
            with pytest.raises(StateUnavailableError):
                await session.generate_text("hi")
            platform.before_renew = None
            platform.ticket_life_s = 300
            assert (await session.generate_text("hi")).text == "".join(ANSWER)


async def test_receipt_is_fetched_by_request_id() -> None:
    """The receipt of an earlier request can be had again, verified; an unknown id is NotFoundError."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        completion = await session.generate_text("hi")
        receipt, signed = await session.fetch_receipt(completion.request_id)
        assert (receipt, signed) == (completion.receipt, completion.signed_receipt)
        with pytest.raises(NotFoundError):
            await session.fetch_receipt("req_00000000000000000000000000")


async def test_leaving_early_cancels_the_answer() -> None:
    """Closing a generation after its first delta ends the call at the worker."""
    cancelled = asyncio.Event()

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        honest = platform.respond

        async def watched(at, request):
            try:
                async for message in honest(at, request):
                    yield message
                    await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        platform.respond = watched
        async with session.generate("hi") as generation:
            assert (await anext(generation)).text == ANSWER[0]
        async with asyncio.timeout(5):
            await cancelled.wait()
        with pytest.raises(InvalidRequestError):
            _ = generation.receipt


async def test_closed_session_takes_nothing_more() -> None:
    """After close a request raises SessionClosedError, one in flight too, and close may be repeated."""
    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        session = await client.open_session(model=MODEL)
        platform.pace_s = 5
        running = asyncio.ensure_future(session.generate_text("hi"))
        await asyncio.sleep(0.2)
        await session.close()
        with pytest.raises(SessionClosedError):
            await running
        with pytest.raises(SessionClosedError):
            session.generate("hi")
        await session.close()
        assert platform.closed == [session.session_id]


async def test_closing_the_client_closes_its_sessions() -> None:
    """A session that was left open is closed at the control plane with its client."""
    async with running_platform() as platform:
        async with AsyncBulkhead(profile=platform.profile()) as client:
            session = await client.open_session(model=MODEL)
        assert session.closed
        assert platform.closed == [session.session_id]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"seed": -1},
        {"stop": ("",)},
    ],
)
async def test_bad_arguments_are_refused_before_sending(arguments: dict[str, object]) -> None:
    """A value out of bounds is InvalidRequestError at the call; the worker hears nothing."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        with pytest.raises(InvalidRequestError):
            session.generate("hi", **arguments)  # type: ignore[arg-type]
        for messages in ([], [{"role": "user"}], [{"role": "root", "content": "x"}], "\ud800", "x" * 3_000_000):
            with pytest.raises(InvalidRequestError):
                session.generate(messages)  # type: ignore[arg-type]
    assert platform.worker_calls == 0


async def test_sessions_are_listed_over_pages() -> None:
    """Listing follows page tokens to the end; one session is shown by id, another's id is NotFoundError."""
    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        assert [view.tier async for view in client.sessions()] == ["gpu", "gpu"]
        assert (await client.session(platform.world.session)).state == "open"
        with pytest.raises(NotFoundError):
            await client.session("sess_00000000000000000000000000")


async def test_synchronous_client_serves_several_threads() -> None:
    """Eight threads stream over one synchronous session; each has the whole answer and its receipt."""
    async with running_platform() as platform:

        def work() -> list[str]:
            with Bulkhead(profile=platform.profile()) as client, client.open_session(model=MODEL) as session:

                def one() -> str:
                    generation = session.generate("hi")
                    text = "".join(delta.text for delta in generation)
                    assert generation.receipt.status is ReceiptStatus.OK
                    return text

                with ThreadPoolExecutor(8) as pool:
                    return [future.result() for future in [pool.submit(one) for _ in range(24)]]

        assert set(await asyncio.to_thread(work)) == {"".join(ANSWER)}
        assert len(platform.closed) == 1


async def test_synchronous_client_covers_the_rest() -> None:
    """Whole answers, embeddings, receipts, renewal and lists work without an event loop; errors keep their class."""
    async with running_platform() as platform:

        def work() -> None:
            with Bulkhead(profile=platform.profile()) as client:
                with client.open_session(model=MODEL) as session:
                    completion = session.generate_text("hi")
                    assert session.fetch_receipt(completion.request_id)[0] == completion.receipt
                    assert len(session.embed(["a"]).vectors) == 1
                    session.renew()
                assert [view.state for view in client.sessions()] == ["closed", "closed"]
                with pytest.raises(SessionClosedError):
                    session.generate("hi")

        await asyncio.to_thread(work)
    assert platform.renewals == 1
