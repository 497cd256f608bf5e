"""Replacing a key encryption key, from file to token and back: same model, same version, another wrapping."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.model_digest import model_digest
from bulkhead.broker.floors import FileFloors
from bulkhead.errors import (
    ConfigError,
    InvalidRequestError,
    ModelFileMissingError,
    ModelKeyError,
    ModelManifestError,
    ModelRolledBackError,
    ModelSignatureError,
)
from bulkhead.models import (
    DataKey,
    FileKek,
    KeyEncryptionKey,
    SealedManifest,
    SealedSource,
    hash_model,
    open_kek,
    read_manifest,
    rewrap_model,
    seal_model,
    unwrap_key,
)
from bulkhead.models.kek_pkcs11 import TokenKek
from tests.simulator.softhsm import TOKEN, SoftHsm, softhsm_token
from tests.simulator.tiny_model import make_tiny_model

SIGNER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
PUBLIC, OTHER_PUBLIC = (key.public_key().public_bytes_raw() for key in (SIGNER, OTHER))


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    with softhsm_token(tmp_path_factory.mktemp("softhsm")) as made:
        return made


@dataclass
class Sealed:
    """A sealed model and keys beside it."""

    directory: Path
    plain: Path
    keks: dict[str, KeyEncryptionKey]

    def manifest(self, signer: bytes = PUBLIC) -> SealedManifest:
        """Return the present manifest, if that signer's."""
        return SealedManifest.open(read_manifest(self.directory), signers=[signer])

    def opens_with(self, kek: KeyEncryptionKey, signer: bytes = PUBLIC) -> bool:
        """Return whether the whole model opens with that key, to the plain one's digest."""
        manifest = self.manifest(signer)
        try:
            key = DataKey(unwrap_key(manifest, [kek]))
        except ModelKeyError:
            return False
        with SealedSource(self.directory, manifest=manifest, key=key, threads=2) as source:
            return hash_model(source).digest() == model_digest(self.plain)


@pytest.fixture
def sealed(tmp_path: Path, token: SoftHsm) -> Sealed:
    """A tiny model sealed in version 3 under the key `old`; a file and a token have others."""
    plain = make_tiny_model(tmp_path / "tiny")
    old, new = (FileKek.create(tmp_path / name) for name in ("old", "new"))
    label = f"kek-{tmp_path.name}"
    TokenKek.create(module=token.module, token=TOKEN, label=label, pin_file=token.pin_file)
    keks: dict[str, KeyEncryptionKey] = {"old": old, "file": new, "pkcs11": open_kek(token.uri(label))}
    directory = tmp_path / "sealed"
    seal_model(plain, out=directory, model="tiny", version=3, keks=[old], signer=SIGNER)
    return Sealed(directory, plain, keks)


def rewrapped(sealed: Sealed, kek: str, new: str, *, keep: bool = False) -> SealedManifest:
    return rewrap_model(
        sealed.directory, keks=[sealed.keks[kek]], new_keks=[sealed.keks[new]], keep=keep, signers=(), signer=SIGNER
    )


@pytest.mark.parametrize("new", ["file", "pkcs11"])
def test_the_new_key_opens_the_model_and_the_old_one_does_not(sealed: Sealed, new: str) -> None:
    """Model, version, files and commitment are the same; wrapping and manifest digest are others; and back again."""
    before = sealed.manifest()
    after = rewrapped(sealed, "old", new)
    assert after == sealed.manifest()
    assert replace(after, wrapped=before.wrapped) == before
    assert after.digest != before.digest
    assert sealed.opens_with(sealed.keks[new])
    assert not sealed.opens_with(sealed.keks["old"])
    rewrapped(sealed, new, "old")
    assert sealed.opens_with(sealed.keks["old"])


def test_both_keys_open_it_while_brokers_change(sealed: Sealed) -> None:
    """With keep the present wrapping stands beside the new one, until it is wrapped by the new one alone."""
    after = rewrapped(sealed, "old", "pkcs11", keep=True)
    assert [item.kek for item in after.wrapped] == [sealed.keks[name].kek_id for name in ("old", "pkcs11")]
    assert sealed.opens_with(sealed.keks["old"])
    assert sealed.opens_with(sealed.keks["pkcs11"])
    rewrapped(sealed, "pkcs11", "pkcs11")
    assert not sealed.opens_with(sealed.keks["old"])
    assert sealed.opens_with(sealed.keks["pkcs11"])


def test_floors_neither_rise_nor_fall(sealed: Sealed, tmp_path: Path) -> None:
    """The version is the released one's, so the key is still released, and an older version still is not."""
    floors = FileFloors(tmp_path / "floors.json")
    floors.raise_to("tiny", sealed.manifest().version)
    floors.raise_to("tiny", rewrapped(sealed, "old", "file").version)
    with pytest.raises(ModelRolledBackError):
        floors.raise_to("tiny", 2)


def test_a_signer_changes_with_the_old_ones_leave_only(sealed: Sealed) -> None:
    """The new manifest is signed by the signer at hand; what a stranger signed is not touched, however it unwraps."""
    wanted = {"keks": [sealed.keks["old"]], "new_keks": [sealed.keks["file"]], "keep": False}
    before = read_manifest(sealed.directory)
    with pytest.raises(ModelSignatureError):
        rewrap_model(sealed.directory, **wanted, signers=(), signer=OTHER)
    assert read_manifest(sealed.directory) == before
    rewrap_model(sealed.directory, **wanted, signers=[PUBLIC], signer=OTHER)
    assert sealed.opens_with(sealed.keks["file"], OTHER_PUBLIC)
    with pytest.raises(ModelSignatureError):
        sealed.manifest()


def test_what_does_not_hold_is_left_as_it_was(sealed: Sealed) -> None:
    """Another key, an edited manifest, a missing file, too many keys: each its own error, and nothing is written."""
    before = read_manifest(sealed.directory)
    with pytest.raises(ModelKeyError):
        rewrapped(sealed, "file", "pkcs11")
    nine = [FileKek.create(sealed.directory.parent / f"kek-{number}") for number in range(9)]
    with pytest.raises(InvalidRequestError):
        rewrap_model(sealed.directory, keks=[sealed.keks["old"]], new_keks=nine, keep=False, signers=(), signer=SIGNER)
    assert read_manifest(sealed.directory) == before
    for damage, error in (
        (before.replace(b'"version":3', b'"version":4'), ModelSignatureError),
        (before[:-1], ModelManifestError),
    ):
        (sealed.directory / "manifest.json").write_bytes(damage)
        with pytest.raises(error):
            rewrapped(sealed, "old", "file")
        assert read_manifest(sealed.directory) == damage
    (sealed.directory / "manifest.json").write_bytes(before)
    (sealed.directory / "00001.sealed").unlink()
    with pytest.raises(ModelFileMissingError):
        rewrapped(sealed, "old", "file")
    assert read_manifest(sealed.directory) == before


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle: the model opens as before, and the next run succeeds."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bulkhead.files.os.fsync", full)
        with pytest.raises(ConfigError):
            rewrapped(sealed, "old", "file")
    assert sealed.opens_with(sealed.keks["old"])
    rewrapped(sealed, "old", "file")
    assert sealed.opens_with(sealed.keks["file"])
