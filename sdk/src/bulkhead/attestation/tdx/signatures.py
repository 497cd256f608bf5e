"""ECDSA P-256 as Intel writes it: a key is x ‖ y, a signature r ‖ s, each number 32 bytes big-endian."""

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

__all__ = ["public_key_of", "read_public_key", "signed_by"]

_NUMBER_BYTES: Final = 32


def read_public_key(data: bytes) -> ec.EllipticCurvePublicKey | None:
    """Return the key with the coordinates x ‖ y (64 bytes, untrusted), or None if that is no point of P-256."""
    x, y = (int.from_bytes(part, "big") for part in (data[:_NUMBER_BYTES], data[_NUMBER_BYTES:]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        return None


def public_key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    """Return a certificate's key, or None if it is not one of P-256."""
    key = certificate.public_key()
    return key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) else None


def signed_by(key: ec.EllipticCurvePublicKey | None, signature: bytes, message: bytes) -> bool:
    """Return whether ``signature`` (r ‖ s, untrusted) is ``key``'s over ``message`` with SHA-256."""
    if key is None or len(signature) != 2 * _NUMBER_BYTES:
        return False
    r, s = (int.from_bytes(part, "big") for part in (signature[:_NUMBER_BYTES], signature[_NUMBER_BYTES:]))
    try:
        key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
