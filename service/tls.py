"""TLS identities of server processes: a local authority, what it issues, and credentials for grpcio.

Everything internal is mutual TLS. An identity is a URI (``spiffe://<trust domain>/<path>``, the SPIFFE-ID form);
servers carry DNS names and addresses beside it, because grpcio verifies no URI-only server certificate. grpcio cannot
ask for a client certificate optionally either: a port demands one (:func:`mutual_server_credentials`) or does not.

Trust: whoever reads the authority's key may impersonate every internal identity; it lies in one file, mode 0600, on
the control plane's host. Keys are ECDSA P-256 (FIPS 186-5), which every TLS stack here negotiates.
"""

import datetime as dt
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bulkhead.errors import ConfigError, CredentialInvalidError
from service.files import PUBLIC, make_private_directory, read_private, write_file

__all__ = [
    "Identity",
    "LocalAuthority",
    "PeerCertificate",
    "channel_credentials",
    "mutual_server_credentials",
    "parse_certificate",
    "peer_certificate",
    "server_credentials",
    "spiffe_uri",
]

Clock = Callable[[], dt.datetime]

AUTHORITY_LIFETIME_S: Final = 10 * 365 * 86_400
IDENTITY_LIFETIME_S: Final = 90 * 86_400
BACKDATE_S: Final = 300  # tolerated clock skew between hosts
MAX_CERTIFICATE_BYTES: Final = 16 * 1024  # PEM or DER of one certificate; real ones are below 4 KiB


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def spiffe_uri(trust_domain: str, *path: str) -> str:
    """Return the URI identity of ``path`` in ``trust_domain``, e.g. ``spiffe://example.org/agent/rack1-tray01``."""
    return "/".join((f"spiffe://{trust_domain}", *path))


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its private key.

    Attributes:
        certificate_pem: chain in PEM, leaf first.
        private_key_pem: PKCS #8 in PEM, not encrypted.
    """

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, certificate: Path, private_key: Path) -> Self:
        """Read an identity from its two files.

        Raises:
            ConfigError: a file is missing, the key's file is open to others, or the certificate cannot be parsed.
        """
        try:
            pem = certificate.read_bytes()
        except OSError as error:
            raise ConfigError(f"certificate: cannot read {certificate}: {error.strerror}") from error
        identity = cls(certificate_pem=pem, private_key_pem=read_private(private_key, what="private key"))
        try:
            x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise ConfigError(f"certificate: {certificate} is not a PEM certificate") from error
        return identity

    def save(self, certificate: Path, private_key: Path) -> None:
        """Write the key (mode 0600), then the certificate, replacing older ones.

        Raises:
            ConfigError: a file cannot be written.
        """
        write_file(private_key, self.private_key_pem)
        write_file(certificate, self.certificate_pem, mode=PUBLIC)

    def remaining_s(self, *, clock: Clock = _utc_now) -> float:
        """Return the seconds until the leaf certificate expires; negative when it has."""
        leaf = x509.load_pem_x509_certificate(self.certificate_pem)
        return (leaf.not_valid_after_utc - clock()).total_seconds()

    def has_names(self, *, dns_names: Sequence[str], addresses: Sequence[str]) -> bool:
        """Return whether the leaf certificate names exactly these DNS names and addresses beside its URI."""
        leaf = x509.load_pem_x509_certificate(self.certificate_pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(names.get_values_for_type(x509.DNSName)) == set(dns_names) and {
            str(address) for address in names.get_values_for_type(x509.IPAddress)
        } == set(addresses)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A parsed certificate of a peer.

    The chain was verified by the TLS handshake when it comes from :func:`peer_certificate`, and by nobody when it
    comes from :func:`parse_certificate`. Expiry is the caller's to check at each call: a connection outlives it.

    Attributes:
        fingerprint: SHA-256 over the DER, lower-case hexadecimal.
        uris: URI subject alternative names.
    """

    fingerprint: str
    uris: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime


