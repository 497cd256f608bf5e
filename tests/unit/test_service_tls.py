import asyncio
import datetime as dt
from pathlib import Path

import grpc
import pytest

from bulkhead.errors import ConfigError, CredentialInvalidError
from service.server import new_server
from service.tls import (
    Identity,
    LocalAuthority,
    PeerCertificate,
    channel_credentials,
    mutual_server_credentials,
    parse_certificate,
    peer_certificate,
    server_credentials,
    spiffe_uri,
)

URI = spiffe_uri("example.org", "agent", "rack1-tray01")


@pytest.fixture
def authority(tmp_path: Path) -> LocalAuthority:
    return LocalAuthority.load_or_create(tmp_path / "ca", name="test authority")


class _Echo(grpc.GenericRpcHandler):
    """Answers any method with the peer's fingerprint and URIs."""

    def service(self, handler_call_details: object) -> object:
        async def call(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:  # type: ignore[type-arg]
            peer = peer_certificate(context)
            return b"nobody" if peer is None else " ".join((peer.fingerprint, *peer.uris)).encode()

        return grpc.unary_unary_rpc_method_handler(call)


async def _call(credentials: grpc.ServerCredentials, channel: grpc.ChannelCredentials) -> bytes:
    server = new_server(max_call_s=5)
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", channel) as client:
            reply: bytes = await client.unary_unary("/x.Y/Z")(b"", timeout=3)
            return reply
    finally:
        await server.stop(0)


def test_the_authority_is_made_once_and_private(tmp_path: Path) -> None:
    """The first start makes key (0600) and certificate; the second finds the same; half of it is refused."""
    first = LocalAuthority.load_or_create(tmp_path / "ca", name="one")
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert LocalAuthority.load_or_create(tmp_path / "ca", name="two").certificate_pem == first.certificate_pem
    (tmp_path / "ca" / "ca.pem").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        LocalAuthority.load_or_create(tmp_path / "ca", name="one")


def test_key_and_certificate_must_belong_together(tmp_path: Path) -> None:
    """An authority whose key was exchanged is refused instead of issuing what nobody accepts."""
    LocalAuthority.load_or_create(tmp_path / "a", name="a")
    LocalAuthority.load_or_create(tmp_path / "b", name="b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        LocalAuthority.load_or_create(tmp_path / "a", name="a")


def test_identities_survive_their_files(tmp_path: Path, authority: LocalAuthority) -> None:
    """An identity reads back as written, its key is private, and its repr shows no key."""
    identity = authority.issue_client(uri=URI)
    identity.save(tmp_path / "agent.pem", tmp_path / "agent.key")
    assert Identity.load(tmp_path / "agent.pem", tmp_path / "agent.key") == identity
    assert (tmp_path / "agent.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(identity)
    parsed = parse_certificate(identity.certificate_pem)
    assert parsed.uris == (URI,)
    assert parsed.not_before < dt.datetime.now(dt.UTC) < parsed.not_after


def test_server_names_are_checked_and_compared(authority: LocalAuthority) -> None:
    """A server certificate needs a name that grpcio can verify, and knows whether it still has the configured ones."""
    identity = authority.issue_server(uri=URI, dns_names=["cp.example"], addresses=["127.0.0.1"])
    assert identity.has_names(dns_names=["cp.example"], addresses=["127.0.0.1"])
    assert not identity.has_names(dns_names=["other.example"], addresses=["127.0.0.1"])
    with pytest.raises(ConfigError, match="needs a DNS name"):
        authority.issue_server(uri=URI, dns_names=[], addresses=[])
    with pytest.raises(ConfigError, match="server certificate"):
        authority.issue_server(uri=URI, dns_names=[], addresses=["nowhere"])


@pytest.mark.parametrize(
    "data", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", b"\x30" * 20_000]
)
def test_garbage_is_no_certificate(data: bytes) -> None:
    """What is not a certificate, or too long to be one, is a typed error."""
    with pytest.raises(CredentialInvalidError):
        parse_certificate(data)


async def test_mutual_tls_names_the_peer(authority: LocalAuthority) -> None:
    """On a mutual port the servicer sees fingerprint and URI of the certificate that the handshake verified."""
    server = authority.issue_server(uri=URI, dns_names=["localhost"], addresses=["127.0.0.1"])
    client = authority.issue_client(uri=URI)
    reply = await _call(
        mutual_server_credentials(server, authority.certificate_pem),
        channel_credentials(authority.certificate_pem, client),
    )
    known: PeerCertificate = parse_certificate(client.certificate_pem)
    assert reply.decode() == f"{known.fingerprint} {URI}"


async def test_a_stranger_does_not_pass_the_handshake(tmp_path: Path, authority: LocalAuthority) -> None:
    """A client of another authority, and one without a certificate, reach no handler of a mutual port."""
    other = LocalAuthority.load_or_create(tmp_path / "other", name="other")
    server = authority.issue_server(uri=URI, dns_names=["localhost"], addresses=["127.0.0.1"])
    credentials = mutual_server_credentials(server, authority.certificate_pem)
    for identity in (other.issue_client(uri=URI), None):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(_call(credentials, channel_credentials(authority.certificate_pem, identity)), 10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_authority_is_refused(tmp_path: Path, authority: LocalAuthority) -> None:
    """A client that pins our root talks to no server that another authority named."""
    other = LocalAuthority.load_or_create(tmp_path / "other", name="other")
    forged = other.issue_server(uri=URI, dns_names=["localhost"], addresses=["127.0.0.1"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _call(server_credentials(forged), channel_credentials(authority.certificate_pem))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    honest = authority.issue_server(uri=URI, dns_names=["localhost"], addresses=["127.0.0.1"])
    assert await _call(server_credentials(honest), channel_credentials(authority.certificate_pem)) == b"nobody"
