"""What an agent owes the audit log: receipts, steps of partitions, refusals. Never a prompt or an answer.

Events are spooled as RFC 8785 JSON and numbered by the spool.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import StateUnavailableError
from bulkhead.fields import Fields

__all__ = [
    "MAX_EVENT_BYTES",
    "Event",
    "EventKind",
    "PartitionStep",
    "ReceiptRecorded",
    "RequestRefused",
    "decode_event",
    "encode_event",
]

MAX_EVENT_BYTES: Final = 4096  # six short texts and a digest; the largest real one has about 600
MAX_REASON_CHARS: Final = 256


class EventKind(IntEnum):
    """Decides what a full spool does with an event; the values stand in the spool's file."""

    RECEIPT = 1
    PARTITION = 2
    REFUSAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRecorded:
    """A worker is about to release a receipt: digest and counts. ``status`` is ``ok``, ``cancelled`` or ``failed``.

    ``session_number`` counts the session's receipts of the partition from 1.
    """

    partition_id: str
    ts_us: int
    session_id: str
    session_number: int
    tenant_id: str
    request_id: str
    receipt_digest: bytes
    prompt_tokens: int
    completion_tokens: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStep:
    """A partition went from one state of its life to another, under ``fence``."""

    partition_id: str
    ts_us: int
    tenant_id: str
    from_state: str
    to_state: str
    reason: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A worker refused a request; session and tenant are empty where no authentic ticket named them."""

    partition_id: str
    ts_us: int
    code: str
    session_id: str
    tenant_id: str


Event: TypeAlias = ReceiptRecorded | PartitionStep | RequestRefused


def kind_of(event: Event) -> EventKind:
    """Return the kind under which ``event`` is spooled."""
    if isinstance(event, ReceiptRecorded):
        return EventKind.RECEIPT
    return EventKind.PARTITION if isinstance(event, PartitionStep) else EventKind.REFUSAL


def encode_event(event: Event) -> bytes:
    """Return the RFC 8785 JSON of ``event``."""
    common: dict[str, Json] = {"partition": event.partition_id, "ts_us": event.ts_us, "tenant": event.tenant_id}
    if isinstance(event, ReceiptRecorded):
        return canonical_json(
            {
                **common,
                "session": event.session_id,
                "number": event.session_number,
                "request": event.request_id,
                "digest": event.receipt_digest.hex(),
                "prompt_tokens": event.prompt_tokens,
                "completion_tokens": event.completion_tokens,
                "status": event.status,
            }
        )
    if isinstance(event, PartitionStep):
        return canonical_json(
            {
                **common,
                "from": event.from_state,
                "to": event.to_state,
                "reason": event.reason[:MAX_REASON_CHARS],
                "fence": str(event.fence),
            }
        )
    return canonical_json({**common, "code": event.code, "session": event.session_id})


def decode_event(kind: EventKind, data: bytes) -> Event:
    """Return the event that :func:`encode_event` wrote.

    Raises:
        StateUnavailableError: the spool holds something else.
    """
    with Fields.parse(data, max_bytes=MAX_EVENT_BYTES, what="spooled event", error=StateUnavailableError) as fields:
        partition_id, ts_us = fields.text("partition"), fields.integer("ts_us")
        tenant_id = fields.text("tenant", empty=True)
        if kind is EventKind.RECEIPT:
            return ReceiptRecorded(
                partition_id=partition_id,
                ts_us=ts_us,
                tenant_id=tenant_id,
                session_id=fields.text("session"),
                session_number=fields.integer("number", low=1),
                request_id=fields.text("request"),
                receipt_digest=fields.digest("digest"),
                prompt_tokens=fields.integer("prompt_tokens"),
                completion_tokens=fields.integer("completion_tokens"),
                status=fields.text("status"),
            )
        if kind is EventKind.PARTITION:
            return PartitionStep(
                partition_id=partition_id,
                ts_us=ts_us,
                tenant_id=tenant_id,
                from_state=fields.text("from", empty=True),
                to_state=fields.text("to"),
                reason=fields.text("reason", empty=True),
                fence=fields.decimal("fence"),
            )
        return RequestRefused(
            partition_id=partition_id,
            ts_us=ts_us,
            tenant_id=tenant_id,
            code=fields.text("code"),
            session_id=fields.text("session", empty=True),
        )
