"""The leaf of a tenant's or the platform's log: one record as RFC 8785 JSON, schema version 1.

The stored bytes are the leaf; they are written once and only ever re-hashed. :func:`parse_leaf` is strict, so that
two parties never read one leaf differently: an unknown version, an unknown field, a missing field, a wrong type or
another encoding of the same JSON is a :class:`~bulkhead.errors.RecordError`. Actions are checked by form, not against
a list, so that a verifier reads records of actions that are newer than itself. The fields are described in
docs/audit.md section 2.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bulkhead.encoding import MAX_SAFE_INTEGER, Json, parse_canonical
from bulkhead.errors import InvalidRequestError, MalformedRequestError, RecordError
from bulkhead.ids import RECORD, check_id

__all__ = [
    "ACTION_PATTERN",
    "HEX_DIGEST_PATTERN",
    "MAX_LEAF_BYTES",
    "MAX_REASONS",
    "MAX_ROLES",
    "MAX_TEXT",
    "SCHEMA_VERSION",
    "Cause",
    "LeafFields",
    "Resource",
    "parse_leaf",
    "read_fields",
]

SCHEMA_VERSION: Final = 1
MAX_LEAF_BYTES: Final = 16 * 1024  # a tile bundle's entry length is 16 bits; a quarter of it keeps bundles readable
MAX_TEXT: Final = 256  # identifiers, codes and names; longer text belongs into `data`
MAX_REASONS: Final = 64  # one per rule that fired; a policy with more should summarise
MAX_ROLES: Final = 16
ACTION_PATTERN: Final = r"[a-z][a-z_]{0,31}(?:\.[a-z][a-z_]{0,31}){0,3}"
HEX_DIGEST_PATTERN: Final = r"[0-9a-f]{64}"
_ACTION: Final = re.compile(ACTION_PATTERN)
_HEX_DIGEST: Final = re.compile(HEX_DIGEST_PATTERN)
_DECISIONS: Final = frozenset({"allow", "deny", "error"})
_CAUSES: Final = frozenset({"tenant", "platform"})


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the record exists.

    Attributes:
        kind: ``tenant`` (a request made with a tenant's credential) or ``platform``.
        reason: for ``platform`` one of a closed list kept by the writer; empty for ``tenant``.
        credential: id of the credential that was presented, or empty.
        request_id: the request id that the client made, or empty.
    """

    kind: str
    reason: str = ""
    credential: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """What was acted upon, in AuthZEN's terms."""

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFields:
    """A parsed record. Absent optional texts are empty strings; digests are lower-case hex SHA-256.

    Attributes:
        version: schema version, 1.
        record_id: TypeID ``rec_…`` (a UUIDv7), unique in the database.
        ts_us: when, in microseconds of UTC since the epoch, by the writer's wall clock. Order is the index, not this.
        mono_us: microseconds of the writer's monotonic clock since ``writer`` started: shows a wall clock that was set.
        writer: random id of the process that made the record.
        tenant: the tenant's id, or None in the platform's log.
        action: dotted lower-case name.
        cause: see :class:`Cause`.
        subject: random subject id (pseudonym), or empty where no principal acted.
        roles: the subject's roles at the time.
        resource: what was acted upon, or None.
        decision: ``allow``, ``deny``, ``error`` or empty.
        reasons: of the decision: mappings with ``code``, ``policy`` and ``message``.
        model: the model's name.
        tier: isolation tier.
        session: session id.
        partition: partition id.
        pair_id: joins a decision with its outcome and receipts.
        bundle: digest of the policy bundle that decided.
        evidence: digest of the evidence that was appraised.
        data: what only this action has, e.g. the policy input of a decision.
    """

    version: int
    record_id: str
    ts_us: int
    mono_us: int
    writer: str
    tenant: str | None
    action: str
    cause: Cause
    subject: str = ""
    roles: tuple[str, ...] = ()
    resource: Resource | None = None
    decision: str = ""
    reasons: tuple[Mapping[str, str], ...] = ()
    model: str = ""
    tier: str = ""
    session: str = ""
    partition: str = ""
    pair_id: str = ""
    bundle: str = ""
    evidence: str = ""
    data: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))


def parse_leaf(leaf: bytes) -> LeafFields:
    """Parse a record's leaf strictly. Its place in a log is verified elsewhere (an inclusion proof, or an export).

    Raises:
        RecordError: anything but a well-formed record of schema version 1; the message names the field and, once it
            is known, the record.
    """
    try:
        raw = parse_canonical(leaf, max_bytes=MAX_LEAF_BYTES, what="record")
    except MalformedRequestError as error:
        raise RecordError(error.message) from error
    return read_fields(raw)


def read_fields(raw: Mapping[str, Json]) -> LeafFields:
    """Read the fields of a record that is parsed already; a writer checks what it is about to encode with it.

    Raises:
        RecordError: see :func:`parse_leaf`; encoding and size are not looked at here.
    """
    return _Reader(dict(raw)).fields()


