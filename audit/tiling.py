"""A log of the database as C2SP tlog-tiles: one file at a time, or all of them in a directory.

What is handed out was compared: an entry with its stored leaf hash, a directory with the signed checkpoint as a whole.
A log has all its files up to the size of a checkpoint that was signed; partial ones are made from the leaves.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from audit.export import check_leaf
from audit.model import LogInfo, Progress
from audit.store import AuditReader
from bulkhead.errors import NotFoundError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.merkle import tree_root
from bulkhead.transparency.note import split_note
from bulkhead.transparency.tiles import (
    CHECKPOINT_PATH,
    TILE_BYTES,
    TILE_WIDTH,
    TilePath,
    TileWriter,
    encode_bundle,
)

__all__ = ["LogTiles", "export_tiles"]

_CHUNK: Final = 4 * TILE_WIDTH  # leaves in one read of the database


@dataclass(frozen=True, slots=True)
class LogTiles:
    """One log's files, read from the database when they are asked for.

    Attributes:
        reader: the database's reading side.
        info: the log.
        note: the signed checkpoint, cosignatures included, up to which there are files.
    """

    reader: AuditReader
    info: LogInfo
    note: str

    @property
    def size(self) -> int:
        """Entries that the checkpoint covers."""
        return Checkpoint.parse(split_note(self.note)[0]).size

    def get(self, path: str) -> bytes:
        """Return a file.

        Raises:
            NotFoundError: the log has no such file.
            RecordError, ProofError: the database's copy is damaged; names the record or the file.
            AuditUnavailableError: the database cannot be read.
        """
        if path == CHECKPOINT_PATH:
            return self.note.encode("utf-8")
        try:
            wanted = TilePath.parse(path)
        except ProofError as error:
            raise NotFoundError("there is no such file") from error
        if not wanted.within(self.size):
            raise NotFoundError("the log has no such tile")
        if wanted.level is None:
            return encode_bundle(self._entries(wanted))
        return self._tile(wanted)

    def _entries(self, path: TilePath) -> list[bytes]:
        first = path.number * TILE_WIDTH
        found = self.reader.leaves(self.info.log_id, first, first + path.width)
        for index, stored in enumerate(found, first):
            check_leaf(self.info.origin, index, stored)
        _complete(self.info, path, found)
        return [stored.leaf for stored in found]

    def _tile(self, path: TilePath) -> bytes:
        level = path.level or 0
        data = self.reader.tile(self.info.log_id, level, path.number)
        if data is not None and len(data) != TILE_BYTES:
            raise ProofError(f"{self.info.origin}/{path}: the database's tile is damaged", details={"file": str(path)})
        if data is None:
            data = b"".join(self._hashes(path, level))
        return data[: path.width * 32]

    def _hashes(self, path: TilePath, level: int) -> list[bytes]:
        """Return the hashes of a tile that is not full yet."""
        first = path.number * TILE_WIDTH
        if level == 0:
            hashes = list(self.reader.leaf_hashes(self.info.log_id, first, first + path.width))
            _complete(self.info, path, hashes)
            return hashes
        hashes = []
        for number in range(first, first + path.width):
            below = self.reader.tile(self.info.log_id, level - 1, number)
            if below is None or len(below) != TILE_BYTES:
                name = TilePath(level - 1, number)
                raise ProofError(f"{self.info.origin}/{name}: the database's tile is missing or damaged")
            hashes.append(tree_root(below[at : at + 32] for at in range(0, TILE_BYTES, 32)))
        return hashes


def export_tiles(
    reader: AuditReader, info: LogInfo, note: str, directory: Path, *, progress: Progress | None = None
) -> int:
    """Write a log's files up to a signed checkpoint, which is written last; return how many entries they hold.

    Tiles are computed from the records; those that the database keeps are compared with them.

    Args:
        reader: the database's reading side.
        info: the log.
        note: the signed checkpoint.
        directory: where to; files that are there already are replaced, each at once.
        progress: told how far it is.

    Raises:
        RecordError: a record is missing or damaged, or the records are not those of the checkpoint; names the record.
        ProofError: the database keeps another tile than the records give; names the file.
        AuditUnavailableError: the database cannot be read.
    """
    checkpoint = Checkpoint.parse(split_note(note)[0])

    def put(path: TilePath, data: bytes) -> None:
        if path.level is not None and path.width == TILE_WIDTH:
            kept = reader.tile(info.log_id, path.level, path.number)
            if kept != data:
                raise ProofError(
                    f"{info.origin}/{path}: the database's tile is not the one that its records give",
                    details={"file": str(path)},
                )
        _write(directory / str(path), data)

    writer = TileWriter(put)
    while writer.size < checkpoint.size:
        start, stop = writer.size, min(writer.size + _CHUNK, checkpoint.size)
        found = reader.leaves(info.log_id, start, stop)
        for index, stored in enumerate(found, start):
            check_leaf(info.origin, index, stored)
            writer.append(stored.leaf, stored.leaf_hash)
        if len(found) != stop - start:
            raise RecordError(f"{info.origin}: record {start + len(found)} is missing from the database")
        if progress is not None:
            progress(stop, checkpoint.size)
    if writer.finish() != checkpoint.root:
        raise RecordError(f"{info.origin}: the records in the database are not those of the signed checkpoint")
    _write(directory / CHECKPOINT_PATH, note.encode("utf-8"))
    return checkpoint.size


def _complete(info: LogInfo, path: TilePath, found: Sequence[object]) -> None:
    if len(found) != path.width:
        missing = path.number * TILE_WIDTH + len(found)
        raise RecordError(f"{info.origin}: record {missing} is missing from the database")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
