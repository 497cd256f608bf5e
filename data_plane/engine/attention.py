"""Attention over paged state on a CPU, without gathering keys.

Decoding rows: copying every key of every sequence at each step would cost more than the arithmetic, and products of
blocks cost more still, for one query a head is too little for a matrix product. So each head's scores are a row of a
sparse matrix, whose columns are all places of the pool: a sampled product computes exactly those that a sequence's
block table names, wherever its blocks lie and whoever else owns them. A softmax follows, and a weighted sum over rows
of the pool, which is what an embedding bag is. No row reads another's state.

Chunks of prompts: many queries share one gathered copy of their sequence's keys, so there the copy is cheap; a prompt
that starts in this step needs none.
"""

import torch
from torch.nn import functional

from data_plane.engine.batch import DecodeGroup, PromptChunk, StepBatch

__all__ = ["Attention"]


class Attention:
    """Grouped-query attention of one shape; ``heads`` is a multiple of ``kv_heads``."""

    def __init__(self, *, heads: int, kv_heads: int, head_dim: int) -> None:
        self._heads = heads
        self._kv_heads = kv_heads
        self._group = heads // kv_heads
        self._head_dim = head_dim
        self._scale = head_dim**-0.5

    def __call__(
        self, batch: StepBatch, projected: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], *, windowed: bool
    ) -> torch.Tensor:
        """Return the attended values [rows, heads * head_dim].

        Args:
            batch: the step; the keys and values of its own rows are in the pool already.
            projected: queries, keys and values of the step's rows [rows, heads + 2 * kv_heads, head_dim].
            state: one layer's pool of keys and of values, each [blocks, kv_heads, block_tokens, head_dim].
            windowed: whether this layer looks back no further than the model's window.
        """
        parts = [
            self._decode(group, projected[group.begin : group.end], state)
            for group in (batch.windowed if windowed else batch.decode)
        ]
        parts.extend(
            self._prompt(chunk, projected[chunk.begin : chunk.end], state, windowed=windowed) for chunk in batch.prompts
        )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(
        self, group: DecodeGroup, projected: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return [rows, heads * head_dim]; ``projected`` holds the group's rows."""
        keys, values = (pool.view(-1, self._head_dim) for pool in state)
        if group.mask is not None:
            group.scores.copy_(group.mask)
        torch.sparse.sampled_addmm(
            group.scored,
            projected.view(-1, self._head_dim),
            keys.t(),
            beta=0.0 if group.mask is None else 1.0,
            alpha=self._scale,
            out=group.scored,
        )
        weights = torch.softmax(group.scores.view(-1, group.length), dim=-1).view(-1)
        attended = torch.embedding_bag(values, group.places, group.starts, False, 0, False, weights)[0]
        return attended.view(len(projected), -1)

    def _prompt(
        self,
        chunk: PromptChunk,
        projected: torch.Tensor,
        state: tuple[torch.Tensor, torch.Tensor],
        *,
        windowed: bool,
    ) -> torch.Tensor:
        heads, kv_heads = self._heads, self._kv_heads
        query, key, value = torch.split(projected.transpose(0, 1)[None], [heads, kv_heads, kv_heads], dim=1)
        if chunk.blocks is not None:
            key, value = (
                pool.index_select(0, chunk.blocks)
                .transpose(0, 1)
                .reshape(1, self._kv_heads, -1, self._head_dim)[:, :, : chunk.length]
                for pool in state
            )
        mask = chunk.window_mask if windowed and chunk.window_mask is not None else chunk.mask
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=self._group > 1
        )
        return attended[0].transpose(0, 1).reshape(len(projected), -1)
