import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from data_plane.engine import batch, linear
from data_plane.engine.attention import Attention
from data_plane.engine.batch import Cut, make_batch
from data_plane.engine.config import WeightFormat
from data_plane.engine.scheduler import Chunk
from data_plane.engine.sequence import Sequence

KV_HEADS, HEADS, HEAD_DIM, BLOCK_TOKENS = 2, 6, 16, 4


def cut(window: int = 0) -> Cut:
    return Cut(blocks=10, block_tokens=BLOCK_TOKENS, heads=HEADS, kv_heads=KV_HEADS, window=window)


def chunk(blocks: list[int], start: int, count: int, guesses: int = 0) -> Chunk:
    length = start + count
    sequence = Sequence(request_id="r", tokens=[0] * length, prompt_tokens=length, max_tokens=1, blocks=blocks)
    return Chunk(sequence, start, count, samples=True, guesses=(0,) * guesses)


def attend(pool: torch.Tensor, query: torch.Tensor, items: list[Chunk], *, window: int = 0) -> torch.Tensor:
    """Run the layer over ``items``; their own rows' keys and values are those that the pool holds for them."""
    step, _ = make_batch(items, cut(window))
    own = pool.view(-1, HEAD_DIM)[step.slots].view(len(query), 2 * KV_HEADS, HEAD_DIM)
    attention = Attention(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    return attention(step, torch.cat((query, own), 1), (pool[0], pool[1]), windowed=window > 0)


def reference(query: torch.Tensor, pool: torch.Tensor, item: Chunk, window: int) -> torch.Tensor:
    """Attention of one chunk, spelled out over the gathered keys: [rows, heads * head_dim]."""
    gathered = pool[:, item.sequence.blocks].transpose(2, 3).reshape(2, -1, KV_HEADS, HEAD_DIM)
    rows = []
    for i in range(item.rows):
        heads = []
        last = item.start + i
        own = slice(max(0, last + 1 - window) if window else 0, last + 1)
        for head in range(HEADS):
            keys, values = gathered[:, own, head // (HEADS // KV_HEADS)]
            heads.append(torch.softmax(keys @ query[i, head] / math.sqrt(HEAD_DIM), 0) @ values)
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("spared", [batch.SPLIT_ENTRIES, 0], ids=["one group", "groups by length"])
@pytest.mark.parametrize("window", [0, 3, 6])
@pytest.mark.parametrize(
    "chunks",
    [
        [([3], 0, 1)],
        [([3], 3, 1), ([5, 1], 6, 1)],
        [([9, 2, 7], 8, 1), ([4], 1, 1), ([0, 1, 3, 5, 6], 19, 1)],
        [([4, 6], 0, 7)],
        [([4, 6, 1], 5, 6)],
        [([8, 0], 6, 1), ([4, 6], 0, 5), ([2], 2, 1), ([1, 9, 3], 4, 8)],
        [([5, 2, 1], 9, 1), ([5, 2, 7], 10, 1), ([5, 8], 5, 1), ([5, 2, 9], 8, 1), ([0], 1, 1)],
        [([5, 2, 1], 9, 1), ([5, 2, 7], 8, 4)],
        [([4, 6, 0], 7, 1, 3), ([8], 2, 1)],
        [([0], 1, 1), ([2], 1, 1), ([4], 1, 1), ([6], 1, 1), ([8], 1, 1), ([9, 1, 3, 5, 7], 16, 1)],
    ],
    ids=[
        "one token", "two decode", "scattered", "prompt", "second chunk", "mixed", "shared by several",
        "shared with a prompt", "guesses", "many short and a long",
    ],
)  # fmt: skip
def test_paged_attention_equals_attention_over_gathered_keys(
    chunks: list[tuple[list[int], int, int]], window: int, spared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding and prompts, in scattered or shared blocks with holes, beside garbage, give the plain result."""
    monkeypatch.setattr(batch, "SPLIT_ENTRIES", spared)
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(2, 10, KV_HEADS, BLOCK_TOKENS, HEAD_DIM, generator=generator) * 3
    items = [chunk(*item) for item in chunks]
    decoding = sorted((item for item in items if item.rows == 1), key=lambda item: -item.start)
    ordered = decoding + [item for item in items if item.rows > 1]
    query = torch.randn(sum(item.rows for item in items), HEADS, HEAD_DIM, generator=generator) * 3
    attended = attend(pool, query, items, window=window)
    parts, row = [], 0
    for item in ordered:
        parts.append(reference(query[row : row + item.rows], pool, item, window))
        row += item.rows
    assert torch.allclose(attended, torch.cat(parts), atol=1e-5)


def test_no_other_sequences_state_changes_an_answer() -> None:
    """Overwriting every block and every place that a sequence does not own leaves its result bit for bit the same."""
    generator = torch.Generator().manual_seed(2)
    pool = torch.randn(2, 10, KV_HEADS, BLOCK_TOKENS, HEAD_DIM, generator=generator)
    items = [chunk([8, 2], 5, 1), chunk([4, 6], 3, 3)]
    query = torch.randn(4, HEADS, HEAD_DIM, generator=generator)
    before = attend(pool, query, items)
    pool[:, [0, 1, 3, 5, 7, 9]] = 1e4
    pool[:, 2, :, 2:] = -1e4  # the sequence of blocks 8 and 2 holds 6 tokens
    pool[:, 6, :, 2:] = -1e4  # so does that of 4 and 6
    assert torch.equal(attend(pool, query, items), before)


def test_rows_of_like_length_share_a_group() -> None:
    """Groups cover the decoding rows once, in order; few rows, or rows of like length, are one group."""
    long, short = [chunk([1], 99, 1)] * 8, [chunk([1], 9, 1)] * 60
    alike = [chunk([1], 99 - i, 1) for i in range(20)]
    for items, expected in ((alike, [20]), (short[:1] + long, [9]), (short + long, [8, 68])):
        step, _ = make_batch([replace(item) for item in items], replace(cut(), block_tokens=128))
        assert [group.end for group in step.decode] == expected
        assert [group.begin for group in step.decode] == [0, *expected[:-1]]
        assert [group.length for group in step.decode] == [100, 10][: len(expected)]


def test_slots_name_each_tokens_place_in_the_pool() -> None:
    """A row's keys and values go to its own block and place, for each key-value head, keys before values."""
    step, _ = make_batch([chunk([7, 3], 3, 3)], cut())
    pool = torch.zeros(2, 10, KV_HEADS, BLOCK_TOKENS, 1)
    pool.view(-1, 1)[step.slots.view(-1)] = torch.arange(1.0, 13.0)[:, None]
    places = [(7, 3), (3, 0), (3, 1)]
    for token, (block, offset) in enumerate(places):
        first = 1.0 + 4 * token
        assert pool[0, block, :, offset, 0].tolist() == [first, first + 1]
        assert pool[1, block, :, offset, 0].tolist() == [first + 2, first + 3]
    assert int((pool != 0).sum()) == 12


def test_the_packed_operators_of_this_torch_are_there() -> None:
    """The private oneDNN operators that the fast path names exist in the pinned torch with these arguments."""
    for layout in (linear._packed_fp32, linear.PackedLinear, linear.HalfLinear, linear.Int8Linear):
        assert linear.works(layout)
    schemas = {
        name: str(getattr(torch.ops.mkldnn, name).default._schema).split(" -> ")[0]
        for name in ("_reorder_linear_weight", "_linear_pointwise")
    }
    assert schemas == {
        "_reorder_linear_weight": "mkldnn::_reorder_linear_weight(Tensor self, int? batch_size=None)",
        "_linear_pointwise": (
            "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm)"
        ),
    }


@pytest.mark.parametrize("shape", [(48, 32), (259, 64), (192, 64), (50, 7), (576, 576)])
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
@pytest.mark.parametrize("layout", [linear.PackedLinear, linear.HalfLinear])
def test_fp32_layouts_equal_plain_products(layout: type[Any], rows: int, shape: tuple[int, int]) -> None:
    """Packed and half-stored weights give F.linear's results with bf16 weights, biases included."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(*shape, generator=generator).bfloat16().float()
    bias = torch.randn(shape[0], generator=generator)
    x = torch.randn(rows, shape[1], generator=generator)
    made = layout(weight, bias)
    assert torch.allclose(made(x), functional.linear(x, weight, bias), atol=1e-4)


def test_erasing_packed_weights_leaves_zeros() -> None:
    """The blocked layout's padding is overwritten too."""
    packed = linear.PackedLinear(torch.randn(50, 7))
    packed.erase()
    assert not packed(torch.randn(3, 7)).any()


@pytest.mark.parametrize(("largest", "smallest"), [(1e5, 1e-3), (3.0, 1e-8), (1e-9, 1e-14), (3e38, 1e32)])
def test_weights_beyond_the_range_of_half_precision_are_scaled_exactly(largest: float, smallest: float) -> None:
    """bf16 weights of any magnitude are held by halves, scaled by a power of two, as exactly as fp32 needs."""
    weight = torch.tensor([[largest, -smallest, smallest], [smallest, 0.0, -largest]]).bfloat16().float()
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]])
    expected = functional.linear(x.double(), weight.double())
    assert torch.allclose(linear.HalfLinear(weight)(x).double(), expected, rtol=1e-6, atol=2.0**-26 * largest)


