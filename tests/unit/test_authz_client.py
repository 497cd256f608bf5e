import asyncio
import json
import time

import pytest

from bulkhead.errors import PolicyEngineError, UnknownObligationError
from control_plane.authz.client import ExternalOpa, PolicyClient
from control_plane.authz.deadline import within
from tests.simulator import policies
from tests.simulator.policies import fake_opa, replying

pytestmark = pytest.mark.alone

ALLOW = {"allow": True, "reasons": [], "obligations": []}


def reply(result, revision=policies.REVISION):
    return json.dumps({"result": result, "provenance": {"bundles": {"policy": {"revision": revision}}}}).encode()


async def decide(answer, **options):
    async with fake_opa(answer) as connection:
        client = PolicyClient(engine=ExternalOpa(connection=connection), **options)
        return await client.decide(policies.open_session())


async def silence(reader, writer):
    await reader.read()


async def hang_up(reader, writer):
    await reader.read(1)


async def trickle(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def test_a_well_formed_reply_is_a_decision():
    """The decision names the revision of its own reply and the digest of the input that was asked."""
    decision = await decide(replying(reply(ALLOW)))
    assert decision.allow
    assert decision.bundle_digest == policies.REVISION
    assert decision.input_digest == policies.open_session().digest()


async def test_an_unknown_obligation_is_its_own_error():
    """Callers can tell what to record as a deny from what to record as an error."""
    with pytest.raises(UnknownObligationError):
        await decide(replying(reply({**ALLOW, "obligations": [{"type": "notarise"}]})))


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"not json",
        b'{"result": {"allow": true',
        b"[" * 100_000,
        reply(ALLOW).replace(b'"allow": true', b'"allow": false, "allow": true'),
        reply({}),
        reply(ALLOW, revision="cd" * 32),
        reply(ALLOW, revision=""),
        json.dumps({"result": ALLOW}).encode(),
        json.dumps({"result": ALLOW, "provenance": {"bundles": {"other": {"revision": policies.REVISION}}}}).encode(),
        json.dumps({"result": ALLOW, "provenance": {"bundles": {"policy": {"revision": 7}}}}).encode(),
        reply(ALLOW) + b" " * 300_000,
    ],
    ids=range(16),
)
async def test_garbage_is_an_engine_error(body):
    """Undefined, truncated, oversized, ambiguous, or decided by another bundle: no decision."""
    with pytest.raises(PolicyEngineError):
        await decide(replying(body))


@pytest.mark.parametrize("status", ["500 Oops", "404 Not Found", "401 Unauthorized", "204 No Content"])
async def test_another_status_is_an_engine_error(status):
    """Only 200 carries a decision."""
    with pytest.raises(PolicyEngineError):
        await decide(replying(reply(ALLOW), status=status))


async def test_a_redirect_is_not_followed():
    """The token goes nowhere else."""
    async with fake_opa(replying(reply(ALLOW))) as elsewhere:
        target = elsewhere._client.root_url
        with pytest.raises(PolicyEngineError):
            await decide(replying(b"", status="307 Elsewhere", headers=f"location: {target}"))


@pytest.mark.parametrize("answer", [hang_up, replying(b"x", status="HTTP?")])
async def test_a_broken_peer_is_an_engine_error(answer):
    """A peer that hangs up or does not speak HTTP gives the one typed error."""
    with pytest.raises(PolicyEngineError):
        await decide(answer)


@pytest.mark.parametrize("answer", [silence, trickle])
async def test_a_slow_engine_is_given_up_within_two_seconds(answer):
    """Silence and a byte at a time end at the deadline."""
    started = time.monotonic()
    with pytest.raises(PolicyEngineError, match="in time"):
        await decide(answer)
    assert 1.4 < time.monotonic() - started < 2.0


async def test_those_who_wait_behind_a_dead_engine_fail_with_it():
    """A line of callers does not serve one time-out after the other."""
    async with fake_opa(silence) as connection:
        client = PolicyClient(engine=ExternalOpa(connection=connection), deadline_s=0.3, max_in_flight=2)
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(client.decide(policies.open_session()) for _ in range(20)), return_exceptions=True
        )
    assert all(isinstance(outcome, PolicyEngineError) for outcome in outcomes)
    assert time.monotonic() - started < 1.0


async def test_concurrency_and_waiting_are_bounded():
    """At most so many questions are with OPA, so many wait, and the rest is refused at once."""
    now = peak = 0

    async def slow(reader, writer):
        nonlocal now, peak
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.05)
        now -= 1
        body = reply(ALLOW)
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        await writer.drain()

    async with fake_opa(slow) as connection:
        client = PolicyClient(engine=ExternalOpa(connection=connection), max_in_flight=3, max_waiting=5)
        outcomes = await asyncio.gather(
            *(client.decide(policies.open_session()) for _ in range(12)), return_exceptions=True
        )
    refused = [outcome for outcome in outcomes if isinstance(outcome, PolicyEngineError)]
    assert peak == 3
    assert len(refused) == 4  # of 12, three are asked and five wait
    assert all("Too many" in error.message for error in refused)


async def test_a_cancelled_caller_leaves_its_slot():
    """A caller that goes away does not keep others from asking."""
    async with fake_opa(silence) as connection:
        client = PolicyClient(engine=ExternalOpa(connection=connection), max_in_flight=1, deadline_s=0.2)
        gone = asyncio.create_task(client.decide(policies.open_session()))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(PolicyEngineError, match="in time"):
            await client.decide(policies.open_session())


async def test_nobody_listening_is_an_engine_error():
    """A refused connection is told at once."""
    async with fake_opa(silence) as connection:
        pass
    await connection.open()
    client = PolicyClient(engine=ExternalOpa(connection=connection))
    with pytest.raises(PolicyEngineError, match="reached"):
        await client.decide(policies.open_session())
    await connection.close()


async def test_a_busy_loop_does_not_time_out_a_peer_that_answered():
    """The deadline measures the peer: a reply that waited in the socket while this process was busy still counts."""
    async with fake_opa(replying(reply(ALLOW))) as connection:
        client = PolicyClient(engine=ExternalOpa(connection=connection), deadline_s=0.3)
        task = asyncio.create_task(client.decide(policies.open_session()))
        while not connection._client._connector._acquired:  # noqa: ASYNC110 - the pool has no event for it
            await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 - blocking the loop is the case
        assert (await task).allow


async def test_within_ends_what_takes_too_long():
    """The work is cancelled, not left running."""
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.sleep(10)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await within(work(), timeout_s=0.05)
    await asyncio.wait_for(ended.wait(), 1)
