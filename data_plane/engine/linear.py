"""Matrix products with constant weights, in the fastest layout for each. The only file that names private torch.

On a CPU one product of a few rows costs what reading the weight costs, so the layout decides:

- fp32, exact: half-precision storage where it holds every weight (a checkpoint in bf16 or fp16), read by fbgemm into
  fp32 arithmetic: half the memory and twice the speed at one row. Else blocks packed by oneDNN.
- bf16: weights rounded to bf16. A session that is set up for few sequences holds them as halves too, with activations
  in fp32; one for more has activations rounded too and weights packed by oneDNN, faster where the CPU has AVX512-BF16.
- int8: weights rounded to 8 bits by row, activations to bf16; a quarter of the memory.

The operators are private to torch: :func:`works` says whether this build has them and computes rightly with them, and
``F.linear`` is used where it does not. ``benchmarks/engine`` shows the layouts side by side.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import torch
from torch.nn import functional

from bulkhead.errors import UnsupportedError
from data_plane.engine.config import WeightFormat

__all__ = [
    "HalfLinear",
    "Int8Linear",
    "Linear",
    "LinearMaker",
    "PackedLinear",
    "PlainLinear",
    "make_linear",
    "works",
]

_HALF_PRODUCT: Final = """
def product(x: Tensor, weight: torch.classes.quantized.LinearPackedParamsBase) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16(x, weight)
"""
FEW_ROWS: Final = 4  # with halves the chat model's products take 11.6 ms at 1 row and 16.3 at 4; in bf16 20.0 and 17.8
HALF_EXPONENT: Final = 15  # the largest half is below 2^16; weights are scaled to stay below 2^15
_HALF_ROWS: Final = 512  # fbgemm packs so many inputs together and fills the last pack up with zeros
HALF_ERROR: Final = 2.0**-26  # of a matrix's largest weight: a quarter of fp32's own rounding


class PlainLinear:
    """``x @ weight.T + bias`` with a row-major weight [out, in]; x is fp32 [rows, in]."""

    __slots__ = ("_bias", "_weight", "bytes")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight.contiguous()
        self._bias = None if bias is None else bias.to(weight.dtype)
        self.bytes = self._weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] in fp32."""
        return functional.linear(x.to(self._weight.dtype), self._weight, self._bias).float()

    def erase(self) -> None:
        """Overwrite the weight."""
        self._weight.zero_()


class PackedLinear:
    """The same with the weight, fp32 or bf16, in oneDNN's blocked layout."""

    __slots__ = ("_bias", "_packed", "_type", "bytes")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        # A layout chosen for an unknown number of rows measured best from 1 to 512 rows.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)  # noqa: SLF001 - see module
        self._type = weight.dtype
        self._bias = None if bias is None else bias.to(weight.dtype)
        self.bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] in fp32."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - see module
            x.to(self._type), self._packed, self._bias, "none", [], ""
        )
        return result.float()

    def erase(self) -> None:
        """Overwrite the weight."""
        self._packed.mul_(0.0)  # zero_ misses the padding of the blocked layout, and with it part of the weight


class HalfLinear:
    """The same with the weight stored in half precision and all arithmetic in fp32 (fbgemm).

    Raises:
        ValueError: half precision would change a weight by more than a quarter of fp32's rounding of the largest.
    """

    __slots__ = ("_packed", "_product", "_unscale", "bytes")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        scale = _half_scale(weight)
        self._unscale = 1.0 / scale
        wide = weight.float() if scale == 1.0 else weight.float() * scale
        # A bias is added to scaled products, which are unscaled through x: so it goes in as it is.
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(wide, None if bias is None else bias.float())
        self._product = _half_product()
        self.bytes = 2 * len(weight) * -(-weight.shape[1] // _HALF_ROWS) * _HALF_ROWS

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] in fp32."""
        if self._unscale != 1.0:
            x = x * self._unscale
        return self._product(x, self._packed)

    def erase(self) -> None:
        """Give the weight back; :func:`.memory.overwriting_what_is_freed` then overwrites it."""
        self._packed = None


class Int8Linear:
    """The same with int8 weights and a scale for each row; activations and products are rounded to bf16."""

    __slots__ = ("_bias", "_scales", "_units", "_weight", "bytes")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._scales = weight.abs().amax(1).float().clamp_(min=1e-12).div_(127.0)
        self._weight = torch.cat(
            [
                (rows.float() / scales[:, None]).round_().to(torch.int8)
                for rows, scales in zip(
                    torch.split(weight, _CHUNK_ROWS), torch.split(self._scales, _CHUNK_ROWS), strict=True
                )
            ]
        )
        self._units = torch.ones(len(weight), dtype=torch.bfloat16)  # the operator's own scales are bf16: too coarse
        self._bias = None if bias is None else bias.float()
        self.bytes = self._weight.nbytes + self._scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] in fp32."""
        products = torch._weight_int8pack_mm(x.to(torch.bfloat16), self._weight, self._units)  # noqa: SLF001 - see module
        result = products.float().mul_(self._scales)
        return result if self._bias is None else result.add_(self._bias)

    def erase(self) -> None:
        """Overwrite the weight."""
        self._weight.zero_()
        self._scales.zero_()


