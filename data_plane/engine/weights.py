"""Tensors from safetensors files, one or several shards: names, shapes and types checked, pickles refused."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from bulkhead.errors import InvalidRequestError, UnsupportedError
from data_plane.engine.spec import read_json

__all__ = ["WeightSource", "open_weights"]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 << 20  # a name and a shard for each of the 100,000 tensors of the largest mixtures
MAX_SHARDS: Final = 4096
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})


class WeightSource:
    """The tensors of one model; each is taken once, and :meth:`finish` says whether all were."""

    def __init__(self, readers: Mapping[str, Any]) -> None:
        self._readers = dict(readers)

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Return the tensor ``name`` in its stored type (fp32, bf16 or fp16), as memory of its own.

        Raises:
            InvalidRequestError: no such tensor, another shape than config.json implies, or data that cannot be read.
            UnsupportedError: another type.
        """
        reader = self._readers.pop(name, None)
        if reader is None:
            raise InvalidRequestError(f"the model has no tensor {name}, which its config.json implies")
        try:
            found = tuple(reader.get_slice(name).get_shape())
            if found != shape:
                raise InvalidRequestError(f"tensor {name} has shape {list(found)}, config.json implies {list(shape)}")
            tensor: torch.Tensor = reader.get_tensor(name).clone()
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise InvalidRequestError(f"tensor {name} cannot be read") from error
        if tensor.dtype not in TYPES:
            raise UnsupportedError(
                f"tensor {name} is of type {tensor.dtype}; the native engine reads fp32, bf16 and fp16"
            )
        return tensor

    def finish(self, *, ignored_suffixes: tuple[str, ...]) -> None:
        """Check that no tensor is left over: one that is not used would have changed the answers.

        Raises:
            InvalidRequestError: naming the first tensor that nobody took.
        """
        left = sorted(name for name in self._readers if not name.endswith(ignored_suffixes))
        if left:
            raise InvalidRequestError(
                f"the model has {len(left)} tensors that its config.json does not explain: {left[0][:200]}"
            )


@contextmanager
def open_weights(directory: Path) -> Iterator[WeightSource]:
    """Open the weights of a Hugging Face model directory.

    Raises:
        UnsupportedError: the directory has pickled weights only.
        InvalidRequestError: no weights, a malformed file or index, or an index that leads out of the directory.
    """
    with ExitStack() as stack:
        if (directory / SINGLE).is_file():
            reader = _open_file(stack, directory / SINGLE)
            yield WeightSource(dict.fromkeys(reader.keys(), reader))
        elif (directory / INDEX).is_file():
            yield WeightSource(_open_shards(stack, directory))
        elif any(next(directory.glob(pattern), None) for pattern in PICKLES):
            raise UnsupportedError(
                "the model's weights are pickles, which run code when they are read: use safetensors"
            )
        else:
            raise InvalidRequestError(f"the model directory has neither {SINGLE} nor {INDEX}")


def _open_file(stack: ExitStack, path: Path) -> Any:
    try:
        # Checks header length, type, bounds, and that the tensors' data neither overlap nor leave gaps.
        return stack.enter_context(safetensors.safe_open(path, framework="pt"))
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidRequestError(f"{path.name} is not a whole safetensors file") from error


def _open_shards(stack: ExitStack, directory: Path) -> dict[str, Any]:
    places = read_json(directory / INDEX, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InvalidRequestError(f"{INDEX} has no weight_map")
    shards: dict[str, Any] = {}
    for shard in sorted({str(place) for place in places.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InvalidRequestError(f"{INDEX} names a shard that is not a safetensors file beside it")
        if len(shards) >= MAX_SHARDS:
            raise InvalidRequestError(f"{INDEX} names more than {MAX_SHARDS} shards")
        shards[shard] = _open_file(stack, directory / shard)
    stored = {shard: set(reader.keys()) for shard, reader in shards.items()}
    for name, place in places.items():
        if name not in stored[str(place)]:
            raise InvalidRequestError(f"{INDEX} places {name[:200]} in a shard that does not hold it")
    return {name: shards[str(place)] for name, place in places.items()}
