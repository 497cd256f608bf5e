"""The reasons of a decision in the room that a record has for them.

A policy bundle words its reasons as it likes. They stand beside the whole policy input (at most 12 KiB) in one record
(at most 16 KiB): were they not bounded here, a talkative bundle's denials could not be recorded. What is cut says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import canonical_json
from bulkhead.errors import MalformedRequestError
from bulkhead.transparency.leaf import MAX_REASONS

__all__ = ["MAX_MESSAGE_CHARS", "MAX_REASONS_BYTES", "REASONS_CUT", "Reason", "bounded", "shortened"]

MAX_REASONS_BYTES: Final = 2_048  # of the list as RFC 8785; as much again remains to a decision's other fields
MAX_MESSAGE_CHARS: Final = 512  # a sentence or two
REASONS_CUT: Final = "REASONS_CUT"
"""Code of the last reason where some were left out; its message says how many."""

_SHORTER: Final = (MAX_MESSAGE_CHARS, 256, 128, 64, 32)  # characters of each message, until the list fits
_MARK: Final = "… [cut]"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason of a decision: stable code, the policy that gave it, one sentence."""

    code: str
    policy: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return the reason as the record holds it."""
        return {"code": self.code, "policy": self.policy, "message": self.message}


def shortened(message: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return a message of at most ``limit`` characters before the mark that says that it was cut."""
    return message if len(message) <= limit else message[:limit] + _MARK


def bounded(reasons: Sequence[Reason]) -> list[Reason]:
    """Return the reasons in at most :data:`MAX_REASONS_BYTES`: messages cut first, then the last reasons left out.

    Raises:
        MalformedRequestError: a reason that cannot be written as JSON.
    """
    for limit in _SHORTER:
        kept = [Reason(item.code, item.policy, shortened(item.message, limit)) for item in reasons]
        if len(kept) <= MAX_REASONS and _size(kept) <= MAX_REASONS_BYTES:
            return kept
    while kept:
        kept.pop()
        told = [*kept, _left_out(len(reasons) - len(kept))]
        if len(told) <= MAX_REASONS and _size(told) <= MAX_REASONS_BYTES:
            return told
    raise MalformedRequestError("reasons cannot be recorded")  # one note of its own always fits


def _left_out(count: int) -> Reason:
    return Reason(REASONS_CUT, "", f"{count} further reasons are left out: a record has no room for them.")


def _size(reasons: Sequence[Reason]) -> int:
    return len(canonical_json([dict(item.to_json()) for item in reasons]))
