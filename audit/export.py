"""Writes a log as a self-contained export (the format: :mod:`bulkhead.transparency.export`)."""

from typing import Final

from audit.model import LogInfo, Progress, StoredLeaf
from audit.store import AuditReader
from bulkhead.errors import RecordError
from bulkhead.transparency import merkle
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.export import ExportWriter
from bulkhead.transparency.leaf import LeafFields, parse_leaf
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.rounds import RoundPath

__all__ = ["check_leaf", "check_place", "damaged", "export_log", "read_leaf"]

_CHUNK: Final = 256
"""Leaves in one read of the database: at most 4 MiB, and over before SQLite looks at the clock for the first time.

So the platform's limit on a read, which holds its database's log back, never ends an export, however busy the machine.
"""


def export_log(
    store: AuditReader,
    writer: ExportWriter,
    *,
    info: LogInfo,
    vkey: str,
    size: int,
    note: str,
    before: Frontier = Frontier(),  # noqa: B008 - immutable
    path: RoundPath | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the records of a log after ``before`` up to ``size``, kept checkpoints among them; return their number.

    What is written is checked on the way, so that a damaged database does not make an export that looks whole.

    Args:
        store: reading side.
        writer: where to.
        info: the log.
        vkey: its public key.
        size: the checkpoint's size.
        note: the signed checkpoint of that size.
        path: into a round of the platform's log that commits to a size of this log, or None.
        before: the frontier of what is left out at the beginning, proven to be this log's.
        progress: told how far it is.

    Raises:
        RecordError: a leaf is missing, damaged or not what the tree was built from; names it.
        AuditUnavailableError: the database cannot be read.
    """
    origin = info.origin
    writer.begin_log(origin=origin, tenant=info.tenant, vkey=vkey, before=before)
    frontier = before
    round_size = None if path is None else Checkpoint.parse(path.checkpoint_text).size
    while frontier.size < size:
        start = frontier.size
        stop = min(start + _CHUNK, size)
        leaves = store.leaves(info.log_id, start, stop)
        notes = dict(store.checkpoints(info.log_id, start + 1, stop + 1))
        for index, stored in zip(range(start, stop), leaves, strict=False):
            check_leaf(origin, index, stored)
            writer.record(index, stored.leaf, stored.leaf_hash)
            if index + 1 in notes and index + 1 < size:
                writer.checkpoint(notes[index + 1])
            if path is not None and index + 1 == round_size:
                writer.round(path)
        if len(leaves) != stop - start:
            raise RecordError(f"{origin}: record {start + len(leaves)} is missing from the database")
        frontier = frontier.extend(stored.leaf_hash for stored in leaves)
        if progress is not None:
            progress(stop, size)
    if frontier.root() != Checkpoint.parse(note.partition("\n\n")[0] + "\n").root:
        raise RecordError(f"{origin}: the records in the database are not those of the signed checkpoint")
    writer.end_log(note)
    return size - before.size


def check_leaf(origin: str, index: int, stored: StoredLeaf) -> LeafFields:
    """Check that a stored leaf stands at ``index`` and is what its columns say; return what it says.

    Raises:
        RecordError: it is not; names the record.
    """
    check_place(origin, index, stored)
    try:
        return read_leaf(stored.leaf, leaf_hash=stored.leaf_hash, record_id=stored.record_id)
    except RecordError as error:
        raise damaged(origin, stored, error.message) from error


def check_place(origin: str, index: int, stored: StoredLeaf) -> None:
    """Check that a stored leaf stands at ``index``.

    Raises:
        RecordError: it does not; names the record.
    """
    if stored.index != index:
        raise RecordError(
            f"{origin}: record {index} is missing; record {stored.index} ({stored.record_id}) stands in its place",
            details={"origin": origin, "index": str(index)},
        )


def read_leaf(leaf: bytes, *, leaf_hash: bytes, record_id: str) -> LeafFields:
    """Return what a leaf says, which has this hash and this record's id.

    Raises:
        RecordError: it has not, or is no well-formed record; the caller names the record (:func:`damaged`).
    """
    if merkle.leaf_hash(leaf) != leaf_hash:
        raise RecordError("its bytes do not have the stored hash")
    fields = parse_leaf(leaf)
    if fields.record_id != record_id:
        raise RecordError(f"its own id is {fields.record_id}")
    return fields


def damaged(origin: str, stored: StoredLeaf, problem: str) -> RecordError:
    """Return the error that names a stored record and what is wrong with it."""
    return RecordError(
        f"{origin}: record {stored.index} ({stored.record_id}): {problem}",
        details={"origin": origin, "index": str(stored.index), "record": stored.record_id},
    )
