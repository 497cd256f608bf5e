"""The private keys of a worker: made in its memory, at most 24 hours old, never written (docs/protocol.md section 2).

The process that holds them never forks: a fork would copy them into a child that nobody attested.
"""

import datetime as dt
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from bulkhead.errors import ConfigError, StaleKeyError
from bulkhead.sealing.hpke import KemPrivateKey
from bulkhead.sealing.keyset import MAX_KEYSET_LIFE_S, Keyset, PublicKeys

__all__ = ["WorkerKeys"]

_BACKDATED_S: Final = 300  # certificate validity begins earlier, for clients whose clocks are behind


class WorkerKeys:
    """One generation of a worker's keys and the public keyset that names them.

    Attributes:
        keyset: the public halves.
        tls_certificate: self-signed X.509 certificate, PEM; its public key stands in the keyset.
    """

    __slots__ = ("_receipt", "_request_kem", "_tls", "_weights_kem", "keyset", "tls_certificate")

    def __init__(
        self,
        *,
        request_kem: KemPrivateKey,
        weights_kem: KemPrivateKey,
        receipt: Ed25519PrivateKey,
        tls: ec.EllipticCurvePrivateKey,
        tls_certificate: bytes,
        not_after_s: int,
    ) -> None:
        self._request_kem = request_kem
        self._weights_kem = weights_kem
        self._receipt: Ed25519PrivateKey | None = receipt
        self._tls: ec.EllipticCurvePrivateKey | None = tls
        self.tls_certificate: Final = tls_certificate
        self.keyset: Final = Keyset.of(
            PublicKeys(
                request_kem=request_kem.public_key.encoded,
                weights_kem=weights_kem.public_key.encoded,
                receipt=receipt.public_key().public_bytes_raw(),
                tls_spki=tls.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            ),
            not_after_s=not_after_s,
        )

    @classmethod
    def generate(
        cls,
        *,
        authority: str,
        now_s: int,
        life_s: int = MAX_KEYSET_LIFE_S,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> "WorkerKeys":
        """Return fresh keys.

        Args:
            authority: DNS name in the TLS certificate, by which clients and the ingress name this worker.
            now_s: Unix seconds.
            life_s: seconds until the keys end, at most 24 hours.
            random_bytes: None for keys that OpenSSL makes and Python never holds a byte of; else the source of the KEM
                seeds and the receipt key (tests).

        Raises:
            ConfigError: ``life_s`` is not within 1 s and 24 h.
        """
        if not 0 < life_s <= MAX_KEYSET_LIFE_S:
            raise ConfigError(f"worker keys live 1 to {MAX_KEYSET_LIFE_S} seconds")
        tls = ec.generate_private_key(ec.SECP256R1())
        return cls(
            request_kem=KemPrivateKey.generate(random_bytes=random_bytes),
            weights_kem=KemPrivateKey.generate(random_bytes=random_bytes),
            receipt=Ed25519PrivateKey.generate()
            if random_bytes is None
            else Ed25519PrivateKey.from_private_bytes(random_bytes(32)),
            tls=tls,
            tls_certificate=_certificate(tls, authority=authority, now_s=now_s, not_after_s=now_s + life_s),
            not_after_s=now_s + life_s,
        )

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the keyset."""
        return self.keyset.key_id

    def open_request(self, sealed: bytes, *, info: bytes) -> bytes:
        """Return the request secret that was sealed to the request KEM key.

        Raises:
            SealError: it does not open.
            StaleKeyError: the keys were destroyed.
        """
        return self._request_kem.open(sealed, info=info)

    def open_weights_key(self, sealed: bytes, *, info: bytes) -> bytes:
        """Return the model key that was sealed to the weights KEM key; errors as :meth:`open_request`."""
        return self._weights_kem.open(sealed, info=info)

    def sign_receipt(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) of the receipt key.

        Raises:
            StaleKeyError: the keys were destroyed.
        """
        if self._receipt is None:
            raise StaleKeyError("the worker's receipt key was destroyed")
        return self._receipt.sign(message)

    def tls_private_key(self) -> bytes:
        """Return the TLS key as PKCS #8 PEM for the worker's own TLS server; it must not leave the process.

        The one private key that Python holds as bytes: gRPC takes no other form.

        Raises:
            StaleKeyError: the keys were destroyed.
        """
        if self._tls is None:
            raise StaleKeyError("the worker's TLS key was destroyed")
        return self._tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def destroy(self) -> None:
        """Drop every private key; OpenSSL clears its memory. Of the TLS key, copies that its server made may remain."""
        self._request_kem.destroy()
        self._weights_kem.destroy()
        self._receipt = None
        self._tls = None


def _certificate(key: ec.EllipticCurvePrivateKey, *, authority: str, now_s: int, not_after_s: int) -> bytes:
    """Return a self-signed leaf, PEM. Trust in it comes from the keyset, so it names no issuer but itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bulkhead worker")])
    utc = dt.UTC
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(now_s - _BACKDATED_S, utc))
        .not_valid_after(dt.datetime.fromtimestamp(not_after_s, utc))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(authority)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )
