"""What people get wrong: credentials, names, prompts, limits. Each is a clear typed error, and never a stack trace."""

import asyncio
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead import ids
from bulkhead.client.generation import Answer
from bulkhead.client.session import AsyncSession
from bulkhead.errors import ContextLengthError, DeadlineError, InvalidRequestError
from bulkhead.protocol.context import Method
from bulkhead.v1 import common_pb2, tenancy_pb2, tenancy_pb2_grpc
from scripts.local_platform import LocalPlatform
from tests.simulator.live import bearer, channel, check_text, cli, client, open_request, profile_of, refusal
from tests.simulator.session_world import code_of

pytestmark = pytest.mark.e2e

CONTEXT_TOKENS = 512  # of the tiny model, one token a byte
ANSWER_S = 10.0


@pytest.fixture(scope="module")
def principal(platform: LocalPlatform) -> str:
    """A developer of acme's that other tests do not use."""
    made = platform.admin("principal", "create", "bad-input", "--tenant", "acme", "--role", "developer")
    return str(made["principal_id"])


@pytest.fixture
def make_key(platform: LocalPlatform, principal: str, tmp_path: Path) -> Callable[[], tuple[str, str]]:
    """Make an API key of the principal; give its credential id and the key."""

    def make() -> tuple[str, str]:
        path = tmp_path / f"{ids.new_id(ids.REQUEST)}.key"
        made = platform.admin("key", "create", principal, "--out", str(path))
        return str(made["credential_id"]), path.read_text().strip()

    return make


async def expiring_key(platform: LocalPlatform, principal: str) -> str:
    """Return a key whose second of life has passed."""
    admin = profile_of(platform, "admin").api_key
    assert admin is not None
    async with channel(platform) as opened:
        made = await tenancy_pb2_grpc.TenancyAdminServiceStub(opened).CreateApiKey(
            tenancy_pb2.CreateApiKeyRequest(request_id=ids.new_id(ids.REQUEST), principal_id=principal, lifetime_s=1),
            metadata=bearer(admin),
            timeout=20,
        )
    await asyncio.sleep(1.1)  # the time that is up, not something to be waited for
    return str(made.api_key)


def other_secret(key: str) -> str:
    """Return the same credential with another secret."""
    return key[:-4] + ("AAAA" if not key.endswith("AAAA") else "BBBA")


@pytest.mark.parametrize("state", ["wrong", "expired", "revoked", "missing"])
async def test_a_credential_that_does_not_hold(
    platform: LocalPlatform, principal: str, make_key: Callable[[], tuple[str, str]], tmp_path: Path, state: str
) -> None:
    """A wrong, expired, revoked or absent credential each has its own code, in the SDK and on the command line."""
    credential_id, key = make_key()
    async with client(platform, api_key=key) as opened, opened.open_session():
        pass  # the key was good
    code, used = {
        "wrong": ("CREDENTIAL_INVALID", other_secret(key)),
        "expired": ("CREDENTIAL_EXPIRED", key),
        "revoked": ("CREDENTIAL_REVOKED", key),
        "missing": ("CREDENTIAL_MISSING", None),
    }[state]
    if state == "revoked":
        platform.admin("key", "revoke", credential_id)
    elif state == "expired":
        used = await expiring_key(platform, principal)
    async with client(platform, api_key=used) as opened:
        error, seconds = await refusal(opened.open_session())
    assert (error.code, seconds < ANSWER_S) == (code, True)
    if used is None:
        return  # a profile without a credential does not load
    done = chat_with(platform, tmp_path, used)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error {code}: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert used not in done.stderr + done.stdout


