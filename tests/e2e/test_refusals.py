"""A key that is revoked under an open session, a session that is not there, and a burst of opens."""

import asyncio
import time
from pathlib import Path

import pytest

from bulkhead.client import AsyncBulkhead, Bulkhead
from bulkhead.client.config import Profile, load_profile
from bulkhead.errors import (
    BulkheadError,
    CredentialRevokedError,
    NotFoundError,
    SessionLimitError,
)
from scripts.local_platform import LocalPlatform

pytestmark = [pytest.mark.e2e, pytest.mark.alone]


def _profile(platform: LocalPlatform, name: str = "acme", **changes: object) -> Profile:
    import dataclasses

    return dataclasses.replace(load_profile(name, path=platform.client_config), **changes)  # type: ignore[arg-type]


def test_a_revoked_key_ends_its_sessions_and_opens_no_more(platform: LocalPlatform, tmp_path: Path) -> None:
    """The control plane says CREDENTIAL_REVOKED at once, to renewals too; within 5 s the worker says TICKET_REVOKED."""
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
        assert refused.code == "TICKET_REVOKED"
        with pytest.raises(CredentialRevokedError):
            session.renew()


def test_a_session_that_is_not_there(platform: LocalPlatform) -> None:
    """NOT_FOUND, as for one of another tenant."""
    with Bulkhead.from_profile("acme", path=platform.client_config) as client, pytest.raises(NotFoundError):
        client.session("sess_01h455vb4pex5vsknk084sn02q")


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
