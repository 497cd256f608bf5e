"""One step's plan as tensors. A step has one row per token: decoding sequences first, then the chunks of prompts.

Everything that the layers need of block tables is worked out here, once per step.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch

from data_plane.engine.scheduler import Chunk

__all__ = ["Cut", "DecodeBlocks", "PromptChunk", "SharedBlocks", "StepBatch", "make_batch"]

MAX_STRETCHES: Final = 6  # each costs two calls per layer; dead blocks between live ones cost their products


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How attention state is laid out: ``window`` is 0 for a model without windowed layers."""

    blocks: int
    block_tokens: int
    kv_heads: int
    window: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBlocks:
    """Blocks with several owners, and those owners that come after the first of each.

    Attributes:
        blocks: places in the pool [shared].
        owner: the row of each further owner, filled up with row 0 [shared * most further owners].
        window_mask: 0 where an owner's window reaches, else -inf [shared, owners, 1, 1, block_tokens].
    """

    blocks: torch.Tensor
    owner: torch.Tensor
    window_mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBlocks:
    """Which blocks the decoding rows look at, in pool order.

    ``stretches`` are slices of the pool, live or not; ``blocks`` is their count together. A block that no decoding row
    looks at is masked and belongs to row 0 in name. A *pair* is a block with one of its owners: the first ``blocks``
    pairs are those of the stretches, the further owners of shared blocks follow.

    Attributes:
        rows: count of decoding rows.
        blocks: count of blocks in all stretches.
        stretches: first block, last block (exclusive) and place among ``blocks`` of each stretch.
        owner: the row of each block [blocks].
        mask: 0 where a block holds a token of its owner, else -inf, fp32 [blocks * kv_heads, 1, block_tokens].
        window_mask: the same for windowed layers; None if no window ends within a block that is looked at.
        live: pairs that are looked at, ordered by owner [live].
        starts: where each row's pairs start in ``live`` [rows].
        padded: each row's pairs, filled up by repeating its first [rows * most pairs of a row].
        shared: further owners of blocks; None without any.
    """

    rows: int
    blocks: int
    stretches: tuple[tuple[int, int, int], ...]
    owner: torch.Tensor
    mask: torch.Tensor
    window_mask: torch.Tensor | None
    live: torch.Tensor
    starts: torch.Tensor
    padded: torch.Tensor
    shared: SharedBlocks | None


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
        slots: where each row's keys and values go, see :meth:`.cache.KvCache.write` [rows * 2 * kv_heads].
        decode: the decoding rows' view of the pool; None without such rows.
        prompts: the chunks of prompts, and of decoding sequences with guessed tokens.
        sampled: rows whose logits are wanted, in the order of :func:`make_batch`'s second result; None for all.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    decode: DecodeBlocks | None
    prompts: tuple[PromptChunk, ...]
    sampled: torch.Tensor | None


def make_batch(chunks: Sequences[Chunk], cut: Cut) -> tuple[StepBatch, list[Chunk]]:
    """Return a plan's tensors, and its chunks that have logits in the order of their rows among them.

    A chunk has logits for its ``prompt_rows``, and if it samples for its last token and each guess.
    """
    decoding = [chunk for chunk in chunks if chunk.rows == 1]
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
    batch = StepBatch(
        tokens=torch.tensor(tokens),
        positions=at,
        slots=slots.view(-1),
        decode=_decode_blocks(decoding, cut) if decoding else None,
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


def _decode_blocks(decoding: Sequences[Chunk], cut: Cut) -> DecodeBlocks:
    size = cut.block_tokens
    tables = [chunk.sequence.blocks[: chunk.start // size + 1] for chunk in decoding]
    stretches, places = _stretches({block for table in tables for block in table})
    count = stretches[-1][2] + stretches[-1][1] - stretches[-1][0]
    owner, low, high = [-1] * count, [0] * count, [0] * count  # ``low`` and ``high`` bound what the owner may see
    pairs: list[list[int]] = []
    further: dict[int, list[tuple[int, int, int]]] = {}  # block -> (row, index in the row's table, low)
    for row, (chunk, table) in enumerate(zip(decoding, tables, strict=True)):
        reach = chunk.start + 1 - cut.window if cut.window else 0
        of_row = []
        for index, block in enumerate(table):
            place, least = places[block], min(size, max(0, reach - index * size))
            of_row.append(place)
            if owner[place] >= 0:
                further.setdefault(block, []).append((row, index, least))
                continue
            owner[place], low[place], high[place] = row, least, size
        high[of_row[-1]] = chunk.start % size + 1  # the last block is the row's own: only whole blocks are shared
        pairs.append(of_row)
    shared = _share(further, pairs, count, cut) if further else None
    inside, bounds = torch.arange(size), torch.tensor(high)[:, None]
    held = inside < bounds
    windowed = held & (inside >= torch.tensor(low)[:, None]) if any(low) else None
    longest = max(map(len, pairs))
    starts = [0]
    for of_row in pairs[:-1]:
        starts.append(starts[-1] + len(of_row))
    return DecodeBlocks(
        rows=len(decoding),
        blocks=count,
        stretches=stretches,
        owner=torch.tensor([max(0, row) for row in owner]),
        mask=_per_head(_mask(held), cut),
        window_mask=None if windowed is None else _per_head(_mask(windowed), cut),
        live=torch.tensor([pair for of_row in pairs for pair in of_row]),
        starts=torch.tensor(starts),
        padded=torch.tensor([pair for of_row in pairs for pair in of_row + of_row[:1] * (longest - len(of_row))]),
        shared=shared,
    )


def _share(
    further: dict[int, list[tuple[int, int, int]]], pairs: list[list[int]], count: int, cut: Cut
) -> SharedBlocks:
    """Return the further owners of shared blocks, and number their pairs in ``pairs``."""
    most = max(map(len, further.values()))
    owner: list[int] = []
    low: list[list[int]] = []
    for at, owners in enumerate(further.values()):
        for rank, (row, index, _) in enumerate(owners):
            pairs[row][index] = count + at * most + rank
        owner += [row for row, _, _ in owners] + [0] * (most - len(owners))
        low.append([least for _, _, least in owners] + [0] * (most - len(owners)))
    mask = None
    if any(map(any, low)):
        mask = _mask(torch.arange(cut.block_tokens) >= torch.tensor(low)[:, :, None])[:, :, None, None]
    return SharedBlocks(blocks=torch.tensor(list(further)), owner=torch.tensor(owner), window_mask=mask)


def _stretches(blocks: Iterable[int]) -> tuple[tuple[tuple[int, int, int], ...], dict[int, int]]:
    """Return slices of the pool that cover ``blocks``, leaving out the widest gaps, and each block's place in them."""
    ordered = sorted(blocks)
    gaps = sorted(
        (index for index in range(1, len(ordered)) if ordered[index] > ordered[index - 1] + 1),
        key=lambda index: ordered[index - 1] - ordered[index],
    )
    bounds = [0, *sorted(gaps[: MAX_STRETCHES - 1]), len(ordered)]
    stretches: list[tuple[int, int, int]] = []
    places: dict[int, int] = {}
    place = 0
    for begin, end in pairwise(bounds):
        first, last = ordered[begin], ordered[end - 1] + 1
        stretches.append((first, last, place))
        places.update((block, place + block - first) for block in ordered[begin:end])
        place += last - first
    return tuple(stretches), places


def _mask(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, float("-inf"))


def _per_head(mask: torch.Tensor, cut: Cut) -> torch.Tensor:
    return mask.repeat_interleave(cut.kv_heads, 0)[:, None]