def chat_with(platform: LocalPlatform, directory: Path, key: str) -> Any:
    """Run `bulkhead chat` with another API key."""
    (directory / "other.key").write_text(key)
    (directory / "other.key").chmod(0o600)
    text = platform.client_config.read_text().replace('"acme.key"', f'"{directory}/other.key"')
    text = re.sub(r'= "([a-z-]+\.key)"', rf'= "{platform.client_config.parent}/\1"', text)
    (directory / "config.toml").write_text(text)
    return cli(platform, "acme", "bulkhead", "--config", str(directory / "config.toml"), "chat", "hello")


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("gpt-5", "MODEL_UNKNOWN"),
        ("Tiny", "INVALID_REQUEST"),
        ("../../etc/passwd", "INVALID_REQUEST"),
        ("tiny'; drop table models; --", "INVALID_REQUEST"),
        ("t" * 100_000, "INVALID_REQUEST"),
        ("tiny\x1b[2J", "INVALID_REQUEST"),
        ("ťiny", "INVALID_REQUEST"),
    ],
    ids=["unknown", "case", "path", "sql", "long", "escape", "accent"],
)
async def test_a_model_that_is_not_there(platform: LocalPlatform, model: str, code: str) -> None:
    """An unknown model is MODEL_UNKNOWN, what cannot be a name INVALID_REQUEST; neither opens anything."""
    async with client(platform) as opened:
        error, seconds = await refusal(opened.open_session(model=model))
    assert (error.code, seconds < ANSWER_S) == (code, True)
    assert len(error.message) < 1_000


async def bad_open(platform: LocalPlatform, **changes: Any) -> str:
    """Send a request to open a session that the SDK would not send; return the code of its refusal."""
    key = profile_of(platform, "acme").api_key
    async with channel(platform) as opened:
        call = opened.unary_stream("/bulkhead.v1.SessionService/OpenSession")(
            open_request(**changes).SerializeToString(), metadata=bearer(key or ""), timeout=20
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    check_text(caught.value.details() or "")
    assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}
    return code_of(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": ""},
        {"request_id": "req_1"},
        {"request_id": "sess_01h455vb4pex5vsknk084sn02q"},
        {"model": ""},
        {"session_public_key": b""},
        {"session_public_key": b"k" * 33},
        {"nonce": b"n" * 31},
        {"nonce": b"n" * 1_000_000},
        {"minimum_tier": 99},
        {"padding": "strictest"},
        {"region": "mars\n"},
        {"region": "r" * 100_000},
        {"purpose": "a\x00b"},
        {"data_classes": ["phi"] * 50_000},
        {"data_classes": ["a class of its own"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_an_open_out_of_bounds(platform: LocalPlatform, changes: dict[str, Any]) -> None:
    """What a hostile client sends to OpenSession in each field is INVALID_REQUEST."""
    assert await bad_open(platform, **changes) == "INVALID_REQUEST"


REFUSED_BY_THE_ENGINE: dict[str, dict[str, Any]] = {
    "schema that nothing satisfies": {"json_schema": '{"type": "integer", "minimum": 5, "maximum": 3}'},
    "schema that is none": {"json_schema": "{"},
    "expression that is none": {"regex": "(((a"},
    "at the context": {"messages": [], "prompt": "x" * CONTEXT_TOKENS},
    "above the context": {"messages": [], "prompt": "x" * (CONTEXT_TOKENS + 1)},
    "far above the context": {"messages": [], "prompt": "x" * 500_000},
    "token that is none": {"stop_token_ids": (100_000,)},
}


@pytest.fixture
async def session(platform: LocalPlatform) -> Any:
    """An open session."""
    async with client(platform) as opened, opened.open_session() as session:
        yield session


async def still_serves(session: AsyncSession) -> None:
    """Fail unless the session answers."""
    assert (await session.generate_text("hello", max_tokens=4)).receipt.status == "ok"


async def test_a_prompt_longer_than_the_context(platform: LocalPlatform, session: AsyncSession) -> None:
    """CONTEXT_LENGTH comes from inside the seal, with a receipt that says `failed`; the session serves on."""
    generation = session.generate("x" * (2 * CONTEXT_TOKENS))
    with pytest.raises(ContextLengthError) as caught:
        async for _ in generation:
            pass
    assert not isinstance(caught.value.__cause__, grpc.RpcError)  # the status outside the seal does not tell
    check_text(caught.value.message)
    receipt, _ = await session.fetch_receipt(generation.request_id)
    assert receipt.status == "failed"
    await still_serves(session)
    done = cli(platform, "acme", "bulkhead", "chat", "x" * (2 * CONTEXT_TOKENS))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error CONTEXT_LENGTH: ")


async def test_a_prompt_that_leaves_less_room_than_asked_for(session: AsyncSession) -> None:
    """Prompt plus max_tokens above the context is CONTEXT_LENGTH or a shorter answer that says `length`; no hang."""
    try:
        whole = await session.generate_text("x" * (CONTEXT_TOKENS - 60), max_tokens=500)
    except ContextLengthError:
        pass
    else:
        assert whole.usage.prompt_tokens + whole.usage.completion_tokens <= CONTEXT_TOKENS
    await still_serves(session)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 2**40},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -2},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ("x",) * 1_000},
        {"messages": "half a character: \ud800"},
        {"messages": []},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_limits_that_make_no_sense(session: AsyncSession, options: dict[str, Any]) -> None:
    """Zero, negative, endless and undefined limits are INVALID_REQUEST before anything is sent."""
    with pytest.raises(InvalidRequestError) as caught:
        session.generate(**({"messages": "hello"} | options))
    assert caught.value.code == "INVALID_REQUEST"
    assert next(iter(options)) in caught.value.message


