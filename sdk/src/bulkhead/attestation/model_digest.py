"""The name of a model that evidence, audit records and tenants agree on: one digest over every file of its directory.

The digest is SHA-256 over the RFC 8785 encoding of a manifest::

    {"files": [{"path": "config.json", "sha256": "<64 hex>", "size": 704}, ...], "version": 1}

``path`` is relative to the directory, with ``/`` between its parts, in Unicode NFC; ``files`` is sorted by the UTF-8
bytes of ``path``; ``sha256`` and ``size`` (bytes) are of the file's content. Every regular file counts, hidden ones
too, so a file that a loader might read cannot be added unseen. Names of directories, times and modes do not count.

A symbolic link counts as the file that it leads to, and must lead to a file inside the directory: downloads keep their
content beside their names in that way. Sockets, devices and links to directories are refused.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.encoding import MAX_SAFE_INTEGER, Json, canonical_json
from bulkhead.errors import InvalidRequestError

__all__ = ["ModelFile", "ModelManifest", "list_model_files", "model_digest", "model_manifest"]

MANIFEST_VERSION: Final = 1
MAX_FILES: Final = 4096  # the largest published checkpoints have a few hundred shards
MAX_DEPTH: Final = 8
MAX_PATH_BYTES: Final = 512
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: path relative to the directory, size in bytes, SHA-256 of the content (32 bytes)."""

    path: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """Every file of a model directory, sorted by the UTF-8 bytes of its path."""

    files: tuple[ModelFile, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form that the module docstring shows."""
        return {
            "version": MANIFEST_VERSION,
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256.hex()} for file in self.files],
        }

    def digest(self) -> bytes:
        """Return the model digest, 32 bytes."""
        return hashlib.sha256(canonical_json(self.to_json())).digest()


def model_digest(directory: Path) -> bytes:
    """Return the digest of the model in ``directory``, 32 bytes; reads every byte of it. Raises as the manifest."""
    return model_manifest(directory).digest()


def model_manifest(directory: Path) -> ModelManifest:
    """Return the manifest of the model in ``directory``, whose content is not trusted.

    Raises:
        InvalidRequestError: not a directory, empty, unreadable, a file that is neither regular nor a link to a regular
            file inside the directory, two paths that are equal in NFC, or more or longer names than a model has.
    """
    files = []
    for path, place in list_model_files(directory).items():
        try:
            files.append(_read_file(path, place))
        except OSError as error:
            raise InvalidRequestError(f"model directory {directory.name}: {type(error).__name__}") from error
    return ModelManifest(files=tuple(files))


def list_model_files(directory: Path) -> dict[str, Path]:
    """Return where each file of the model in ``directory`` lies, links followed, by its path in the manifest, sorted.

    Raises:
        InvalidRequestError: as :func:`model_manifest`, except for what shows only when a file is opened.
    """
    try:
        root = directory.resolve(strict=True)
        found = [(_relative(root, path), path.resolve(strict=True)) for path in _walk(root)]
        found.sort(key=lambda item: item[0].encode())
    except (OSError, UnicodeEncodeError, RuntimeError) as error:  # RuntimeError: Path.resolve on a loop of links
        raise InvalidRequestError(f"model directory {directory.name}: {type(error).__name__}") from error
    if not found:
        raise InvalidRequestError(f"model directory {directory.name} is empty")
    if len(dict(found)) != len(found):
        raise InvalidRequestError(f"model directory {directory.name}: two file names differ in Unicode form only")
    for relative, place in found:
        if not place.is_relative_to(root):
            raise InvalidRequestError(f"{relative} leads out of the model directory")
    return dict(found)


def _walk(root: Path) -> Iterator[Path]:
    pending = [root]
    count = 0
    while pending:
        current = pending.pop()
        if len(current.relative_to(root).parts) > MAX_DEPTH:
            raise InvalidRequestError(f"model directory is nested more than {MAX_DEPTH} deep")
        with os.scandir(current) as entries:
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    raise InvalidRequestError(f"model directory has more than {MAX_FILES} entries")
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _relative(root: Path, path: Path) -> str:
    relative = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
    if len(relative.encode()) > MAX_PATH_BYTES:
        raise InvalidRequestError(f"a path in the model directory is longer than {MAX_PATH_BYTES} bytes")
    return relative


def _read_file(relative: str, place: Path) -> ModelFile:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequestError(f"{relative} is not a regular file")
        hasher = hashlib.sha256()
        size = 0
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    if size > MAX_SAFE_INTEGER:
        raise InvalidRequestError(f"{relative} is larger than any model")
    return ModelFile(path=relative, size=size, sha256=hasher.digest())
