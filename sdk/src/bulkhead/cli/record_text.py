"""Audit records in words: who, what, why, where."""

from typing import TYPE_CHECKING, Final

from bulkhead.cli.console import time_text

if TYPE_CHECKING:
    from bulkhead.transparency import LeafFields, VerifiedLeaf

__all__ = ["proof_text", "record_text", "what", "when", "where", "who", "why"]

US_PER_S: Final = 1_000_000
BUNDLE_DIGITS: Final = 12  # of a digest in a table; `audit show` has it whole


def when(fields: "LeafFields") -> str:
    """Return the record's time by the writer's clock."""
    return time_text(fields.ts_us / US_PER_S)


def who(fields: "LeafFields") -> str:
    """Return the subject (a pseudonym) with its roles, or the platform's cause."""
    if fields.subject:
        return f"{fields.subject} ({', '.join(fields.roles)})"
    return " ".join(part for part in (fields.cause.kind, fields.cause.reason) if part)


def what(fields: "LeafFields") -> str:
    """Return the action, what it was about, and how it was decided or ended."""
    on = _text(fields, "on")
    result = fields.decision or _text(fields, "result")
    target = fields.model or (f"{fields.resource.type} {fields.resource.id}" if fields.resource else "")
    return " ".join(part for part in (f"{fields.action} {on}".rstrip(), result.upper(), target) if part)


def why(fields: "LeafFields") -> str:
    """Return the reasons of a decision or step, or the error of a failure; of what policy allowed, by which bundle."""
    reasons = [(reason["code"], reason["message"]) for reason in fields.reasons]
    reasons.append((_text(fields, "code"), _text(fields, "message") or _text(fields, "reason")))
    if fields.decision == "allow" and fields.bundle:
        reasons.append(("", f"policy bundle {fields.bundle[:BUNDLE_DIGITS]}"))
    return "; ".join(": ".join(part for part in reason if part) for reason in reasons if any(reason))


def where(fields: "LeafFields") -> str:
    """Return tier, partition and agent; simulated evidence is called simulated."""
    simulated = _text(fields, "evidence_kind") == "simulated" or fields.data.get("simulated") is True
    parts = (fields.tier, "(SIMULATED)" if simulated else "", fields.partition, _text(fields, "agent"))
    return " ".join(part for part in parts if part)


def record_text(index: int, fields: "LeafFields") -> str:
    """Return a record in full, one fact to a line."""
    cause = " ".join(part for part in (fields.cause.kind, fields.cause.request_id, fields.cause.reason) if part)
    return "\n".join(
        (
            f"record     {fields.record_id}, index {index}",
            f"when       {when(fields)}",
            f"tenant     {fields.tenant or 'platform'}",
            f"who        {who(fields)}",
            f"cause      {cause}",
            f"what       {what(fields)}",
            f"why        {why(fields) or '-'}",
            f"where      {where(fields) or '-'}",
            f"session    {fields.session or '-'}",
            f"policy     {fields.bundle or '-'}",
            f"evidence   {fields.evidence or '-'}",
        )
    )


def proof_text(proven: "VerifiedLeaf", vkey: str) -> str:
    """Return a proven record and what it was proven against."""
    return "\n".join(
        (
            record_text(proven.index, proven.fields),
            f"leaf hash  {proven.leaf_hash.hex()}",
            f"verified   in {vkey.partition('+')[0]}, tree of {proven.size}, root {proven.root.hex()}",
        )
    )


def _text(fields: "LeafFields", name: str) -> str:
    value = fields.data.get(name)
    return value if isinstance(value, str) else ""
