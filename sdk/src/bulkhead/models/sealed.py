"""Reading a sealed model: its directory checked against the manifest, its chunks opened into the reader's memory.

The directory holds ``manifest.json`` and one file ``NNNNN.sealed`` for each file of the manifest, numbered from 0, and
nothing else. Plaintext is written to no file: whole chunks are opened into the buffer of whoever reads, the edges of a
range into a small cache that is overwritten. Chunks of one range are opened by several threads, since OpenSSL works
without the interpreter's lock.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from bulkhead.errors import (
    InvalidRequestError,
    ModelAlteredError,
    ModelChunkMovedError,
    ModelFileExtraError,
    ModelFileMissingError,
    ModelFileSwappedError,
    ModelFileTruncatedError,
    ModelManifestError,
)
from bulkhead.models.chunks import TAG_BYTES, DataKey, FileCipher, chunk_count, sealed_size
from bulkhead.models.files import OpenFiles
from bulkhead.models.manifest import MAX_MANIFEST_BYTES, SealedManifest

__all__ = ["MANIFEST_NAME", "SealedSource", "check_layout", "read_manifest", "stored_name"]

MANIFEST_NAME: Final = "manifest.json"
CACHED_CHUNKS: Final = 16  # edges of ranges: tensors that are read in the order of the file share them
MAX_EXPLAINED: Final = 4096  # places at which a chunk that does not open is tried, to say what was done to it


def stored_name(number: int) -> str:
    """Return the name under which file ``number`` of the manifest is stored."""
    return f"{number:05d}.sealed"


def read_manifest(directory: Path) -> bytes:
    """Return the document ``manifest.json`` of a sealed model's directory; it is not trusted yet.

    Raises:
        ModelManifestError: there is none, or it is too long.
    """
    try:
        descriptor = os.open(directory / MANIFEST_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            document = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelManifestError(f"the sealed model has no readable {MANIFEST_NAME}") from error
    if len(document) > MAX_MANIFEST_BYTES:
        raise ModelManifestError(f"{MANIFEST_NAME} has more than {MAX_MANIFEST_BYTES} bytes")
    return document


def check_layout(directory: Path, manifest: SealedManifest) -> None:
    """Return if the directory holds exactly the manifest's files, each as long as it was sealed.

    Raises:
        ModelFileMissingError, ModelFileExtraError, ModelFileTruncatedError: it does not; the message names the file.
        InvalidRequestError: it cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError as error:
        raise InvalidRequestError(f"sealed model {directory.name}: {type(error).__name__}") from error
    expected = {stored_name(number): file for number, file in enumerate(manifest.files)}
    for name, file in expected.items():
        if name not in found:
            raise ModelFileMissingError(f"the sealed model lacks {name}, which holds {file.path}")
        wanted = sealed_size(file.size, manifest.chunk_bytes)
        if not stat.S_ISREG(found[name].st_mode) or found[name].st_size != wanted:
            raise ModelFileTruncatedError(
                f"{name}, which holds {file.path}, has {found[name].st_size} bytes in place of {wanted}"
            )
    extra = sorted(found.keys() - expected.keys() - {MANIFEST_NAME})
    if extra:
        raise ModelFileExtraError(f"the sealed model has a file that its manifest does not name: {extra[0][:100]}")


