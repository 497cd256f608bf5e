"""A worker with a sealed model: what it says, what it waits for, and what it refuses."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from bulkhead.attestation.model_digest import model_digest
from bulkhead.errors import (
    BulkheadError,
    ConfigError,
    ModelKeyError,
    ModelManifestError,
    ModelRolledBackError,
    SealError,
)
from bulkhead.models import hash_model
from bulkhead.protocol.release import release_info
from bulkhead.sealing import KemPublicKey, Keyset
from data_plane.engine import EngineConfig
from data_plane.session import loading
from data_plane.session.keys import KeyRing
from data_plane.session.loading import ModelLoader
from data_plane.session.messages import FromWorker, ModelKey, StartWorker, WorkerBooted
from tests.simulator.sealed_models import SealedModel, seal
from tests.simulator.tiny_model import make_tiny_model

NONCE, EVIDENCE, DECISION = bytes(32), hashlib.sha256(b"evidence").digest(), hashlib.sha256(b"leaf").digest()


class Link:
    """Takes what the worker says, and answers a boot with ``answer``."""

    def __init__(self, answer: Callable[[WorkerBooted], ModelKey | None]) -> None:
        self.said: list[FromWorker] = []
        self.answer = answer
        self.loader: ModelLoader | None = None

    async def send(self, message: FromWorker) -> None:
        """Keep the message, and answer a boot."""
        self.said.append(message)
        if isinstance(message, WorkerBooted) and (key := self.answer(message)) is not None:
            assert self.loader is not None
            self.loader.take_key(key)

    async def receive(self) -> None:
        """Say nothing."""


@dataclasses.dataclass
class Bench:
    """A sealed tiny model, version 2, and an order for it."""

    sealed: SealedModel
    plain: Path
    loaded: list[bytes] = dataclasses.field(default_factory=list)

    def start(self, **changes: object) -> StartWorker:
        """Return the order, with changes."""
        manifest = self.sealed.manifest()
        fields: dict[str, object] = dict.fromkeys(StartWorker.__slots__, "")
        fields |= {"simulated": False, "ticket_issuers": (), "authority": "w.example"}
        fields |= dict.fromkeys(("max_output_tokens", "max_running_requests", "max_queued_requests"), 4)
        fields |= {"threads": 2, "kv_cache_mib": 4, "weights": "fp32", "key_life_s": 3600}
        fields |= {
            "model_name": "tiny",
            "model_directory": str(self.sealed.directory),
            "model_digest": manifest.model_digest,
            "manifest_digest": manifest.digest,
            "manifest_version": manifest.version,
        }
        return StartWorker(**(fields | changes))  # type: ignore[arg-type]

    def release(self, booted: WorkerBooted, *, key: bytes | None = None, **changes: object) -> ModelKey:
        """Seal a key to the worker as a broker does."""
        manifest = self.sealed.manifest()
        terms = {
            "nonce": NONCE,
            "manifest_digest": manifest.digest,
            "version": manifest.version,
            "evidence_digest": EVIDENCE,
            "decision_leaf_hash": DECISION,
        }
        kem = KemPublicKey(Keyset.parse(booted.keyset).keys.weights_kem)
        data_key = key if key is not None else bytes(self.sealed.data_key()._key)
        sealed = kem.seal(data_key, info=release_info(**(terms | changes)))  # type: ignore[arg-type]
        return ModelKey(sealed_key=sealed, nonce=NONCE, evidence_digest=EVIDENCE, decision_leaf_hash=DECISION)

    async def load(
        self, start: StartWorker, answer: Callable[[WorkerBooted], ModelKey | None]
    ) -> tuple[list[FromWorker], object]:
        """Run the loader with an engine that keeps the digest of what it was given."""

        async def engine(config: EngineConfig) -> str:
            assert config.source is not None
            self.loaded.append((await asyncio.to_thread(hash_model, config.source)).digest())
            return "the engine"

        link = Link(answer)
        link.loader = ModelLoader(link=link, load=engine, sandbox=("no_core",))  # type: ignore[arg-type]
        ring = KeyRing(authority="w.example", wall_s=lambda: 1_900_000_000.0)
        return link.said, await link.loader.open(start, ring)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    plain = make_tiny_model(tmp_path / "tiny")
    return Bench(seal(plain, tmp_path / "sealed", version=2), plain)


async def test_a_released_key_loads_the_model_that_was_sealed(bench: Bench) -> None:
    """The worker boots with the manifest's digest, opens the key, and the engine reads the plain model's bytes."""
    said, engine = await bench.load(bench.start(), bench.release)
    (booted,) = [message for message in said if isinstance(message, WorkerBooted)]
    assert (booted.model_digest, booted.sandbox) == (bench.sealed.manifest().model_digest, ("no_core",))
    assert engine == "the engine"
    assert bench.loaded == [model_digest(bench.plain)]


async def test_the_data_key_is_overwritten_before_the_engine_loads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer that held it is zeros by then, and the source is closed afterwards."""
    buffers: list[bytearray] = []

    class Watched(loading.DataKey):
        def __init__(self, key: bytearray) -> None:
            buffers.append(key)
            super().__init__(key)

    monkeypatch.setattr(loading, "DataKey", Watched)
    await bench.load(bench.start(), bench.release)
    assert buffers == [bytearray(32)]


