"""Sealing a model: a plain directory in, a sealed one out, whole or not at all."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.model_digest import ModelFile, ModelManifest
from bulkhead.errors import AlreadyExistsError, ConfigError
from bulkhead.files import sync_directory
from bulkhead.ids import check_name
from bulkhead.models.chunks import DATA_KEY_BYTES, TAG_BYTES, DataKey, FileCipher, chunk_count
from bulkhead.models.kek import KeyEncryptionKey
from bulkhead.models.manifest import SealedManifest, WrappedKey, wrapping_context
from bulkhead.models.sealed import MANIFEST_NAME, stored_name
from bulkhead.models.source import DirectorySource, ModelSource, read_blocks

__all__ = ["CHUNK_BYTES", "seal_model"]

CHUNK_BYTES: Final = 256 << 10  # small beside a tensor, so that ranges waste little; large beside a call's cost

Progress = Callable[[int, int], None]
"""Takes bytes done and bytes in all."""


def seal_model(
    directory: Path,
    *,
    out: Path,
    model: str,
    version: int,
    keks: Sequence[KeyEncryptionKey],
    signer: Ed25519PrivateKey,
    progress: Progress = lambda _done, _total: None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> SealedManifest:
    """Seal the model in ``directory`` into the new directory ``out``, and return its manifest.

    Everything is written beside ``out`` and moved there at the end, so ``out`` is never half a model; what an
    interrupted run left is removed by the next. Each byte is read once, so what is sealed is what was hashed.

    Args:
        directory: a plain model.
        out: must not exist.
        model: its name; the wrapped key is bound to it.
        version: above every version of that name that was released before.
        keks: each wraps the data key; one to eight.
        signer: signs the manifest.
        progress: told after each block.
        random_bytes: source of the data key.

    Raises:
        AlreadyExistsError: ``out`` exists.
        InvalidRequestError: the model cannot be read, or the name is none.
        ConfigError: ``out`` cannot be written.
        KeyBrokerError: a key store is out of reach.
    """
    check_name(model, "model")
    if out.exists():
        raise AlreadyExistsError(f"{out} exists already")
    partial = out.with_name(f".{out.name}.partial")
    key = bytearray(random_bytes(DATA_KEY_BYTES))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o755)
        with DirectorySource(directory) as source, _Sealer(source, DataKey(key), partial, progress) as sealer:
            plain = ModelManifest(files=tuple(sealer.seal(number, path) for number, path in enumerate(sealer.paths)))
        context = wrapping_context(model=model, version=version, model_digest=plain.digest())
        manifest = SealedManifest(
            model=model,
            version=version,
            chunk_bytes=CHUNK_BYTES,
            files=plain.files,
            commitment=DataKey(key).commitment(),
            wrapped=tuple(WrappedKey(kek=kek.kek_id, data=kek.wrap(key, context=context)) for kek in keks),
            signer=signer.public_key().public_bytes_raw(),
        )
        with (partial / MANIFEST_NAME).open("wb") as stream:
            _write_durably(stream, manifest.sign(signer))
        partial.rename(out)
        sync_directory(out.parent)
    except OSError as error:
        raise ConfigError(f"{out}: the sealed model cannot be written: {error.strerror}") from error
    finally:
        key[:] = bytes(len(key))
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    return manifest


class _Sealer:
    """Seals one model's files: one thread reads ahead, the caller's hashes, the others encrypt."""

    def __init__(self, source: ModelSource, key: DataKey, out: Path, progress: Progress) -> None:
        self.paths = sorted(source.files, key=str.encode)
        self._source = source
        self._key = key
        self._out = out
        self._progress = progress
        self._total = sum(source.files.values())
        self._done = 0
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-read")
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="model-seal")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def seal(self, number: int, path: str) -> ModelFile:
        """Seal one file and return its line of the manifest."""
        size = self._source.files[path]
        cipher = self._key.file_cipher(path, number=number, chunks=chunk_count(size, CHUNK_BYTES))
        hasher = hashlib.sha256()
        index = 0
        with (self._out / stored_name(number)).open("wb") as stream:
            if size == 0:
                stream.write(_sealed(cipher, 0, memoryview(b"")))
            for block in read_blocks(self._source, path, self._reader):
                chunks = [block[start : start + CHUNK_BYTES] for start in range(0, len(block), CHUNK_BYTES)]
                sealing = [
                    self._pool.submit(_sealed, cipher, index + place, chunk) for place, chunk in enumerate(chunks)
                ]
                hasher.update(block)
                for chunk in sealing:
                    stream.write(chunk.result())
                index += len(chunks)
                self._done += len(block)
                self._progress(self._done, self._total)
            _write_durably(stream, b"")
        return ModelFile(path=path, size=size, sha256=hasher.digest())


def _sealed(cipher: FileCipher, index: int, plaintext: memoryview) -> bytearray:
    sealed = bytearray(len(plaintext) + TAG_BYTES)
    cipher.seal_into(index, plaintext, memoryview(sealed))
    return sealed


def _write_durably(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())