class SealedSource:
    """The files of a sealed model, as :class:`bulkhead.models.ModelSource`.

    Args:
        directory: of the sealed model (untrusted).
        manifest: opened and trusted by the caller.
        key: the data key; not kept, so the caller may wipe it at once.
        threads: that open chunks of one range.

    Raises:
        ModelKeyError: the key is not the manifest's.
        SealedModelError: as :func:`check_layout`.
    """

    def __init__(self, directory: Path, *, manifest: SealedManifest, key: DataKey, threads: int) -> None:
        check_layout(directory, manifest)
        key.check(manifest.commitment)
        self._manifest = manifest
        self._chunk_bytes = manifest.chunk_bytes
        self._numbers = {file.path: number for number, file in enumerate(manifest.files)}
        self._sizes = MappingProxyType({file.path: file.size for file in manifest.files})
        self._ciphers = {
            file.path: key.file_cipher(file.path, number=number, chunks=chunk_count(file.size, manifest.chunk_bytes))
            for number, file in enumerate(manifest.files)
        }
        self._files = OpenFiles({path: directory / stored_name(number) for path, number in self._numbers.items()})
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="model-open")
        self._buffers = threading.local()
        self._edges: OrderedDict[tuple[str, int], bytearray] = OrderedDict()
        self._edges_lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name in the manifest."""
        return self._manifest.model

    @property
    def files(self) -> Mapping[str, int]:
        """See :attr:`bulkhead.models.ModelSource.files`: sizes of the plaintext."""
        return self._sizes

    def read_into(self, path: str, offset: int, target: memoryview) -> None:
        """See :meth:`bulkhead.models.ModelSource.read_into`; ``target`` is cleared where a chunk does not open.

        Raises:
            ModelAlteredError, ModelChunkMovedError, ModelFileSwappedError, ModelFileTruncatedError: what is stored
                there is not what was sealed.
            InvalidRequestError: as the port says.
        """
        size = self._sizes.get(path)
        if size is None or path not in self._ciphers:
            raise InvalidRequestError(f"the model has no file {path[:200]}")
        if offset < 0 or offset + len(target) > size:
            raise InvalidRequestError(f"model file {path} ends before byte {offset + len(target)}")
        if not target:
            return
        first, last = offset // self._chunk_bytes, (offset + len(target) - 1) // self._chunk_bytes
        count = last - first + 1
        lanes = min(self._threads, count)
        bounds = [first + count * lane // lanes for lane in range(lanes + 1)]
        ranges = [range(bounds[lane], bounds[lane + 1]) for lane in range(lanes)]
        others = [self._pool.submit(self._open_range, path, item, offset, target) for item in ranges[1:]]
        try:
            self._open_range(path, ranges[0], offset, target)
        finally:
            errors = [error for future in others if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """See :meth:`bulkhead.models.ModelSource.close`; overwrites what is cached."""
        self._pool.shutdown(wait=True)
        self._ciphers.clear()
        self._files.close()
        with self._edges_lock:
            while self._edges:
                _clear(self._edges.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_range(self, path: str, indexes: Iterable[int], offset: int, target: memoryview) -> None:
        """Open chunks into their places in ``target``, whose first byte is the file's byte ``offset``."""
        for index in indexes:
            start = index * self._chunk_bytes - offset
            length = self._length(path, index)
            if start >= 0 and start + length <= len(target):
                self._open_chunk(path, index, target[start : start + length])
            else:
                skip = max(0, -start)
                part = target[start + skip : min(start + length, len(target))]
                part[:] = memoryview(self._edge(path, index))[skip : skip + len(part)]

    def _edge(self, path: str, index: int) -> bytearray:
        """Return a whole chunk of which a range holds only a part; neighbouring ranges ask for it again."""
        with self._edges_lock:
            if (known := self._edges.get((path, index))) is not None:
                self._edges.move_to_end((path, index))
                return known
        chunk = bytearray(self._length(path, index))
        self._open_chunk(path, index, memoryview(chunk))
        with self._edges_lock:
            self._edges[path, index] = chunk
            if len(self._edges) > CACHED_CHUNKS:
                # Another thread may still be copying from it, so it is dropped, not cleared.
                self._edges.popitem(last=False)
        return chunk

    def _open_chunk(self, path: str, index: int, target: memoryview) -> None:
        sealed = self._sealed(path, index, len(target) + TAG_BYTES)
        try:
            self._ciphers[path].open_into(index, sealed, target)
        except ModelAlteredError as error:
            target[:] = bytes(len(target))  # GCM has decrypted what does not hold
            raise self._explain(path, index, sealed) from error

    def _sealed(self, path: str, index: int, length: int) -> memoryview:
        """Return a chunk as it is stored, in this thread's own buffer."""
        if not hasattr(self._buffers, "sealed"):
            self._buffers.sealed = memoryview(bytearray(self._chunk_bytes + TAG_BYTES))
        sealed: memoryview = self._buffers.sealed[:length]
        try:
            self._files.read_into(path, index * (self._chunk_bytes + TAG_BYTES), sealed)
        except InvalidRequestError as error:  # it was there when the layout was checked
            raise ModelFileTruncatedError(error.message) from error
        return sealed

    def _length(self, path: str, index: int) -> int:
        return min(self._chunk_bytes, self._sizes[path] - index * self._chunk_bytes)

    def _explain(
        self, path: str, index: int, sealed: memoryview
    ) -> ModelAlteredError | ModelChunkMovedError | (ModelFileSwappedError):
        """Return what was done to a chunk that does not open; only for people: it is refused in any case."""
        scratch = memoryview(bytearray(len(sealed) - TAG_BYTES))
        chunks = chunk_count(self._sizes[path], self._chunk_bytes)
        for other in range(min(chunks, MAX_EXPLAINED)):
            if other != index and _opens(self._ciphers[path], other, sealed, scratch):
                return ModelChunkMovedError(f"chunk {other} of {path} stands at the place of chunk {index}")
        for name in list(self._sizes)[:MAX_EXPLAINED]:
            if name != path and _opens(self._ciphers[name], index, sealed, scratch):
                return ModelFileSwappedError(f"{path} holds the content of {name}")
        return ModelAlteredError(f"chunk {index} of {path} was altered")


def _opens(cipher: FileCipher, index: int, sealed: memoryview, scratch: memoryview) -> bool:
    try:
        cipher.open_into(index, sealed, scratch)
    except ModelAlteredError:
        return False
    finally:
        scratch[:] = bytes(len(scratch))
    return True


def _clear(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
