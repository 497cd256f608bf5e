"""One step's plan as tensors. A step has one row per token: decoding sequences first, then the chunks of prompts.

Everything that the layers need of block tables is worked out here, once per step.
"""

import warnings
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch.nn import functional

from data_plane.engine.scheduler import Chunk

__all__ = ["Cut", "DecodeGroup", "PromptChunk", "StepBatch", "make_batch"]

SPLIT_SHARE: Final = 0.75  # rows shorter than this share of the longest of their group may begin another group
SPLIT_ENTRIES: Final = 4096  # if that spares so many scores per layer: about what the calls for a group cost

with warnings.catch_warnings():  # torch says once that its sparse matrices are young; tests hold what is used here
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.zeros(1, 1).to_sparse_csr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How attention and its state are laid out: ``window`` is 0 for a model without windowed layers."""

    blocks: int
    block_tokens: int
    heads: int
    kv_heads: int
    window: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGroup:
    """Decoding rows ``begin`` to ``end`` of the step, which look at about equally many tokens.

    Each head of each row has ``length`` scores, one for each token that it looks at; a row that looks at fewer has its
    last token over again, masked. A *place* counts vectors of one layer's keys, or values, [blocks, kv_heads,
    block_tokens].

    Attributes:
        places: whose key and value each score belongs to, int32 [rows * heads * length].
        starts: where each head's scores begin [rows * heads].
        mask: 0, or -inf where a token is there again, fp32 [rows * heads * length]; None without any.
        scores: memory for the scores, overwritten by each layer, fp32 [rows * heads * length].
        scored: ``scores`` as a sparse matrix [rows * (heads + 2 * kv_heads), places of a layer], whose rows are the
            vectors that a layer projects: those of keys and values have no scores.
    """

    begin: int
    end: int
    length: int
    places: torch.Tensor
    starts: torch.Tensor
    mask: torch.Tensor | None
    scores: torch.Tensor
    scored: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChunk:
    """Rows ``begin`` to ``end`` of the step, of one sequence that has ``length`` tokens with them.

    Attributes:
        blocks: where its state lies [blocks]; None if all of it is made in this step.
        mask: 0 or -inf [rows, length]; None for plain causality from the first token.
        window_mask: the same for windowed layers; None if no row's window ends within the sequence.
    """

    begin: int
    end: int
    length: int
    blocks: torch.Tensor | None
    mask: torch.Tensor | None
    window_mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """All inputs of one step of the decoder.

    Attributes:
        tokens: token ids [rows].
        positions: positions of the tokens in their sequences [rows].
        slots: where each row's keys and values go, see :meth:`.cache.KvCache.write` [rows, 2 * kv_heads].
        decode: the decoding rows, the longest first; empty without such rows.
        windowed: the same for windowed layers; ``decode`` itself if no window ends within a sequence.
        prompts: the chunks of prompts, and of decoding sequences with guessed tokens.
        sampled: rows whose logits are wanted, in the order of :func:`make_batch`'s second result; None for all.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    decode: tuple[DecodeGroup, ...]
    windowed: tuple[DecodeGroup, ...]
    prompts: tuple[PromptChunk, ...]
    sampled: torch.Tensor | None


