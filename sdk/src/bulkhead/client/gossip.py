"""Checkpoints that monitors of one log leave for each other: two that were shown different histories find out.

A directory that they share (a mounted volume, a synchronised folder, a repository) holds one signed note per monitor
and tree. Who can write to it can add noise, but no false alarm: a note counts only under the log's own key, and two
notes of that key that do not agree are the proof of a fork.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from bulkhead.errors import CheckpointError, ConfigError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.note import MAX_NOTE_BYTES, NoteVerifier

__all__ = ["Gossip"]

_SUFFIX: Final = ".checkpoint"
_MAX_NOTES: Final = 1_000  # looked at, newest first: each monitor keeps one


class Gossip:
    """One directory, for one log.

    Args:
        directory: shared; made at need.
        vkey: the log's pinned key.
        left: name of the file that this monitor left last, or empty.
    """

    def __init__(self, directory: Path, *, vkey: str, left: str = "") -> None:
        self.left = Path(left).name
        """Name of the file that was left last."""
        self._directory = directory
        self._vkey = vkey
        self._origin = NoteVerifier.from_vkey(vkey).name
        self._prefix = hashlib.sha256(self._origin.encode()).hexdigest()[:16]

    def others(self, own: str) -> list[tuple[str, Checkpoint]]:
        """Return name and content of the notes that others left and that the log's key signed.

        Raises:
            ConfigError: the directory cannot be read.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            files = sorted(self._directory.glob(f"{self._prefix}-*{_SUFFIX}"), key=_age)[:_MAX_NOTES]
            texts = [(path.name, _read(path)) for path in files]
        except OSError as error:
            raise ConfigError(f"the gossip directory {self._directory} cannot be read: {error.strerror}") from error
        found: list[tuple[str, Checkpoint]] = []
        for name, text in texts:
            if text == own:
                continue
            try:
                found.append((name, open_checkpoint(text, vkey=self._vkey, origin=self._origin)))
            except CheckpointError:
                continue
        return found

    def leave(self, note: str) -> None:
        """Leave the own checkpoint in place of the one before, which it commits to.

        The file's name is its content's, so that nobody's is overwritten.

        Raises:
            ConfigError: the directory cannot be written.
        """
        digest = hashlib.sha256(note.encode()).hexdigest()[:16]
        path = self._directory / f"{self._prefix}-{digest}{_SUFFIX}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(note, encoding="utf-8")
            temporary.replace(path)
            if self.left not in ("", path.name):
                (self._directory / self.left).unlink(missing_ok=True)
            self.left = path.name
        except OSError as error:
            raise ConfigError(f"the gossip directory {self._directory} cannot be written: {error.strerror}") from error


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_NOTE_BYTES).decode("utf-8", "replace")
