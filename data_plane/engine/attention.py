"""Attention over paged state on a CPU, without gathering keys.

Decoding rows: copying every key of every sequence at each step would cost more than the arithmetic. So the queries,
which are small, are copied to the blocks of their sequences, one batched product runs over the pool's slice of live
blocks in pool order, and the softmax is merged across the blocks of each owner. The mask hides what an owner has not
written, so no row ever weighs another's state.

Chunks of prompts: many queries share one gathered copy of their sequence's keys, so there the copy is cheap.
"""

import torch
from torch.nn import functional

from data_plane.engine.batch import DecodeBlocks, PromptChunk, StepBatch

__all__ = ["Attention"]


class Attention:
    """Grouped-query attention of one shape; ``heads`` is a multiple of ``kv_heads``."""

    def __init__(self, *, heads: int, kv_heads: int, head_dim: int) -> None:
        self._heads = heads
        self._kv_heads = kv_heads
        self._group = heads // kv_heads
        self._head_dim = head_dim
        self._scale = head_dim**-0.5

    def __call__(self, batch: StepBatch, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the attended values [rows, heads * head_dim].

        Args:
            batch: the step; the keys and values of its own rows are in the pool already.
            query: [rows, heads, head_dim].
            keys: one layer's pool [blocks, kv_heads, block_tokens, head_dim].
            values: the same of the values.
        """
        parts = []
        if batch.decode is not None:
            parts.append(self._decode(batch.decode, query[: batch.decode.rows], keys, values))
        parts.extend(self._prompt(chunk, query[chunk.begin : chunk.end], keys, values) for chunk in batch.prompts)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(
        self, decode: DecodeBlocks, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        count, width = decode.last - decode.first, self._kv_heads * self._group
        flat = (count * self._kv_heads, keys.shape[2], self._head_dim)
        scattered = query.reshape(decode.rows, -1).index_select(0, decode.owner).view(-1, self._group, self._head_dim)
        mask = decode.mask.expand(count, self._kv_heads, -1).reshape(flat[0], 1, flat[1])
        keys, values = keys[decode.first : decode.last].view(flat), values[decode.first : decode.last].view(flat)
        scores = torch.baddbmm(mask, scattered, keys.transpose(1, 2), alpha=self._scale)
        highest = scores.amax(-1).view(count, width)[decode.padded].amax(1)  # [rows, width], finite: a row sees itself
        scores.sub_(highest.index_select(0, decode.owner).view(-1, self._group, 1)).exp_()
        attended = torch.bmm(scores, values).view(count, width * self._head_dim)
        attended = functional.embedding_bag(decode.live, attended, decode.starts, mode="sum")
        total = functional.embedding_bag(decode.live, scores.sum(-1).view(count, width), decode.starts, mode="sum")
        return attended.view(decode.rows, width, self._head_dim).div_(total[:, :, None]).view(decode.rows, -1)

    def _prompt(
        self, chunk: PromptChunk, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        rows, length = chunk.end - chunk.begin, chunk.start + chunk.end - chunk.begin
        query = query.transpose(0, 1)[None]
        key, value = (
            pool.index_select(0, chunk.blocks)
            .transpose(0, 1)
            .reshape(1, self._kv_heads, -1, self._head_dim)[:, :, :length]
            for pool in (keys, values)
        )
        mask = None if chunk.start == 0 else torch.ones(rows, length, dtype=torch.bool).tril_(chunk.start)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=self._group > 1
        )
        return attended[0].transpose(0, 1).reshape(rows, -1)