def make_batch(chunks: Sequences[Chunk], cut: Cut) -> tuple[StepBatch, list[Chunk]]:
    """Return a plan's tensors, and its chunks that have logits in the order of their rows among them.

    A chunk has logits for its ``prompt_rows``, and if it samples for its last token and each guess.
    """
    decoding = sorted((chunk for chunk in chunks if chunk.rows == 1), key=lambda chunk: -chunk.start)
    ordered = [*decoding, *(chunk for chunk in chunks if chunk.rows > 1)]
    tokens: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    sampled: list[int] = []
    prompts: list[PromptChunk] = []
    for chunk in ordered:
        begin, table = len(tokens), chunk.sequence.blocks
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
        tokens += chunk.guesses
        span = range(chunk.start, chunk.start + chunk.rows)
        positions += span
        blocks += [table[position // cut.block_tokens] for position in span]
        sampled += range(begin, begin + chunk.prompt_rows)
        if chunk.samples:
            sampled += range(len(tokens) - 1 - len(chunk.guesses), len(tokens))
        if chunk.rows > 1:
            prompts.append(_prompt_chunk(chunk, begin, cut))
    at = torch.tensor(positions)
    heads = torch.arange(2 * cut.kv_heads)
    heads = heads + heads.div(cut.kv_heads, rounding_mode="floor") * ((cut.blocks - 1) * cut.kv_heads)
    slots = (torch.tensor(blocks)[:, None] * cut.kv_heads + heads) * cut.block_tokens + (at % cut.block_tokens)[:, None]
    decode = _decode_groups(decoding, [0] * len(decoding), cut)
    low = [max(0, chunk.start + 1 - cut.window) if cut.window else 0 for chunk in decoding]
    windowed = _decode_groups(decoding, low, cut) if any(low) else decode
    batch = StepBatch(
        tokens=torch.tensor(tokens),
        positions=at,
        slots=slots,
        decode=decode,
        windowed=windowed,
        prompts=tuple(prompts),
        sampled=None if len(sampled) == len(tokens) else torch.tensor(sampled, dtype=torch.int64),
    )
    return batch, [chunk for chunk in ordered if chunk.samples or chunk.prompt_rows]


def _prompt_chunk(chunk: Chunk, begin: int, cut: Cut) -> PromptChunk:
    length = chunk.start + chunk.rows
    blocks = mask = window_mask = None
    if chunk.start or 0 < cut.window < length:
        last = torch.arange(chunk.start, length)[:, None]
        place = torch.arange(length)
        if chunk.start:
            blocks = torch.tensor(chunk.sequence.blocks[: -(-length // cut.block_tokens)])
            mask = _mask(place <= last)
        if 0 < cut.window < length:
            window_mask = _mask((place <= last) & (place > last - cut.window))
    return PromptChunk(
        begin=begin, end=begin + chunk.rows, length=length, blocks=blocks, mask=mask, window_mask=window_mask
    )


def _decode_groups(decoding: Sequences[Chunk], low: Sequences[int], cut: Cut) -> tuple[DecodeGroup, ...]:
    """Return rows, each of which looks at its tokens from ``low`` on, in groups of about equally many."""
    counts = [chunk.start + 1 - first for chunk, first in zip(decoding, low, strict=True)]
    return tuple(
        _decode_group(decoding[begin:end], low[begin:end], counts[begin:end], begin, cut)
        for begin, end in pairwise(_bounds(counts, cut.heads))
    )


def _bounds(counts: Sequences[int], heads: int) -> list[int]:
    """Return where groups begin and the last one ends; ``counts`` fall."""
    bounds = [0]
    for row, count in enumerate(counts):
        longest = counts[bounds[-1]]
        if count < SPLIT_SHARE * longest and (longest - count) * (len(counts) - row) * heads >= SPLIT_ENTRIES:
            bounds.append(row)
    return [*bounds, len(counts)] if counts else []


def _decode_group(
    rows: Sequences[Chunk], low: Sequences[int], counts: Sequences[int], begin: int, cut: Cut
) -> DecodeGroup:
    size, length, heads, vectors = cut.block_tokens, max(counts), cut.heads, cut.heads + 2 * cut.kv_heads
    tables = [chunk.sequence.blocks[: chunk.start // size + 1] for chunk in rows]
    longest = max(map(len, tables))
    table = torch.tensor([blocks + blocks[-1:] * (longest - len(blocks)) for blocks in tables])
    last = torch.tensor([chunk.start for chunk in rows])[:, None]
    at = torch.tensor(low)[:, None] + torch.arange(length)
    mask = None
    if min(counts) < length:
        mask = _mask(at <= last)[:, None].expand(-1, heads, -1).reshape(-1)
        at = torch.minimum(at, last)
    place = table.gather(1, at.div(size, rounding_mode="floor")) * (cut.kv_heads * size) + at % size
    place = place.int()[:, None] + torch.arange(0, cut.kv_heads * size, size, dtype=torch.int32)[:, None]
    places = place[:, :, None].expand(-1, -1, heads // cut.kv_heads, -1).reshape(-1)
    entries = torch.tensor(([length] * heads + [0] * (vectors - heads)) * len(rows), dtype=torch.int32)
    crow = functional.pad(entries.cumsum(0, dtype=torch.int32), (1, 0))
    scores = torch.zeros(len(places))  # the product adds nothing to them, but not a number times 0 stays what it is
    columns = cut.blocks * cut.kv_heads * size
    return DecodeGroup(
        begin=begin,
        end=begin + len(rows),
        length=length,
        places=places,
        starts=torch.arange(0, len(places), length, dtype=torch.int32),
        mask=mask,
        scores=scores,
        scored=torch.sparse_csr_tensor(crow, places, scores, (len(rows) * vectors, columns), check_invariants=False),
    )


def _mask(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, float("-inf"))
