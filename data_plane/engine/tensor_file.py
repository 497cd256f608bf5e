"""Where the tensors of a safetensors file lie: its header, read from a model's source and checked.

Layout (https://github.com/huggingface/safetensors, "Format"): u64 little-endian length of the header, the header as
JSON, then the data. Checked as the format's own library does: the data of the tensors neither overlap nor leave gaps,
and end with the file.
"""

import json
import math
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError
from bulkhead.fields import Fields
from bulkhead.models import ModelSource

__all__ = ["StoredTensor", "read_header"]

# The largest model that is read has some 12,000 tensors, of 200 bytes each; the format's own limit of 100 MB takes
# gigabytes to parse if it is a list of empty lists.
MAX_HEADER_BYTES: Final = 8 << 20
MAX_RANK: Final = 8
_LENGTH_BYTES: Final = 8
_BYTES_PER_ELEMENT: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor: ``dtype`` as the format names it; ``offset`` and ``size`` in bytes of the file ``path``."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(source: ModelSource, path: str) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name.

    Raises:
        InvalidRequestError: not a whole safetensors file.
        SealedModelError: as :meth:`ModelSource.read_into`.
    """
    size = source.files[path]
    length = int.from_bytes(_read(source, path, 0, _LENGTH_BYTES), "little") if size >= _LENGTH_BYTES else size
    data_start = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or data_start > size:
        raise _broken(path)
    try:
        entries = json.loads(_read(source, path, _LENGTH_BYTES, length))
    except (ValueError, RecursionError) as error:
        raise _broken(path) from error
    if not isinstance(entries, dict):
        raise _broken(path)
    entries.pop("__metadata__", None)
    tensors = {name: _tensor(path, entry, data_start) for name, entry in entries.items()}
    _check_coverage(path, tensors, data_start, size)
    return tensors


def _tensor(path: str, entry: Json, data_start: int) -> StoredTensor:
    fields = Fields(entry, what=f"{path}: a tensor", error=InvalidRequestError)
    dtype = fields.text("dtype")
    shape = _sizes(path, fields.array("shape", max_items=MAX_RANK))
    begin, end = _sizes(path, fields.array("data_offsets", min_items=2, max_items=2))
    size = _BYTES_PER_ELEMENT.get(dtype, 0) * math.prod(shape)
    if dtype not in _BYTES_PER_ELEMENT or end - begin != size:
        raise _broken(path)
    return StoredTensor(path=path, dtype=dtype, shape=shape, offset=data_start + begin, size=size)


def _sizes(path: str, values: list[Json]) -> tuple[int, ...]:
    sizes = tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
    if len(sizes) != len(values):
        raise _broken(path)
    return sizes


def _check_coverage(path: str, tensors: dict[str, StoredTensor], start: int, end: int) -> None:
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != start:
            raise _broken(path)
        start += tensor.size
    if start != end:
        raise _broken(path)


def _read(source: ModelSource, path: str, offset: int, size: int) -> bytes:
    data = bytearray(size)
    source.read_into(path, offset, memoryview(data))
    return bytes(data)


def _broken(path: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path} is not a whole safetensors file")