class _Reader:
    """Takes typed fields out of the parsed object; what is left over at the end is an unknown field."""

    def __init__(self, raw: dict[str, Json]) -> None:
        self._raw = raw
        self._record = ""

    def fields(self) -> LeafFields:
        if type(version := self._raw.pop("v", None)) is not int or version != SCHEMA_VERSION:
            found = f", {version} is there: a later build reads it" if type(version) is int else ""
            raise RecordError(f"record: schema version {SCHEMA_VERSION} is expected{found}")
        record_id = self._record = self._record_id()
        subject, roles = self._subject()
        fields = LeafFields(
            version=version,
            record_id=record_id,
            ts_us=self._integer("ts_us"),
            mono_us=self._integer("mono_us"),
            writer=self._text("writer", required=True),
            tenant=self._tenant(),
            action=self._matching("action", _ACTION.fullmatch, required=True),
            cause=self._cause(),
            subject=subject,
            roles=roles,
            resource=self._resource(),
            decision=self._matching("decision", _DECISIONS.__contains__),
            reasons=self._reasons(),
            model=self._text("model"),
            tier=self._text("tier"),
            session=self._text("session"),
            partition=self._text("partition"),
            pair_id=self._text("pair_id"),
            bundle=self._matching("bundle", _HEX_DIGEST.fullmatch),
            evidence=self._matching("evidence", _HEX_DIGEST.fullmatch),
            data=MappingProxyType(self._object("data") or {}),
        )
        if self._raw:
            raise self._error(min(self._raw), "is not a field of this schema version")
        return fields

    def _error(self, name: str, problem: str) -> RecordError:
        where = f"record {self._record}" if self._record else "record"
        return RecordError(f"{where}: {name} {problem}", details={"record": self._record} if self._record else None)

    def _record_id(self) -> str:
        value = self._text("id", required=True)
        try:
            return check_id(value, RECORD)
        except InvalidRequestError as error:
            raise self._error("id", "is not a record id") from error

    def _integer(self, name: str) -> int:
        value = self._raw.pop(name, None)
        if type(value) is not int or not 0 <= value <= MAX_SAFE_INTEGER:
            raise self._error(name, "is not a non-negative integer")
        return value

    def _text(self, name: str, *, required: bool = False) -> str:
        if name not in self._raw and not required:
            return ""
        return self._check_text(name, self._raw.pop(name, None))

    def _check_text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
            raise self._error(name, f"is not a text of 1 to {MAX_TEXT} characters")
        return value

    def _matching(self, name: str, accepts: Callable[[str], object], *, required: bool = False) -> str:
        value = self._text(name, required=required)
        if value and not accepts(value):
            raise self._error(name, "has an unexpected form")
        return value

    def _object(self, name: str) -> dict[str, Json] | None:
        if name not in self._raw:
            return None
        value = self._raw.pop(name)
        if not isinstance(value, dict):
            raise self._error(name, "is not an object")
        return value

    def _tenant(self) -> str | None:
        if self._raw.get("tenant", "") is None:
            del self._raw["tenant"]
            return None
        return self._text("tenant", required=True)

    def _texts(self, name: str, optional: frozenset[str], required: frozenset[str]) -> dict[str, str] | None:
        value = self._object(name)
        if value is None:
            return None
        if not required <= value.keys() <= required | optional:
            raise self._error(name, "has missing or unknown members")
        return {key: self._check_text(f"{name}.{key}", item) for key, item in value.items()}

    def _cause(self) -> Cause:
        value = self._texts("cause", frozenset({"reason", "credential", "request_id"}), frozenset({"kind"}))
        if value is None or value["kind"] not in _CAUSES or (value["kind"] == "platform") != ("reason" in value):
            raise self._error("cause", "is neither a tenant's nor the platform's")
        return Cause(**value)

    def _subject(self) -> tuple[str, tuple[str, ...]]:
        value = self._object("subject")
        if value is None:
            return "", ()
        roles = value.get("roles")
        if value.keys() != {"id", "roles"} or not isinstance(roles, list) or len(roles) > MAX_ROLES:
            raise self._error("subject", "is not an id with roles")
        return (
            self._check_text("subject.id", value["id"]),
            tuple(self._check_text("subject.roles", role) for role in roles),
        )

    def _resource(self) -> Resource | None:
        value = self._texts("resource", frozenset(), frozenset({"type", "id"}))
        return None if value is None else Resource(**value)

    def _reasons(self) -> tuple[Mapping[str, str], ...]:
        value = self._raw.pop("reasons", [])
        if not isinstance(value, list) or len(value) > MAX_REASONS:
            raise self._error("reasons", f"is not a list of at most {MAX_REASONS}")
        for reason in value:
            if (
                not isinstance(reason, dict)
                or reason.keys() != {"code", "policy", "message"}
                or not all(isinstance(item, str) for item in reason.values())
            ):
                raise self._error("reasons", "holds something else than code, policy and message")
        return tuple(MappingProxyType(reason) for reason in value)
