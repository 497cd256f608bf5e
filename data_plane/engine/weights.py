"""Tensors from safetensors files, one or several shards: names, shapes and types checked, pickles refused."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

import torch

from bulkhead.errors import InvalidRequestError, UnsupportedError
from bulkhead.models import ModelSource
from data_plane.engine.spec import read_json
from data_plane.engine.tensor_file import StoredTensor, read_header

__all__ = ["WeightSource", "open_weights"]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 << 20  # a name and a shard for each of the 100,000 tensors of the largest mixtures
MAX_SHARDS: Final = 4096
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TYPES: Final = MappingProxyType({"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16})


class WeightSource:
    """The tensors of one model; each is taken once, and :meth:`finish` says whether all were.

    Args:
        source: the model's files.
        places: where each tensor lies.
    """

    def __init__(self, source: ModelSource, places: Mapping[str, StoredTensor]) -> None:
        self._source = source
        self._places = dict(places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Return the tensor ``name`` in its stored type (fp32, bf16 or fp16), as memory of its own.

        Raises:
            InvalidRequestError: no such tensor, another shape than config.json implies, more than memory holds, or data
                that cannot be read.
            UnsupportedError: another type.
            SealedModelError: as :meth:`ModelSource.read_into`.
        """
        place = self._places.pop(name, None)
        if place is None:
            raise InvalidRequestError(f"the model has no tensor {name}, which its config.json implies")
        if place.shape != shape:
            raise InvalidRequestError(f"tensor {name} has shape {list(place.shape)}, config.json implies {list(shape)}")
        if (dtype := TYPES.get(place.dtype)) is None:
            raise UnsupportedError(
                f"tensor {name} is of type {place.dtype}; the native engine reads fp32, bf16 and fp16"
            )
        try:
            tensor = torch.empty(shape, dtype=dtype)
        except RuntimeError as error:  # a file with holes may be longer than any memory
            raise InvalidRequestError(f"tensor {name} of {place.size} bytes does not fit in memory") from error
        self._source.read_into(place.path, place.offset, tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor

    def finish(self, *, ignored_suffixes: tuple[str, ...]) -> None:
        """Check that no tensor is left over: one that is not used would have changed the answers.

        Raises:
            InvalidRequestError: naming the first tensor that nobody took.
        """
        left = sorted(name for name in self._places if not name.endswith(ignored_suffixes))
        if left:
            raise InvalidRequestError(
                f"the model has {len(left)} tensors that its config.json does not explain: {left[0][:200]}"
            )


def open_weights(source: ModelSource) -> WeightSource:
    """Return the weights of a Hugging Face model.

    Raises:
        UnsupportedError: the model has pickled weights only.
        InvalidRequestError: no weights, a malformed file or index, or an index that names what is no shard.
        SealedModelError: as :meth:`ModelSource.read_into`.
    """
    if SINGLE in source.files:
        return WeightSource(source, read_header(source, SINGLE))
    if INDEX in source.files:
        return WeightSource(source, _shards(source))
    if any(fnmatchcase(path, pattern) for path in source.files for pattern in PICKLES):
        raise UnsupportedError("the model's weights are pickles, which run code when they are read: use safetensors")
    raise InvalidRequestError(f"the model directory has neither {SINGLE} nor {INDEX}")


def _shards(source: ModelSource) -> dict[str, StoredTensor]:
    places = read_json(source, INDEX, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InvalidRequestError(f"{INDEX} has no weight_map")
    stored: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted({str(place) for place in places.values()}):
        if "/" in shard or not shard.endswith(".safetensors"):
            raise InvalidRequestError(f"{INDEX} names a shard that is not a safetensors file beside it")
        if len(stored) >= MAX_SHARDS:
            raise InvalidRequestError(f"{INDEX} names more than {MAX_SHARDS} shards")
        if shard not in source.files:
            raise InvalidRequestError(f"{INDEX} names the shard {shard[:200]}, which the model does not have")
        stored[shard] = read_header(source, shard)
    for name, place in places.items():
        if name not in stored[str(place)]:
            raise InvalidRequestError(f"{INDEX} places {name[:200]} in a shard that does not hold it")
    # What the index leaves out counts too: other engines read whole shards, and an answer may not depend on it.
    left_out = {name: tensor for tensors in stored.values() for name, tensor in tensors.items()}
    return left_out | {name: stored[str(place)][name] for name, place in places.items()}
