"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): what config.json says of it, and one product a layer.

Models in Hugging Face's layout pair element ``i`` of a head with element ``i + head_dim / 2``. :func:`interleave` moves
each pair together once, in the rows of the query and key projections, so that a head is a row of complex numbers and
turning it is one product. Scores do not change: query and key are permuted alike.

Scaled frequencies follow transformers' ``modeling_rope_utils`` step by step, in fp32: linear (Chen et al. 2023,
arXiv:2306.15595), llama3 (Llama 3.1's own), yarn (Peng et al. 2023, arXiv:2309.00071).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from bulkhead.errors import InvalidRequestError, UnsupportedError
from bulkhead.fields import Fields

__all__ = ["RopeSpec", "Rotary", "interleave", "read_rope"]

_ORIGINAL: Final = "original_max_position_embeddings"
# The numbers of each kind of scaling: those that config.json has to give, and what the others of yarn are without it.
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
        "yarn": ("factor",),
    }
)
_YARN: Final[Mapping[str, float]] = MappingProxyType(
    {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 0.0, "mscale": 0.0, "mscale_all_dim": 0.0}
)
_LEAST: Final = 1e-9  # of any of these numbers: all are positive
MAX_FACTOR: Final = 4096.0  # published factors stay below 64
MAX_NUMBER: Final = 2.0**24  # of the others
USUAL_THETA: Final = 10_000.0  # where config.json does not say
MIN_THETA: Final = 2.0  # published ones lie between 10,000 and 1e9
MAX_THETA: Final = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Base and scaling of the rotary embedding; ``numbers`` holds the fields that ``kind`` needs, all of them.

    ``truncate`` says whether yarn's limits are whole dimensions.
    """

    theta: float
    kind: str
    numbers: Mapping[str, float]
    truncate: bool

    def reach(self, positions: int) -> int:
        """Return the context of a model whose config.json says ``max_position_embeddings`` = ``positions``.

        With linear and yarn these are the positions before they are scaled, as in vLLM and transformers.
        """
        if self.kind not in ("linear", "yarn"):
            return positions
        return max(positions, int(self.numbers["factor"] * self.numbers.get(_ORIGINAL, positions)))

    def amplitude(self) -> float:
        """Return the factor of cosines and sines; 1 except for yarn."""
        if self.kind != "yarn":
            return 1.0
        factor, scale, of_all = (self.numbers[name] for name in ("factor", "mscale", "mscale_all_dim"))
        if self.numbers["attention_factor"]:
            return self.numbers["attention_factor"]
        if scale and of_all:
            return _magnitude(factor, scale) / _magnitude(factor, of_all)
        return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def read_rope(config: Fields, *, context: int) -> RopeSpec:
    """Return the rotary embedding of a config.json, of transformers 4 (``rope_scaling``) or 5 (``rope_parameters``).

    Raises:
        UnsupportedError: a kind of scaling that this engine does not run, by name.
        InvalidRequestError: a number is missing or out of bounds.
    """
    if "rope_parameters" in config:
        scaling = config.nested("rope_parameters")
        holder = scaling if "rope_theta" in scaling else config
    else:
        none = Fields({}, what="config.json", error=InvalidRequestError)
        scaling, holder = config.nested("rope_scaling") if "rope_scaling" in config else none, config
    theta = holder.number("rope_theta", low=MIN_THETA, high=MAX_THETA) if "rope_theta" in holder else USUAL_THETA
    unsaid = None if "factor" in scaling else "default"  # a factor of what?
    kind = next((scaling.value(name) for name in ("rope_type", "type") if name in scaling), unsaid)
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise UnsupportedError(f"the native engine does not run models with rope_scaling = {json.dumps(kind)[:100]}")
    defaults = {**_YARN, _ORIGINAL: float(context)} if kind == "yarn" else {}
    numbers = defaults | {
        name: scaling.number(name, low=_LEAST, high=MAX_FACTOR if name == "factor" else MAX_NUMBER)
        for name in (*_REQUIRED[kind], *defaults)
        if name in scaling or name not in defaults
    }
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise InvalidRequestError("config.json: rope_scaling's high_freq_factor is not above its low_freq_factor")
    truncate = "truncate" not in scaling or scaling.boolean("truncate")
    return RopeSpec(theta=theta, kind=kind, numbers=numbers, truncate=truncate)


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

    def turns(self, positions: torch.Tensor, *, turned: int, left: int) -> torch.Tensor:
        """Return the turns of ``positions`` [rows] (int64) for :meth:`apply_`.

        They are 1 for the ``left`` vectors that follow those to turn: one product over all of a row is faster than
        one over a part of it. Complex [rows, (turned + left) * head_dim / 2].
        """
        angles = positions.float()[:, None] * self._frequencies
        turns = torch.polar(self._amplitude.expand_as(angles), angles)
        return torch.cat((turns.repeat(1, turned), turns.new_ones(len(turns), left * self._half)), dim=1)

    @staticmethod
    def apply_(vectors: torch.Tensor, turns: torch.Tensor) -> None:
        """Turn ``vectors`` [rows, (turned + left) * head_dim], whose pairs lie together, in place."""
        vectors.view(torch.complex64).mul_(turns)


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
    turns = rope.numbers[_ORIGINAL] / (2 * math.pi / plain)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - share) * plain / factor + share * plain


def _yarn(plain: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    numbers, head_dim = rope.numbers, 2 * len(plain)

    def dimension(turns: float) -> float:
        positions = numbers[_ORIGINAL] / (turns * 2 * math.pi)
        return head_dim * math.log(positions) / (2 * math.log(rope.theta))

    first, last = dimension(numbers["beta_fast"]), dimension(numbers["beta_slow"])
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first if last != first else 0.001  # as transformers, against a division by zero
    share = 1.0 - ((torch.arange(len(plain)).float() - first) / width).clamp(0.0, 1.0)
    return plain / numbers["factor"] * (1.0 - share) + plain * share
