"""Turns a whole export of one log into the log's static files (C2SP tlog-tiles)."""

import json
from pathlib import Path
from typing import BinaryIO

from bulkhead.errors import ProofError
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.tiles import CHECKPOINT_PATH, TilePath, TileWriter

__all__ = ["export_to_tiles"]


def export_to_tiles(stream: BinaryIO, *, vkey: str, directory: Path) -> tuple[str, int]:
    """Verify an export and write its log's files, the checkpoint last; return origin and size.

    Args:
        stream: the export, seekable: it is read twice, and what is written is what was verified.
        vkey: pinned key of the log.
        directory: where to.

    Raises:
        ProofError: the export does not hold, is of several logs, or does not begin with the log.
        OSError: a file cannot be written.
    """
    verified = verify_export(stream, vkeys=[vkey]).logs
    if len(verified) != 1 or verified[0].first:
        raise ProofError("tiles are made from an export of one whole log")
    log = verified[0]

    def put(path: TilePath, data: bytes) -> None:
        target = directory / str(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    writer = TileWriter(put)
    stream.seek(0)
    for line in stream:
        value = json.loads(line)
        if value["type"] == "record":
            leaf = value["leaf"].encode("utf-8")
            writer.append(leaf, leaf_hash(leaf))
    if writer.finish() != log.checkpoint.root:
        raise ProofError("the export changed while it was read")
    (directory / CHECKPOINT_PATH).write_text(log.note, encoding="utf-8")
    return log.origin, log.checkpoint.size
