"""Models as files: plain directories, sealed ones, and the keys that open them (docs/models.md)."""

from bulkhead.models.chunks import DataKey
from bulkhead.models.kek import FileKek, KeyEncryptionKey, create_kek, open_kek, unwrap_key
from bulkhead.models.manifest import SealedManifest, WrappedKey, wrapping_context
from bulkhead.models.rewrap import rewrap_model
from bulkhead.models.seal import seal_model
from bulkhead.models.sealed import SealedSource, read_manifest
from bulkhead.models.source import DirectorySource, ModelSource, hash_model, read_blocks, read_file

__all__ = [
    "DataKey",
    "DirectorySource",
    "FileKek",
    "KeyEncryptionKey",
    "ModelSource",
    "SealedManifest",
    "SealedSource",
    "WrappedKey",
    "create_kek",
    "hash_model",
    "open_kek",
    "read_blocks",
    "read_file",
    "read_manifest",
    "rewrap_model",
    "seal_model",
    "unwrap_key",
    "wrapping_context",
]
