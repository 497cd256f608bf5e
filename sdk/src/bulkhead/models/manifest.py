"""The manifest of a sealed model: what was sealed, for which key, in which version, and who says so.

Canonical JSON (RFC 8785), at most 3 MiB, as the file ``manifest.json`` of a sealed model's directory::

    {"manifest": {"format": 1, "model": "chat-large", "version": 3, "model_digest": "<64 hex>", "chunk_bytes": 262144,
                  "files": [{"path": "config.json", "size": 704, "sha256": "<64 hex>"}, ...],
                  "key": {"commitment": "<64 hex>", "wrapped": [{"kek": "<id>", "data": "<base64url>"}, ...]},
                  "signer": "<base64url, 32 bytes>"},
     "signature": "<base64url, 64 bytes>"}

``version`` counts the releases of one model name and never goes back; each has a data key of its own. The signature is
Ed25519 by ``signer`` over ``"bulkhead/v1 sealed model" ‖ canonical JSON of the inner object``; SHA-256 of that JSON is
the **manifest digest**. ``files`` stand as in the model's own manifest, whose digest ``model_digest`` must be.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bulkhead.attestation.model_digest import MAX_FILES, MAX_PATH_BYTES, ModelFile, ModelManifest
from bulkhead.encoding import Json, b64url_encode, canonical_json, lp_join
from bulkhead.errors import InvalidRequestError, ModelManifestError, ModelSignatureError
from bulkhead.fields import Fields
from bulkhead.ids import check_name

__all__ = [
    "MAX_MANIFEST_BYTES",
    "WRAP_NONCE_BYTES",
    "SealedManifest",
    "WrappedKey",
    "claimed_signer",
    "wrapping_context",
]

FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 3 << 20  # 4,096 files with the longest paths, 0.7 kB each; a message holds it
MAX_WRAPPED: Final = 8  # key encryption keys: an old and a new one of platform and tenant, and spare
MAX_WRAPPED_BYTES: Final = 512
WRAP_NONCE_BYTES: Final = 12  # a wrapped key begins with them
MIN_CHUNK_BYTES: Final = 4096
MAX_CHUNK_BYTES: Final = 16 << 20
_LABEL: Final = b"bulkhead/v1 sealed model"
_WRAP_LABEL: Final = b"bulkhead/v1 model key wrap"
_ED25519_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64


def wrapping_context(*, model: str, version: int, model_digest: bytes) -> bytes:
    """Return what a wrapped data key is bound to: the AAD of its encryption."""
    return lp_join(_WRAP_LABEL, model.encode(), version.to_bytes(8, "big"), model_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """The data key under one key encryption key, which ``kek`` names."""

    kek: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedManifest:
    """What a sealed model's manifest says.

    Attributes:
        model: the model's name.
        version: from 1, counts releases.
        chunk_bytes: plaintext bytes of every chunk but a file's last.
        files: as in the plain model's manifest; the position in it is the file's number.
        commitment: 32 bytes that only the right data key gives.
        wrapped: the data key under one to eight key encryption keys.
        signer: raw Ed25519 public key.
    """

    model: str
    version: int
    chunk_bytes: int
    files: tuple[ModelFile, ...]
    commitment: bytes
    wrapped: tuple[WrappedKey, ...]
    signer: bytes

    @property
    def model_digest(self) -> bytes:
        """Digest of the plain model, 32 bytes."""
        return ModelManifest(files=self.files).digest()

    @property
    def encoded(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(self._to_json())

    @property
    def digest(self) -> bytes:
        """The manifest digest, 32 bytes."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def wrapping_context(self) -> bytes:
        """What the wrapped keys are bound to."""
        return wrapping_context(model=self.model, version=self.version, model_digest=self.model_digest)

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """Return the document ``manifest.json``.

        Raises:
            ModelSignatureError: ``key`` is not the signer's.
        """
        if key.public_key().public_bytes_raw() != self.signer:
            raise ModelSignatureError("the manifest names another signer")
        return canonical_json(
            {"manifest": self._to_json(), "signature": b64url_encode(key.sign(_LABEL + self.encoded))}
        )

    @classmethod
    def open(cls, document: bytes, *, signers: Iterable[bytes]) -> "SealedManifest":
        """Return the manifest in ``document`` (untrusted) if one of ``signers`` signed it.

        Args:
            document: the content of ``manifest.json``.
            signers: raw Ed25519 public keys that are trusted for models.

        Raises:
            ModelManifestError: malformed, or its digest is not that of its files.
            ModelSignatureError: unsigned, altered, or by a signer who is not trusted.
        """
        manifest, signature = _parse(document)
        if manifest.signer not in tuple(signers):
            raise ModelSignatureError("the model's manifest is signed by a key that is not trusted for models")
        try:
            Ed25519PublicKey.from_public_bytes(manifest.signer).verify(signature, _LABEL + manifest.encoded)
        except (InvalidSignature, ValueError) as error:
            raise ModelSignatureError("the model's manifest was altered: its signature does not hold") from error
        return manifest

    def _to_json(self) -> dict[str, Json]:
        return {
            "format": FORMAT,
            "model": self.model,
            "version": self.version,
            "model_digest": self.model_digest.hex(),
            "chunk_bytes": self.chunk_bytes,
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256.hex()} for file in self.files],
            "key": {
                "commitment": self.commitment.hex(),
                "wrapped": [{"kek": item.kek, "data": b64url_encode(item.data)} for item in self.wrapped],
            },
            "signer": b64url_encode(self.signer),
        }


