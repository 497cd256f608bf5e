"""What every record has: identity, time, cause, and its leaf, encoded once.

A :class:`Record` is finished when it is built: its bytes never change, so that sending it again after an unknown
outcome is recognised by its id and gives the same place in the log. The fields and the strict parser are those of
:mod:`bulkhead.transparency.leaf`; docs/audit.md section 2 describes them.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from audit.records.reasons import Reason, bounded
from bulkhead.encoding import Json, JsonObject, canonical_json
from bulkhead.errors import InvalidRequestError, MalformedRequestError, RecordError
from bulkhead.ids import RECORD, new_id
from bulkhead.transparency.leaf import MAX_LEAF_BYTES, SCHEMA_VERSION, Cause, LeafFields, read_fields

__all__ = [
    "Action",
    "Decision",
    "PlatformReason",
    "Reason",
    "Record",
    "Stamp",
    "Stamper",
    "Subject",
    "build_record",
    "platform_cause",
    "tenant_cause",
]


class Action(enum.StrEnum):
    """What a record may speak of, schema version 1. A reader does not depend on this list being complete."""

    DECISION = "decision"
    OUTCOME = "outcome"
    RECEIPTS = "receipts"
    SESSION_RENEWED = "session.renewed"
    SESSION_CLOSED = "session.closed"
    ACCESS_DENIED = "access.denied"
    AUTHENTICATION_FAILED = "access.unauthenticated"
    TENANT_CREATED = "tenant.created"
    TENANT_UPDATED = "tenant.updated"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    TENANT_DELETED = "tenant.deleted"
    TENANT_ROOT_CHANGED = "tenant.root_changed"  # set, replaced or taken away; the details name both fingerprints
    PRINCIPAL_CREATED = "principal.created"
    PRINCIPAL_DELETED = "principal.deleted"
    CREDENTIAL_ISSUED = "credential.issued"
    CREDENTIAL_REVOKED = "credential.revoked"
    MODEL_REGISTERED = "model.registered"
    MODEL_UPDATED = "model.updated"
    MODEL_RETIRED = "model.retired"
    KEY_RELEASED = "key.released"  # of a sealed model, to a worker; recorded before it goes there
    KEY_REFUSED = "key.refused"
    POLICY_UPLOADED = "policy.uploaded"
    POLICY_ACTIVATED = "policy.activated"
    POLICY_ROLLED_BACK = "policy.rolled_back"
    POLICY_REFUSED = "policy.refused"
    PARTITION_RESERVED = "partition.reserved"
    PARTITION_CREATING = "partition.creating"
    PARTITION_ATTESTING = "partition.attesting"
    PARTITION_READY = "partition.ready"
    PARTITION_DRAINING = "partition.draining"
    PARTITION_SCRUBBING = "partition.scrubbing"
    PARTITION_FREED = "partition.freed"
    PARTITION_LOST = "partition.lost"
    PARTITION_CORDONED = "partition.cordoned"
    PARTITION_RELEASED = "partition.released"  # an administrator's order; its steps have records of their own
    AGENT_ENROLLED = "agent.enrolled"
    AGENT_CONNECTED = "agent.connected"
    AGENT_LOST = "agent.lost"
    AGENT_CORDONED = "agent.cordoned"
    AGENT_UNCORDONED = "agent.uncordoned"
    ISSUER_ADDED = "issuer.added"
    ISSUER_ACTIVATED = "issuer.activated"
    ISSUER_RETIRED = "issuer.retired"
    IDENTITY_ISSUED = "identity.issued"
    AUDIT_READ = "audit.read"
    AUDIT_EXPORTED = "audit.exported"
    PLATFORM_START = "platform.start"
    PLATFORM_STOP = "platform.stop"
    PLATFORM_CONFIGURED = "platform.configured"
    LOG_OPENED = "log.opened"
    LOG_SEALED = "log.sealed"
    LOG_PRUNED = "log.pruned"
    SUBJECT_ERASED = "subject.erased"
    HOLD_PLACED = "retention.hold_placed"
    HOLD_LIFTED = "retention.hold_lifted"
    LOG_ROUND = "log.round"


class Decision(enum.StrEnum):
    """How a request was decided. ``error``: the policy engine gave no well-formed decision, so it was refused."""

    ALLOW = "allow"
    DENY = "deny"
    ERROR = "error"


class PlatformReason(enum.StrEnum):
    """The closed list of causes that are not a tenant's request."""

    ADMIN = "admin"  # an administrator's or platform officer's request; the record names credential and request
    AGENT = "agent"  # a node agent's report
    AUTHENTICATION = "authentication"  # a caller who could not be tied to a tenant
    COMMAND = "command"  # a command on the control plane's own host
    LEASE = "lease"  # a lease, ticket or key ran out
    PLACEMENT = "placement"  # the scheduler's own move
    RECONCILER = "reconciler"  # closes what a crash left open
    RETENTION = "retention"
    ROUND = "round"
    SCRUB = "scrub"
    SHUTDOWN = "shutdown"
    SPOOL = "spool"  # receipts that an agent's spool delivered
    STARTUP = "startup"


