import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from bulkhead.encoding import b64url_encode
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.roles import Role
from service.tls import LocalAuthority
from tests.simulator.administered import Served, administered, reason_of, served


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[Served]:
    async with administered(tmp_path) as world, served(world, tmp_path) as opened:
        yield opened


async def _refused(ports: Served, *authorization: str) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants(*authorization)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return reason_of(caught.value), caught.value.details() or ""


def _with_secret(key: str, secret: bytes) -> str:
    return ApiKey(ApiKey.parse(key).credential_id, secret).text()


async def test_no_credential_at_all(ports: Served) -> None:
    """A call without a credential is CREDENTIAL_MISSING and leaves a record in the platform's log."""
    code, message = await _refused(ports)
    assert code == "CREDENTIAL_MISSING"
    assert "authorization" in message
    (record,) = await ports.world.records(action="access.unauthenticated")
    assert (record.reasons[0]["code"], record.cause.credential) == ("CREDENTIAL_MISSING", "")


async def test_nothing_tells_which_part_was_wrong(ports: Served) -> None:
    """An unknown id, a wrong secret, another tenant's secret and a malformed key get one and the same answer."""
    _, key = await ports.world.api_key()
    _, other = await ports.world.api_key(name="lee")
    unknown = key[:29] + ("0" if key[29] != "0" else "1") + key[30:]
    answers = {
        await _refused(ports, f"Bearer {text}")
        for text in (
            _with_secret(key, b"\x00" * 32),
            _with_secret(key, ApiKey.parse(other).secret),
            unknown,
            key[:-1],
            key + "A",
            key.upper(),
            "",
            "bhk_",
            key[:-1] + ("B" if key[-1] != "B" else "C"),
        )
    }
    assert answers == {("CREDENTIAL_INVALID", "the API key is not one of ours")}


@pytest.mark.parametrize(
    "form", ["{key}", "bearer {key}", "Basic {key}", "Bearer  {key}", "Bearer {key} ", "Bearer " + "x" * 1_000]
)
async def test_only_one_form_of_the_metadata_counts(ports: Served, form: str) -> None:
    """Any other way to write the header is refused, however valid the key in it is."""
    _, key = await ports.world.api_key()
    assert (await _refused(ports, form.format(key=key)))[0] == "CREDENTIAL_INVALID"


async def test_two_credentials_are_none(ports: Served) -> None:
    """A call with two authorization values is refused rather than judged by either."""
    _, key = await ports.world.api_key()
    assert (await _refused(ports, f"Bearer {key}", f"Bearer {key}"))[0] == "CREDENTIAL_INVALID"


async def test_revoked_and_expired_are_told_to_their_holder_only(ports: Served) -> None:
    """The right secret learns that its key is revoked or expired; a wrong one still learns nothing."""
    world = ports.world
    revoked_id, revoked = await world.api_key()
    _, expired = await world.api_key(name="lee")
    await world.credentials.revoke(world.call(), revoked_id)
    world.clock.advance_s(91 * 86_400)
    assert (await _refused(ports, f"Bearer {revoked}"))[0] == "CREDENTIAL_REVOKED"
    assert (await _refused(ports, f"Bearer {expired}"))[0] == "CREDENTIAL_EXPIRED"
    assert (await _refused(ports, f"Bearer {_with_secret(revoked, bytes(32))}"))[0] == "CREDENTIAL_INVALID"


async def test_a_revocation_holds_from_the_next_call(ports: Served) -> None:
    """A key that worked is refused right after its revocation, and the use is in its tenant's log."""
    world = ports.world
    tenant = await world.tenant()
    admin_id, admin_key = await world.api_key()
    await ports.list_tenants(f"Bearer {admin_key}")
    await world.credentials.revoke(world.call(), admin_id)
    assert (await _refused(ports, f"Bearer {admin_key}"))[0] == "CREDENTIAL_REVOKED"
    credential_id, key = await world.api_key(tenant_id=tenant.tenant_id, role=Role.DEVELOPER, name="dev")
    await world.credentials.revoke(world.call(), credential_id)
    await _refused(ports, f"Bearer {key}")
    (record,) = await world.records(tenant.tenant_id, "access.unauthenticated")
    assert (record.reasons[0]["code"], record.cause.credential) == ("CREDENTIAL_REVOKED", credential_id)


async def test_what_was_presented_is_nowhere(ports: Served) -> None:
    """Neither a good key nor a guessed one appears in the log or in the state database."""
    world = ports.world
    _, key = await world.api_key()
    guess = _with_secret(key, b"\x77" * 32)
    await ports.list_tenants(f"Bearer {key}")
    await _refused(ports, f"Bearer {guess}")
    secrets = [ApiKey.parse(key).secret, b"\x77" * 32]
    directory = Path(world.database.url.removeprefix("sqlite:///")).parent
    for file in directory.glob("*.db*"):
        data = file.read_bytes()
        for secret in secrets:
            assert secret not in data
            assert b64url_encode(secret).encode() not in data


async def test_guessing_in_a_flood_stays_cheap(ports: Served) -> None:
    """A hundred wrong keys at once are all refused and leave a handful of records."""
    _, key = await ports.world.api_key()
    wrong = f"Bearer {_with_secret(key, bytes(32))}"
    answers = await asyncio.gather(*(_refused(ports, wrong) for _ in range(100)))
    assert {code for code, _ in answers} == {"CREDENTIAL_INVALID"}
    assert len(await ports.world.records(action="access.unauthenticated")) <= 20


async def test_a_certificate_of_our_authority_is_not_enough(ports: Served, tmp_path: Path) -> None:
    """A certificate that nobody registered is refused although the handshake took it; a stranger's is not taken."""
    identity = ports.authority.issue_client(uri="spiffe://test/client/x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants_as(identity)
    assert reason_of(caught.value) == "CREDENTIAL_INVALID"
    stranger = LocalAuthority.load_or_create(tmp_path / "other", name="other").issue_client(uri="spiffe://test/x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants_as(stranger)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_state_database_that_is_away_admits_nobody(ports: Served) -> None:
    """When nobody can be authenticated the answer is UNAVAILABLE, not an open door."""
    _, key = await ports.world.api_key()
    await ports.world.database.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ports.list_tenants(f"Bearer {key}")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "STATE_UNAVAILABLE"
