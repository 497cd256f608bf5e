"""Wrapping a sealed model's data key anew, when a key encryption key is replaced: the files stay as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.errors import ConfigError, InvalidRequestError
from bulkhead.files import replace_file
from bulkhead.models.chunks import DataKey
from bulkhead.models.kek import KeyEncryptionKey, unwrap_key
from bulkhead.models.manifest import MAX_WRAPPED, SealedManifest, WrappedKey
from bulkhead.models.sealed import MANIFEST_NAME, check_layout, read_manifest

__all__ = ["rewrap_model"]


def rewrap_model(
    directory: Path,
    *,
    keks: Sequence[KeyEncryptionKey],
    new_keks: Sequence[KeyEncryptionKey],
    keep: bool,
    signers: Iterable[bytes],
    signer: Ed25519PrivateKey,
) -> SealedManifest:
    """Wrap the data key of the sealed model in ``directory`` under other keys, and return its new manifest.

    Model, version, files and data key stay: the version counts contents, and a broker's floor neither rises nor stands
    in the way. This is for a key encryption key that is retired. One that leaked has given the data key away to whoever
    has an older manifest: seal the model anew, under a higher version.

    1. One of ``signers``, or ``signer`` itself, signed the present manifest, and the directory is what it says.
    2. One of ``keks`` unwraps the data key, which is the one that the manifest commits to.
    3. The new manifest is signed before it takes the place of the old one, which it does whole or not at all.

    Args:
        directory: of the sealed model.
        keks: present keys; the first that the manifest names is used.
        new_keks: one to eight.
        keep: whether the present wrappings stay beside the new ones, for the time in which brokers change keys.
        signers: raw Ed25519 public keys that are trusted for models, beside ``signer``.
        signer: signs the new manifest.

    Raises:
        ModelManifestError, ModelSignatureError, SealedModelError: 1.
        ModelKeyError: 2.
        InvalidRequestError: more than eight wrappings, or none.
        KeyBrokerError: a key store is out of reach.
        ConfigError: the manifest cannot be written; the old one stands.
    """
    public = signer.public_key().public_bytes_raw()
    manifest = SealedManifest.open(read_manifest(directory), signers=[public, *signers])  # 1
    check_layout(directory, manifest)
    key = unwrap_key(manifest, keks)  # 2
    try:
        DataKey(key).check(manifest.commitment)
        made = {kek.kek_id: kek.wrap(key, context=manifest.wrapping_context) for kek in new_keks}
    finally:
        key[:] = bytes(len(key))
    wrapped = ({item.kek: item.data for item in manifest.wrapped} if keep else {}) | made
    if not 0 < len(wrapped) <= MAX_WRAPPED:
        raise InvalidRequestError(f"a model's key is wrapped by one to {MAX_WRAPPED} key encryption keys")
    changed = replace(
        manifest, wrapped=tuple(WrappedKey(kek=kek, data=data) for kek, data in wrapped.items()), signer=public
    )
    _put(directory, changed.sign(signer))  # 3
    return changed


def _put(directory: Path, document: bytes) -> None:
    """Replace the manifest; what is half written lies beside the directory, whose files are all named by it."""
    directory = directory.resolve()
    partial = directory.with_name(f".{directory.name}.{MANIFEST_NAME}.partial")
    try:
        replace_file(directory / MANIFEST_NAME, document, partial=partial, mode=0o666)
    except OSError as error:
        raise ConfigError(f"{directory}: the manifest cannot be written: {error.strerror}") from error
