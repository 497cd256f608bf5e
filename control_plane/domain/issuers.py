"""Ticket issuers: the keys that sign session tickets, one after the other.

An issuer's life::

    next -> active -> previous -> retired

- ``next``: workers take its tickets already, and tenants have time to pin it; nothing is signed with it.
- ``active``: signs. There is always exactly one.
- ``previous``: signs no more; its tickets are taken until they have expired.
- ``retired``: nobody takes its tickets any more.

``next`` may be retired without ever having signed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bulkhead.attestation import key_fingerprint
from bulkhead.errors import ConflictError

__all__ = ["ACCEPTED", "ISSUER_TRANSITIONS", "MAX_ACCEPTED", "IssuerStatus", "TicketIssuerEntry", "check_issuer_step"]

MAX_ACCEPTED: Final = 4  # a partition descriptor names no more


class IssuerStatus(StrEnum):
    """A state of an issuer's life; the values are those of the wire and of SQL."""

    NEXT = "next"
    ACTIVE = "active"
    PREVIOUS = "previous"
    RETIRED = "retired"


ACCEPTED: Final = frozenset({IssuerStatus.NEXT, IssuerStatus.ACTIVE, IssuerStatus.PREVIOUS})

ISSUER_TRANSITIONS: Final[Mapping[IssuerStatus, frozenset[IssuerStatus]]] = MappingProxyType(
    {
        IssuerStatus.NEXT: frozenset({IssuerStatus.ACTIVE, IssuerStatus.RETIRED}),
        IssuerStatus.ACTIVE: frozenset({IssuerStatus.PREVIOUS}),
        IssuerStatus.PREVIOUS: frozenset({IssuerStatus.ACTIVE, IssuerStatus.RETIRED}),  # a change can be taken back
        IssuerStatus.RETIRED: frozenset(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketIssuerEntry:
    """One issuer. Times are microseconds since the epoch, 0 for never.

    Attributes:
        public_key: raw Ed25519 public key, 32 bytes.
        status: where it is in its life.
        created_us: when it was added.
        activated_us: when it last began to sign.
        replaced_us: when it last ceased to sign.
        retired_us: when it was retired.
    """

    public_key: bytes
    status: IssuerStatus
    created_us: int
    activated_us: int = 0
    replaced_us: int = 0
    retired_us: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, hexadecimal: what tenants pin."""
        return key_fingerprint(self.public_key).hex()

    @property
    def issuer_id(self) -> str:
        """The fingerprint's first half: names the issuer in commands and records."""
        return self.fingerprint[:32]


def check_issuer_step(entry: TicketIssuerEntry, to: IssuerStatus) -> None:
    """Return if the step exists.

    Raises:
        ConflictError: it does not.
    """
    if to not in ISSUER_TRANSITIONS[entry.status]:
        raise ConflictError(f"the ticket issuer is {entry.status.value}: it cannot become {to.value}")
