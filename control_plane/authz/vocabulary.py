"""The closed alphabets of the policy input, and the checks that keep free text out of it."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from bulkhead import ids
from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError

__all__ = [
    "ACTIONS",
    "AUDIT_DOMAIN",
    "CREDENTIAL_KINDS",
    "MAX_TOKENS",
    "MODEL_CUSTODIES",
    "MODEL_STATUSES",
    "NETWORK_CLASSES",
    "PADDING_MODES",
    "PLATFORM_LOG",
    "POLICY_DOMAIN",
    "ROLES",
    "SESSION_DOMAIN",
    "SUBJECT_TYPES",
    "TENANCY_DOMAIN",
    "TENANT_STATUSES",
    "check_bounded",
    "check_digest",
    "check_integer",
    "check_member",
    "check_subject",
    "check_tenant",
    "check_word",
    "check_words",
    "sorted_set",
]

ROLES: Final = ("developer", "officer", "admin")
SUBJECT_TYPES: Final = ("user", "service")
CREDENTIAL_KINDS: Final = ("api_key", "certificate")
NETWORK_CLASSES: Final = ("loopback", "private", "public")
"""Where the caller's connection came from, derived from the peer address, which itself never enters."""
PADDING_MODES: Final = ("off", "default", "strict")
TENANT_STATUSES: Final = ("active", "suspended", "closed")
MODEL_CUSTODIES: Final = ("none", "platform", "tenant")
MODEL_STATUSES: Final = ("active", "retired")
PLATFORM_LOG: Final = "platform"

SESSION_DOMAIN: Final = "bulkhead/session/decision"
TENANCY_DOMAIN: Final = "bulkhead/tenancy/decision"
AUDIT_DOMAIN: Final = "bulkhead/audit/decision"
POLICY_DOMAIN: Final = "bulkhead/policy/decision"

ACTIONS: Final = {
    "session.open": SESSION_DOMAIN,
    "session.renew": SESSION_DOMAIN,
    "session.close": SESSION_DOMAIN,
    "session.read": SESSION_DOMAIN,
    "tenant.create": TENANCY_DOMAIN,
    "tenant.update": TENANCY_DOMAIN,
    "tenant.read": TENANCY_DOMAIN,
    "principal.create": TENANCY_DOMAIN,
    "principal.read": TENANCY_DOMAIN,
    "credential.create": TENANCY_DOMAIN,
    "credential.revoke": TENANCY_DOMAIN,
    "credential.read": TENANCY_DOMAIN,
    "model.register": TENANCY_DOMAIN,
    "model.retire": TENANCY_DOMAIN,
    "model.read": TENANCY_DOMAIN,
    "fleet.cordon": TENANCY_DOMAIN,
    "fleet.uncordon": TENANCY_DOMAIN,
    "fleet.release": TENANCY_DOMAIN,
    "fleet.read": TENANCY_DOMAIN,
    "issuer.add": TENANCY_DOMAIN,
    "issuer.activate": TENANCY_DOMAIN,
    "issuer.retire": TENANCY_DOMAIN,
    "issuer.read": TENANCY_DOMAIN,
    "identity.issue": TENANCY_DOMAIN,
    "audit.read": AUDIT_DOMAIN,
    "audit.export": AUDIT_DOMAIN,
    "policy.publish": POLICY_DOMAIN,
    "policy.activate": POLICY_DOMAIN,
    "policy.rollback": POLICY_DOMAIN,
    "policy.read": POLICY_DOMAIN,
}
"""Action name -> OPA entrypoint (document path below ``/v1/data``) that decides it."""

MAX_TOKENS: Final = 2**32 - 1  # uint32 in bulkhead.v1

_WORD: Final = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def check_subject(value: str) -> None:
    """Refuse anything but a pseudonym: a TypeID with prefix ``subj`` or ``prin``."""
    ids.check_id(value, ids.PRINCIPAL if value.startswith(f"{ids.PRINCIPAL}_") else ids.SUBJECT)


def check_tenant(value: str | None) -> None:
    """Refuse anything but a tenant TypeID or None."""
    if value is not None:
        ids.check_id(value, ids.TENANT)


def check_member(value: str, allowed: Collection[str], what: str) -> None:
    """Refuse a word outside ``allowed``."""
    if value not in allowed:
        raise InvalidRequestError(f"{what}: expected one of {', '.join(allowed)}")


def check_word(value: str, what: str) -> None:
    """Refuse anything but a word: no ``@``, ``.``, ``:`` or space, so neither e-mail nor network address fits."""
    if not _WORD.fullmatch(value):
        raise InvalidRequestError(
            f"{what}: expected a word of at most 63 of a-z, 0-9, '_', '-', beginning with a letter"
        )


def check_words(values: Sequence[str], limit: int, what: str) -> None:
    """Refuse more than ``limit`` values, or one that is not a word."""
    check_bounded(values, limit, what)
    for value in values:
        check_word(value, what)


def check_bounded(values: Sequence[str], limit: int, what: str) -> None:
    """Refuse more than ``limit`` values."""
    if not isinstance(values, tuple) or len(values) > limit:
        raise InvalidRequestError(f"{what}: expected a tuple of at most {limit}")


def check_digest(value: str, what: str) -> None:
    """Refuse anything but SHA-256 in 64 lower-case hexadecimal digits."""
    if not _DIGEST.fullmatch(value):
        raise InvalidRequestError(f"{what}: expected 64 lower-case hexadecimal digits")


def check_integer(value: int, low: int, high: int, what: str) -> None:
    """Refuse anything but a whole number in [low, high]; a boolean is not one."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(f"{what}: expected a whole number from {low} to {high}")


def sorted_set(values: Sequence[str]) -> list[Json]:
    """Return the values in order without repetition, so that equal sets have equal bytes."""
    return [*sorted(set(values))]
