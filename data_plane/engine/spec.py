"""What a model's config.json says, checked: the one description from which weights are read and a decoder is built.

Nothing in a model directory is trusted. Code that it names (``auto_map``) is never run. A field that would change the
arithmetic in a way this engine does not know is refused by name, so that no model answers wrongly in silence.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError, UnsupportedError
from bulkhead.fields import Fields
from bulkhead.models import ModelSource, read_file
from data_plane.engine.rotary import RopeSpec, read_rope

__all__ = ["DecoderSpec", "read_json", "read_spec"]

MAX_CONFIG_BYTES: Final = 1 << 20  # published ones have a few kilobytes
MAX_VOCABULARY: Final = 1 << 20  # the largest published has 2^18
MAX_WIDTH: Final = 1 << 17
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 1024
MAX_CONTEXT: Final = 1 << 24
MAX_EOS_TOKENS: Final = 64
MIN_EPSILON: Final = 1e-30  # of a norm; published ones are 1e-6 and 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a class of models fixes in code rather than in config.json."""

    input_bias: bool | None = False
    """Biases of query, key and value; None: ``attention_bias`` says so, for the output too."""
    qk_norm: bool = False
    windows: bool | None = None
    """Whether ``sliding_window`` holds unless ``use_sliding_window`` denies it, and for all layers; None: never."""
    mlp_bias: bool = False
    """Whether ``mlp_bias`` has a meaning."""
    unsaid: Mapping[str, Json] = field(default_factory=dict)
    """What a config.json that leaves a name out means by that; one that says null means that there is none.

    The values are those of transformers' configuration classes, as far as they are not the same for all families and
    a model's tensors would not contradict another value. Sizes that tensors have must be said.
    """