Linear: TypeAlias = PlainLinear | PackedLinear | HalfLinear | Int8Linear
LinearMaker: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], Linear]
_CHUNK_ROWS: Final = 4096  # bounds what is widened to fp32 at a time
_CHUNK_WEIGHTS: Final = 24 << 10  # where they are only looked at: 96 KiB stay in the cache


@cache
def _half_product() -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """Return fbgemm's product, in a script: called as it is, torch looks at the packed weight for 8 microseconds.

    That is whether it is the stand-in of a compiler's trace, and as long as a tenth of what one row's product takes.
    """
    product: Callable[[torch.Tensor, Any], torch.Tensor] = torch.jit.CompilationUnit(_HALF_PRODUCT).product
    return product


def _half_scale(weight: torch.Tensor) -> float:
    """Return the power of two that brings ``weight`` into half precision's range; 1 where that is not needed.

    Raises:
        ValueError: no such power: the weights have more bits than half precision holds.
    """
    largest = max(abs(edge.item()) for edge in weight.aminmax())
    fitting = 2.0 ** (HALF_EXPONENT - math.frexp(largest)[1]) if 0.0 < largest < math.inf else 1.0
    for scale in (1.0, fitting):
        if largest * scale < 2.0**HALF_EXPONENT and all(
            _held(rows, scale, largest) for rows in torch.split(weight, max(1, _CHUNK_WEIGHTS // weight.shape[1]))
        ):
            return scale
    raise ValueError("half precision does not hold these weights")


def _held(rows: torch.Tensor, scale: float, largest: float) -> bool:
    wide = rows.float() * scale
    return (wide.half().float() - wide).abs_().max().item() <= HALF_ERROR * largest * scale


def _packed_fp32(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
    return PackedLinear(weight.float(), bias)


_TOLERANCES: Final[Mapping[LinearMaker, float]] = MappingProxyType(
    {_packed_fp32: 1e-4, PackedLinear: 0.5, HalfLinear: 1e-4, Int8Linear: 1.0}
)


@cache
def works(layout: LinearMaker) -> bool:
    """Whether a layout agrees with ``F.linear`` here: a private operator may vanish or change its meaning.

    Asked when a model is loaded, not when this is imported: the importing thread would get an OpenMP team of its own,
    and as soon as libgomp has more threads than cores, they no longer spin: every barrier would be a sleep.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 32, generator=generator).bfloat16(), torch.randn(3, 32, generator=generator)
    bias = torch.randn(48, generator=generator).bfloat16().float()
    try:
        difference = (layout(weight, bias)(x) - functional.linear(x, weight.float(), bias)).abs().max().item()
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return difference < _TOLERANCES[layout]


def make_linear(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, weights: WeightFormat, rows: int = FEW_ROWS + 1
) -> Linear:
    """Return the fastest product with ``weight`` [out, in] that keeps the precision asked for.

    ``rows`` is how many sequences decode together at most. Never how many do: an answer would depend on its neighbours.

    Raises:
        UnsupportedError: int8 products are not in this build of torch.
    """
    if weights == "int8":
        if not works(Int8Linear):
            raise UnsupportedError("this build of torch has no product with int8 weights")
        return Int8Linear(weight, bias)
    if weights == "bf16":
        weight = weight.to(torch.bfloat16)
        if rows > FEW_ROWS:
            return (PackedLinear if works(PackedLinear) else PlainLinear)(weight, bias)
    if works(HalfLinear):
        with suppress(ValueError):
            return HalfLinear(weight, bias)
    return (PackedLinear if works(_packed_fp32) else PlainLinear)(weight.float(), bias)
