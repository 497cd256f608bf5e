"""Identifiers: TypeID strings (``prefix_`` + 26 characters of Crockford base32 over a UUIDv7).

A TypeID sorts by creation time and says what it names. Source: https://github.com/jetify-com/typeid (spec 0.3.0)
and RFC 9562 section 5.7 for UUIDv7.
"""

import re
import secrets
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from bulkhead.errors import InvalidRequestError

__all__ = [
    "AGENT",
    "BUNDLE",
    "COMMAND",
    "CREDENTIAL",
    "PARTITION",
    "PRINCIPAL",
    "RECORD",
    "REQUEST",
    "REQUEST_ID_METADATA",
    "SESSION",
    "SUBJECT",
    "TENANT",
    "TICKET",
    "check_id",
    "check_name",
    "new_id",
    "new_uuid7",
]

TENANT: Final = "tenant"
PRINCIPAL: Final = "prin"
SUBJECT: Final = "subj"  # random pseudonym in audit records (docs/audit.md); the mapping lives elsewhere
CREDENTIAL: Final = "cred"
SESSION: Final = "sess"
REQUEST: Final = "req"
REQUEST_ID_METADATA: Final = "bulkhead-request-id"  # gRPC metadata, for calls whose request has no field for its id
TICKET: Final = "tick"
PARTITION: Final = "part"
AGENT: Final = "agent"
COMMAND: Final = "cmd"
BUNDLE: Final = "bndl"
RECORD: Final = "rec"

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_SUFFIX: Final = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
MAX_ID_LENGTH: Final = 64  # prefix (at most 37) + "_" + 26


def new_uuid7(
    *, now_ms: Callable[[], int] | None = None, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> UUID:
    """Return a UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, 74 bits of randomness."""
    ms = (now_ms() if now_ms is not None else time.time_ns() // 1_000_000) & ((1 << 48) - 1)
    rand = int.from_bytes(random_bytes(10), "big")
    value = ms << 80 | 0x7 << 76 | (rand >> 68) << 64 | 0b10 << 62 | rand & ((1 << 62) - 1)
    return UUID(int=value)


def new_id(
    prefix: str,
    *,
    now_ms: Callable[[], int] | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> str:
    """Return a fresh TypeID with ``prefix`` (one of this module's constants)."""
    value = new_uuid7(now_ms=now_ms, random_bytes=random_bytes).int
    suffix = "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{suffix}"


def check_id(value: str, prefix: str) -> str:
    """Return ``value`` if it is a TypeID with ``prefix``.

    Raises:
        InvalidRequestError: it is not; the message names the expected prefix and not the value.
    """
    head, _, suffix = value.rpartition("_")
    if len(value) > MAX_ID_LENGTH or head != prefix or not _SUFFIX.fullmatch(suffix):
        raise InvalidRequestError(f"expected an identifier of the form {prefix}_<26 characters>")
    return value


def check_name(value: str, what: str) -> str:
    """Return ``value`` if it is a name: 1 to 63 of ``a-z 0-9 . _ -``, beginning and ending alphanumeric.

    Raises:
        InvalidRequestError: it is not; ``what`` names the field.
    """
    if not _NAME.fullmatch(value):
        raise InvalidRequestError(
            f"{what}: expected 1 to 63 of a-z, 0-9, '.', '_', '-', beginning and ending with a letter or digit"
        )
    return value
