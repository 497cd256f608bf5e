"""The public keyset of a worker: what evidence certifies and everything else trusts (docs/protocol.md section 2)."""

import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import EvidenceBindingError, EvidenceError, MalformedRequestError
from bulkhead.fields import Fields
from bulkhead.sealing.hpke import PUBLIC_KEY_BYTES, SUITE, KemPublicKey

__all__ = ["KEYSET_VERSION", "MAX_KEYSET_BYTES", "MAX_KEYSET_LIFE_S", "Keyset", "PublicKeys"]

KEYSET_VERSION: Final = 1
MAX_KEYSET_BYTES: Final = 8_192  # two KEM keys of 1,622 characters each, and small change
MAX_KEYSET_LIFE_S: Final = 24 * 3600
MAX_SPKI_BYTES: Final = 512  # a P-256 SubjectPublicKeyInfo has 91
_ED25519_BYTES: Final = 32
_REMEMBERED: Final = 64  # keysets and certificates, about 8 KiB each; a process meets the same worker's again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """The public halves, each for one use only.

    Attributes:
        request_kem: 1,216 bytes; clients seal request secrets to it.
        weights_kem: 1,216 bytes; a key broker seals model keys to it.
        receipt: 32 bytes, Ed25519; signs receipts.
        tls_spki: DER SubjectPublicKeyInfo of the worker's TLS certificate.
    """

    request_kem: bytes
    weights_kem: bytes
    receipt: bytes
    tls_spki: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyset:
    """A parsed keyset. Trust comes from evidence over :attr:`key_id`, never from parsing.

    Attributes:
        keys: the public keys.
        not_after_s: Unix seconds; the earliest end of life among the keys.
        encoded: the RFC 8785 bytes.
    """

    keys: PublicKeys
    not_after_s: int
    encoded: bytes

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the encoding: names the keyset in tickets, requests, receipts and evidence."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def request_kem(self) -> KemPublicKey:
        """The key to seal requests to (checked when the keyset was parsed)."""
        return _kem_key(self.keys.request_kem)

    @property
    def receipt_key(self) -> Ed25519PublicKey:
        """The key that verifies receipts."""
        return Ed25519PublicKey.from_public_bytes(self.keys.receipt)

    @classmethod
    def of(cls, keys: PublicKeys, *, not_after_s: int) -> "Keyset":
        """Return the keyset of ``keys``, all of which live until ``not_after_s`` (Unix seconds)."""
        encoded = canonical_json(
            {
                "version": KEYSET_VERSION,
                "suite": SUITE,
                "keys": {
                    name: {"not_after": not_after_s, "public": b64url_encode(public)}
                    for name, public in (
                        ("request_kem", keys.request_kem),
                        ("weights_kem", keys.weights_kem),
                        ("receipt", keys.receipt),
                        ("tls", keys.tls_spki),
                    )
                },
            }
        )
        return cls(keys=keys, not_after_s=not_after_s, encoded=encoded)

    @classmethod
    def parse(cls, encoded: bytes) -> "Keyset":
        """Return the keyset encoded by untrusted bytes.

        Raises:
            EvidenceError: not a canonical keyset of version 1 and its one suite, or a key that is no key.
        """
        return _parse(bytes(encoded))

    def check_certificate(self, certificate: bytes) -> None:
        """Return if ``certificate`` (DER, untrusted) is of this keyset's TLS key.

        Raises:
            EvidenceBindingError: it is malformed, or of another key.
        """
        try:
            spki = _spki(certificate)
        except ValueError as error:
            raise EvidenceBindingError("the worker's certificate is malformed") from error
        if not hmac.compare_digest(spki, self.keys.tls_spki):
            raise EvidenceBindingError("the worker's TLS key is not the one in its keyset")


# The three below are pure functions of bytes, and remember nothing that did not hold.


@lru_cache(_REMEMBERED)
def _parse(encoded: bytes) -> Keyset:
    with Fields.parse(encoded, max_bytes=MAX_KEYSET_BYTES, what="keyset", error=EvidenceError) as fields:
        fields.integer("version", low=KEYSET_VERSION, high=KEYSET_VERSION)
        if fields.text("suite") != SUITE:
            raise fields.wrong("suite", SUITE)
        with fields.nested("keys") as keys:
            request_kem, request_end = _key(keys, "request_kem", size=PUBLIC_KEY_BYTES)
            weights_kem, weights_end = _key(keys, "weights_kem", size=PUBLIC_KEY_BYTES)
            receipt, receipt_end = _key(keys, "receipt", size=_ED25519_BYTES)
            tls, tls_end = _key(keys, "tls", size=None)
    public = PublicKeys(request_kem=request_kem, weights_kem=weights_kem, receipt=receipt, tls_spki=tls)
    _check(public)
    return Keyset(keys=public, not_after_s=min(request_end, weights_end, receipt_end, tls_end), encoded=encoded)


@lru_cache(_REMEMBERED)
def _spki(certificate: bytes) -> bytes:
    public_key = x509.load_der_x509_certificate(certificate).public_key()
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(_REMEMBERED)
def _kem_key(encoded: bytes) -> KemPublicKey:
    return KemPublicKey(encoded)


def _key(fields: Fields, name: str, *, size: int | None) -> tuple[bytes, int]:
    with fields.nested(name) as key:
        return key.binary("public", max_bytes=size or MAX_SPKI_BYTES, size=size), key.integer("not_after", low=1)


def _check(keys: PublicKeys) -> None:
    """Refuse a keyset whose keys do not parse, or whose two KEM keys are one (a key has one use)."""
    try:
        _kem_key(keys.request_kem)
        KemPublicKey(keys.weights_kem)
    except MalformedRequestError as error:
        raise EvidenceError("keyset: a KEM public key is not valid") from error
    if keys.request_kem == keys.weights_kem:
        raise EvidenceError("keyset: one KEM key for two uses")