WRONG: list[tuple[str, Callable[[Bench, WorkerBooted], ModelKey], type[BulkheadError]]] = [
    ("another model's key", lambda bench, booted: bench.release(booted, key=bytes(32)), ModelKeyError),
    ("a short key", lambda bench, booted: bench.release(booted, key=bytes(16)), ModelKeyError),
    ("for another version", lambda bench, booted: bench.release(booted, version=3), SealError),
    ("for another manifest", lambda bench, booted: bench.release(booted, manifest_digest=bytes(32)), SealError),
    ("for other evidence", lambda bench, booted: bench.release(booted, evidence_digest=bytes(32)), SealError),
]


@pytest.mark.parametrize(("_name", "answer", "error"), WRONG, ids=[item[0] for item in WRONG])
async def test_any_other_key_opens_nothing(
    bench: Bench, _name: str, answer: Callable[[Bench, WorkerBooted], ModelKey], error: type[BulkheadError]
) -> None:
    """A typed error, and the engine is never started."""
    with pytest.raises(error):
        await bench.load(bench.start(), lambda booted: answer(bench, booted))
    assert not bench.loaded


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"manifest_version": 3, "manifest_digest": bytes(32)}, ModelRolledBackError),
        ({"manifest_digest": bytes(32)}, ModelManifestError),
        ({"model_directory": "/nowhere"}, ModelManifestError),
    ],
    ids=["older", "another", "none"],
)
async def test_a_manifest_that_was_not_ordered_never_asks_for_a_key(
    bench: Bench, changes: dict[str, object], error: type[BulkheadError]
) -> None:
    """It is refused before the worker boots."""
    with pytest.raises(error):
        await bench.load(bench.start(**changes), lambda _booted: pytest.fail("a key was asked for"))


async def test_another_digest_than_registered_is_refused_after_opening(bench: Bench) -> None:
    """The worker computes the digest itself; what the manifest says is not enough."""
    with pytest.raises(ConfigError, match="another digest"):
        await bench.load(bench.start(model_digest=bytes(32)), bench.release)
    assert not bench.loaded


async def test_a_worker_does_not_wait_for_its_key_without_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that never comes ends it."""
    monkeypatch.setattr(loading, "KEY_TIMEOUT_S", 0.05)
    with pytest.raises(BulkheadError) as caught:
        await bench.load(bench.start(), lambda _booted: None)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_the_documented_software_is_what_evidence_names() -> None:
    """A broker's list copied from docs/models.md accepts the workers of this release."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    assert f'software = ["bulkhead-platform {version("bulkhead-platform")}"]' in page
