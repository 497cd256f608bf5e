"""Opening the model that a worker is told to serve: a plain directory, or a sealed one once its key has come.

- The model's digest is computed here, from the same files that are then loaded; another than ordered is a failure.
- A sealed model: the manifest that was ordered, checked by its digest, so that an older or other one is refused by
  name. The worker then shows its keys (phase ``boot``) and waits for the model's key, which opens under what the worker
  itself knows of manifest and version. The key is overwritten as soon as the ciphers of the files are made, these are
  dropped when the model is loaded. Plaintext is never written to a file.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast, get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.errors import ConfigError, DeadlineError, ModelManifestError, ModelRolledBackError
from bulkhead.models import (
    DataKey,
    DirectorySource,
    ModelSource,
    SealedManifest,
    SealedSource,
    hash_model,
    read_manifest,
)
from bulkhead.models.manifest import claimed_signer
from bulkhead.models.sealed import check_layout
from bulkhead.protocol.release import release_info
from data_plane.engine import EngineConfig
from data_plane.engine.config import WeightFormat
from data_plane.inference.port import Engine
from data_plane.session.keys import KeyRing
from data_plane.session.messages import AgentLink, ModelKey, StartWorker, WorkerBooted, WorkerLoading

__all__ = ["ModelLoader", "certificate_der"]

GUESS_TOKENS: Final = 4  # ahead, for greedy answers while few run: they cost little and change nothing
KEY_TIMEOUT_S: Final = 300.0  # for evidence, broker and policy; a worker that gets no key ends


def certificate_der(ring: KeyRing) -> bytes:
    """Return the certificate of the current keys as DER."""
    return x509.load_pem_x509_certificate(ring.current.tls_certificate).public_bytes(Encoding.DER)


class ModelLoader:
    """Loads one worker's model.

    Args:
        link: to the agent.
        load: opens an engine.
        sandbox: names of the confinements that hold.
    """

    def __init__(
        self, *, link: AgentLink, load: Callable[[EngineConfig], Awaitable[Engine]], sandbox: tuple[str, ...]
    ) -> None:
        self._link = link
        self._load = load
        self._sandbox = sandbox
        self._key: asyncio.Future[ModelKey] = asyncio.get_running_loop().create_future()

    def take_key(self, key: ModelKey) -> None:
        """Take the answer to :class:`WorkerBooted`; a second one changes nothing."""
        if not self._key.done():
            self._key.set_result(key)

    async def open(self, start: StartWorker, ring: KeyRing) -> Engine:
        """Return the engine with the model of ``start``.

        Raises:
            ConfigError: the files are not those that were registered.
            SealedModelError: a sealed model does not hold, or its key is another's.
            SealError: the key that came is not for this worker, manifest or version.
            DeadlineError: no key came.
            BulkheadError: as :func:`data_plane.engine.open_engine`.
        """
        directory = Path(start.model_directory)
        if start.manifest_digest:
            source: ModelSource = await self._unseal(directory, start, ring)
        else:
            source = await asyncio.to_thread(DirectorySource, directory)
        try:
            await self._link.send(WorkerLoading(text=f"checking the files of model {start.model_name}"))
            digest = (await asyncio.to_thread(hash_model, source)).digest()
            if not hmac.compare_digest(digest, start.model_digest):
                raise ConfigError(
                    f"model {start.model_name}: the files in the agent's model directory are not those that were "
                    "registered (another digest)",
                    details={"computed": digest.hex(), "registered": start.model_digest.hex()},
                )
            await self._link.send(WorkerLoading(text=f"loading model {start.model_name}"))
            return await self._load(_engine_config(directory, start, source))
        finally:
            await asyncio.to_thread(source.close)

    async def _unseal(self, directory: Path, start: StartWorker, ring: KeyRing) -> SealedSource:
        manifest = await asyncio.to_thread(_ordered_manifest, directory, start)
        await self._link.send(
            WorkerBooted(
                keyset=ring.current.keyset.encoded,
                certificate=certificate_der(ring),
                model_digest=manifest.model_digest,
                sandbox=self._sandbox,
            )
        )
        await self._link.send(WorkerLoading(text=f"waiting for the key of model {start.model_name}"))
        try:
            async with asyncio.timeout(KEY_TIMEOUT_S):
                released = await self._key
        except TimeoutError as error:
            raise DeadlineError(f"the key of model {start.model_name} did not come") from error
        return await asyncio.to_thread(_open_sealed, directory, manifest, released, ring, start.threads)


def _ordered_manifest(directory: Path, start: StartWorker) -> SealedManifest:
    """Return the manifest in ``directory`` if it is the one that was ordered, and the files that it names are there.

    Who signed it the platform and the broker have judged; its digest, which they name, covers the signer.
    """
    document = read_manifest(directory)
    manifest = SealedManifest.open(document, signers=[claimed_signer(document)])
    if manifest.model == start.model_name and manifest.version < start.manifest_version:
        raise ModelRolledBackError(
            f"the agent has version {manifest.version} of model {manifest.model}, ordered is {start.manifest_version}"
        )
    if not hmac.compare_digest(manifest.digest, start.manifest_digest):
        raise ModelManifestError(f"the agent has another sealed model than the one registered as {start.model_name}")
    check_layout(directory, manifest)
    return manifest


def _open_sealed(
    directory: Path, manifest: SealedManifest, released: ModelKey, ring: KeyRing, threads: int
) -> SealedSource:
    info = release_info(
        nonce=released.nonce,
        manifest_digest=manifest.digest,
        version=manifest.version,
        evidence_digest=released.evidence_digest,
        decision_leaf_hash=released.decision_leaf_hash,
    )
    key = DataKey(bytearray(ring.current.open_weights_key(released.sealed_key, info=info)))
    try:
        return SealedSource(directory, manifest=manifest, key=key, threads=threads)
    finally:
        key.wipe()


def _engine_config(directory: Path, start: StartWorker, source: ModelSource) -> EngineConfig:
    return EngineConfig(
        model_path=directory,
        source=source,
        threads=max(1, start.threads),
        weights=_weights(start.weights),
        kv_memory_mib=start.kv_cache_mib,
        max_running=start.max_running_requests,
        max_waiting=start.max_queued_requests,
        step_tokens=max(512, start.max_running_requests),
        guess_tokens=GUESS_TOKENS,
        forms_at_load=True,  # a second of every start at most, against one in the middle of all streams
    )


def _weights(name: str) -> WeightFormat:
    for known in get_args(WeightFormat):
        if name == known:
            return cast("WeightFormat", known)
    raise ConfigError(f"weights are fp32, bf16 or int8, not {name[:40]}")