# Members that no record may hold at any depth: they would carry content, secrets or a person's name into a log that
# cannot forget. The list catches mistakes; that the policy input is derived facts only is the control plane's duty.
_REFUSED_MEMBERS: Final = frozenset(
    {
        "address", "answer", "api_key", "completion", "content", "e_mail", "email", "family_name", "first_name",
        "full_name", "given_name", "ip", "ip_address", "last_name", "messages", "passphrase", "password", "phone",
        "private_key", "prompt", "secret", "ticket", "token",
    }
)  # fmt: skip
_MAX_DEPTH: Final = 32  # of `data`; deeper input is not a fact about a request


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identity and time of one record; take a fresh one from :class:`Stamper` for each.

    Attributes:
        record_id: TypeID ``rec_…``.
        ts_us: wall clock, microseconds of UTC since the epoch.
        mono_us: monotonic clock, microseconds since the writer started.
        writer: id of the writing process.
    """

    record_id: str
    ts_us: int
    mono_us: int
    writer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamper:
    """Makes stamps. Clocks and randomness are injected; the wall clock is recorded as it is, never corrected.

    Attributes:
        writer: random id of this process, at most 64 characters.
        wall_ns: wall clock, nanoseconds since the epoch.
        monotonic_ns: monotonic clock, nanoseconds.
        started_ns: ``monotonic_ns()`` at the start of the process.
        random_bytes: source of record ids.
    """

    writer: str
    wall_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    started_ns: int
    random_bytes: Callable[[int], bytes]

    def stamp(self) -> Stamp:
        """Return a fresh stamp."""
        now_ns = self.wall_ns()
        record_id = new_id(RECORD, now_ms=lambda: now_ns // 1_000_000, random_bytes=self.random_bytes)
        return Stamp(record_id, now_ns // 1_000, (self.monotonic_ns() - self.started_ns) // 1_000, self.writer)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who acted: a random subject id (pseudonym, TypeID ``subj_…``) and its roles at the time."""

    id: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A finished record.

    Attributes:
        leaf: RFC 8785 bytes, at most 16 KiB.
        fields: what the leaf says.
    """

    leaf: bytes
    fields: LeafFields

    @property
    def record_id(self) -> str:
        """TypeID of the record."""
        return self.fields.record_id


def tenant_cause(*, credential: str, request_id: str) -> Cause:
    """Return the cause of what a tenant's request brought about: credential id and client-made request id."""
    return Cause("tenant", credential=credential, request_id=request_id)


def platform_cause(reason: PlatformReason, *, credential: str = "", request_id: str = "") -> Cause:
    """Return a cause of the platform's own; ``ADMIN`` names credential and request too."""
    return Cause("platform", reason.value, credential, request_id)


