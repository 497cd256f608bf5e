"""Models as files: plain directories, sealed ones, and the keys that open them (docs/models.md)."""

from bulkhead.models.source import DirectorySource, ModelSource, hash_model, read_blocks, read_file

__all__ = ["DirectorySource", "ModelSource", "hash_model", "read_blocks", "read_file"]
