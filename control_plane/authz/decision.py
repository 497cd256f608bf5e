"""What policy answered, read strictly: a decision, or an error, never something in between.

1. The result is an object of exactly ``allow``, ``reasons`` and ``obligations``, every part typed and bounded.
2. An allow has no reasons; a deny has at least one. Anything else is the engine talking nonsense.
3. Every obligation of an allow is one that this build knows, with a value it can keep, at most one of each type.
4. Left to the caller: that the reply came from the bundle that is active (``client.py`` does it), and that what is
   dispatched keeps the obligations.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import (
    BulkheadError,
    InvalidRequestError,
    PolicyDeniedError,
    PolicyEngineError,
    SessionLimitError,
    TenantRootRequiredError,
    UnknownObligationError,
)
from bulkhead.fields import Fields
from control_plane.authz.vocabulary import PADDING_MODES, check_word
from control_plane.domain.tiers import Tier, tier_from_label

__all__ = [
    "Decision",
    "Exclusive",
    "KeyCustody",
    "MaxTokens",
    "MinTier",
    "Obligation",
    "Padding",
    "Reason",
    "Region",
    "Retention",
    "denial_error",
    "parse_decision",
]

MAX_REASONS: Final = 64  # one per rule of every pack, with room
MAX_OBLIGATIONS: Final = 16  # seven types are known
MAX_MESSAGE_CHARS: Final = 512  # a sentence or two
MAX_DENIAL_CHARS: Final = 2048  # travels in gRPC trailers, 8 KiB with everything else
MAX_RETENTION_DAYS: Final = 36_525  # a century
MAX_TOKENS: Final = 2**32 - 1  # uint32 in bulkhead.v1
CUSTODIES: Final = ("platform", "tenant")

_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_POLICY: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*){0,7}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would forge lines in a log or a terminal


@dataclass(frozen=True, slots=True)
class MinTier:
    """The partition is of this tier or a stronger one."""

    tier: Tier

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "min_tier", "tier": self.tier.label}


@dataclass(frozen=True, slots=True)
class Region:
    """The partition stands in this region."""

    region: str

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "region", "region": self.region}


@dataclass(frozen=True, slots=True)
class Exclusive:
    """The partition is shared with no session of another purpose (it never has more than one tenant)."""

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "exclusive"}


@dataclass(frozen=True, slots=True)
class Retention:
    """The session's audit records are kept this many days."""

    days: int

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "retention", "days": self.days}


@dataclass(frozen=True, slots=True)
class MaxTokens:
    """No request of the session gets more output tokens than this."""

    max: int

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "max_tokens", "max": self.max}


@dataclass(frozen=True, slots=True)
class KeyCustody:
    """Who holds the key of the model's weights: ``platform`` or ``tenant``."""

    custody: str

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "key_custody", "custody": self.custody}


@dataclass(frozen=True, slots=True)
class Padding:
    """Sealed chunks are padded at least this much."""

    mode: str

    def to_json(self) -> dict[str, Json]:
        """Return the obligation as policy wrote it."""
        return {"type": "padding", "mode": self.mode}


Obligation: TypeAlias = MinTier | Region | Exclusive | Retention | MaxTokens | KeyCustody | Padding
ObligationT = TypeVar("ObligationT", MinTier, Region, Exclusive, Retention, MaxTokens, KeyCustody, Padding)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why policy said no.

    Attributes:
        code: stable, upper snake case, e.g. ``SESSION_LIMIT``.
        policy: dotted name of the package that says so, e.g. ``packs.hipaa``.
        message: a sentence for a person.
    """

    code: str
    policy: str
    message: str

    def to_json(self) -> dict[str, Json]:
        """Return the reason as policy wrote it."""
        return {"code": self.code, "policy": self.policy, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A well-formed answer.

    Attributes:
        allow: whether policy allows the action, provided that every obligation is kept.
        reasons: why not; empty exactly when ``allow``.
        obligations: at most one of each type; empty on a deny.
        bundle_digest: digest of the bundle that decided, 64 hexadecimal digits, from the same reply.
        input_digest: SHA-256 of the canonical input, 64 hexadecimal digits.
    """

    allow: bool
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    bundle_digest: str
    input_digest: str

    def obligation(self, kind: type[ObligationT]) -> ObligationT | None:
        """Return the obligation of that class, if policy imposed it."""
        for obligation in self.obligations:
            if isinstance(obligation, kind):
                return obligation
        return None


