"""The self-contained export of one or several logs: JSON lines that verify offline against pinned log keys.

::

    {"type":"bulkhead-audit-export","version":1}
    {"type":"log","origin":…,"tenant":…|null,"vkey":…,"first":0,"frontier":[]}
    {"type":"record","index":0,"hash":…,"leaf":"…"}          leaf: the exact bytes, as a JSON string
    {"type":"checkpoint","note":…}                           of exactly the records before it
    {"type":"round","slot":…,"salt":…,"path":[…],"proof":…}  a round of the platform's log over them (a tenant's log)
    {"type":"log-end","note":…}                              the checkpoint of all of the log's records here
    {"type":"end","logs":1,"records":…}

An export that begins later than leaf 0 carries the frontier (compact range) of the leaves before ``first``: the
checkpoint then still covers every record in it. ``vkey`` is there for a reader's convenience and is never trusted.
Hashes are standard base64. The format is described in docs/audit.md section 6.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from bulkhead.encoding import Json, b64decode
from bulkhead.errors import (
    CheckpointError,
    ConsistencyError,
    InclusionError,
    MalformedRequestError,
    ProofError,
    RecordError,
)
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.export_trust import ExportTrust
from bulkhead.transparency.export_writer import FORMAT, VERSION, ExportWriter
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.transparency.merkle import HASH_BYTES, MAX_TREE_SIZE, Frontier, leaf_hash
from bulkhead.transparency.rounds import next_round

__all__ = ["FORMAT", "ExportWriter", "VerifiedExport", "VerifiedLog", "verify_export"]

_MAX_LINE_BYTES: Final = 256 * 1024  # a 16 KiB leaf of control characters, escaped, is 96 KiB
_PROGRESS_EVERY: Final = 1_000  # records


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
        witnessed: how many of the log's records a quorum of pinned witnesses has seen, those before ``first`` included.
    """

    origin: str
    tenant: str | None
    first: int
    checkpoint: Checkpoint
    checkpoints: int
    before: Frontier = field(default_factory=Frontier, repr=False)
    after: Frontier = field(default_factory=Frontier, repr=False)
    note: str = field(default="", repr=False)
    witnessed: int = 0

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
    witnesses: Collection[Witness] = (),
    quorum: int = 0,
) -> VerifiedExport:
    """Verify an export, in bounded memory, trusting only ``vkeys``.

    1. Each line is well formed; the end line is there and its counts are right.
    2. Each record's leaf has the hash beside it, is a well-formed record of the log's tenant, and is next in order; the
       platform's rounds count up by one.
    3. Each checkpoint is signed by the log's pinned key and its root is that of the records up to it.
    4. Each checkpoint in ``seen`` agrees with the log.
    5. With a ``quorum``: that many pinned witnesses cosigned a checkpoint of each log (of the platform's log over a
       round that commits to it, for a tenant's); ``witnessed`` says up to which record.

    Who the tenant is, and that the last checkpoint is recent enough, stays with the caller.

    Args:
        stream: the export.
        vkeys: pinned log keys; the key's name is the log's origin.
        seen: signed checkpoints from earlier (receipts, exports) that must be part of the same history.
        progress: called with the number of records verified so far.
        witnesses: pinned witnesses of the platform's log; its key must be among ``vkeys`` for a tenant's log.
        quorum: how many of them must have cosigned.
        on_record: called with each record in order; what it got counts only once this function has returned.

    Raises:
        RecordError: a record does not hold; ``details`` names origin, index and record.
        ConsistencyError: a checkpoint does not cover the records before it; ``details`` names the first and last
            record that are in doubt.
        CheckpointError: a checkpoint is not signed by a pinned key.
        ProofError: the export is malformed or truncated; the message names the line.
    """
    trust = ExportTrust.of(vkeys, witnesses, quorum)
    earlier = [trust.open(note, note.partition("\n")[0]) for note in seen]
    return _Verifier(stream, trust, earlier, progress, on_record).run()


@dataclass(slots=True)
class _Open:
    """The log that is being read."""

    origin: str
    tenant: str | None
    first: int
    frontier: Frontier
    covered: int  # size of the last checkpoint that held
    seen: dict[int, Checkpoint]
    before: Frontier
    slot: int | None = None
    round: int = 0
    witnessed: int = 0
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
        trust: ExportTrust,
        seen: Sequence[Checkpoint],
        progress: Callable[[int], None] | None,
        on_record: Callable[[LeafFields], None] | None,
    ) -> None:
        self._stream = stream
        self._trust = trust
        self._seen = seen
        self._progress = progress
        self._on_record = on_record
        self._line = 0
        self._records = 0
        self._done: list[VerifiedLog] = []

    def run(self) -> VerifiedExport:
        header = self._next()
        if header != {"type": FORMAT, "version": VERSION}:
            raise ProofError(f"not a {FORMAT} of version {VERSION}")
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
                case "round" if log is not None:
                    self._round(log, value)
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
            if self._line == 1:
                raise ProofError(f"not a {FORMAT}: empty, or cut in its first line")
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
        self._trust.key(origin)
        frontier = Frontier.decode(first, b"".join(self._hash(node) for node in nodes))
        seen = {checkpoint.size: checkpoint for checkpoint in self._seen if checkpoint.origin == origin}
        log = _Open(origin, tenant, first, frontier, first, seen, before=frontier)
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
        if index == 0 and isinstance(slot := fields.data.get("slot"), int):
            log.slot = slot
        if log.tenant is None:
            try:
                log.round = next_round(fields, log.round)
            except RecordError as error:
                raise self._bad(log, index, fields.record_id, error.message) from error
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
            checkpoint = self._trust.open(note, log.origin)
            cosigned = self._trust.cosigned(note, log.origin)
        except CheckpointError as error:
            raise CheckpointError(f"{log.origin}, checkpoint after record {log.size - 1}: {error.message}") from error
        if checkpoint.size != log.size:
            raise ConsistencyError(
                f"{log.origin}: a checkpoint of size {checkpoint.size} stands after {log.size} records",
                details={"origin": log.origin},
            )
        self._compare(log, checkpoint, "the checkpoint")
        log.checkpoints += 1
        if cosigned:
            log.witnessed = log.size
        return checkpoint

    def _round(self, log: _Open, value: dict[str, Json]) -> None:
        log.flush()
        tree = Checkpoint(log.origin, log.size, log.frontier.root())
        try:
            cosigned = self._trust.cosigned_round(value, tree, log.slot)
        except ProofError as error:
            message = f"{log.origin}, round after record {log.size - 1}: {error.message}"
            raise type(error)(message, details=error.details) from error
        if cosigned:
            log.witnessed = log.size

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
        if self._trust.quorum and not log.witnessed:
            raise CheckpointError(
                f"{log.origin}: no checkpoint in the export is cosigned by {self._trust.quorum} pinned witnesses"
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
            witnessed=log.witnessed,
        )

    def _end(self, value: dict[str, Json]) -> VerifiedExport:
        if not self._done:
            raise self._malformed("the export holds no log")
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
