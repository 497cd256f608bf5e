"""Attacks on a sealed model at rest, by someone who can write its files and does not have the key."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.encoding import canonical_json
from bulkhead.errors import (
    InvalidRequestError,
    ModelAlteredError,
    ModelChunkMovedError,
    ModelFileExtraError,
    ModelFileMissingError,
    ModelFileSwappedError,
    ModelFileTruncatedError,
    ModelKeyError,
    ModelManifestError,
    ModelSignatureError,
    SealedModelError,
)
from bulkhead.models import SealedManifest, SealedSource, hash_model, read_manifest
from bulkhead.models.chunks import TAG_BYTES
from bulkhead.models.sealed import MANIFEST_NAME, stored_name
from tests.simulator.sealed_models import SealedModel, seal

CHUNK = 256 << 10
SEALED_CHUNK = CHUNK + TAG_BYTES
# By number in the manifest, which is sorted by path.
A, B, CONFIG = 0, 1, 2


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> SealedModel:
    root = tmp_path_factory.mktemp("sealed")
    (root / "plain").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (root / "plain" / name).write_bytes(random.Random(name).randbytes(3 * CHUNK + 1000))
    (root / "plain" / "config.json").write_text("{}")
    return seal(root / "plain", root / "out")


@pytest.fixture
def sealed(original: SealedModel, tmp_path: Path) -> SealedModel:
    return original.copy(tmp_path / "copy")


def change(sealed: SealedModel, number: int, edit: Callable[[bytearray], None]) -> None:
    path = sealed.directory / stored_name(number)
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def flip(at: int) -> Callable[[SealedModel], None]:
    def edit(data: bytearray) -> None:
        data[at] ^= 1

    return lambda sealed: change(sealed, A, edit)


def swap_chunks(sealed: SealedModel) -> None:
    def edit(data: bytearray) -> None:
        first, second = bytes(data[:SEALED_CHUNK]), bytes(data[SEALED_CHUNK : 2 * SEALED_CHUNK])
        data[: 2 * SEALED_CHUNK] = second + first

    change(sealed, A, edit)


def chunk_of_the_other_file(sealed: SealedModel) -> None:
    other = (sealed.directory / stored_name(B)).read_bytes()
    change(sealed, A, lambda data: data.__setitem__(slice(SEALED_CHUNK), other[:SEALED_CHUNK]))


def swap_files(sealed: SealedModel) -> None:
    first, second = (sealed.directory / stored_name(number) for number in (A, B))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def drop_the_last_chunk(sealed: SealedModel) -> None:
    change(sealed, A, lambda data: data.__delitem__(slice(3 * SEALED_CHUNK, None)))


def last_chunk_earlier(sealed: SealedModel) -> None:
    """Put the short final chunk, padded, where a whole chunk belongs."""

    def edit(data: bytearray) -> None:
        final = bytes(data[3 * SEALED_CHUNK :])
        data[SEALED_CHUNK : SEALED_CHUNK + len(final)] = final

    change(sealed, A, edit)


def file_of_another_release(sealed: SealedModel) -> None:
    """The same plaintext sealed anew: valid bytes under another key."""
    plain = sealed.directory.parent / "again"
    plain.mkdir()
    with sealed.open() as source:
        for name, size in source.files.items():
            target = bytearray(size)
            source.read_into(name, 0, memoryview(target))
            (plain / name).write_bytes(target)
    other = seal(plain, sealed.directory.parent / "other")
    (sealed.directory / stored_name(A)).write_bytes((other.directory / stored_name(A)).read_bytes())


def link_out(sealed: SealedModel) -> None:
    path = sealed.directory / stored_name(A)
    path.rename(sealed.directory.parent / "elsewhere")
    path.symlink_to(sealed.directory.parent / "elsewhere")


def pipe(sealed: SealedModel) -> None:
    (sealed.directory / stored_name(A)).unlink()
    os.mkfifo(sealed.directory / stored_name(A))


TAMPERING: list[tuple[str, Callable[[SealedModel], None], type[SealedModelError]]] = [
    ("first byte", flip(0), ModelAlteredError),
    ("a tag's byte", flip(SEALED_CHUNK - 1), ModelAlteredError),
    ("last byte", flip(-1), ModelAlteredError),
    ("swapped chunks", swap_chunks, ModelChunkMovedError),
    ("final chunk earlier", last_chunk_earlier, ModelAlteredError),
    ("chunk of another file", chunk_of_the_other_file, ModelFileSwappedError),
    ("swapped files", swap_files, ModelFileSwappedError),
    ("another release's file", file_of_another_release, ModelAlteredError),
    ("truncated", lambda sealed: change(sealed, A, lambda data: data.__delitem__(-1)), ModelFileTruncatedError),
    ("whole chunk cut off", drop_the_last_chunk, ModelFileTruncatedError),
    ("lengthened", lambda sealed: change(sealed, A, lambda data: data.append(0)), ModelFileTruncatedError),
    ("a link", link_out, ModelFileTruncatedError),
    ("a pipe", pipe, ModelFileTruncatedError),
    ("missing shard", lambda sealed: (sealed.directory / stored_name(B)).unlink(), ModelFileMissingError),
    ("extra file", lambda sealed: (sealed.directory / "00099.sealed").touch(), ModelFileExtraError),
    ("hidden extra file", lambda sealed: (sealed.directory / ".x").touch(), ModelFileExtraError),
    ("extra directory", lambda sealed: (sealed.directory / "sub").mkdir(), ModelFileExtraError),
    ("no manifest", lambda sealed: (sealed.directory / MANIFEST_NAME).unlink(), ModelManifestError),
]


@pytest.mark.parametrize(("_name", "tamper", "error"), TAMPERING, ids=[item[0] for item in TAMPERING])
def test_every_tampering_is_refused_by_name(
    sealed: SealedModel, _name: str, tamper: Callable[[SealedModel], None], error: type[SealedModelError]
) -> None:
    """A reader of the whole model gets exactly the error of what was done, and no bytes that were not sealed."""
    tamper(sealed)
    with pytest.raises(SealedModelError) as caught, sealed.open() as source:
        hash_model(source)
    assert type(caught.value) is error


def test_a_refused_chunk_leaves_no_plaintext_behind(sealed: SealedModel) -> None:
    """GCM decrypts before it knows: what did not hold is overwritten, not handed out."""
    flip(SEALED_CHUNK - 1)(sealed)
    target = bytearray(b"\xff" * CHUNK)
    with sealed.open() as source, pytest.raises(ModelAlteredError):
        source.read_into("a.safetensors", 0, memoryview(target))
    assert target == bytes(CHUNK)


def test_a_byte_changed_anywhere_is_refused(sealed: SealedModel) -> None:
    """Seeded places over the whole of a file: none slips through (the sample is 60 of 786 kB)."""
    generator = random.Random(5)
    path = sealed.directory / stored_name(A)
    whole = path.read_bytes()
    for _ in range(60):
        at = generator.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes((whole[at] ^ (1 << generator.randrange(8)),)) + whole[at + 1 :])
        with sealed.open() as source, pytest.raises(ModelAlteredError):
            hash_model(source)


def edited(sealed: SealedModel, edit: Callable[[dict[str, object]], None], *, key: Ed25519PrivateKey | None) -> bytes:
    """Return the manifest's document after ``edit``, signed anew with ``key`` or under the old signature."""
    document = json.loads(read_manifest(sealed.directory))
    edit(document["manifest"])
    if key is not None:
        from bulkhead.encoding import b64url_encode

        inner = canonical_json(document["manifest"])
        document["signature"] = b64url_encode(key.sign(b"bulkhead/v1 sealed model" + inner))
    return canonical_json(document)


