"""Attention over paged state on a CPU, without gathering keys.

Decoding rows: copying every key of every sequence at each step would cost more than the arithmetic. So the queries,
which are small, are copied to the blocks of their sequences, one batched product runs over each dense stretch of the
pool in pool order, and the softmax is merged across the blocks of each owner. The mask hides what an owner has not
written, so no row ever weighs another's state. A block of a shared prefix has several owners; all but the first meet
it in one more product, for which only the shared blocks are copied, once each.

Chunks of prompts: many queries share one gathered copy of their sequence's keys, so there the copy is cheap; a prompt
that starts in this step needs none.
"""

import torch
from torch.nn import functional

from data_plane.engine.batch import DecodeBlocks, PromptChunk, SharedBlocks, StepBatch

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
        parts = []
        if batch.decode is not None:
            query = projected[: batch.decode.rows, : self._heads].flatten(1)
            parts.append(self._decode(batch.decode, query, state, windowed=windowed))
        parts.extend(
            self._prompt(chunk, projected[chunk.begin : chunk.end], state, windowed=windowed) for chunk in batch.prompts
        )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(
        self, decode: DecodeBlocks, query: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], *, windowed: bool
    ) -> torch.Tensor:
        width, shared = self._heads, decode.shared
        keys, values = state
        scores = self._scores(decode, query, keys, windowed=windowed)
        count = decode.blocks
        highest = scores.amax(-1).view(count, width)
        met = None
        if shared is not None:
            met = self._shared_scores(shared, query, keys, windowed=windowed)
            highest = torch.cat((highest, met.amax(-1).view(-1, width)))
        # [rows, width]; finite, for a row sees itself
        highest = highest.index_select(0, decode.padded).view(decode.rows, -1, width).amax(1)
        scores.sub_(highest.index_select(0, decode.owner).view(-1, self._group, 1)).exp_()
        attended, total = self._values(decode, scores, values), scores.sum(-1).view(count, width)
        attended = attended.view(count, width * self._head_dim)
        if shared is not None and met is not None:
            met = met.sub_(highest.index_select(0, shared.owner).view(*met.shape[:-1], 1)).exp_()
            attended = torch.cat((attended, self._shared_values(shared, met, values)))
            total = torch.cat((total, met.sum(-1).view(-1, width)))
        attended = functional.embedding_bag(decode.live, attended, decode.starts, mode="sum")
        total = functional.embedding_bag(decode.live, total, decode.starts, mode="sum")
        return attended.view(decode.rows, width, self._head_dim).div_(total[:, :, None]).view(decode.rows, -1)

    def _scores(self, decode: DecodeBlocks, query: torch.Tensor, keys: torch.Tensor, *, windowed: bool) -> torch.Tensor:
        """Return masked scores of each block with its owner [blocks * kv_heads, group, block_tokens]."""
        scattered = query.index_select(0, decode.owner).view(-1, self._group, self._head_dim)
        mask = decode.window_mask if windowed and decode.window_mask is not None else decode.mask
        result = query.new_empty(decode.blocks * self._kv_heads, self._group, keys.shape[2])
        for first, last, place in decode.stretches:
            part = slice(place * self._kv_heads, (place + last - first) * self._kv_heads)
            pool = keys[first:last].view(-1, keys.shape[2], self._head_dim).transpose(1, 2)
            torch.baddbmm(mask[part], scattered[part], pool, alpha=self._scale, out=result[part])
        return result

    def _values(self, decode: DecodeBlocks, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        result = weights.new_empty(len(weights), self._group, self._head_dim)
        for first, last, place in decode.stretches:
            part = slice(place * self._kv_heads, (place + last - first) * self._kv_heads)
            pool = values[first:last].view(-1, values.shape[2], self._head_dim)
            torch.bmm(weights[part], pool, out=result[part])
        return result

    def _shared_scores(
        self, shared: SharedBlocks, query: torch.Tensor, keys: torch.Tensor, *, windowed: bool
    ) -> torch.Tensor:
        """Return scores of shared blocks with their further owners [blocks, owners, kv_heads, group, block_tokens]."""
        blocks, tokens = len(shared.blocks), keys.shape[2]
        scattered = query.index_select(0, shared.owner).view(blocks, -1, self._kv_heads, self._group, self._head_dim)
        scattered = scattered.transpose(1, 2).reshape(blocks * self._kv_heads, -1, self._head_dim)
        pool = keys.index_select(0, shared.blocks).view(-1, tokens, self._head_dim).transpose(1, 2)
        scores = torch.bmm(scattered, pool).mul_(self._scale).view(blocks, self._kv_heads, -1, self._group, tokens)
        scores = scores.transpose(1, 2).contiguous()
        if windowed and shared.window_mask is not None:
            scores.add_(shared.window_mask)
        return scores

    def _shared_values(self, shared: SharedBlocks, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return [blocks * owners, heads * head_dim]."""
        blocks, owners, tokens = weights.shape[0], weights.shape[1], weights.shape[-1]
        weights = weights.transpose(1, 2).reshape(blocks * self._kv_heads, -1, tokens)
        pool = values.index_select(0, shared.blocks).view(-1, tokens, self._head_dim)
        attended = torch.bmm(weights, pool).view(blocks, self._kv_heads, owners, -1)
        return attended.transpose(1, 2).reshape(blocks * owners, -1)

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
