"""What a session is: the request as validated, its states, and what the control plane remembers of it.

States::

    opening -> open -> closed          `opening` and `open` hold one of the tenant's slots
    opening -> denied                  policy said no
    open -> lost                       the worker or its agent went away

An open that fails for any other reason, or whose caller goes away, leaves no row: the reservation is given back and
the audit log keeps what happened. Repeating the request id of a `denied` or `lost` session tries again under the same
session id; `closed` is final. A step that is not in :data:`TRANSITIONS` raises.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bulkhead import ids
from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import ConflictError, InvalidRequestError
from control_plane.authz.vocabulary import check_word
from control_plane.domain.tiers import Tier

__all__ = [
    "HOLDING",
    "PADDINGS",
    "TRANSITIONS",
    "OpenRequest",
    "Session",
    "SessionState",
    "check_nonce",
    "check_step",
]

NONCE_BYTES: Final = 32
SESSION_KEY_BYTES: Final = 32  # Ed25519, RFC 8032
MAX_DATA_CLASSES: Final = 16  # a request names a handful
MAX_OUTPUT_TOKENS: Final = 2**31 - 1  # more than any context; keeps sums inside 64 bits
PADDINGS: Final = ("off", "default", "strict")  # in order of strength


class SessionState(StrEnum):
    """A state of a session; the values are those of the wire and of SQL."""

    OPENING = "opening"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"
    DENIED = "denied"


_S = SessionState

TRANSITIONS: Final[Mapping[SessionState, frozenset[SessionState]]] = MappingProxyType(
    {
        _S.OPENING: frozenset({_S.OPEN, _S.DENIED}),
        _S.OPEN: frozenset({_S.CLOSED, _S.LOST}),
        _S.LOST: frozenset({_S.OPENING, _S.CLOSED}),
        _S.DENIED: frozenset({_S.OPENING}),
        _S.CLOSED: frozenset(),
    }
)

HOLDING: Final = frozenset({_S.OPENING, _S.OPEN})
"""States that count against the tenant's session limit."""


def check_step(before: SessionState, after: SessionState) -> None:
    """Refuse a step that the states do not have.

    Raises:
        ConflictError: there is none from ``before`` to ``after``.
    """
    if after not in TRANSITIONS[before]:
        raise ConflictError(f"a session that is {before.value} cannot become {after.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a tenant asks for, in bounds but otherwise unverified; policy judges it.

    Attributes:
        request_id: TypeID with prefix ``req``, made by the client.
        model: registered name.
        minimum_tier: least tier that the caller accepts, or None.
        region: required region, or empty.
        purpose: purpose of use, or empty.
        data_classes: sorted, without repetition.
        max_output_tokens: per request; 0 leaves it to tenant and model.
        session_public_key: Ed25519, 32 bytes.
        nonce: 32 bytes that the evidence must cover.
        padding: ``off``, ``default`` or ``strict``.
    """

    request_id: str
    model: str
    session_public_key: bytes
    nonce: bytes
    minimum_tier: Tier | None = None
    region: str = ""
    purpose: str = ""
    data_classes: tuple[str, ...] = ()
    max_output_tokens: int = 0
    padding: str = "default"

    def __post_init__(self) -> None:
        """Check every field's form.

        Raises:
            InvalidRequestError: a field is malformed or out of bounds; the message names it.
        """
        ids.check_id(self.request_id, ids.REQUEST)
        ids.check_name(self.model, "model")
        for name, value in (("region", self.region), ("purpose", self.purpose)):
            if value:
                check_word(value, name)
        if len(self.data_classes) > MAX_DATA_CLASSES:
            raise InvalidRequestError(f"data_classes: at most {MAX_DATA_CLASSES}")
        for value in self.data_classes:
            check_word(value, "data_classes")
        if not 0 <= self.max_output_tokens <= MAX_OUTPUT_TOKENS:
            raise InvalidRequestError(f"max_output_tokens: between 0 and {MAX_OUTPUT_TOKENS}")
        if len(self.session_public_key) != SESSION_KEY_BYTES:
            raise InvalidRequestError(f"session_public_key: an Ed25519 public key of {SESSION_KEY_BYTES} bytes")
        check_nonce(self.nonce)
        if self.padding not in PADDINGS:
            raise InvalidRequestError(f"padding: one of {', '.join(PADDINGS)}")

    def digest(self) -> bytes:
        """Return SHA-256 over everything but the nonce: what must be equal when a request id is repeated.

        The session key is part of it, so that nobody else's key enters a session by naming its request id.
        """
        return hashlib.sha256(
            canonical_json(
                {
                    "request_id": self.request_id,
                    "model": self.model,
                    "minimum_tier": None if self.minimum_tier is None else self.minimum_tier.label,
                    "region": self.region,
                    "purpose": self.purpose,
                    "data_classes": sorted(set(self.data_classes)),
                    "max_output_tokens": self.max_output_tokens,
                    "session_public_key": b64url_encode(self.session_public_key),
                    "padding": self.padding,
                }
            )
        ).digest()


def check_nonce(nonce: bytes) -> bytes:
    """Return ``nonce`` if it is 32 bytes.

    Raises:
        InvalidRequestError: it is not.
    """
    if len(nonce) != NONCE_BYTES:
        raise InvalidRequestError(f"nonce: {NONCE_BYTES} random bytes")
    return nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as SQL keeps it.

    Attributes:
        request_sha256: :meth:`OpenRequest.digest` of the request that made it.
        subject_id: pseudonym of who opened it.
        region: as asked for, or empty; so are ``minimum_tier``, ``purpose`` and ``max_output_tokens`` (0).
        pair_id: joins the audit records of its open.
        tier: tier of its partition; None until it was open once.
        tier_floor: highest tier that a decision demanded of it so far; renewal never goes below.
        partition_id: empty until it is placed.
        obligations: of the last decision, RFC 8785 text each.
        policy_digest: of the bundle of the last decision, hexadecimal, or empty.
        decision_record_id: audit record of the last decision, or empty.
        expires_us: end of its last ticket, in microseconds since the epoch; 0 until it was open once.
        reason: of the last step.
    """

    session_id: str
    tenant_id: str
    principal_id: str
    credential_id: str
    subject_id: str
    request_id: str
    request_sha256: bytes
    model: str
    model_digest: bytes
    session_public_key: bytes
    purpose: str
    region: str
    data_classes: tuple[str, ...]
    minimum_tier: Tier | None
    max_output_tokens: int
    padding: str
    state: SessionState
    pair_id: str
    created_us: int
    tenant_revision: int
    tier: Tier | None = None
    tier_floor: Tier | None = None
    simulated: bool = False
    partition_id: str = ""
    obligations: tuple[str, ...] = ()
    policy_digest: str = ""
    decision_record_id: str = ""
    expires_us: int = 0
    reason: str = ""