async def test_no_token_at_all_is_an_answer_where_the_prompt_is_wanted(session: AsyncSession) -> None:
    """With echo nothing need be produced: the prompt comes back, with a receipt that counts no completion."""
    whole = await session.generate_text("hello", max_tokens=0, echo=True)
    assert "hello" in whole.text
    assert whole.finish_reason == "length"
    assert whole.usage.prompt_tokens > 0
    assert whole.usage.completion_tokens == 0
    await still_serves(session)


async def test_what_the_engine_refuses_costs_nobody_else(session: AsyncSession) -> None:
    """Beside a running answer each bad request is a sealed, typed error; the answer is what it is alone."""
    alone = await session.generate_text("hello", max_tokens=60, ignore_eos=True)
    for name, options in REFUSED_BY_THE_ENGINE.items():
        running = asyncio.create_task(session.generate_text("hello", max_tokens=60, ignore_eos=True))
        with pytest.raises(InvalidRequestError) as caught:
            await session.generate_text(**({"messages": "hello"} | options))
        assert isinstance(caught.value, ContextLengthError) is ("context" in name), name
        check_text(caught.value.message)
        assert (await running).text == alone.text, name


async def test_a_request_past_its_time_ends_and_others_go_on(session: AsyncSession) -> None:
    """A time limit that cannot be kept is DEADLINE_EXCEEDED from inside the seal, with a receipt; others are whole."""
    running = asyncio.create_task(session.generate_text("hello", max_tokens=60, ignore_eos=True))
    generation = session.generate("hello", max_tokens=400, ignore_eos=True, timeout_s=1e-6)
    with pytest.raises(DeadlineError):
        async for _ in generation:
            pass
    assert (await session.fetch_receipt(generation.request_id))[0].code == "DEADLINE_EXCEEDED"
    assert (await running).usage.completion_tokens == 60


@pytest.mark.parametrize("number", [-1, 2**32, 2**70])
async def test_output_limits_of_a_session(platform: LocalPlatform, number: int) -> None:
    """A negative or absurd limit of a session is INVALID_REQUEST; nothing is sent."""
    async with client(platform) as opened:
        with pytest.raises(InvalidRequestError):
            opened.open_session(max_output_tokens=number)


