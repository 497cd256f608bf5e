"""Rotary scaling as config.json states it, checked; :mod:`.rotary` computes with it. Torch-free."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError, UnsupportedError

__all__ = ["RopeSpec", "read_rope"]

KINDS: Final = frozenset({"default", "linear", "llama3", "yarn"})
MAX_FACTOR: Final = 4096.0  # published factors stay below 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Base and scaling of the rotary embedding; ``numbers`` holds the fields that ``kind`` needs, all of them."""

    theta: float
    kind: str = "default"
    numbers: Mapping[str, float] = field(default_factory=dict)

    def amplitude(self) -> float:
        """Return the factor of cosines and sines; 1 except for yarn."""
        if self.kind != "yarn":
            return 1.0
        if "attention_factor" in self.numbers:
            return self.numbers["attention_factor"]
        factor, scale, of_all = (self.numbers.get(name, 0.0) for name in ("factor", "mscale", "mscale_all_dim"))
        if scale and of_all:
            return _magnitude(factor, scale) / _magnitude(factor, of_all)
        return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def read_rope(config: Mapping[str, Json], *, context: int) -> RopeSpec:
    """Return the rotary embedding of a config.json, of transformers 4 (``rope_scaling``) or 5 (``rope_parameters``).

    Raises:
        UnsupportedError: a kind of scaling that this engine does not run, by name.
        InvalidRequestError: a number is missing or out of bounds.
    """
    theta: Json = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling")
    if (parameters := config.get("rope_parameters")) is not None:
        if not isinstance(parameters, dict) or "rope_theta" not in parameters:
            raise InvalidRequestError("config.json: rope_parameters has no rope_theta")
        theta, scaling = parameters["rope_theta"], parameters
    if scaling is None:
        return RopeSpec(theta=_number(theta, "rope_theta", maximum=math.inf))
    if not isinstance(scaling, dict):
        raise InvalidRequestError("config.json: rope_scaling is not an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnsupportedError(f"the native engine does not run models with rope_scaling = {json.dumps(kind)[:100]}")
    numbers = _numbers(scaling, kind, context)
    return RopeSpec(theta=_number(theta, "rope_theta", maximum=math.inf), kind=kind, numbers=numbers)


def _numbers(scaling: Mapping[str, Json], kind: str, context: int) -> dict[str, float]:
    """Return the numbers of ``kind``, checked: required ones present, optional ones by default as transformers."""
    required: dict[str, tuple[str, ...]] = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": ("factor",),
    }
    defaults: dict[str, float] = {}
    optional: tuple[str, ...] = ()
    if kind == "yarn":
        defaults = {"beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": float(context)}
        optional = ("attention_factor", "mscale", "mscale_all_dim")
    numbers = dict(defaults)
    for name in (*required.get(kind, ()), *defaults, *optional):
        if scaling.get(name) is not None:
            numbers[name] = _number(scaling[name], name, maximum=MAX_FACTOR if name == "factor" else 2.0**24)
        elif name in required[kind]:
            raise InvalidRequestError(f"config.json: rope_scaling of kind {kind} has no {name}")
    if kind == "yarn":
        numbers["truncate"] = 0.0 if scaling.get("truncate") is False else 1.0
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise InvalidRequestError("config.json: rope_scaling's high_freq_factor is not above its low_freq_factor")
    return numbers


def _number(value: Json, name: str, *, maximum: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 < value < math.inf or value > maximum:
        raise InvalidRequestError(f"config.json: {name} is not a positive number within bounds")
    return float(value)
