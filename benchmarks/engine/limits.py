"""What the machine gives at most: a decode step's matrix products alone, and with attention over contiguous slabs."""

import time

import torch
from torch.nn import functional

from data_plane.engine.config import WeightFormat
from data_plane.engine.linear import Linear, make_linear
from data_plane.engine.spec import DecoderSpec

__all__ = ["Products", "slab_attention_s"]


class Products:
    """The matrix products of one decode step, in the engine's own layout, with random bf16 weights."""

    def __init__(self, spec: DecoderSpec, weights: WeightFormat) -> None:
        query, kv, hidden, wide = (
            spec.heads * spec.head_dim,
            spec.kv_heads * spec.head_dim,
            spec.hidden,
            spec.intermediate,
        )
        shapes = [(query + 2 * kv, hidden), (hidden, query), (2 * wide, hidden), (hidden, wide)] * spec.layers
        shapes.append((spec.vocabulary, hidden))
        self._products: list[tuple[Linear, int]] = [
            (make_linear((torch.randn(shape) * 0.05).bfloat16(), weights=weights), shape[1]) for shape in shapes
        ]

    def step_s(self, rows: int, *, steps: int = 6) -> float:
        """Return the seconds of one step's products for ``rows`` sequences, the fastest of ``steps`` halves."""
        inputs = {width: torch.randn(rows, width) for _, width in self._products}
        times = []
        with torch.inference_mode():
            for _ in range(steps):
                started = time.perf_counter()
                for product, width in self._products:
                    product(inputs[width])
                times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]


def slab_attention_s(spec: DecoderSpec, sequences: int, context: int, *, steps: int = 5) -> float:
    """Return the seconds of all layers' attention of one step over contiguous keys and values, torch's own kernel."""
    shape = (spec.layers, sequences, spec.kv_heads, context, spec.head_dim)
    keys, values = torch.randn(shape), torch.randn(shape)
    query = torch.randn(sequences, spec.heads, 1, spec.head_dim)
    times = []
    with torch.inference_mode():
        for _ in range(steps):
            started = time.perf_counter()
            for key, value in zip(keys, values, strict=True):
                functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
