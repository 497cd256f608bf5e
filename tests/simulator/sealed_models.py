"""Sealed models for tests: made in milliseconds, with a signer and a key in files."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.models import DataKey, FileKek, SealedManifest, SealedSource, read_manifest, seal_model, unwrap_key


@dataclass(frozen=True)
class SealedModel:
    """A sealed model and everything that opens it."""

    directory: Path
    kek: FileKek
    signer: Ed25519PrivateKey

    @property
    def signers(self) -> tuple[bytes, ...]:
        """Public keys that are trusted for it."""
        return (self.signer.public_key().public_bytes_raw(),)

    def manifest(self) -> SealedManifest:
        """Return the opened manifest."""
        return SealedManifest.open(read_manifest(self.directory), signers=self.signers)

    def data_key(self) -> DataKey:
        """Return the unwrapped data key."""
        return DataKey(unwrap_key(self.manifest(), [self.kek]))

    def open(self, *, threads: int = 2) -> SealedSource:
        """Open it for reading."""
        return SealedSource(self.directory, manifest=self.manifest(), key=self.data_key(), threads=threads)

    def copy(self, directory: Path) -> "SealedModel":
        """Copy the sealed files, to damage them."""
        shutil.copytree(self.directory, directory)
        return SealedModel(directory, self.kek, self.signer)


def seal(plain: Path, out: Path, *, model: str = "tiny", version: int = 1, keys: Path | None = None) -> SealedModel:
    """Seal ``plain`` into ``out``; the key and the signer lie in ``keys``, and are made there if they do not."""
    keys = keys or out.parent / "model-keys"
    keys.mkdir(exist_ok=True)
    if not (keys / "kek").exists():
        FileKek.create(keys / "kek")
        (keys / "signer").write_bytes(Ed25519PrivateKey.generate().private_bytes_raw())
    kek, signer = FileKek(keys / "kek"), Ed25519PrivateKey.from_private_bytes((keys / "signer").read_bytes())
    seal_model(plain, out=out, model=model, version=version, keks=[kek], signer=signer)
    return SealedModel(out, kek, signer)
