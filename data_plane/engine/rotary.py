"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), one complex product per layer.

Models in Hugging Face's layout pair element ``i`` of a head with element ``i + head_dim / 2``. :func:`interleave` moves
each pair together once, in the rows of the query and key projections, so that a head is a row of complex numbers and
turning it is one product. Scores do not change: query and key are permuted alike.

Scaled frequencies follow transformers' ``modeling_rope_utils`` step by step, in fp32: linear (Chen et al. 2023,
arXiv:2306.15595), llama3 (Llama 3.1's own), yarn (Peng et al. 2023, arXiv:2309.00071).
"""

import math

import torch

from data_plane.engine.rope import RopeSpec

__all__ = ["Rotary", "interleave"]


def interleave(rows: torch.Tensor, *, head_dim: int) -> torch.Tensor:
    """Return ``rows`` [heads * head_dim, ...] with the two elements of each rotary pair beside each other."""
    heads = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


class Rotary:
    """Turns query and key vectors by angles proportional to their positions.

    Args:
        rope: base and scaling.
        head_dim: size of one head's vector; even.
    """

    def __init__(self, *, rope: RopeSpec, head_dim: int) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self._frequencies = _scaled(1.0 / (rope.theta**exponents), rope)
        self._amplitude = torch.tensor(rope.amplitude())
        self._half = head_dim // 2

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the turns of ``positions`` [rows] (int64): complex [rows, 1, head_dim / 2]."""
        angles = positions.float()[:, None] * self._frequencies
        return torch.polar(self._amplitude.expand_as(angles), angles)[:, None]

    def apply_(self, vectors: torch.Tensor, turns: torch.Tensor) -> None:
        """Turn ``vectors`` [rows, heads, head_dim], whose pairs lie together, in place."""
        torch.view_as_complex(vectors.view(*vectors.shape[:-1], self._half, 2)).mul_(turns)


def _scaled(plain: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    match rope.kind:
        case "linear":
            return plain / rope.numbers["factor"]
        case "llama3":
            return _llama3(plain, rope)
        case "yarn":
            return _yarn(plain, rope)
        case _:
            return plain


def _llama3(plain: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    factor, low, high = (rope.numbers[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope.numbers["original_max_position_embeddings"] / (2 * math.pi / plain)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - share) * plain / factor + share * plain


def _yarn(plain: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    numbers, head_dim = rope.numbers, 2 * len(plain)

    def dimension(turns: float) -> float:
        positions = numbers["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return head_dim * math.log(positions) / (2 * math.log(rope.theta))

    first, last = dimension(numbers["beta_fast"]), dimension(numbers["beta_slow"])
    if numbers["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first if last != first else 0.001  # as transformers, against a division by zero
    share = 1.0 - ((torch.arange(len(plain)).float() - first) / width).clamp(0.0, 1.0)
    return plain / numbers["factor"] * (1.0 - share) + plain * share