def test_weights_with_more_bits_than_halves_hold_stay_fp32() -> None:
    """A checkpoint in full fp32 precision is never rounded to halves: another layout serves it."""
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="half"):
        linear.HalfLinear(weight)
    made = linear.make_linear(weight, weights="fp32")
    assert isinstance(made, linear.PackedLinear)
    x = torch.eye(4)
    assert torch.equal(made(x), weight.T)


def test_importing_the_engine_starts_no_openmp_team() -> None:
    """Importing computes nothing in parallel: a second team of OpenMP threads would slow every barrier of a step."""
    program = (
        "import os, torch\n"
        "threads = lambda: set(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "import data_plane.engine.native\n"
        "print(len(threads() - before))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.strip() == "0"


def test_without_the_private_operators_the_plain_product_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without the operators is noticed, and the fallback computes the same."""
    works = linear.works
    weight, x = torch.randn(8, 4), torch.randn(2, 4)
    monkeypatch.setattr(linear, "works", lambda _: False)
    made = linear.make_linear(weight, weights="fp32")
    assert isinstance(made, linear.PlainLinear)
    assert torch.equal(made(x), functional.linear(x, weight))

    def gone(*_: object) -> None:
        raise AttributeError("_reorder_linear_weight")

    assert not works(gone)


def test_bf16_arithmetic_is_chosen_by_how_many_sequences_may_run_never_by_how_many_do() -> None:
    """Few: rounded weights are held as halves, and activations stay fp32; more: oneDNN's bf16 at any row count."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 128, generator=generator), torch.randn(9, 128, generator=generator)
    few = linear.make_linear(weight, weights="bf16", rows=linear.FEW_ROWS)
    assert isinstance(few, linear.HalfLinear)
    assert torch.allclose(few(x), functional.linear(x, weight.bfloat16().float()), atol=1e-4)
    many = linear.make_linear(weight, weights="bf16", rows=linear.FEW_ROWS + 1)
    assert isinstance(many, linear.PackedLinear)
    for product in (few, many):
        assert torch.allclose(product(x[:1]), product(x)[:1], atol=1e-2)


@pytest.mark.parametrize(("weights", "most"), [("bf16", 0.3), ("int8", 0.6)])
def test_rounded_weights_stay_close(weights: WeightFormat, most: float) -> None:
    """bf16 and int8 return fp32 within their precision of the exact product."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 128, generator=generator), torch.randn(3, 128, generator=generator)
    bias = torch.randn(64, generator=generator)
    made = linear.make_linear(weight, bias, weights=weights)
    assert made(x).dtype == torch.float32
    error = (made(x) - functional.linear(x, weight, bias)).abs().max().item()
    assert 0 < error < most
