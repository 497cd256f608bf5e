"""One step's plan as tensors. A step has one row per token: decoding sequences first, then the chunks of prompts."""

from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import torch

from data_plane.engine.scheduler import Chunk

__all__ = ["DecodeBlocks", "PromptChunk", "StepBatch", "make_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBlocks:
    """Which blocks the decoding rows look at, in pool order.

    The blocks run from ``first`` to ``last`` (exclusive) of the pool, live or not; ``n`` is their count. A block that
    no decoding row looks at is masked and belongs to row 0 in name.

    Attributes:
        rows: count of decoding rows.
        owner: the row of each block [n].
        mask: 0 where a block holds a token of its owner, else -inf, fp32 [n, 1, block_tokens].
        live: blocks that are looked at, ordered by owner [live].
        starts: where each row's blocks start in ``live`` [rows].
        padded: each row's blocks, filled up by repeating its first [rows, most blocks of a row].
    """

    rows: int
    first: int
    last: int
    owner: torch.Tensor
    mask: torch.Tensor
    live: torch.Tensor
    starts: torch.Tensor
    padded: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChunk:
    """Rows ``begin`` to ``end`` of the step: tokens from position ``start`` of one sequence, whose blocks are given."""

    begin: int
    end: int
    start: int
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """All inputs of one step of the decoder.

    Attributes:
        tokens: token ids [rows].
        positions: positions of the tokens in their sequences [rows].
        slots: where each row's key and value go, one place per key-value head, in a layer's pool seen as
            [blocks * kv_heads * block_tokens, head_dim]; flat [rows * kv_heads].
        decode: the decoding rows' view of the pool; None without such rows.
        prompts: the chunks of prompts.
        sampled: rows whose next token is wanted, in the order of :func:`make_batch`'s second result.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    decode: DecodeBlocks | None
    prompts: tuple[PromptChunk, ...]
    sampled: torch.Tensor


def make_batch(chunks: Sequences[Chunk], *, block_tokens: int, kv_heads: int) -> tuple[StepBatch, list[Chunk]]:
    """Return a plan's tensors, and its chunks that sample in the order of ``StepBatch.sampled``."""
    decoding = [chunk for chunk in chunks if chunk.count == 1]
    ordered = [*decoding, *(chunk for chunk in chunks if chunk.count > 1)]
    tokens: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    sampled: list[int] = []
    prompts: list[PromptChunk] = []
    for chunk in ordered:
        sequence, begin, stop = chunk.sequence, len(tokens), chunk.start + chunk.count
        tokens.extend(sequence.tokens[chunk.start : stop])
        positions.extend(range(chunk.start, stop))
        blocks.extend(sequence.blocks[position // block_tokens] for position in range(chunk.start, stop))
        if chunk.samples:
            sampled.append(len(tokens) - 1)
        if chunk.count > 1:
            table = torch.tensor(sequence.blocks)
            prompts.append(PromptChunk(begin=begin, end=len(tokens), start=chunk.start, blocks=table))
    at = torch.tensor(positions)
    heads = torch.tensor(blocks)[:, None] * kv_heads + torch.arange(kv_heads)
    slots = heads * block_tokens + (at % block_tokens)[:, None]
    batch = StepBatch(
        tokens=torch.tensor(tokens),
        positions=at,
        slots=slots.view(-1),
        decode=_decode_blocks(decoding, block_tokens) if decoding else None,
        prompts=tuple(prompts),
        sampled=torch.tensor(sampled, dtype=torch.int64),
    )
    return batch, [chunk for chunk in ordered if chunk.samples]


def _decode_blocks(decoding: Sequences[Chunk], block_tokens: int) -> DecodeBlocks:
    tables = [chunk.sequence.blocks[: chunk.start // block_tokens + 1] for chunk in decoding]
    first = min(min(table) for table in tables)
    last = max(max(table) for table in tables) + 1
    owner = [0] * (last - first)
    filled = [0] * (last - first)  # tokens of its owner in each block
    live: list[int] = []
    starts: list[int] = []
    longest = max(len(table) for table in tables)
    padded: list[list[int]] = []
    for row, (chunk, table) in enumerate(zip(decoding, tables, strict=True)):
        places = [block - first for block in table]
        starts.append(len(live))
        live.extend(places)
        padded.append(places + places[:1] * (longest - len(places)))
        for place in places:
            owner[place] = row
            filled[place] = block_tokens
        filled[places[-1]] = chunk.start % block_tokens + 1
    held = torch.arange(block_tokens) < torch.tensor(filled)[:, None]
    return DecodeBlocks(
        rows=len(decoding),
        first=first,
        last=last,
        owner=torch.tensor(owner),
        mask=torch.where(held, 0.0, float("-inf"))[:, None],
        live=torch.tensor(live),
        starts=torch.tensor(starts),
        padded=torch.tensor(padded),
    )
