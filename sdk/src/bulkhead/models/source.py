"""A model's files as plaintext, wherever they come from: a plain directory, or a sealed one and its key.

Whoever loads a model reads through :class:`ModelSource` alone, in ranges, into memory of its own. So a sealed model
needs no temporary file: its plaintext exists in the reader's buffers and nowhere else.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

from bulkhead.attestation.model_digest import ModelFile, ModelManifest, list_model_files
from bulkhead.errors import InvalidRequestError
from bulkhead.models.files import OpenFiles

__all__ = ["DirectorySource", "ModelSource", "hash_model", "read_blocks", "read_file"]

BLOCK_BYTES: Final = 4 << 20  # of sequential reading: several sealed chunks, so that they are opened side by side


class ModelSource(Protocol):
    """Port: the files of one model. Every method may be called from any thread, reads also at the same time."""

    @property
    def name(self) -> str:
        """The model's name, for people."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Size in bytes of each file, by its path relative to the model (``/`` between parts, Unicode NFC)."""
        ...

    def read_into(self, path: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` (writable, contiguous bytes) with the file's bytes from ``offset`` on.

        Args:
            path: one of :attr:`files`.
            offset: in bytes; the range lies within the file.
            target: filled whole, or its content is undefined after an error.

        Raises:
            InvalidRequestError: no such file, a range outside it, or it cannot be read.
            SealedModelError: what is stored is not what was sealed.
        """
        ...

    def close(self) -> None:
        """Give up files and keys; nothing can be read afterwards. Idempotent."""
        ...


class DirectorySource:
    """The files of a plain model directory (untrusted), by the rules of :mod:`bulkhead.attestation.model_digest`.

    Files are opened when they are first read and stay open, so that a file that is exchanged meanwhile is not read in
    parts. Use as a context manager, or call :meth:`close`.

    Raises:
        InvalidRequestError: as :func:`bulkhead.attestation.model_digest.model_manifest`.
    """

    def __init__(self, directory: Path) -> None:
        self._name = directory.resolve().name
        places = list_model_files(directory)
        try:
            self._sizes = MappingProxyType({path: place.stat().st_size for path, place in places.items()})
        except OSError as error:
            raise InvalidRequestError(f"model directory {self._name}: {type(error).__name__}") from error
        self._files = OpenFiles(places)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self._name

    @property
    def files(self) -> Mapping[str, int]:
        """See :attr:`ModelSource.files`."""
        return self._sizes

    def read_into(self, path: str, offset: int, target: memoryview) -> None:
        """See :meth:`ModelSource.read_into`."""
        self._files.read_into(path, offset, target)

    def close(self) -> None:
        """See :meth:`ModelSource.close`."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_file(source: ModelSource, path: str, *, max_bytes: int) -> bytes:
    """Return the whole of a small file.

    Raises:
        InvalidRequestError: no such file, longer than ``max_bytes``, or as :meth:`ModelSource.read_into`.
        SealedModelError: as :meth:`ModelSource.read_into`.
    """
    size = source.files.get(path)
    if size is None:
        raise InvalidRequestError(f"model file {path} cannot be read: the model has no such file")
    if size > max_bytes:
        raise InvalidRequestError(f"model file {path} is longer than {max_bytes} bytes")
    data = bytearray(size)
    source.read_into(path, 0, memoryview(data))
    return bytes(data)


def read_blocks(source: ModelSource, path: str, reader: ThreadPoolExecutor) -> Iterator[memoryview]:
    """Yield a file's bytes in order, in blocks of 4 MiB; the next block is read while the caller uses this one.

    A block is valid until the next is asked for.

    Args:
        source: the model.
        path: one of its files.
        reader: one thread of it reads ahead.
    """
    size = source.files[path]
    buffers = [memoryview(bytearray(min(BLOCK_BYTES, size))) for _ in range(2 if size > BLOCK_BYTES else 1)]

    def begin(offset: int) -> "Future[memoryview]":
        target = buffers[offset // BLOCK_BYTES % len(buffers)][: min(BLOCK_BYTES, size - offset)]
        return reader.submit(_filled, source, path, offset, target)

    ahead = begin(0) if size else None
    for offset in range(0, size, BLOCK_BYTES):
        block = ahead.result() if ahead is not None else memoryview(b"")
        ahead = begin(offset + BLOCK_BYTES) if offset + BLOCK_BYTES < size else None
        yield block


def hash_model(source: ModelSource, *, progress: Callable[[int], None] = lambda _done: None) -> ModelManifest:
    """Return the manifest of what ``source`` holds; reads every byte of it. Its ``digest()`` is the model digest.

    Args:
        source: the model.
        progress: told after each block how many bytes were read.

    Raises:
        InvalidRequestError, SealedModelError: as :meth:`ModelSource.read_into`.
    """
    files, done = [], 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-hash") as reader:
        for path in sorted(source.files, key=str.encode):
            hasher = hashlib.sha256()
            for block in read_blocks(source, path, reader):
                hasher.update(block)
                done += len(block)
                progress(done)
            files.append(ModelFile(path=path, size=source.files[path], sha256=hasher.digest()))
    return ModelManifest(files=tuple(files))


def _filled(source: ModelSource, path: str, offset: int, target: memoryview) -> memoryview:
    source.read_into(path, offset, target)
    return target
