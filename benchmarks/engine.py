"""Decode speed of the native engine on the chat model, beside the limit of its own matrix products in the same run.

Run ``python benchmarks/engine.py [--help]``. Prompts of 32 random tokens, 64 new tokens; the limit is a loop over the
decoder's products and head alone, with as many rows as there are sequences. Runs are interleaved, medians are shown.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import torch

from bulkhead.models import DirectorySource
from data_plane.engine import Engine, EngineConfig, EngineRequest, SamplingParams, open_engine
from data_plane.engine.config import WeightFormat
from data_plane.engine.linear import Linear, make_linear
from data_plane.engine.spec import DecoderSpec, read_spec

PROMPT_TOKENS = 32
NEW_TOKENS = 64
SEQUENCES = (1, 16, 64)


class Products:
    """The matrix products of one decode step, with random weights in the engine's own layout."""

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
            (make_linear(torch.randn(shape), weights=weights), shape[1]) for shape in shapes
        ]

    def tokens_per_s(self, rows: int, *, steps: int = 4) -> float:
        """Return how many tokens a second decoding ``rows`` sequences could give if products were all there is."""
        inputs = {width: torch.randn(rows, width) for _, width in self._products}
        with torch.inference_mode():
            started = time.perf_counter()
            for _ in range(steps):
                for product, width in self._products:
                    product(inputs[width])
            return rows * steps / (time.perf_counter() - started)


async def decode(engine: Engine, sequences: int, vocabulary: int) -> tuple[float, float]:
    """Return tokens/s of decoding while all sequences run, and of the prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, vocabulary, (sequences, PROMPT_TOKENS), generator=generator).tolist()
    started = time.perf_counter()

    async def run(index: int, prompt: list[int]) -> tuple[float, float]:
        request = EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True),
        )
        first = 0.0
        async with aclosing(engine.generate(request)) as stream:
            async for _ in stream:
                first = first or time.perf_counter()
        return first, time.perf_counter()

    times = await asyncio.gather(*(run(index, prompt) for index, prompt in enumerate(prompts)))
    all_started = max(first for first, _ in times)
    produced = sequences * NEW_TOKENS - sequences
    decoding = max(end for _, end in times) - min(first for first, _ in times)
    prefill = sequences * PROMPT_TOKENS / (all_started - started)
    return produced / decoding, prefill


async def measure(
    model: Path, threads: int, repeats: int, weights: WeightFormat, counts: Sequence[int]
) -> list[dict[str, float]]:
    torch.set_num_threads(threads)
    products = Products(read_spec(DirectorySource(model)), weights)
    engine = await open_engine(EngineConfig(model_path=model, threads=threads, weights=weights, step_tokens=2048))
    vocabulary = engine.describe().vocabulary
    table = []
    try:
        await decode(engine, 1, vocabulary)
        products.tokens_per_s(1)
        for count in counts:
            runs, limits = [], []
            for _ in range(repeats):
                limits.append(products.tokens_per_s(count))
                runs.append(await decode(engine, count, vocabulary))
            speed, limit = statistics.median(run[0] for run in runs), statistics.median(limits)
            prefill = statistics.median(run[1] for run in runs)
            table.append(
                {"sequences": count, "decode": speed, "limit": limit, "ratio": speed / limit, "prefill": prefill}
            )
    finally:
        await engine.aclose()
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example: python benchmarks/engine.py --repeats 5"
    )
    parser.add_argument("--model", type=Path, help="default: the chat model, fetched if needed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--sequences", type=int, nargs="+", default=list(SEQUENCES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.model is None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts/ is beside, not in a distribution
        from scripts.fetch_model import default_cache, ensure_chat_model

        options.model = ensure_chat_model(default_cache())
    table = asyncio.run(measure(options.model, options.threads, options.repeats, options.weights, options.sequences))
    if options.json:
        print(json.dumps(table))
        return 0
    print(f"{options.model.name}, {options.weights}, {options.threads} threads, median of {options.repeats}")
    print("sequences | decode tok/s | limit of its products tok/s | ratio | prefill tok/s")
    for row in table:
        figures = f"{row['decode']:12.1f} | {row['limit']:27.1f} | {row['ratio']:5.2f} | {row['prefill']:13.0f}"
        print(f"{row['sequences']:9} | {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