class LocalAuthority:
    """The local certificate authority, made at the first start and kept in ``directory``."""

    def __init__(
        self, *, certificate: x509.Certificate, private_key: ec.EllipticCurvePrivateKey, clock: Clock = _utc_now
    ) -> None:
        self._certificate = certificate
        self._key = private_key
        self._clock = clock

    @classmethod
    def load_or_create(cls, directory: Path, *, name: str, clock: Clock = _utc_now) -> Self:
        """Return the authority of ``directory``, creating key and certificate if it holds none.

        Args:
            directory: becomes ``ca.key`` (0600) and ``ca.pem``.
            name: common name of a new authority.
            clock: UTC.

        Raises:
            ConfigError: one file without the other, key and certificate do not belong together, or no right to write.
        """
        make_private_directory(directory)
        if not (directory / "ca.key").exists() and not (directory / "ca.pem").exists():
            cls._create(directory, name=name, clock=clock)
        identity = Identity.load(directory / "ca.pem", directory / "ca.key")
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        try:
            key = serialization.load_pem_private_key(identity.private_key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"certificate authority: {directory / 'ca.key'} is not a PEM private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"certificate authority: key and certificate in {directory} do not belong together")
        return cls(certificate=certificate, private_key=key, clock=clock)

    @classmethod
    def _create(cls, directory: Path, *, name: str, clock: Clock) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), clock(), AUTHORITY_LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_file(directory / "ca.key", _key_pem(key), replace=False)
        write_file(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=PUBLIC)

    @property
    def certificate_pem(self) -> bytes:
        """The root that peers pin, in PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue_server(
        self, *, uri: str, dns_names: Sequence[str], addresses: Sequence[str], lifetime_s: int = IDENTITY_LIFETIME_S
    ) -> Identity:
        """Issue a server identity that is also good as a client's, so that one process has one identity.

        Args:
            uri: URI identity.
            dns_names: at least one DNS name or address is needed: grpcio verifies nothing else.
            addresses: IP addresses in text form.
            lifetime_s: seconds from now.

        Raises:
            ConfigError: no name at all, or a malformed one.
        """
        if not dns_names and not addresses:
            raise ConfigError("a server certificate needs a DNS name or an address beside its URI")
        try:
            names = [x509.DNSName(name) for name in dns_names]
            numbers = [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
        except ValueError as error:
            raise ConfigError(f"server certificate: {error}") from error
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(uri=uri, others=[*names, *numbers], usages=usages, lifetime_s=lifetime_s)

    def issue_client(self, *, uri: str, lifetime_s: int = IDENTITY_LIFETIME_S) -> Identity:
        """Issue a client identity with a URI name only."""
        return self._issue(uri=uri, others=[], usages=[ExtendedKeyUsageOID.CLIENT_AUTH], lifetime_s=lifetime_s)

    def _issue(
        self,
        *,
        uri: str,
        others: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        lifetime_s: int,
    ) -> Identity:
        try:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *others])
        except ValueError as error:
            raise ConfigError(f"certificate: {error}") from error
        key = ec.generate_private_key(ec.SECP256R1())
        issuer_key = self._key.public_key()
        # The subject stays empty, so the names are critical (RFC 5280 section 4.1.2.6).
        certificate = (
            _builder(x509.Name([]), self._certificate.subject, key.public_key(), self._clock(), lifetime_s)
            .add_extension(names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Identity(certificate_pem=pem, private_key_pem=_key_pem(key))


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Return credentials of a port that asks for no client certificate."""
    return grpc.ssl_server_credentials([(identity.private_key_pem, identity.certificate_pem)])


def mutual_server_credentials(identity: Identity, client_roots_pem: bytes) -> grpc.ServerCredentials:
    """Return credentials of a port that demands a client certificate below ``client_roots_pem``.

    The handshake verifies chain and validity; who the certificate names is the servicer's to check.
    """
    return grpc.ssl_server_credentials(
        [(identity.private_key_pem, identity.certificate_pem)],
        root_certificates=client_roots_pem,
        require_client_auth=True,
    )


def channel_credentials(roots_pem: bytes, identity: Identity | None = None) -> grpc.ChannelCredentials:
    """Return a client's credentials: pinned roots, and its own identity for mutual TLS."""
    if identity is None:
        return grpc.ssl_channel_credentials(root_certificates=roots_pem)
    return grpc.ssl_channel_credentials(
        root_certificates=roots_pem,
        private_key=identity.private_key_pem,
        certificate_chain=identity.certificate_pem,
    )


def peer_certificate(context: grpc.aio.ServicerContext[Any, Any]) -> PeerCertificate | None:
    """Return the client certificate of the connection that carries this call, or None on a port without one.

    Raises:
        CredentialInvalidError: the certificate passed the handshake and cannot be parsed here.
    """
    found = list(context.auth_context().get("x509_pem_cert", ()))
    return parse_certificate(found[0]) if found else None


@lru_cache(maxsize=1024)  # agents and tenants with certificates; a call then costs no parsing
def parse_certificate(data: bytes) -> PeerCertificate:
    """Return the facts of one certificate, PEM or DER; nothing about it is verified here.

    Raises:
        CredentialInvalidError: too long, not a certificate, or with malformed names.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise CredentialInvalidError("the certificate is too long")
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        uris = ()
    except (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType) as error:
        raise CredentialInvalidError("not an X.509 certificate in PEM or DER") from error
    return PeerCertificate(
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        uris=uris,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    lifetime_s: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + dt.timedelta(seconds=lifetime_s))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
