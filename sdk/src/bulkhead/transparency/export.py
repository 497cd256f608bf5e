"""The self-contained export of one or several logs: JSON lines that verify offline against pinned log keys.

::

    {"type":"bulkhead-audit-export","version":1}
    {"type":"log","origin":…,"tenant":…|null,"vkey":…,"first":0,"frontier":[]}
    {"type":"record","index":0,"hash":…,"leaf":"…"}          leaf: the exact bytes, as a JSON string
    {"type":"checkpoint","note":…}                           of exactly the records before it
    {"type":"log-end","note":…}                              the checkpoint of all of the log's records here
    {"type":"end","logs":1,"records":…}

An export that begins later than leaf 0 carries the frontier (compact range) of the leaves before ``first``: the
checkpoint then still covers every record in it. ``vkey`` is there for a reader's convenience and is never trusted.
Hashes are standard base64. The format is described in docs/audit.md section 6.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from bulkhead.encoding import Json, b64decode, b64encode
from bulkhead.errors import (
    CheckpointError,
    ConsistencyError,
    InclusionError,
    MalformedRequestError,
    ProofError,
    RecordError,
)
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.transparency.merkle import HASH_BYTES, MAX_TREE_SIZE, Frontier, leaf_hash
from bulkhead.transparency.note import NoteVerifier

__all__ = ["FORMAT", "ExportWriter", "VerifiedExport", "VerifiedLog", "verify_export"]

FORMAT: Final = "bulkhead-audit-export"
_VERSION: Final = 1
_MAX_LINE_BYTES: Final = 256 * 1024  # a 16 KiB leaf of control characters, escaped, is 96 KiB
_PROGRESS_EVERY: Final = 1_000  # records


class ExportWriter:
    """Writes the format: :meth:`begin_log`, records and checkpoints, :meth:`end_log` for each log, then :meth:`end`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._logs = 0
        self._records = 0
        self._line({"type": FORMAT, "version": _VERSION})

    def begin_log(self, *, origin: str, tenant: str | None, vkey: str, before: Frontier = Frontier()) -> None:  # noqa: B008 - immutable
        """Begin a log with the leaf after ``before``."""
        self._logs += 1
        nodes = [b64encode(node) for node in before.nodes]
        self._line(
            {"type": "log", "origin": origin, "tenant": tenant, "vkey": vkey, "first": before.size, "frontier": nodes}
        )

    def record(self, index: int, leaf: bytes, digest: bytes) -> None:
        """Write a record: its place, exact bytes and leaf hash as stored."""
        self._records += 1
        self._line({"type": "record", "index": index, "hash": b64encode(digest), "leaf": leaf.decode("utf-8")})

    def checkpoint(self, note: str) -> None:
        """Write a signed checkpoint of exactly the records written so far."""
        self._line({"type": "checkpoint", "note": note})

    def end_log(self, note: str) -> None:
        """End the log with the checkpoint of all its records here."""
        self._line({"type": "log-end", "note": note})

    def end(self) -> None:
        """End the export; without this line it counts as truncated."""
        self._line({"type": "end", "logs": self._logs, "records": self._records})

    def _line(self, value: Mapping[str, Json]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log in a verified export.

    Attributes:
        origin: the log.
        tenant: whose records it holds, or None for the platform's.
        first: index of its first record here.
        checkpoint: the signed checkpoint that covers all of them.
        checkpoints: how many checkpoints were checked, that one included.
        before: the frontier of the leaves before ``first``, as the export gives it: they lead to the same root.
        after: the frontier of all leaves.
        note: the checkpoint as signed.
    """

    origin: str
    tenant: str | None
    first: int
    checkpoint: Checkpoint
    checkpoints: int
    before: Frontier = field(default_factory=Frontier, repr=False)
    after: Frontier = field(default_factory=Frontier, repr=False)
    note: str = field(default="", repr=False)

    @property
    def records(self) -> int:
        """Records of the log in the export."""
        return self.checkpoint.size - self.first


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """An export of which every record is covered by a checkpoint under a pinned key."""

    logs: tuple[VerifiedLog, ...]

    @property
    def records(self) -> int:
        """Records in all logs."""
        return sum(log.records for log in self.logs)


def verify_export(
    stream: BinaryIO,
    *,
    vkeys: Collection[str],
    seen: Collection[str] = (),
    progress: Callable[[int], None] | None = None,
    on_record: Callable[[LeafFields], None] | None = None,
) -> VerifiedExport:
    """Verify an export, in bounded memory, trusting only ``vkeys``.

    1. Each line is well formed; the end line is there and its counts are right.
    2. Each record's leaf has the hash beside it, is a well-formed record of the log's tenant, and is next in order.
    3. Each checkpoint is signed by the log's pinned key and its root is that of the records up to it.
    4. Each checkpoint in ``seen`` agrees with the log.

    Who the tenant is, and that the last checkpoint is recent enough, stays with the caller.

    Args:
        stream: the export.
        vkeys: pinned log keys; the key's name is the log's origin.
        seen: signed checkpoints from earlier (receipts, exports) that must be part of the same history.
        progress: called with the number of records verified so far.
        on_record: called with each record in order; what it got counts only once this function has returned.

    Raises:
        RecordError: a record does not hold; ``details`` names origin, index and record.
        ConsistencyError: a checkpoint does not cover the records before it; ``details`` names the first and last
            record that are in doubt.
        CheckpointError: a checkpoint is not signed by a pinned key.
        ProofError: the export is malformed or truncated; the message names the line.
    """
    keys = {NoteVerifier.from_vkey(vkey).name: vkey for vkey in vkeys}
    return _Verifier(stream, keys, [_open_seen(note, keys) for note in seen], progress, on_record).run()


def _open_seen(note: str, keys: Mapping[str, str]) -> Checkpoint:
    origin = note.split("\n", 1)[0]
    if origin not in keys:
        raise CheckpointError(f"no key is pinned for the log {origin!r} of an earlier checkpoint")
    return open_checkpoint(note, vkey=keys[origin], origin=origin)


@dataclass(slots=True)
class _Open:
    """The log that is being read."""

    origin: str
    tenant: str | None
    vkey: str
    first: int
    frontier: Frontier
    covered: int  # size of the last checkpoint that held
    seen: dict[int, Checkpoint]
    before: Frontier
    checkpoints: int = 0
    pending: list[bytes] = field(default_factory=list)  # leaf hashes not yet in `frontier`

    @property
    def size(self) -> int:
        return self.frontier.size + len(self.pending)

    def flush(self) -> None:
        self.frontier = self.frontier.extend(self.pending)
        self.pending.clear()


class _Verifier:
    def __init__(
        self,
        stream: BinaryIO,
        keys: Mapping[str, str],
        seen: Sequence[Checkpoint],
        progress: Callable[[int], None] | None,
        on_record: Callable[[LeafFields], None] | None,
    ) -> None:
        self._stream = stream
        self._keys = keys
        self._seen = seen
        self._progress = progress
        self._on_record = on_record
        self._line = 0
        self._records = 0
        self._done: list[VerifiedLog] = []

    def run(self) -> VerifiedExport:
        header = self._next()
        if header != {"type": FORMAT, "version": _VERSION}:
            raise ProofError(f"not a {FORMAT} of version {_VERSION}")
        log: _Open | None = None
        while True:
            value = self._next()
            match value.pop("type", None):
                case "log" if log is None:
                    log = self._begin(value)
                case "record" if log is not None:
                    self._record(log, value)
                case "checkpoint" if log is not None:
                    self._checkpoint(log, value)
                case "log-end" if log is not None:
                    self._done.append(self._end_log(log, value))
                    log = None
                case "end" if log is None:
                    return self._end(value)
                case _:
                    raise self._malformed("unexpected line")

    def _next(self) -> dict[str, Json]:
        line = self._stream.readline(_MAX_LINE_BYTES + 1)
        self._line += 1
        if not line.endswith(b"\n"):
            if len(line) > _MAX_LINE_BYTES:
                raise self._malformed("line too long")
            raise ProofError(f"the export is truncated at line {self._line}, after {self._records} records")
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._malformed("not JSON") from error
        if not isinstance(value, dict):
            raise self._malformed("not a JSON object")
        return value

    def _malformed(self, problem: str) -> ProofError:
        return ProofError(f"export line {self._line}: {problem}")

    def _begin(self, value: dict[str, Json]) -> _Open:
        match value:
            case {"origin": str(origin), "tenant": str() | None as tenant, "vkey": str(), "first": int(first), **rest}:
                nodes = rest.get("frontier")
            case _:
                raise self._malformed("not the beginning of a log")
        if not isinstance(nodes, list) or not 0 <= first <= MAX_TREE_SIZE:
            raise self._malformed("not the beginning of a log")
        if any(done.origin == origin for done in self._done):
            raise self._malformed(f"a second log {origin}")
        vkey = self._keys.get(origin)
        if vkey is None:
            raise CheckpointError(f"no key is pinned for the log {origin!r}")
        frontier = Frontier.decode(first, b"".join(self._hash(node) for node in nodes))
        seen = {checkpoint.size: checkpoint for checkpoint in self._seen if checkpoint.origin == origin}
        log = _Open(origin, tenant, vkey, first, frontier, first, seen, before=frontier)
        if seen and min(seen) < first:
            raise ProofError(f"the export of {origin} begins after an earlier checkpoint: it cannot be compared")
        self._compare_seen(log)
        return log

    def _record(self, log: _Open, value: dict[str, Json]) -> None:
        index, text, digest = value.get("index"), value.get("leaf"), self._hash(value.get("hash"))
        if index != log.size or type(index) is not int:
            raise self._bad(log, log.size, "", f"record {log.size} is expected, {index!r} is there")
        if not isinstance(text, str):
            raise self._malformed("not a record")
        self._check_leaf(log, index, text, digest)
        log.pending.append(digest)
        self._compare_seen(log)
        self._records += 1
        if self._records % _PROGRESS_EVERY == 0:
            log.flush()
            if self._progress is not None:
                self._progress(self._records)

    def _check_leaf(self, log: _Open, index: int, text: str, digest: bytes) -> None:
        """Check a record by itself."""
        try:
            leaf = text.encode("utf-8")
            fields = parse_leaf(leaf)
        except UnicodeEncodeError as error:
            raise self._bad(log, index, "", "not UTF-8") from error
        except RecordError as error:
            raise self._bad(log, index, error.details.get("record", ""), error.message) from error
        if leaf_hash(leaf) != digest:
            raise self._bad(log, index, fields.record_id, "the record's bytes do not have the hash beside them")
        if fields.tenant != log.tenant:
            raise self._bad(log, index, fields.record_id, "the record is of another tenant")
        if index == 0 and (fields.action != "log.opened" or fields.data.get("origin") != log.origin):
            raise self._bad(log, index, fields.record_id, "the first record does not open this log")
        if self._on_record is not None:
            self._on_record(fields)

    def _compare_seen(self, log: _Open) -> None:
        earlier = log.seen.pop(log.size, None)
        if earlier is not None:
            self._compare(log, earlier, "an earlier checkpoint")

    def _checkpoint(self, log: _Open, value: dict[str, Json]) -> Checkpoint:
        note = value.get("note")
        if not isinstance(note, str):
            raise self._malformed("not a checkpoint")
        try:
            checkpoint = open_checkpoint(note, vkey=log.vkey, origin=log.origin)
        except CheckpointError as error:
            raise CheckpointError(f"{log.origin}, checkpoint after record {log.size - 1}: {error.message}") from error
        if checkpoint.size != log.size:
            raise ConsistencyError(
                f"{log.origin}: a checkpoint of size {checkpoint.size} stands after {log.size} records",
                details={"origin": log.origin},
            )
        self._compare(log, checkpoint, "the checkpoint")
        log.checkpoints += 1
        return checkpoint

    def _compare(self, log: _Open, checkpoint: Checkpoint, what: str) -> None:
        log.flush()
        if log.frontier.root() != checkpoint.root:
            last = log.size - 1
            raise ConsistencyError(
                f"{log.origin}: {what} of size {log.size} is not of these records; the first that differs is between "
                f"{log.covered} and {last}",
                details={"origin": log.origin, "first": str(log.covered), "last": str(last)},
            )
        log.covered = log.size

    def _end_log(self, log: _Open, value: dict[str, Json]) -> VerifiedLog:
        checkpoint = self._checkpoint(log, value)
        if log.seen:
            raise ConsistencyError(
                f"{log.origin}: an earlier checkpoint has size {max(log.seen)}, this export ends at {log.size}: "
                "an old export, or a rewind",
                details={"origin": log.origin},
            )
        return VerifiedLog(
            log.origin,
            log.tenant,
            log.first,
            checkpoint,
            log.checkpoints,
            before=log.before,
            after=log.frontier,
            note=str(value.get("note")),
        )

    def _end(self, value: dict[str, Json]) -> VerifiedExport:
        if value != {"logs": len(self._done), "records": self._records}:
            raise self._malformed("the counts of the end line are not those of the export")
        if self._stream.readline(1):
            raise self._malformed("more after the end line")
        if self._progress is not None:
            self._progress(self._records)
        return VerifiedExport(tuple(self._done))

    def _bad(self, log: _Open, index: int, record_id: str, problem: str) -> RecordError:
        name = f" ({record_id})" if record_id else ""
        details = {"origin": log.origin, "index": str(index)} | ({"record": record_id} if record_id else {})
        return RecordError(f"{log.origin}: record {index}{name}: {problem}", details=details)

    def _hash(self, value: Json) -> bytes:
        try:
            data = b64decode(value, what="hash") if isinstance(value, str) else b""
        except MalformedRequestError as error:
            raise self._malformed(error.message) from error
        if len(data) != HASH_BYTES:
            raise InclusionError(f"export line {self._line}: a hash is 32 bytes")
        return data
