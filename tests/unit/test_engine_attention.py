import math

import pytest
import torch
from torch.nn import functional

from data_plane.engine import linear
from data_plane.engine.attention import Attention
from data_plane.engine.batch import make_batch
from data_plane.engine.scheduler import Chunk
from data_plane.engine.sequence import Sequence

KV_HEADS, HEADS, HEAD_DIM, BLOCK_TOKENS = 2, 6, 16, 4


def chunk(blocks: list[int], start: int, count: int) -> Chunk:
    length = start + count
    sequence = Sequence(request_id="r", tokens=[0] * length, prompt_tokens=length, max_tokens=1, blocks=blocks)
    return Chunk(sequence, start, count, samples=True)


def reference(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, item: Chunk) -> torch.Tensor:
    """Attention of one chunk, spelled out over the gathered keys: [count, heads * head_dim]."""
    end = item.start + item.count
    gathered_keys, gathered_values = (
        pool[item.sequence.blocks].transpose(1, 2).reshape(-1, KV_HEADS, HEAD_DIM)[:end] for pool in (keys, values)
    )
    rows = []
    for i in range(item.count):
        heads = []
        for head in range(HEADS):
            own = slice(0, item.start + i + 1)
            scores = gathered_keys[own, head // (HEADS // KV_HEADS)] @ query[i, head] / math.sqrt(HEAD_DIM)
            heads.append(torch.softmax(scores, 0) @ gathered_values[own, head // (HEADS // KV_HEADS)])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "chunks",
    [
        [([3], 0, 1)],
        [([3], 3, 1), ([5, 1], 6, 1)],
        [([9, 2, 7], 8, 1), ([4], 1, 1), ([0, 1, 3, 5, 6], 19, 1)],
        [([4, 6], 0, 7)],
        [([4, 6, 1], 5, 6)],
        [([8, 0], 6, 1), ([4, 6], 0, 5), ([2], 2, 1), ([1, 9, 3], 4, 8)],
    ],
    ids=["one token", "two decode", "scattered", "prompt", "second chunk", "mixed"],
)
def test_paged_attention_equals_attention_over_gathered_keys(chunks: list[tuple[list[int], int, int]]) -> None:
    """Decoding and prompts, in scattered blocks with holes, beside garbage of others, give the plain result."""
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(10, KV_HEADS, BLOCK_TOKENS, HEAD_DIM, generator=generator) * 3 for _ in range(2))
    items = [chunk(*item) for item in chunks]
    ordered = [item for item in items if item.count == 1] + [item for item in items if item.count > 1]
    query = torch.randn(sum(item.count for item in items), HEADS, HEAD_DIM, generator=generator) * 3
    batch, _ = make_batch(items, block_tokens=BLOCK_TOKENS, kv_heads=KV_HEADS)
    attended = Attention(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)(batch, query, keys, values)
    parts, row = [], 0
    for item in ordered:
        parts.append(reference(query[row : row + item.count], keys, values, item))
        row += item.count
    assert torch.allclose(attended, torch.cat(parts), atol=1e-5)


def test_no_other_sequences_state_changes_an_answer() -> None:
    """Overwriting every block and every place that a sequence does not own leaves its result bit for bit the same."""
    generator = torch.Generator().manual_seed(2)
    keys, values = (torch.randn(10, KV_HEADS, BLOCK_TOKENS, HEAD_DIM, generator=generator) for _ in range(2))
    items = [chunk([8, 2], 5, 1), chunk([4, 6], 3, 3)]
    query = torch.randn(4, HEADS, HEAD_DIM, generator=generator)
    batch, _ = make_batch(items, block_tokens=BLOCK_TOKENS, kv_heads=KV_HEADS)
    attention = Attention(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    before = attention(batch, query, keys, values)
    for pool in (keys, values):
        pool[[0, 1, 3, 5, 7, 9]] = 1e4
        pool[2, :, 2:] = -1e4  # the sequence of blocks 8 and 2 holds 6 tokens
        pool[6, :, 2:] = -1e4  # so does that of 4 and 6
    assert torch.equal(attention(batch, query, keys, values), before)


def test_slots_name_each_tokens_place_in_the_pool() -> None:
    """A row's key and value go to its own block and place, for each key-value head."""
    batch, _ = make_batch([chunk([7, 3], 3, 3)], block_tokens=BLOCK_TOKENS, kv_heads=KV_HEADS)
    pool = torch.zeros(10, KV_HEADS, BLOCK_TOKENS, 1)
    pool.view(-1, 1)[batch.slots] = torch.arange(1.0, 7.0)[:, None]
    places = [(7, 3), (3, 0), (3, 1)]
    for token, (block, offset) in enumerate(places):
        assert pool[block, :, offset, 0].tolist() == [1.0 + 2 * token, 2.0 + 2 * token]
    assert int((pool != 0).sum()) == 6


def test_the_packed_operators_of_this_torch_are_there() -> None:
    """The private oneDNN operators that the fast path names exist in the pinned torch with these arguments."""
    assert linear.PACKED
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
def test_packed_products_equal_plain_ones(shape: tuple[int, int], rows: int) -> None:
    """The packed layout gives F.linear's results in fp32, and erasing it leaves zeros, padding included."""
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(*shape, generator=generator), torch.randn(rows, shape[1], generator=generator)
    packed = linear.PackedLinear(weight)
    assert torch.allclose(packed(x), functional.linear(x, weight), atol=1e-4)
    packed.erase()
    assert not packed(x).any()


def test_without_the_private_operators_the_plain_product_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without the operators is noticed, and the fallback computes the same."""
    weight, x = torch.randn(8, 4), torch.randn(2, 4)
    monkeypatch.setattr(linear, "PACKED", False)
    made = linear.make_linear(weight, weights="fp32")
    assert isinstance(made, linear.PlainLinear)
    assert torch.equal(made(x), functional.linear(x, weight))

    def gone(*_: object) -> None:
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(linear, "PackedLinear", gone)
    assert not linear._packed_works()


def test_bf16_weights_round_and_stay_close() -> None:
    """The bf16 option returns fp32 within bf16's precision of the exact product."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 128, generator=generator), torch.randn(3, 128, generator=generator)
    made = linear.make_linear(weight, weights="bf16")
    assert made(x).dtype == torch.float32
    error = (made(x) - functional.linear(x, weight)).abs().max().item()
    assert 0 < error < 0.3