def build_record(
    stamp: Stamp,
    *,
    action: Action,
    tenant: str | None,
    cause: Cause,
    subject: Subject | None = None,
    resource: tuple[str, str] | None = None,
    decision: Decision | None = None,
    reasons: Sequence[Reason] = (),
    data: JsonObject | None = None,
    **texts: str,
) -> Record:
    """Build a record of any action; the functions beside this one fix the fields of the common ones.

    Args:
        stamp: fresh identity and time.
        action: what happened.
        tenant: tenant id, or None for the platform's log.
        cause: why.
        subject: who, if a principal acted.
        resource: (type, id).
        decision: for decisions.
        reasons: for decisions; in at most 2 KiB, what is cut says so (:func:`~audit.records.reasons.bounded`).
        data: what only this action has.
        **texts: ``model``, ``tier``, ``session``, ``partition``, ``pair_id``, ``bundle``, ``evidence``; empty ones
            are left out.

    Raises:
        InvalidRequestError: the record is larger than 16 KiB, not representable, malformed, or holds a member that
            records must not have; ``details["record"]`` is its id.
    """
    raw: dict[str, Json] = {
        "v": SCHEMA_VERSION,
        "id": stamp.record_id,
        "ts_us": stamp.ts_us,
        "mono_us": stamp.mono_us,
        "writer": stamp.writer,
        "tenant": tenant,
        "action": action.value,
        "cause": {name: value for name, value in _cause_members(cause) if value},
    }
    if subject is not None:
        raw["subject"] = {"id": subject.id, "roles": list(subject.roles)}
    if resource is not None:
        raw["resource"] = {"type": resource[0], "id": resource[1]}
    if decision is not None:
        raw["decision"] = decision.value
    if reasons:
        raw["reasons"] = _bounded_reasons(stamp.record_id, reasons)
    raw.update({name: value for name, value in texts.items() if value})
    if data:
        refused = next(_refused_members(data, _MAX_DEPTH), None)
        if refused is not None:
            raise _invalid(stamp.record_id, f"must not hold {refused}")
        raw["data"] = data
    return _encode(stamp.record_id, raw)


def _encode(record_id: str, raw: dict[str, Json]) -> Record:
    try:
        leaf = canonical_json(raw)
    except MalformedRequestError as error:
        raise _invalid(record_id, error.message) from error
    if len(leaf) > MAX_LEAF_BYTES:
        raise _invalid(record_id, f"is {len(leaf)} bytes, at most {MAX_LEAF_BYTES} are recorded")
    try:
        return Record(leaf, read_fields(raw))
    except RecordError as error:
        raise InvalidRequestError(error.message, details={"record": record_id}) from error


def _bounded_reasons(record_id: str, reasons: Sequence[Reason]) -> list[Json]:
    try:
        return [dict(item.to_json()) for item in bounded(reasons)]
    except MalformedRequestError as error:
        raise _invalid(record_id, error.message) from error


def _invalid(record_id: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"audit record {record_id} {problem}", details={"record": record_id})


def _cause_members(cause: Cause) -> tuple[tuple[str, str], ...]:
    return (
        ("kind", cause.kind),
        ("reason", cause.reason),
        ("credential", cause.credential),
        ("request_id", cause.request_id),
    )


def _refused_members(value: Json, depth: int) -> Iterator[str]:
    """Yield what ``value`` must not hold, by name."""
    if depth == 0:
        yield f"more than {_MAX_DEPTH} levels"
    elif isinstance(value, dict):
        for name, item in value.items():
            if str(name).lower().replace("-", "_") in _REFUSED_MEMBERS:
                yield f"a member named {name!r}"
            yield from _refused_members(item, depth - 1)
    elif isinstance(value, (list, tuple)):  # other containers are refused by the encoder
        for item in value:
            yield from _refused_members(item, depth - 1)
