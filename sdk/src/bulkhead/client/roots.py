"""A tenant's root as its own software uses it: where it lives, and how session keys get their certificates.

Three ways, of which a profile or a program chooses one (docs/sdk.md): the root's key in a file of this machine; a
:class:`RootSigner` that a program brings, so that the key may stay in a token or a service; or a session key whose
certificate was issued elsewhere and lies beside it. What certifies is asked again at each renewal.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.descriptor import key_fingerprint
from bulkhead.errors import ConfigError
from bulkhead.key_files import load_key_file
from bulkhead.protocol.certificates import (
    MAX_CERTIFICATE_BYTES,
    SessionCertificate,
    issue_certificate,
    verify_certificate,
)

__all__ = ["RootPin", "RootSigner", "SessionKeys", "session_keys_of"]

CERTIFICATE_LIFE_S: Final = 3_600  # a grant lives minutes, and each renewal certifies again
BACKDATED_S: Final = 60  # as much as the clocks of client and worker may disagree
_SEED_BYTES: Final = 32


class RootSigner(Protocol):
    """A tenant's root, wherever its private key lives."""

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) over ``message``. May block: it is called outside the event loop.

        Raises:
            BulkheadError: the key cannot be used now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPin:
    """What a profile says of its tenant's root.

    Attributes:
        fingerprint: SHA-256 of its public key, 32 bytes; None where the tenant has none.
        key: the root itself, where it lies on this machine.
        session_key_file: of a session key whose certificate was issued elsewhere.
        certificate_file: of that certificate; read anew at each renewal.
    """

    fingerprint: bytes | None = None
    key: Ed25519PrivateKey | None = field(default=None, repr=False)
    session_key_file: Path | None = None
    certificate_file: Path | None = None

    @property
    def fingerprints(self) -> tuple[bytes, ...]:
        """The fingerprint, if there is one: what a worker's descriptor must name."""
        return () if self.fingerprint is None else (self.fingerprint,)


class SessionKeys(Protocol):
    """Where a client's session keys come from, and who vouches for them."""

    @property
    def tenant_roots(self) -> tuple[bytes, ...]:
        """Fingerprint of the tenant's root; none where it has none."""
        ...

    def session_key(self) -> Ed25519PrivateKey:
        """Return the key of a new session.

        Raises:
            ConfigError: there is none.
        """
        ...

    async def certify(self, cnf: bytes, *, now_s: int) -> bytes:
        """Return the certificate of a session key, empty where the tenant has no root.

        Raises:
            ConfigError, CertificateError: none can be had that holds now.
        """
        ...


def session_keys_of(
    pin: RootPin, *, tenant: str | None, signer: RootSigner | None, random_bytes: Callable[[int], bytes]
) -> SessionKeys:
    """Return where session keys come from.

    Args:
        pin: of the profile.
        tenant: own tenant id; needed where there is a root.
        signer: the program's own, in place of a key in the profile.
        random_bytes: source of session keys.

    Raises:
        ConfigError: the signer is not the root that the profile pins, or there is no tenant.
    """
    holder: RootSigner | None = signer if pin.key is None else _KeyOnThisMachine(pin.key)
    if signer is not None and (pin.key is not None or pin.session_key_file is not None):
        raise ConfigError("the tenant's root is given twice: by the profile, and by the program")
    if holder is None and pin.fingerprint is None:
        return _Uncertified(random_bytes)
    if tenant is None:
        raise ConfigError("a tenant root needs the tenant whose root it is")
    if holder is not None:
        if pin.fingerprint not in {None, key_fingerprint(holder.public_key)}:
            raise ConfigError("the tenant's root is another key than tenant_root_fingerprint names")
        return _CertifiedHere(holder, tenant=tenant, random_bytes=random_bytes)
    return _CertifiedElsewhere(pin, tenant=tenant)


class _KeyOnThisMachine:
    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def _fresh(random_bytes: Callable[[int], bytes]) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random_bytes(_SEED_BYTES))


class _Uncertified:
    """Fresh keys of a tenant without a root."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes

    @property
    def tenant_roots(self) -> tuple[bytes, ...]:
        return ()

    def session_key(self) -> Ed25519PrivateKey:
        return _fresh(self._random_bytes)

    async def certify(self, cnf: bytes, *, now_s: int) -> bytes:
        del cnf, now_s
        return b""


class _CertifiedHere:
    """Fresh keys, which a root within reach certifies for an hour."""

    def __init__(self, signer: RootSigner, *, tenant: str, random_bytes: Callable[[int], bytes]) -> None:
        self._signer = signer
        self._tenant = tenant
        self._random_bytes = random_bytes
        self._root = signer.public_key

    @property
    def tenant_roots(self) -> tuple[bytes, ...]:
        return (key_fingerprint(self._root),)

    def session_key(self) -> Ed25519PrivateKey:
        return _fresh(self._random_bytes)

    async def certify(self, cnf: bytes, *, now_s: int) -> bytes:
        said = SessionCertificate(
            tenant=self._tenant,
            root=self._root,
            cnf=cnf,
            not_before_s=now_s - BACKDATED_S,
            not_after_s=now_s + CERTIFICATE_LIFE_S,
        )
        return await asyncio.to_thread(issue_certificate, said, sign=self._signer.sign)


class _CertifiedElsewhere:
    """One key in a file, and its certificate beside it, which whoever holds the root replaces in time."""

    def __init__(self, pin: RootPin, *, tenant: str) -> None:
        self._pin = pin
        self._tenant = tenant

    @property
    def tenant_roots(self) -> tuple[bytes, ...]:
        return self._pin.fingerprints

    def session_key(self) -> Ed25519PrivateKey:
        if self._pin.session_key_file is None:
            raise ConfigError(
                "the profile names a tenant root and nothing that certifies session keys: tenant_root_key_file,"
                " session_key_file with session_certificate_file, or a root_signer of the program"
            )
        return load_key_file(self._pin.session_key_file, what="session key")

    async def certify(self, cnf: bytes, *, now_s: int) -> bytes:
        certificate = await asyncio.to_thread(self._read)
        for root in self.tenant_roots:
            verify_certificate(certificate, root_fingerprint=root, tenant=self._tenant, cnf=cnf, now_s=now_s)
        return certificate

    def _read(self) -> bytes:
        path = self._pin.certificate_file
        try:
            if path is None:
                raise ConfigError("the profile has no session_certificate_file")
            with path.open("rb") as stream:
                return stream.read(MAX_CERTIFICATE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path}: the session key's certificate cannot be read: {error.strerror}") from error
