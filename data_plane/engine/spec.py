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
from data_plane.engine.rope import RopeSpec, read_rope

__all__ = ["DecoderSpec", "read_json", "read_spec"]

MAX_CONFIG_BYTES: Final = 1 << 20  # published ones have a few kilobytes
MAX_VOCABULARY: Final = 1 << 20  # the largest published has 2^18
MAX_WIDTH: Final = 1 << 17
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 1024
MAX_CONTEXT: Final = 1 << 24
MAX_EOS_TOKENS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a class of models fixes in code rather than in config.json."""

    input_bias: bool | None = False
    """Biases of query, key and value; None: ``attention_bias`` says so, for the output too."""
    qk_norm: bool = False
    windows: bool = False
    """Whether ``sliding_window`` has a meaning."""


FAMILIES: Final[Mapping[str, _Family]] = {
    "LlamaForCausalLM": _Family(input_bias=None),
    "MistralForCausalLM": _Family(windows=True),
    "Qwen2ForCausalLM": _Family(input_bias=True, windows=True),
    "Qwen3ForCausalLM": _Family(input_bias=None, qk_norm=True, windows=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder of the Llama family: sizes in elements, ``context`` in tokens.

    Attributes:
        input_bias: query, key and value projections have biases.
        output_bias: the attention's output projection has one.
        mlp_bias: the three projections of the MLP have them.
        qk_norm: query and key heads are normalised before they are turned.
        window: tokens that a windowed layer looks back at, itself included; 0 without such layers.
        windowed: which layers are windowed.
    """

    architecture: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope: RopeSpec
    context: int
    tied_head: bool
    end_tokens: frozenset[int]
    input_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int = 0
    windowed: frozenset[int] = frozenset()

    def parameters(self) -> int:
        """Return the count of weights, a tied head once."""
        inputs = self.head_dim * (self.heads + 2 * self.kv_heads)
        layer = self.hidden * (inputs + self.heads * self.head_dim)
        layer += 3 * self.hidden * self.intermediate + 2 * self.hidden
        layer += inputs * self.input_bias + self.hidden * self.output_bias + 2 * self.head_dim * self.qk_norm
        layer += (2 * self.intermediate + self.hidden) * self.mlp_bias
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
    config = read_json(source, "config.json", max_bytes=MAX_CONFIG_BYTES)
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_unknown_arithmetic(config)
    heads = _size(config, "num_attention_heads", MAX_HEADS)
    hidden = _size(config, "hidden_size", MAX_WIDTH)
    layers = _size(config, "num_hidden_layers", MAX_LAYERS)
    context = _size(config, "max_position_embeddings", MAX_CONTEXT)
    window, windowed = _windows(config, layers) if family.windows else (0, frozenset[int]())
    stated_bias = _flag(config, "attention_bias")
    spec = DecoderSpec(
        architecture=architecture,
        vocabulary=_size(config, "vocab_size", MAX_VOCABULARY),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size", MAX_WIDTH),
        layers=layers,
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", MAX_HEADS, default=heads),
        head_dim=_size(config, "head_dim", MAX_HEAD_DIM, default=max(1, hidden // heads)),
        norm_epsilon=_positive(config, "rms_norm_eps", default=1e-6),
        rope=read_rope(config, context=context),
        context=context,
        tied_head=_flag(config, "tie_word_embeddings"),
        end_tokens=_end_tokens(source, config),
        input_bias=stated_bias if family.input_bias is None else family.input_bias,
        output_bias=stated_bias and family.input_bias is None,
        mlp_bias=_flag(config, "mlp_bias") and architecture == "LlamaForCausalLM",
        qk_norm=family.qk_norm,
        window=window,
        windowed=windowed,
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
    if names[0] not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"the native engine does not run {names[0][:100]}; it runs {supported}. The vLLM back end serves the others"
        )
    return names[0]


def _refuse_unknown_arithmetic(config: Mapping[str, Json]) -> None:
    expected: Mapping[str, tuple[Json, ...]] = {
        "hidden_act": ("silu",),
        "quantization_config": (None,),
        "partial_rotary_factor": (None, 1.0),
    }
    absent: Mapping[str, Json] = {"hidden_act": "silu"}
    for name, allowed in expected.items():
        if (value := config.get(name, absent.get(name))) not in allowed:
            raise UnsupportedError(f"the native engine does not run models with {name} = {json.dumps(value)[:100]}")


def _windows(config: Mapping[str, Json], layers: int) -> tuple[int, frozenset[int]]:
    """Return the sliding window and its layers: all, those above ``max_window_layers``, or as ``layer_types`` says."""
    if config.get("sliding_window") is None or config.get("use_sliding_window", True) is False:
        return 0, frozenset()
    if "use_sliding_window" not in config and config["architectures"] != ["MistralForCausalLM"]:
        return 0, frozenset()  # Qwen's default is without
    window = _size(config, "sliding_window", MAX_CONTEXT)
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28) if "use_sliding_window" in config else 0
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise InvalidRequestError("config.json: max_window_layers is not a count of layers")
        return window, frozenset(range(min(first, layers), layers))
    names = {"full_attention", "sliding_attention"}
    if not isinstance(types, list) or len(types) != layers or not all(kind in names for kind in types):
        raise UnsupportedError("the native engine does not run models with layer_types other than full and sliding")
    return window, frozenset(index for index, kind in enumerate(types) if kind == "sliding_attention")


def _flag(config: Mapping[str, Json], name: str) -> bool:
    value = config.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"config.json: {name} is neither true nor false")
    return value is True


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