def claimed_signer(document: bytes) -> bytes:
    """Return the public key that a manifest says it is signed with: to be shown, not to be trusted.

    Raises:
        ModelManifestError: as :meth:`SealedManifest.open`.
    """
    return _parse(document)[0].signer


def _parse(document: bytes) -> tuple[SealedManifest, bytes]:
    with Fields.parse(document, max_bytes=MAX_MANIFEST_BYTES, what="model manifest", error=ModelManifestError) as outer:
        signature = outer.binary("signature", max_bytes=_SIGNATURE_BYTES, size=_SIGNATURE_BYTES)
        return _read(outer.nested("manifest")), signature


def _read(fields: Fields) -> SealedManifest:
    with fields:
        fields.integer("format", low=FORMAT, high=FORMAT)
        with fields.nested("key") as key:
            commitment = key.digest("commitment")
            wrapped = tuple(_wrapped(item) for item in key.array("wrapped", min_items=1, max_items=MAX_WRAPPED))
        digest = fields.digest("model_digest")
        manifest = SealedManifest(
            model=_name(fields.text("model")),
            version=fields.integer("version", low=1),
            chunk_bytes=fields.integer("chunk_bytes", low=MIN_CHUNK_BYTES, high=MAX_CHUNK_BYTES),
            files=tuple(_file(item) for item in fields.array("files", min_items=1, max_items=MAX_FILES)),
            commitment=commitment,
            wrapped=wrapped,
            signer=fields.binary("signer", max_bytes=_ED25519_BYTES, size=_ED25519_BYTES),
        )
    _check(manifest, digest)
    return manifest


def _name(text: str) -> str:
    try:
        return check_name(text, "model")
    except InvalidRequestError as error:
        raise ModelManifestError(f"model manifest: {error.message}") from error


def _wrapped(item: Json) -> WrappedKey:
    with Fields(item, what="model manifest: wrapped key", error=ModelManifestError) as fields:
        return WrappedKey(kek=fields.text("kek"), data=fields.binary("data", max_bytes=MAX_WRAPPED_BYTES))


def _file(item: Json) -> ModelFile:
    with Fields(item, what="model manifest: file", error=ModelManifestError) as fields:
        return ModelFile(
            path=fields.text("path", max_chars=MAX_PATH_BYTES),
            size=fields.integer("size"),
            sha256=fields.digest("sha256"),
        )


def _check(manifest: SealedManifest, digest: bytes) -> None:
    """Refuse what is well-formed and contradicts itself."""
    paths = [file.path.encode() for file in manifest.files]
    if any(left >= right for left, right in pairwise(paths)):
        raise ModelManifestError("model manifest: the files are not sorted by path, each once")
    if manifest.model_digest != digest:
        raise ModelManifestError("model manifest: model_digest is not that of its files")
    if len({item.kek for item in manifest.wrapped}) != len(manifest.wrapped):
        raise ModelManifestError("model manifest: one key encryption key is named twice")
