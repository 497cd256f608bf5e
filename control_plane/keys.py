"""Keys and certificates of the control plane, made where they are missing and kept in the state directory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bulkhead.errors import ConfigError
from bulkhead.protocol.tickets import TicketIssuer
from control_plane.authz.bundle import load_signing_key
from control_plane.config import ControlPlaneConfig
from service.files import make_private_directory, read_private, write_file
from service.tls import Identity, LocalAuthority, spiffe_uri

__all__ = ["KeyRing", "TicketIssuerKeys"]

SERVER_LIFETIME_S: Final = 90 * 86_400
RENEW_BELOW_S: Final = SERVER_LIFETIME_S / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """What the control plane signs and is known with.

    Attributes:
        authority: issues internal identities.
        server: this process's TLS identity, on every port.
        ticket_issuers: private keys of the issuers of session tickets.
        bundle_signing: P-256, signs policy bundles.
    """

    authority: LocalAuthority
    server: Identity
    ticket_issuers: "TicketIssuerKeys"
    bundle_signing: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load_or_create(cls, config: ControlPlaneConfig) -> "KeyRing":
        """Read every key of the state directory, making those that are missing.

        Raises:
            ConfigError: a file is unreadable, open to others, or holds something else.
        """
        directory = make_private_directory(config.keys_directory)
        authority = LocalAuthority.load_or_create(directory / "ca", name=f"Bulkhead {config.trust_domain}")
        return cls(
            authority=authority,
            server=_server_identity(config, authority),
            ticket_issuers=TicketIssuerKeys(directory),
            bundle_signing=_bundle_signing(directory / "bundle-signing.key"),
        )


class TicketIssuerKeys:
    """Keys of ticket issuers as files: the first one's, and a directory with those that followed.

    Args:
        directory: the keys directory.
    """

    def __init__(self, directory: Path) -> None:
        self._first = directory / "ticket-issuer.key"
        self._others = directory / "ticket-issuers"

    def first(self) -> TicketIssuer:
        """Return the key of the platform's first issuer, making it where it is missing.

        Raises:
            ConfigError: the file is unreadable, open to others, or holds something else.
        """
        if not self._first.exists():
            write_file(self._first, _pem(ed25519.Ed25519PrivateKey.generate()), replace=False)
        return TicketIssuer(key=_load_ed25519(self._first))

    def create(self) -> TicketIssuer:
        """Make a further key and keep it.

        Raises:
            ConfigError: it cannot be written.
        """
        key = ed25519.Ed25519PrivateKey.generate()
        issuer = TicketIssuer(key=key)
        path = make_private_directory(self._others) / f"{issuer.fingerprint.hex()}.key"
        write_file(path, _pem(key), replace=False)
        return issuer

    def load(self, fingerprint: str) -> TicketIssuer:
        """Return a kept key by its fingerprint, hexadecimal.

        Raises:
            ConfigError: it is not here, or its file holds another key.
        """
        first = self.first()
        if first.fingerprint.hex() == fingerprint:
            return first
        issuer = TicketIssuer(key=_load_ed25519(self._others / f"{fingerprint}.key"))
        if issuer.fingerprint.hex() != fingerprint:
            raise ConfigError(f"ticket issuer key: the file of {fingerprint} holds another key")
        return issuer


def _server_identity(config: ControlPlaneConfig, authority: LocalAuthority) -> Identity:
    certificate, key = config.keys_directory / "server.pem", config.keys_directory / "server.key"
    if certificate.exists():
        identity = Identity.load(certificate, key)
        if identity.remaining_s() > RENEW_BELOW_S and identity.has_names(
            dns_names=config.listen.dns_names, addresses=config.listen.addresses
        ):
            return identity
    identity = authority.issue_server(
        uri=spiffe_uri(config.trust_domain, "control-plane"),
        dns_names=config.listen.dns_names,
        addresses=config.listen.addresses,
        lifetime_s=SERVER_LIFETIME_S,
    )
    identity.save(certificate, key)
    return identity


def _load_ed25519(path: Path) -> ed25519.Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private(path, what="ticket issuer key"), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"ticket issuer key: {path} is not an unencrypted PEM private key") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"ticket issuer key: {path} is not an Ed25519 key")
    return key


def _bundle_signing(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_file(path, _pem(ec.generate_private_key(ec.SECP256R1())), replace=False)
    return load_signing_key(read_private(path, what="bundle signing key"))


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
