"""Certificates of session keys: a tenant's root vouches for the keys that sign its requests (docs/protocol.md).

A worker whose descriptor names a tenant root takes requests by keys that this root certified, and by no others: whoever
issues tickets, but has not the root, can name session keys and use none. A certificate is of one tenant and one key,
holds for a day at most, and is no secret: without the session key it opens nothing.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bulkhead.attestation.descriptor import key_fingerprint
from bulkhead.encoding import Json, b64url_encode, canonical_json, lp
from bulkhead.errors import (
    CertificateError,
    CertificateExpiredError,
    CertificateKeyError,
    CertificateMissingError,
    CertificateNotYetValidError,
    CertificateRootError,
    CertificateSignatureError,
    CertificateTenantError,
)
from bulkhead.fields import Fields

__all__ = [
    "CERTIFICATE_VERSION",
    "MAX_CERTIFICATE_BYTES",
    "MAX_CERTIFICATE_LIFE_S",
    "SessionCertificate",
    "issue_certificate",
    "read_certificate",
    "verify_certificate",
]

CERTIFICATE_VERSION: Final = 1
MAX_CERTIFICATE_BYTES: Final = 1_024  # a certificate has about 370
MAX_CERTIFICATE_LIFE_S: Final = 24 * 3_600  # as worker keys: nothing revokes a certificate but its end
CLOCK_SKEW_S: Final = 60  # as for tickets: only a certificate "from the future" profits
_REMEMBERED: Final = 512  # about a KiB each: the sessions that are busy now
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_LABEL: Final = b"bulkhead/v1 session key"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCertificate:
    """What a root says of a session key.

    Attributes:
        tenant: tenant id.
        root: raw Ed25519 public key (32 bytes) of the tenant's root.
        cnf: raw Ed25519 public key (32 bytes) of the session.
        not_before_s: Unix seconds.
        not_after_s: Unix seconds; at most a day after ``not_before_s``.
    """

    tenant: str
    root: bytes
    cnf: bytes
    not_before_s: int
    not_after_s: int

    @property
    def encoded(self) -> bytes:
        """The RFC 8785 bytes that are signed."""
        value: dict[str, Json] = {
            "version": CERTIFICATE_VERSION,
            "tenant": self.tenant,
            "root": b64url_encode(self.root),
            "cnf": b64url_encode(self.cnf),
            "not_before": self.not_before_s,
            "not_after": self.not_after_s,
        }
        return canonical_json(value)


def issue_certificate(certificate: SessionCertificate, *, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the certificate as it travels, ``{"certificate": {...}, "signature": "..."}`` in RFC 8785.

    Args:
        certificate: what the root says.
        sign: signs with the root's private key, wherever that is; its answer is verified here.

    Raises:
        CertificateError: it would live longer than a day, or not at all.
        CertificateSignatureError: ``sign`` did not sign with the root that the certificate names.
    """
    _check_life(certificate)
    message = _message(certificate.encoded)
    signature = sign(message)
    _check_signature(certificate, signature)
    return b'{"certificate":' + certificate.encoded + b',"signature":"' + b64url_encode(signature).encode() + b'"}'


def read_certificate(data: bytes) -> SessionCertificate:
    """Return the certificate in untrusted bytes if the root that it names signed it; whose root that is, you judge.

    Raises:
        CertificateError: not canonical JSON of that shape, or of another life than certificates have.
        CertificateSignatureError: not signed by that root.
    """
    certificate, signature = _parse(data)
    _check_signature(certificate, signature)
    return certificate


def verify_certificate(
    data: bytes, *, root_fingerprint: bytes, tenant: str, cnf: bytes, now_s: int
) -> SessionCertificate:
    """Return the certificate of a session key if the tenant's root vouches for it now.

    Obligations, in this order:
        1. It is there, and has exactly the known layout and a life of at most a day.
        2. The root that it names is the tenant's.
        3. That root signed it.
        4. It is for this tenant.
        5. It is of this session key.
        6. ``not_before`` <= now < ``not_after``, with 60 s of skew for ``not_before`` only.

    The caller checks: that the session key signed the request.

    Args:
        data: as received (untrusted), empty if none came.
        root_fingerprint: SHA-256 of the root's public key, from the worker's descriptor.
        tenant: tenant id.
        cnf: raw session key (32 bytes), from the verified ticket.
        now_s: Unix seconds.

    Raises:
        CertificateMissingError, CertificateError: 1.
        CertificateRootError: 2.
        CertificateSignatureError: 3.
        CertificateTenantError: 4.
        CertificateKeyError: 5.
        CertificateNotYetValidError, CertificateExpiredError: 6.
    """
    if not data:  # 1
        raise CertificateMissingError("the tenant's root must certify the session key, and no certificate came")
    certificate, signature = _parse(data)
    if not hmac.compare_digest(key_fingerprint(certificate.root), root_fingerprint):  # 2
        raise CertificateRootError("the session key is certified by another root than the tenant's")
    _check_signature(certificate, signature)  # 3
    if certificate.tenant != tenant:  # 4
        raise CertificateTenantError("the certificate is for another tenant")
    if not hmac.compare_digest(certificate.cnf, cnf):  # 5
        raise CertificateKeyError("the certificate is of another session key than the ticket's")
    if certificate.not_before_s > now_s + CLOCK_SKEW_S:  # 6
        raise CertificateNotYetValidError("the certificate is not valid yet: check the clocks of client and worker")
    if now_s >= certificate.not_after_s:
        raise CertificateExpiredError("the session key's certificate has expired: certify it again")
    return certificate


# The two below are pure functions of bytes, and remember nothing that did not hold: every request of a session brings
# the same certificate along. Whose root it is, and whether it holds now, is asked each time.


@lru_cache(_REMEMBERED)
def _parse(data: bytes) -> tuple[SessionCertificate, bytes]:
    with Fields.parse(
        data, max_bytes=MAX_CERTIFICATE_BYTES, what="session key certificate", error=CertificateError
    ) as outer:
        signature = outer.binary("signature", max_bytes=_SIGNATURE_BYTES, size=_SIGNATURE_BYTES)
        with outer.nested("certificate") as fields:
            fields.integer("version", low=CERTIFICATE_VERSION, high=CERTIFICATE_VERSION)
            certificate = SessionCertificate(
                tenant=fields.text("tenant"),
                root=fields.binary("root", max_bytes=_KEY_BYTES, size=_KEY_BYTES),
                cnf=fields.binary("cnf", max_bytes=_KEY_BYTES, size=_KEY_BYTES),
                not_before_s=fields.integer("not_before"),
                not_after_s=fields.integer("not_after"),
            )
    _check_life(certificate)
    return certificate, signature


def _check_life(certificate: SessionCertificate) -> None:
    if not 0 < certificate.not_after_s - certificate.not_before_s <= MAX_CERTIFICATE_LIFE_S:
        raise CertificateError(f"a session key's certificate lives 1 to {MAX_CERTIFICATE_LIFE_S} seconds")


@lru_cache(_REMEMBERED)
def _check_signature(certificate: SessionCertificate, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(certificate.root).verify(signature, _message(certificate.encoded))
    except (InvalidSignature, ValueError) as error:
        raise CertificateSignatureError("the root that the certificate names did not sign it") from error


def _message(encoded: bytes) -> bytes:
    return _LABEL + lp(encoded)
