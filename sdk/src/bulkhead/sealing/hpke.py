"""HPKE with the one suite of protocol version 1, and the encoding of its keys (docs/protocol.md section 2).

Suite: KEM MLKEM768-X25519 (0x647a, X-Wing as in draft-ietf-hpke-pq), HKDF-SHA256, AES-256-GCM; RFC 9180 base mode,
one-shot, empty AAD. A public key is ML-KEM-768's encoding (1,184 bytes) behind which stands X25519's (32 bytes).
A private key is a 32-byte seed: SHAKE256(seed, 96) gives ML-KEM's 64-byte seed and X25519's 32-byte scalar.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from bulkhead.errors import MalformedRequestError, SealError, StaleKeyError

__all__ = ["ENC_BYTES", "PUBLIC_KEY_BYTES", "SEED_BYTES", "SUITE", "TAG_BYTES", "KemPrivateKey", "KemPublicKey"]

SUITE: Final = "MLKEM768_X25519,HKDF_SHA256,AES_256_GCM"
SEED_BYTES: Final = 32
TAG_BYTES: Final = 16
_MLKEM_PUBLIC_BYTES: Final = 1184  # FIPS 203 table 3
_MLKEM_SEED_BYTES: Final = 64
_X25519_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
ENC_BYTES: Final = 1088 + _X25519_BYTES  # ML-KEM-768 ciphertext and ephemeral X25519 key

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class KemPublicKey:
    """A public key to seal to.

    Args:
        encoded: 1,216 bytes (untrusted).

    Raises:
        MalformedRequestError: wrong length, or not an ML-KEM-768 encapsulation key (FIPS 203 section 7.2).
    """

    __slots__ = ("_key", "encoded")

    def __init__(self, encoded: bytes) -> None:
        if len(encoded) != PUBLIC_KEY_BYTES:
            raise MalformedRequestError(f"KEM public key: expected {PUBLIC_KEY_BYTES} bytes")
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(encoded[:_MLKEM_PUBLIC_BYTES])
            x25519 = X25519PublicKey.from_public_bytes(encoded[_MLKEM_PUBLIC_BYTES:])
        except ValueError as error:
            raise MalformedRequestError("KEM public key: not a valid encoding") from error
        self.encoded: Final = encoded
        self._key = MLKEM768X25519PublicKey(mlkem, x25519)

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """Return enc (1,120 bytes), then ciphertext and tag (16 bytes). Randomised.

        Raises:
            SealError: the key is of low order, so nothing may be sealed to it (RFC 9180 section 7.1.4).
        """
        try:
            return _SUITE.encrypt(plaintext, self._key, info)
        except ValueError as error:
            raise SealError("cannot seal to that public key") from error


class KemPrivateKey:
    """A private key in OpenSSL's memory; :meth:`destroy` drops it.

    Args:
        seed: 32 bytes, expanded here and kept nowhere; None for a fresh key, of which Python never holds a byte.

    Raises:
        MalformedRequestError: a seed of another length.
    """

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes | None = None) -> None:
        if seed is None:
            mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        else:
            mlkem, x25519 = _expand(seed)
        self._key: MLKEM768X25519PrivateKey | None = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public_key: Final = KemPublicKey(
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls, *, random_bytes: Callable[[int], bytes] | None = None) -> Self:
        """Return a fresh private key; with ``random_bytes``, one of a seed from there (tests)."""
        return cls(None if random_bytes is None else random_bytes(SEED_BYTES))

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """Return the plaintext of ``sealed`` (enc, ciphertext, tag).

        Raises:
            SealError: sealed to another key or under another ``info``, or changed on the way.
            StaleKeyError: the key was destroyed.
        """
        if self._key is None:
            raise StaleKeyError("the worker no longer holds that key: renew the session")
        try:
            return _SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise SealError("the sealed secret does not open under this key and context") from error

    def destroy(self) -> None:
        """Drop the key; OpenSSL clears it when the last reference goes."""
        self._key = None


def _expand(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(seed) != SEED_BYTES:
        raise MalformedRequestError(f"KEM seed: expected {SEED_BYTES} bytes")
    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + _X25519_BYTES)
    return (
        MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:]),
    )
