"""API keys: ``bhk_<26 characters of the credential's id>_<32 random bytes in base64url>``.

Only SHA-256 of the random bytes is kept. A plain hash is enough, unlike for a password: 256 random bits cannot be
guessed, with or without salt and stretching.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from bulkhead.encoding import b64url_decode, b64url_encode
from bulkhead.errors import CredentialInvalidError, MalformedRequestError
from bulkhead.ids import CREDENTIAL

__all__ = ["ApiKey"]

SECRET_BYTES: Final = 32

_FORM: Final = re.compile(r"bhk_([0-7][0-9a-hjkmnp-tv-z]{25})_([A-Za-z0-9_-]{43})")
_NO_SECRET: Final = hashlib.sha256(b"no credential has this secret").digest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key in the clear: made here once, or as a caller presented it (then nothing about it is verified)."""

    credential_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, credential_id: str, *, random_bytes: Callable[[int], bytes]) -> Self:
        """Return a fresh key for the credential."""
        return cls(credential_id, random_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that ``text`` (untrusted) presents.

        Raises:
            CredentialInvalidError: it has not the form of a key; the text appears in no message.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise CredentialInvalidError("the API key is not one of ours")
        try:
            secret = b64url_decode(found[2], what="API key")
        except MalformedRequestError as error:
            raise CredentialInvalidError("the API key is not one of ours") from error
        return cls(f"{CREDENTIAL}_{found[1]}", secret)

    def text(self) -> str:
        """Return the key as its holder keeps it."""
        suffix = self.credential_id.removeprefix(f"{CREDENTIAL}_")
        return f"bhk_{suffix}_{b64url_encode(self.secret)}"

    def secret_sha256(self) -> bytes:
        """Return what is stored of the key."""
        return hashlib.sha256(self.secret).digest()

    def matches(self, stored_sha256: bytes | None) -> bool:
        """Compare in constant time; None (no such credential) takes as long and never matches."""
        expected = stored_sha256 if stored_sha256 is not None else _NO_SECRET
        return hmac.compare_digest(self.secret_sha256(), expected) and stored_sha256 is not None
