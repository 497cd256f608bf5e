"""Every way in which the policy engine can fail to give a decision, at the level of OpenSession: nothing is placed."""

import asyncio
import json
import time

import grpc
import pytest

from control_plane.authz.client import ExternalOpa, PolicyClient
from control_plane.authz.connection import BUNDLE_NAME
from tests.simulator.policies import REVISION as SERVED
from tests.simulator.policies import Answer, fake_opa, replying
from tests.simulator.session_world import SessionWorld, code_of, request

pytestmark = pytest.mark.alone

ALLOW = {"allow": True, "reasons": [], "obligations": []}


def reply(result: object, *, revision: str = SERVED) -> bytes:
    """What OPA says when a rule has the value ``result``."""
    return json.dumps({"result": result, "provenance": {"bundles": {BUNDLE_NAME: {"revision": revision}}}}).encode()


def without_result() -> bytes:
    """What OPA says of an undefined rule."""
    return json.dumps({"provenance": {"bundles": {BUNDLE_NAME: {"revision": SERVED}}}}).encode()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the question and never answer."""
    await reader.read(65_536)
    await asyncio.sleep(30)


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the question and hang up in the middle of the reply."""
    await reader.read(65_536)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{")
    await writer.drain()


async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with something that is not HTTP."""
    await reader.read(65_536)
    writer.write(bytes(range(256)) * 4)
    await writer.drain()


ERRORS: dict[str, Answer] = {
    "slow": silent,
    "hangs up": hanging_up,
    "noise": noise,
    "not JSON": replying(b"<html>gateway</html>"),
    "empty": replying(b""),
    "undefined": replying(without_result()),
    "empty object": replying(b"{}"),
    "null": replying(reply(None)),
    "a bare true": replying(reply(True)),
    "allow is a string": replying(reply({**ALLOW, "allow": "true"})),
    "allow with a reason to deny": replying(
        reply({**ALLOW, "reasons": [{"code": "TENANT_INACTIVE", "policy": "tenancy", "message": "no"}]})
    ),
    "deny without a reason": replying(reply({**ALLOW, "allow": False})),
    "another key beside": replying(reply({**ALLOW, "admin": True})),
    "another bundle": replying(reply(ALLOW, revision="ef" * 32)),
    "no provenance": replying(json.dumps({"result": ALLOW}).encode()),
    "HTTP 500": replying(reply(ALLOW), status="500 Internal Server Error"),
    "a redirect": replying(b"", status="302 Found", headers="location: http://127.0.0.1:1/"),
    "endless": replying(b'{"x":"' + b"a" * 2_000_000 + b'"}'),
}


@pytest.fixture
async def world(world: SessionWorld) -> SessionWorld:
    """The same with a tenant and a tray."""
    await world.tenant("acme")
    await world.agent()
    return world


async def refused(world: SessionWorld, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> tuple[grpc.StatusCode, str]:
    """Open a session under an engine that answers so; return status and code after checking that nothing happened."""
    tenant = world.callers["acme"].tenant_id
    async with fake_opa(answer) as connection:
        policy = PolicyClient(engine=ExternalOpa(connection=connection))
        monkeypatch.setattr(world.policy, "decide", policy.decide)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.open("acme", request())
        assert time.monotonic() - began < 2.0
    assert world.core.book.all() == ()
    assert not world._agents[0].commands
    assert not await world.records(tenant, "outcome")
    return error.value.code(), code_of(error.value)


@pytest.mark.parametrize("answer", ERRORS.values(), ids=ERRORS)
async def test_no_well_formed_decision_opens_nothing(world, monkeypatch, answer) -> None:
    """UNAVAILABLE POLICY_ENGINE within 2 s, a decision record that says `error`, nothing placed, the slot free."""
    tenant = world.callers["acme"].tenant_id
    assert await refused(world, monkeypatch, answer) == (grpc.StatusCode.UNAVAILABLE, "POLICY_ENGINE")
    assert [record.decision for record in await world.records(tenant, "decision")] == ["error"]
    monkeypatch.undo()
    assert (await world.open("acme", request())).grant.session_id
    assert world.policy.asked[-1].context.tenant.sessions_open == 0


@pytest.mark.parametrize("obligation", [{"type": "watermark"}, {"type": "min_tier", "tier": "gpu", "and": "more"}])
async def test_an_unknown_obligation_is_denied(world, monkeypatch, obligation) -> None:
    """PERMISSION_DENIED OBLIGATION_UNKNOWN, recorded as a deny; a known one with a word more is unknown too."""
    tenant = world.callers["acme"].tenant_id
    answer = replying(reply({**ALLOW, "obligations": [obligation]}))
    status, code = await refused(world, monkeypatch, answer)
    recorded = [record.decision for record in await world.records(tenant, "decision")]
    assert (status, code, recorded) == (grpc.StatusCode.PERMISSION_DENIED, "OBLIGATION_UNKNOWN", ["deny"])


async def test_a_plain_deny_is_denied(world, monkeypatch) -> None:
    """PERMISSION_DENIED POLICY_DENIED, a decision record that says `deny`, nothing placed."""
    tenant = world.callers["acme"].tenant_id
    reasons = [{"code": "MODEL_NOT_ENTITLED", "policy": "tenancy", "message": "The tenant may not use this model."}]
    answer = replying(reply({"allow": False, "reasons": reasons, "obligations": []}))
    assert await refused(world, monkeypatch, answer) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")
    assert [record.decision for record in await world.records(tenant, "decision")] == ["deny"]


async def test_the_answers_above_differ_from_one_that_opens(world, monkeypatch) -> None:
    """The same engine with a well-formed allow opens a session: what the other tests send fails for its own reason."""
    async with fake_opa(replying(reply(ALLOW))) as connection:
        monkeypatch.setattr(world.policy, "decide", PolicyClient(engine=ExternalOpa(connection=connection)).decide)
        assert (await world.open("acme", request())).grant.session_id