_QWEN: Final[Mapping[str, Json]] = MappingProxyType(
    {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
)
FAMILIES: Final[Mapping[str, _Family]] = {
    "LlamaForCausalLM": _Family(
        input_bias=None, mlp_bias=True, unsaid={"max_position_embeddings": 2048, "eos_token_id": 2}
    ),
    "MistralForCausalLM": _Family(
        windows=True,
        unsaid={
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
    ),
    "Qwen2ForCausalLM": _Family(input_bias=True, windows=False, unsaid=_QWEN),
    "Qwen3ForCausalLM": _Family(input_bias=None, qk_norm=True, windows=False, unsaid={**_QWEN, "head_dim": 128}),
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


def read_json(source: ModelSource, path: str, *, max_bytes: int) -> dict[str, Json]:
    """Return the JSON object in a file of a model, without nulls: these files mean by them that nothing is said.

    Raises:
        InvalidRequestError: missing, unreadable, longer than ``max_bytes``, or not a JSON object.
    """
    return _read(source, path, max_bytes=max_bytes)[0]


def _read(source: ModelSource, path: str, *, max_bytes: int) -> tuple[dict[str, Json], frozenset[str]]:
    """Return what :func:`read_json` does, and which names of the object are null in the file."""
    nulls: frozenset[str] = frozenset()

    def without_nulls(entries: dict[str, Json]) -> dict[str, Json]:
        nonlocal nulls  # in the end those of the outermost object, which is complete last
        nulls = frozenset(name for name, entry in entries.items() if entry is None)
        return {name: entry for name, entry in entries.items() if entry is not None}

    data = read_file(source, path, max_bytes=max_bytes)
    try:
        value = json.loads(data, object_hook=without_nulls)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"model file {path} is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"model file {path} is not a JSON object")
    return value, nulls


def read_spec(source: ModelSource) -> DecoderSpec:
    """Return the decoder that a Hugging Face model describes.

    Raises:
        UnsupportedError: an architecture, activation, scaling or quantisation that this engine does not run, by name.
        InvalidRequestError: config.json is missing, malformed, out of bounds or contradicts itself.
    """
    values, nulls = _read(source, "config.json", max_bytes=MAX_CONFIG_BYTES)
    architecture = _architecture(Fields(values, what="config.json", error=InvalidRequestError))
    family = FAMILIES[architecture]
    _refuse_unknown_arithmetic(values)
    filled = {name: value for name, value in family.unsaid.items() if name not in nulls} | values
    config = Fields(filled, what="config.json", error=InvalidRequestError)
    heads = config.integer("num_attention_heads", low=1, high=MAX_HEADS)
    hidden = config.integer("hidden_size", low=1, high=MAX_WIDTH)
    layers = config.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    positions = config.integer("max_position_embeddings", low=1, high=MAX_CONTEXT)
    rope = read_rope(config, context=positions)
    window, windowed = _windows(config, layers, always=family.windows)
    stated_bias = _flag(config, "attention_bias")
    spec = DecoderSpec(
        architecture=architecture,
        vocabulary=config.integer("vocab_size", low=1, high=MAX_VOCABULARY),
        hidden=hidden,
        intermediate=config.integer("intermediate_size", low=1, high=MAX_WIDTH),
        layers=layers,
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", 1, MAX_HEADS, default=heads),
        head_dim=_size(config, "head_dim", 1, MAX_HEAD_DIM, default=max(1, hidden // heads)),
        norm_epsilon=config.number("rms_norm_eps", low=MIN_EPSILON, high=1.0) if "rms_norm_eps" in config else 1e-6,
        rope=rope,
        context=min(rope.reach(positions), MAX_CONTEXT),
        tied_head=_flag(config, "tie_word_embeddings"),
        end_tokens=_end_tokens(source, stated=values, filled=filled),
        input_bias=stated_bias if family.input_bias is None else family.input_bias,
        output_bias=stated_bias and family.input_bias is None,
        mlp_bias=family.mlp_bias and _flag(config, "mlp_bias"),
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


def _architecture(config: Fields) -> str:
    (name,) = config.texts("architectures", min_items=1, max_items=1)
    if name not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"the native engine does not run {name[:100]}; it runs {supported}. The vLLM back end serves the others"
        )
    return name


def _refuse_unknown_arithmetic(values: Mapping[str, Json]) -> None:
    known: Mapping[str, Json] = {"hidden_act": "silu", "quantization_config": None, "partial_rotary_factor": 1.0}
    rope = values.get("rope_parameters", values.get("rope_scaling"))
    stated = {**rope, **values} if isinstance(rope, dict) else values  # transformers 5 states the last one there
    if isinstance(rope, dict) and any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedError("the native engine does not run models whose layers turn positions differently")
    for name, expected in known.items():
        if (value := stated.get(name, expected)) != expected:
            raise UnsupportedError(f"the native engine does not run models with {name} = {json.dumps(value)[:100]}")


def _windows(config: Fields, layers: int, *, always: bool | None) -> tuple[int, frozenset[int]]:
    """Return the sliding window and its layers: all, those above ``max_window_layers``, or as ``layer_types`` says."""
    used = config.boolean("use_sliding_window") if "use_sliding_window" in config else always
    if always is None or not used or "sliding_window" not in config:
        return 0, frozenset()
    window = config.integer("sliding_window", low=1, high=MAX_CONTEXT)
    if "layer_types" not in config:
        first = 0 if always else config.integer("max_window_layers", high=MAX_LAYERS)
        return window, frozenset(range(min(first, layers), layers))
    types = config.array("layer_types", max_items=MAX_LAYERS)
    if len(types) != layers or any(kind not in ("full_attention", "sliding_attention") for kind in types):
        raise UnsupportedError("the native engine does not run models with layer_types other than full and sliding")
    return window, frozenset(index for index, kind in enumerate(types) if kind == "sliding_attention")


def _end_tokens(source: ModelSource, *, stated: Mapping[str, Json], filled: Mapping[str, Json]) -> frozenset[int]:
    values = filled
    if "generation_config.json" in source.files:
        generation = read_json(source, "generation_config.json", max_bytes=MAX_CONFIG_BYTES)
        values = generation if "eos_token_id" in generation else stated
    value = values.get("eos_token_id", [])
    tokens = value if isinstance(value, list) else [value]
    ids = frozenset(token for token in tokens if isinstance(token, int) and not isinstance(token, bool) and token >= 0)
    if len(tokens) > MAX_EOS_TOKENS or len(ids) != len(tokens):
        raise InvalidRequestError("eos_token_id is neither a token id nor a short list of them")
    return ids


def _flag(config: Fields, name: str) -> bool:
    return name in config and config.boolean(name)


def _size(config: Fields, name: str, low: int, high: int, *, default: int) -> int:
    return config.integer(name, low=low, high=high) if name in config else default
