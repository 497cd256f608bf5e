"""What the machine gives at most: a decode step's matrix products alone, and with attention over contiguous slabs.

Measured in a process of its own: two sets of OpenMP threads in one process slow both down.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn import functional

from benchmarks.engine.line_process import CLOCKS, LineProcess
from bulkhead.models import DirectorySource
from data_plane.engine.config import WeightFormat
from data_plane.engine.linear import Linear, make_linear
from data_plane.engine.spec import DecoderSpec, read_spec

__all__ = ["Limits"]


class Limits(LineProcess):
    """The process that measures limits for one model and format of weights, by one of :data:`.line_process.CLOCKS`.

    ``running`` is the most sequences that the format is chosen for.
    """

    def __init__(self, *, model: Path, threads: int, weights: WeightFormat, running: int, clock: str = "wall") -> None:
        command = [sys.executable, "-m", __name__, str(model), str(threads), weights, clock, str(running)]
        super().__init__(command, threads=threads)

    def step_s(self, rows: int, *, context: int = 0) -> float:
        """Return the seconds of one decode step of ``rows`` sequences: products, and with a context, attention."""
        return float(self.ask(rows=rows, context=context))


class _Products:
    """The matrix products of one decode step, in the engine's own layout, with random bf16 weights."""

    def __init__(self, spec: DecoderSpec, weights: WeightFormat, running: int, now: Callable[[], float]) -> None:
        self._now = now
        make = partial(make_linear, weights=weights, rows=running)
        query, kv, hidden, wide = (
            spec.heads * spec.head_dim,
            spec.kv_heads * spec.head_dim,
            spec.hidden,
            spec.intermediate,
        )
        shapes = [(query + 2 * kv, hidden), (hidden, query), (2 * wide, hidden), (hidden, wide)] * spec.layers
        shapes.append((spec.vocabulary, hidden))
        self._products: list[tuple[Linear, int]] = [
            (make((torch.randn(shape) * 0.05).bfloat16()), shape[1]) for shape in shapes
        ]

    def step_s(self, rows: int, *, steps: int = 7) -> float:
        """Return the median seconds of one step's products for ``rows`` sequences."""
        inputs = {width: torch.randn(rows, width) for _, width in self._products}
        times = []
        with torch.inference_mode():
            for _ in range(steps):
                started = self._now()
                for product, width in self._products:
                    product(inputs[width])
                times.append(self._now() - started)
        return sorted(times)[len(times) // 2]


def _slab_attention_s(
    spec: DecoderSpec, sequences: int, context: int, now: Callable[[], float], *, steps: int = 5
) -> float:
    """Return the seconds of all layers' attention of one step over contiguous keys and values, torch's own kernel."""
    shape = (spec.layers, sequences, spec.kv_heads, context, spec.head_dim)
    keys, values = torch.randn(shape), torch.randn(shape)
    query = torch.randn(sequences, spec.heads, 1, spec.head_dim)
    times = []
    with torch.inference_mode():
        for _ in range(steps):
            started = now()
            for key, value in zip(keys, values, strict=True):
                functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            times.append(now() - started)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Answer commands until the input ends."""
    model, threads, weights = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    with DirectorySource(model) as source:
        spec = read_spec(source)
    (format_,) = (known for known in get_args(WeightFormat) if known == weights)
    now = CLOCKS[sys.argv[4]]
    products = _Products(spec, format_, int(sys.argv[5]), now)
    products.step_s(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        rows, context = command["rows"], command["context"]
        seconds = products.step_s(rows) + (_slab_attention_s(spec, rows, context, now) if context else 0.0)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
