"""Writes exports; the format is described, and verified, in :mod:`bulkhead.transparency.export`."""

import json
from collections.abc import Mapping
from typing import BinaryIO, Final

from bulkhead.encoding import Json, b64encode
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.rounds import RoundPath
from bulkhead.transparency.tlog_proof import round_member

__all__ = ["FORMAT", "VERSION", "ExportWriter"]

FORMAT: Final = "bulkhead-audit-export"
VERSION: Final = 1


class ExportWriter:
    """Writes the format: :meth:`begin_log`, records and checkpoints, :meth:`end_log` for each log, then :meth:`end`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._logs = 0
        self._records = 0
        self._line({"type": FORMAT, "version": VERSION})

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

    def round(self, path: RoundPath) -> None:
        """Write the path into a round that commits to exactly the records written so far."""
        self._line({"type": "round", **round_member(path)})

    def end_log(self, note: str) -> None:
        """End the log with the checkpoint of all its records here."""
        self._line({"type": "log-end", "note": note})

    def end(self) -> None:
        """End the export; without this line it counts as truncated."""
        self._line({"type": "end", "logs": self._logs, "records": self._records})

    def _line(self, value: Mapping[str, Json]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