EDITS: list[Callable[[dict[str, object]], None]] = [
    lambda manifest: manifest.update(version=9),
    lambda manifest: manifest.update(model="other"),
    lambda manifest: manifest.update(chunk_bytes=CHUNK * 2),
    lambda manifest: manifest["key"].update(commitment="00" * 32),  # type: ignore[attr-defined]
    lambda manifest: manifest["key"]["wrapped"][0].update(kek="file:0"),  # type: ignore[index]
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused(sealed: SealedModel, edit: Callable[[dict[str, object]], None]) -> None:
    """Without the signer's key nothing in it can be changed."""
    with pytest.raises(ModelSignatureError, match="altered"):
        SealedManifest.open(edited(sealed, edit, key=None), signers=sealed.signers)


def test_a_manifest_signed_by_a_stranger_is_refused(sealed: SealedModel) -> None:
    """Also when the stranger names the trusted signer, or itself."""
    stranger = Ed25519PrivateKey.generate()
    claims = edited(sealed, lambda _manifest: None, key=stranger)
    with pytest.raises(ModelSignatureError, match="altered"):
        SealedManifest.open(claims, signers=sealed.signers)
    with pytest.raises(ModelSignatureError, match="not trusted"):
        SealedManifest.open(read_manifest(sealed.directory), signers=(stranger.public_key().public_bytes_raw(),))


CONTRADICTIONS: list[Callable[[dict[str, object]], None]] = [
    lambda manifest: manifest.update(model_digest="00" * 32),
    lambda manifest: manifest["files"].reverse(),  # type: ignore[attr-defined]
    lambda manifest: manifest["files"].clear(),  # type: ignore[attr-defined]
    lambda manifest: manifest["key"]["wrapped"].append(manifest["key"]["wrapped"][0]),  # type: ignore[index]
    lambda manifest: manifest.update(format=2),
    lambda manifest: manifest.update(version=0),
    lambda manifest: manifest.update(chunk_bytes=1),
    lambda manifest: manifest.update(model="../x"),
    lambda manifest: manifest.update(more=1),
]


@pytest.mark.parametrize("edit", CONTRADICTIONS)
def test_a_signed_manifest_that_contradicts_itself_is_refused(
    sealed: SealedModel, edit: Callable[[dict[str, object]], None]
) -> None:
    """The signer's own mistakes are typed errors before anything is opened."""
    with pytest.raises(ModelManifestError):
        SealedManifest.open(edited(sealed, edit, key=sealed.signer), signers=sealed.signers)


def test_another_models_key_opens_nothing(sealed: SealedModel, tmp_path: Path) -> None:
    """It is recognised before a chunk is tried, and the wrapped key does not unwrap for another model either."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    other = seal(tmp_path / "plain", tmp_path / "out", model="other")
    with pytest.raises(ModelKeyError, match="not the one"):
        SealedSource(sealed.directory, manifest=sealed.manifest(), key=other.data_key(), threads=1)
    with pytest.raises(InvalidRequestError), other.open() as source:
        source.read_into("a.safetensors", 0, memoryview(bytearray(1)))


def test_the_sealed_files_hold_no_plaintext(original: SealedModel) -> None:
    """No 16 bytes of the weights stand in any sealed file."""
    stored = b"".join(path.read_bytes() for path in sorted(original.directory.iterdir()))
    plain = (original.directory.parent / "plain" / "a.safetensors").read_bytes()
    assert not any(plain[at : at + 16] in stored for at in range(0, len(plain) - 16, 4099))
