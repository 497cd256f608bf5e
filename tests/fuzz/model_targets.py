"""Fuzz targets of ``bulkhead.models`` and of the engine's readers: what a sealed or plain model directory holds."""

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.model_digest import ModelFile
from bulkhead.encoding import canonical_json
from bulkhead.models import SealedManifest, WrappedKey
from data_plane.engine.tensor_file import read_header
from tests.fuzz.registry import FuzzTarget

_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_SIGNERS = (_SIGNER.public_key().public_bytes_raw(),)


class _OneFile:
    """A model of one file in memory."""

    name = "fuzzed"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.files: Mapping[str, int] = {"model.safetensors": len(data)}

    def read_into(self, path: str, offset: int, target: memoryview) -> None:
        if offset < 0 or offset + len(target) > self.files[path]:
            raise AssertionError("the reader left its file")
        target[:] = self._data[offset : offset + len(target)]

    def close(self) -> None:
        """Keep nothing."""


def _manifest(data: bytes) -> None:
    opened = SealedManifest.open(data, signers=_SIGNERS)
    if opened.sign(_SIGNER) != data:
        raise AssertionError("two documents for one manifest")


def _manifests() -> list[bytes]:
    files = tuple(ModelFile(path=path, size=size, sha256=bytes(32)) for path, size in (("a/b.json", 0), ("c", 1 << 40)))
    made = [
        SealedManifest(
            model="fuzzed",
            version=version,
            chunk_bytes=4096 << version,
            files=files[:version],
            commitment=bytes(32),
            wrapped=(WrappedKey(kek="file:0", data=bytes(60)),),
            signer=_SIGNERS[0],
        )
        for version in (1, 2)
    ]
    return [manifest.sign(_SIGNER) for manifest in made]


def _headers() -> list[bytes]:
    headers = (
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}},
        {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
         "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}},
    )  # fmt: skip
    encoded = [(canonical_json(header), 12 if "w" in header else 4) for header in headers]
    return [len(text).to_bytes(8, "little") + text + bytes(size) for text, size in encoded]


TARGETS = (
    FuzzTarget(name="model-manifest", parse=_manifest, seeds=_manifests, max_bytes=8192),
    FuzzTarget(
        name="safetensors-header",
        parse=lambda data: read_header(_OneFile(data), "model.safetensors"),
        seeds=_headers,
        max_bytes=4096,
    ),
)