HOSTILE: dict[str, bytes] = {
    "zero": b'{"max_tokens":0,"messages":[{"content":"a","role":"user"}]}',
    "negative": b'{"max_tokens":-1,"messages":[{"content":"a","role":"user"}]}',
    "fraction": b'{"max_tokens":1.5,"messages":[{"content":"a","role":"user"}]}',
    "text": b'{"max_tokens":"4","messages":[{"content":"a","role":"user"}]}',
    "true": b'{"max_tokens":true,"messages":[{"content":"a","role":"user"}]}',
    "endless number": b'{"max_tokens":' + b"9" * 5_000 + b',"messages":[{"content":"a","role":"user"}]}',
    "infinite": b'{"messages":[{"content":"a","role":"user"}],"temperature":1e999}',
    "not a number": b'{"messages":[{"content":"a","role":"user"}],"temperature":NaN}',
    "no message": b'{"messages":[]}',
    "another role": b'{"messages":[{"content":"a","role":"root"}]}',
    "unknown field": b'{"messages":[{"content":"a","role":"user"}],"sudo":true}',
    "twice": b'{"max_tokens":1,"max_tokens":2,"messages":[{"content":"a","role":"user"}]}',
    "deep": b"[" * 100_000,
    "half a character": b'{"messages":[{"content":"\\ud800","role":"user"}]}',
    "not UTF-8": b'{"messages":[{"content":"\xff\xfe","role":"user"}]}',
    "not JSON": b"\x00\x01\x02",
    "nothing": b"",
    "empty prompt": b'{"prompt":""}',
    "empty stop string": b'{"prompt":"a","stop":[""]}',
    "rank beyond all": b'{"priority":1000,"prompt":"a"}',
    "no time": b'{"prompt":"a","timeout_s":0}',
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
async def test_a_sealed_request_that_the_sdk_would_not_make(session: AsyncSession, payload: bytes) -> None:
    """A correctly sealed request with nonsense inside gets a typed error from inside the seal; the worker serves on."""
    answer = Answer(keeper=session._keeper, method=Method.GENERATE, payload=payload, stall_s=10.0)
    with pytest.raises(InvalidRequestError) as caught:
        async for _ in answer.events():
            pass
    assert caught.value.code in {"INVALID_REQUEST", "MALFORMED_REQUEST"}
    check_text(caught.value.message)
    await still_serves(session)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("bulkhead", "chat", "hi", "--max-tokens", "0"), 2),
        (("bulkhead", "chat", "hi", "--max-tokens", "-5"), 2),
        (("bulkhead", "chat", "hi", "--tier", "platinum"), 2),
        (("bulkhead", "chat", "hi", "--model", "gpt-5"), 1),
        (("bulkhead", "chat", "hi", "--tier", "confidential"), 1),
        (("bulkhead", "--profile", "nobody", "chat", "hi"), 2),
        (("bulkhead", "session", "show", "sess_01h455vb4pex5vsknk084sn02q"), 1),
        (("bulkhead", "session", "show", "nonsense"), 1),
        (("bulkhead", "audit", "verify", "/dev/null"), 1),
        (("bulkhead", "audit", "verify", "/no/such/file"), 2),
        (("bulkhead", "frobnicate"), 2),
        (("bulkhead-admin", "tenant", "create", "x", "--session-limit", "0"), 2),
        (("bulkhead-admin", "tenant", "create", "x", "--session-limit", "-1"), 2),
        (("bulkhead-admin", "key", "revoke", "cred_01h455vb4pex5vsknk084sn02q"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exit_codes(platform: LocalPlatform, command: tuple[str, ...], status: int) -> None:
    """1 for what was refused, 2 for wrong usage or configuration; a sentence on standard error, no stack trace."""
    done = cli(platform, "admin" if command[0] == "bulkhead-admin" else "acme", *command)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.strip()


async def test_a_tenant_with_impossible_limits(platform: LocalPlatform) -> None:
    """Zero sessions, or numbers beyond the database's, in a raw CreateTenant are INVALID_REQUEST."""
    admin = profile_of(platform, "admin").api_key
    async with channel(platform) as opened:
        stub = tenancy_pb2_grpc.TenancyAdminServiceStub(opened)
        for limits in (
            {"session_limit": 0, "max_output_tokens": 8},
            {"session_limit": 8, "max_output_tokens": 0},
            {"session_limit": 2**32 - 1, "max_output_tokens": 8},
        ):
            tenant = tenancy_pb2.Tenant(name="impossible", minimum_tier=common_pb2.TIER_MIG, models=["tiny"], **limits)
            request = tenancy_pb2.CreateTenantRequest(request_id=ids.new_id(ids.REQUEST), tenant=tenant)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateTenant(request, metadata=bearer(admin or ""), timeout=20)
            assert code_of(caught.value) == "INVALID_REQUEST"
            check_text(caught.value.details() or "")
