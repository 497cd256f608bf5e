"""Wrong input on a running platform: a clear typed error or service, never a hang, never the inside of a program."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from bulkhead.client import AsyncBulkhead, Bulkhead
from bulkhead.client.config import Profile, load_profile
from bulkhead.errors import (
    BulkheadError,
    ContextLengthError,
    CredentialInvalidError,
    CredentialRevokedError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    SessionLimitError,
    UnknownModelError,
)
from scripts.local_platform import BIN, LocalPlatform

pytestmark = pytest.mark.e2e


def _profile(platform: LocalPlatform, name: str = "acme", **changes: object) -> Profile:
    import dataclasses

    return dataclasses.replace(load_profile(name, path=platform.client_config), **changes)  # type: ignore[arg-type]


def test_a_wrong_credential_is_told_and_nothing_more(platform: LocalPlatform) -> None:
    """A key that was never issued is CREDENTIAL_INVALID."""
    key = load_profile("acme", path=platform.client_config).api_key
    assert key is not None
    with (
        Bulkhead(profile=_profile(platform, api_key=key[:-4] + "AAAA")) as client,
        pytest.raises(CredentialInvalidError),
        client.open_session(),
    ):
        pass


def test_a_revoked_key_ends_its_sessions_and_opens_no_more(platform: LocalPlatform, tmp_path: Path) -> None:
    """New calls are CREDENTIAL_REVOKED at once; the open session is refused within 5 s."""
    principal = platform.admin("principal", "create", "leaver", "--tenant", "acme", "--role", "developer")
    credential = platform.admin("key", "create", principal["principal_id"], "--out", str(tmp_path / "leaver.key"))
    key = (tmp_path / "leaver.key").read_text().strip()
    with Bulkhead(profile=_profile(platform, api_key=key)) as client:
        session = client.open_session().__enter__()
        assert session.generate_text("hello", max_tokens=2).usage.completion_tokens > 0
        platform.admin("key", "revoke", credential["credential_id"])
        revoked = time.monotonic()
        with pytest.raises(CredentialRevokedError), client.open_session():
            pass
        while True:
            try:
                session.generate_text("hello", max_tokens=2)
            except BulkheadError as error:
                refused = error
                break
            assert time.monotonic() - revoked < 5.0, "a revoked session is still served"
            time.sleep(0.1)
        assert refused.code in {"TICKET_REVOKED", "SESSION_CLOSED", "CREDENTIAL_REVOKED"}


def test_an_unknown_model_is_named(platform: LocalPlatform) -> None:
    """MODEL_UNKNOWN, from the SDK and on the command line with exit code 1."""
    with (
        Bulkhead.from_profile("acme", path=platform.client_config) as client,
        pytest.raises(UnknownModelError),
        client.open_session(model="no-such-model"),
    ):
        pass
    done = subprocess.run(
        [str(BIN / "bulkhead"), "chat", "--model", "no-such-model", "hello"],
        env={**os.environ, "BULKHEAD_CONFIG": str(platform.client_config), "BULKHEAD_PROFILE": "acme"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "MODEL_UNKNOWN" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_prompts_and_limits_are_typed_and_the_session_lives(platform: LocalPlatform) -> None:
    """Too long, zero, negative, not Unicode: each its own error, and the next good request is served."""
    with Bulkhead.from_profile("acme", path=platform.client_config) as client, client.open_session() as session:
        with pytest.raises(ContextLengthError):
            session.generate_text("word " * 20_000, max_tokens=4)
        for limit in (0, -1):
            with pytest.raises(InvalidRequestError):
                session.generate_text("hello", max_tokens=limit)
        with pytest.raises(BulkheadError):
            session.generate_text("lone surrogate \ud800", max_tokens=4)
        with pytest.raises((MessageTooLargeError, InvalidRequestError)):
            session.generate_text("x" * 100_000_000, max_tokens=4)
        with pytest.raises(NotFoundError):
            client.session("sess_01h455vb4pex5vsknk084sn02q")
        assert session.generate_text("hello", max_tokens=4).usage.completion_tokens > 0


@pytest.mark.parametrize(
    "message",
    [b"\xff\xff\xff\xff", b"\x0a\x04\xff\xfe\xfd\xfc", b"\x0a\xff\xff\xff\xff\x0f"],
    ids=["garbage", "invalid UTF-8", "a length beyond the end"],
)
def test_undecodable_messages_are_malformed_requests(platform: LocalPlatform, message: bytes) -> None:
    """Bytes that are no message, and text that is not UTF-8, are INVALID_ARGUMENT MALFORMED_REQUEST."""
    profile = load_profile("acme", path=platform.client_config)
    with grpc.secure_channel(
        profile.address,
        grpc.ssl_channel_credentials(profile.ca_pem),
        [("grpc.ssl_target_name_override", "localhost")],
    ) as channel:
        call = channel.unary_stream("/bulkhead.v1.SessionService/OpenSession")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(message, metadata=[("authorization", f"Bearer {profile.api_key}")], timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    assert b"MALFORMED_REQUEST" in details


@pytest.mark.parametrize(
    ("opens", "limit"),
    [pytest.param(600, 100, id="sample"), pytest.param(3_000, 100, id="full", marks=pytest.mark.long)],
)
@pytest.mark.timeout(180)
async def test_a_burst_of_opens_meets_the_limit_exactly(platform: LocalPlatform, opens: int, limit: int) -> None:
    """Exactly the limit opens, every other caller hears SESSION_LIMIT within 60 s, one worker serves them all."""
    clients = [AsyncBulkhead.from_profile("acme", path=platform.client_config) for _ in range(8)]
    try:
        async with clients[0].open_session():  # the partition is warm: this one counts as well
            began = time.monotonic()
            outcomes = await asyncio.gather(*(_open(clients[number % len(clients)]) for number in range(opens - 1)))
            took_s = time.monotonic() - began
            opened = [outcome for outcome in outcomes if not isinstance(outcome, BulkheadError)]
            refused = [outcome for outcome in outcomes if isinstance(outcome, BulkheadError)]
            assert len(opened) == limit - 1
            assert {type(error) for error in refused} == {SessionLimitError}
            assert took_s < 60.0
            partitions = [p for p in platform.admin("fleet", "partitions") if p["tier"] == "mig"]
            assert len(partitions) == 1
            await asyncio.gather(*(session.close() for session in opened))
        async with clients[0].open_session() as again:
            assert again.session_id
    finally:
        for client in clients:
            await client.close()


async def _open(client: AsyncBulkhead) -> object:
    try:
        return await client.open_session(timeout_s=60)
    except BulkheadError as error:
        return error
