"""What a model's config.json says, checked: the one description from which weights are read and a decoder is built.

Nothing in a model directory is trusted. Code that it names (``auto_map``) is never run. A field that would change the
arithmetic in a way this engine does not know is refused by name, so that no model answers wrongly in silence.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError, UnsupportedError
from bulkhead.models import ModelSource, read_file

__all__ = ["DecoderSpec", "read_json", "read_spec"]

MAX_CONFIG_BYTES: Final = 1 << 20  # published ones have a few kilobytes
MAX_VOCABULARY: Final = 1 << 20  # the largest published has 2^18
MAX_WIDTH: Final = 1 << 17
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 1024
MAX_CONTEXT: Final = 1 << 24
MAX_EOS_TOKENS: Final = 64

ARCHITECTURES: Final = frozenset({"LlamaForCausalLM"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder of the Llama family: sizes in elements, ``context`` in tokens."""

    architecture: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_theta: float
    context: int
    tied_head: bool
    end_tokens: frozenset[int]

    def parameters(self) -> int:
        """Return the count of weights, a tied head once."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return tables + self.layers * layer + self.hidden


def read_json(source: ModelSource, path: str, *, max_bytes: int) -> dict[str, Json]:
    """Return the JSON object in a file of a model.

    Raises:
        InvalidRequestError: missing, unreadable, longer than ``max_bytes``, or not a JSON object.
    """
    data = read_file(source, path, max_bytes=max_bytes)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"model file {path} is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"model file {path} is not a JSON object")
    return value


def read_spec(source: ModelSource) -> DecoderSpec:
    """Return the decoder that a Hugging Face model describes.

    Raises:
        UnsupportedError: an architecture, activation, scaling or quantisation that this engine does not run, by name.
        InvalidRequestError: config.json is missing, malformed, out of bounds or contradicts itself.
    """
    config = _flatten_rope(read_json(source, "config.json", max_bytes=MAX_CONFIG_BYTES))
    architecture = _architecture(config)
    _refuse_unknown_arithmetic(config)
    heads = _size(config, "num_attention_heads", MAX_HEADS)
    hidden = _size(config, "hidden_size", MAX_WIDTH)
    spec = DecoderSpec(
        architecture=architecture,
        vocabulary=_size(config, "vocab_size", MAX_VOCABULARY),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size", MAX_WIDTH),
        layers=_size(config, "num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", MAX_HEADS, default=heads),
        head_dim=_size(config, "head_dim", MAX_HEAD_DIM, default=max(1, hidden // heads)),
        norm_epsilon=_positive(config, "rms_norm_eps", default=1e-6),
        rope_theta=_positive(config, "rope_theta", default=10000.0),
        context=_size(config, "max_position_embeddings", MAX_CONTEXT),
        tied_head=config.get("tie_word_embeddings", False) is True,
        end_tokens=_end_tokens(source, config),
    )
    if spec.heads % spec.kv_heads:
        raise InvalidRequestError("config.json: num_attention_heads is not a multiple of num_key_value_heads")
    if spec.head_dim % 2:
        raise InvalidRequestError("config.json: head_dim is odd, so rotary embedding cannot pair its elements")
    if any(token >= spec.vocabulary for token in spec.end_tokens):
        raise InvalidRequestError("config.json: an end-of-text token lies outside the vocabulary")
    return spec


def _architecture(config: Mapping[str, Json]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise InvalidRequestError("config.json: architectures does not name one class")
    if names[0] not in ARCHITECTURES:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"the native engine does not run {names[0][:100]}; it runs {supported}")
    return names[0]


def _flatten_rope(config: dict[str, Json]) -> dict[str, Json]:
    """Bring transformers 5's ``rope_parameters`` into the form of earlier releases."""
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        raise InvalidRequestError("config.json: rope_parameters has no rope_theta")
    plain = rope.get("rope_type", "default") == "default"
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else rope}


def _refuse_unknown_arithmetic(config: Mapping[str, Json]) -> None:
    expected: Mapping[str, tuple[Json, ...]] = {
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "quantization_config": (None,),
        "partial_rotary_factor": (None, 1.0),
    }
    absent: Mapping[str, Json] = {"hidden_act": "silu"}
    for name, allowed in expected.items():
        if (value := config.get(name, absent.get(name))) not in allowed:
            raise UnsupportedError(f"the native engine does not run models with {name} = {json.dumps(value)[:100]}")


def _end_tokens(source: ModelSource, config: Mapping[str, Json]) -> frozenset[int]:
    if "generation_config.json" in source.files:
        generation = read_json(source, "generation_config.json", max_bytes=MAX_CONFIG_BYTES)
        config = generation if "eos_token_id" in generation else config
    value = config.get("eos_token_id")
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    ids = frozenset(token for token in tokens if isinstance(token, int) and not isinstance(token, bool) and token >= 0)
    if len(tokens) > MAX_EOS_TOKENS or len(ids) != len(tokens):
        raise InvalidRequestError("eos_token_id is neither a token id nor a short list of them")
    return ids


def _size(config: Mapping[str, Json], name: str, maximum: int, *, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise InvalidRequestError(f"config.json: {name} is not a whole number from 1 to {maximum}")
    return value


def _positive(config: Mapping[str, Json], name: str, *, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 < value < float("inf"):
        raise InvalidRequestError(f"config.json: {name} is not a positive number")
    return float(value)
