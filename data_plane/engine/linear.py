"""Matrix products with constant weights, in the fastest layout for each. The only file that names private torch.

On a CPU, fp32 weights are packed once by oneDNN, which is about twice as fast as ``F.linear`` at every batch size
(``benchmarks/engine.py`` shows both). The packing operators are private to torch: ``PACKED`` says whether this build
has them and computes rightly with them, and ``F.linear`` is used where it does not.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch.nn import functional

from data_plane.engine.config import WeightFormat

__all__ = ["PACKED", "Bf16Linear", "Linear", "PackedLinear", "PlainLinear", "make_linear"]


class PlainLinear:
    """``x @ weight.T`` with a row-major weight [out, in]; x is [rows, in] of the weight's type."""

    __slots__ = ("_weight",)

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight.contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out]."""
        return functional.linear(x, self._weight)

    def erase(self) -> None:
        """Overwrite the weight."""
        self._weight.zero_()


class Bf16Linear(PlainLinear):
    """The same with a bf16 weight and fp32 activations, which are rounded to bf16 for the product."""

    __slots__ = ()

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.to(torch.bfloat16))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] in fp32."""
        return functional.linear(x.to(torch.bfloat16), self._weight).float()


class PackedLinear:
    """The same in fp32 with the weight in oneDNN's blocked layout."""

    __slots__ = ("_packed",)

    def __init__(self, weight: torch.Tensor) -> None:
        # A layout chosen for an unknown number of rows measured best from 1 to 512 rows.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), None)  # noqa: SLF001 - see module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")  # noqa: SLF001 - see module
        return result

    def erase(self) -> None:
        """Overwrite the weight."""
        self._packed.mul_(0.0)  # zero_ misses the padding of the blocked layout, and with it part of the weight


Linear: TypeAlias = PlainLinear | Bf16Linear | PackedLinear


def _packed_works() -> bool:
    """Whether packed products agree with ``F.linear`` here: a private operator may vanish or change its meaning."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 32, generator=generator), torch.randn(3, 32, generator=generator)
    try:
        packed = PackedLinear(weight)
        difference = (packed(x) - functional.linear(x, weight)).abs().max().item()
        packed.erase()
        return difference < 1e-4 and packed(x).abs().max().item() == 0.0
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


PACKED: Final = _packed_works()


def make_linear(weight: torch.Tensor, *, weights: WeightFormat) -> Linear:
    """Return the fastest product with ``weight`` [out, in] that keeps the precision asked for."""
    if weights == "bf16":
        return Bf16Linear(weight)
    layout: Callable[[torch.Tensor], Linear] = PackedLinear if PACKED else PlainLinear
    return layout(weight.float())