def denial_error(decision: Decision) -> PolicyDeniedError | SessionLimitError | TenantRootRequiredError:
    """Return (for raising) the error that tells the caller of a deny.

    It is :class:`SessionLimitError` or :class:`TenantRootRequiredError` when the limit or the missing root is the only
    reason, since waiting, or having a root recorded, helps then; else :class:`PolicyDeniedError`. The message joins the
    reasons' sentences; ``details["reasons"]`` is the JSON list of as many ``{code, policy, message}`` as a gRPC trailer
    has room for.
    """
    message = " ".join(reason.message for reason in decision.reasons)[:MAX_DENIAL_CHARS]
    told: list[Json] = []
    for reason in decision.reasons:
        told.append({"code": reason.code, "policy": reason.policy, "message": reason.message})
        if len(canonical_json(told)) > MAX_DENIAL_CHARS:
            told.pop()
            break
    details = {"reasons": canonical_json(told).decode()}
    codes = {reason.code for reason in decision.reasons}
    for error in (SessionLimitError, TenantRootRequiredError):
        if codes == {error.code}:
            return error(message, details=details)
    return PolicyDeniedError(message, details=details)


def parse_decision(result: Json, *, bundle_digest: str, input_digest: str) -> Decision:
    """Return the decision that ``result``, the value of the entrypoint (untrusted), states.

    Raises:
        UnknownObligationError: an allow with an obligation this build cannot keep; to be recorded as a deny. Details
            name ``obligation``, ``bundle_digest`` and ``input_digest``.
        PolicyEngineError: anything that is not a decision; to be recorded as an error.
    """
    with Fields(result, what="policy result", error=PolicyEngineError) as fields:
        allow = fields.boolean("allow")
        reasons = tuple(_reason(item) for item in fields.array("reasons", max_items=MAX_REASONS))
        items = fields.array("obligations", max_items=MAX_OBLIGATIONS)
    if allow == bool(reasons):
        raise PolicyEngineError("policy result: an allow has no reasons and a deny has some")
    try:
        obligations = tuple(_obligation(item) for item in items) if allow else ()
    except UnknownObligationError as error:
        details = {**error.details, "bundle_digest": bundle_digest, "input_digest": input_digest}
        raise UnknownObligationError(error.message, details=details) from error
    if len({type(obligation) for obligation in obligations}) != len(obligations):
        raise PolicyEngineError("policy result: two obligations of one type")
    return Decision(
        allow=allow,
        reasons=reasons,
        obligations=obligations,
        bundle_digest=bundle_digest,
        input_digest=input_digest,
    )


def _reason(item: Json) -> Reason:
    with Fields(item, what="policy reason", error=PolicyEngineError) as fields:
        reason = Reason(
            code=fields.text("code"),
            policy=fields.text("policy"),
            message=fields.text("message", max_chars=MAX_MESSAGE_CHARS),
        )
    if not _CODE.fullmatch(reason.code) or not _POLICY.fullmatch(reason.policy) or _CONTROL.search(reason.message):
        raise PolicyEngineError("policy reason: code, policy or message is malformed")
    return reason


def _obligation(item: Json) -> Obligation:
    fields = Fields(item, what="policy obligation", error=PolicyEngineError)
    kind = fields.text("type")
    read = _READERS.get(kind)
    if read is None:
        raise _unknown(kind)
    obligation = read(fields)
    try:
        with fields:
            return obligation
    except PolicyEngineError as error:  # a parameter that this build does not know may narrow what it does know
        raise _unknown(kind) from error


def _unknown(kind: str) -> BulkheadError:
    shown = kind if _POLICY.fullmatch(kind) else "malformed"
    return UnknownObligationError(
        f"Policy demands something that this build cannot do: {shown}.", details={"obligation": shown}
    )


def _min_tier(fields: Fields) -> Obligation:
    try:
        return MinTier(tier_from_label(fields.text("tier")))
    except InvalidRequestError as error:
        raise _unknown("min_tier") from error


def _region(fields: Fields) -> Obligation:
    region = fields.text("region")
    try:
        check_word(region, "region")
    except InvalidRequestError as error:
        raise _unknown("region") from error
    return Region(region)


def _custody(fields: Fields) -> Obligation:
    custody = fields.text("custody")
    if custody not in CUSTODIES:
        raise _unknown("key_custody")
    return KeyCustody(custody)


def _padding(fields: Fields) -> Obligation:
    mode = fields.text("mode")
    if mode not in PADDING_MODES:
        raise _unknown("padding")
    return Padding(mode)


_READERS: Final[dict[str, Callable[[Fields], Obligation]]] = {
    "min_tier": _min_tier,
    "region": _region,
    "exclusive": lambda _: Exclusive(),
    "retention": lambda fields: Retention(fields.integer("days", low=1, high=MAX_RETENTION_DAYS)),
    "max_tokens": lambda fields: MaxTokens(fields.integer("max", low=1, high=MAX_TOKENS)),
    "key_custody": _custody,
    "padding": _padding,
}
