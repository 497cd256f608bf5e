import dataclasses
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bulkhead.errors import BulkheadError, ConfigError, InvalidRequestError, UnsupportedError
from bulkhead.models import DirectorySource
from data_plane.engine import EngineConfig, runner, weights
from data_plane.engine.runner import ModelRunner
from data_plane.engine.spec import read_spec
from data_plane.engine.tensor_file import read_header
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.port import ChatMessage
from tests.simulator.tiny_engine import answer, running_engine, token_request
from tests.simulator.tiny_model import CHAT_TEMPLATE, CONTEXT, make_tiny_model, write_safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def load(model: Path) -> None:
    """Load everything that the engine reads from a model directory."""
    with DirectorySource(model) as source:
        loaded = ModelRunner(EngineConfig(model_path=model, threads=1, kv_memory_mib=4), source)
        Tokenizer(source=source, vocabulary=loaded.spec.vocabulary, context_tokens=loaded.description.context_tokens)


def tokenizer_of(model: Path) -> Tokenizer:
    return Tokenizer(
        source=DirectorySource(model), vocabulary=read_spec(DirectorySource(model)).vocabulary, context_tokens=64
    )


def change(path: Path, **fields: object) -> None:
    document = json.loads(path.read_text())
    document.update(fields)
    path.write_text(json.dumps(document))


def header(model: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = (model / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewrite(model: Path, entries: object, data: bytes) -> None:
    encoded = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (model / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_a_sound_directory_loads(model: Path) -> None:
    """The model that the other tests damage is read without complaint, and described."""
    load(model)
    spec = read_spec(DirectorySource(model))
    assert (spec.architecture, spec.end_tokens) == ("LlamaForCausalLM", {2})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ["EvilForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "EvilForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_scaling"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling = null"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "layers"),
    ],
)
def test_what_the_engine_does_not_run_is_refused_by_name(model: Path, fields: dict[str, object], words: str) -> None:
    """Another architecture, or arithmetic that would change answers, is UnsupportedError and says which."""
    change(model / "config.json", **fields)
    with pytest.raises(UnsupportedError, match=words):
        load(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
        {"hidden_size": 0},
        {"hidden_size": -64},
        {"hidden_size": 64.0},
        {"hidden_size": True},
        {"hidden_size": 10**30},
        {"hidden_size": 128},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 4},
        {"head_dim": 15},
        {"vocab_size": 300},
        {"vocab_size": 2**40},
        {"rms_norm_eps": "x"},
        {"rope_theta": -1},
        {"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"max_position_embeddings": 10**400},
        {"tie_word_embeddings": False},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"rope_type": "linear", "factor": float("inf")}},
        {"rope_scaling": "linear"},
        {"attention_bias": True},
        {"attention_bias": "yes"},
        {"mlp_bias": True},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_a_config_that_contradicts_itself_or_its_weights_is_refused(model: Path, fields: dict[str, object]) -> None:
    """Shapes that lie, sizes out of bounds and missing or extra tensors are typed errors before any use."""
    change(model / "config.json", **fields)
    with pytest.raises(InvalidRequestError):
        load(model)


def _truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _overlapping(model: Path) -> None:
    entries, data = header(model)
    first, second = sorted(name for name in entries if name.endswith("q_proj.weight"))
    entries[second]["data_offsets"] = entries[first]["data_offsets"]
    rewrite(model, entries, data)


def _beyond_the_end(model: Path) -> None:
    entries, data = header(model)
    entries["model.norm.weight"]["data_offsets"] = [len(data), len(data) + 256]
    rewrite(model, entries, data)


def _transposed(model: Path) -> None:
    entries, data = header(model)
    name = "model.layers.0.mlp.down_proj.weight"
    entries[name]["shape"] = list(reversed(entries[name]["shape"]))  # type: ignore[call-overload]
    rewrite(model, entries, data)


def _unexplained(model: Path) -> None:
    entries, data = header(model)
    entries["model.layers.0.self_attn.q_proj.bias"] = {
        "dtype": "F32",
        "shape": [64],
        "data_offsets": [len(data), len(data) + 256],
    }
    rewrite(model, entries, data + bytes(256))


def _integers(model: Path) -> None:
    entries, data = header(model)
    entries["model.norm.weight"]["dtype"] = "I32"
    rewrite(model, entries, data)


def _huge_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")


def _header_of_lists(model: Path) -> None:
    rewrite(model, b"[" + b"[]," * (3 << 20) + b"[]]", b"")


def _pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))


def _leading_out(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "outside.safetensors")
    places = dict.fromkeys(("model.norm.weight",), "../outside.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _misplaced(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"nothing": "a.safetensors"}}))


WEIGHTS: list[Callable[[Path], None]] = [
    _truncated,
    _overlapping,
    _beyond_the_end,
    _transposed,
    _unexplained,
    _integers,
    _huge_header,
    _header_of_lists,
    _pickled,
    _leading_out,
    _misplaced,
    lambda model: (model / "model.safetensors").unlink(),
    lambda model: (model / "model.safetensors").write_bytes(b""),
    lambda model: rewrite(model, b"not json", b""),
]


@pytest.mark.parametrize("damage", WEIGHTS, ids=lambda damage: getattr(damage, "__name__", "?"))
def test_damaged_or_malicious_weights_are_a_typed_error(model: Path, damage: Callable[[Path], None]) -> None:
    """Truncated, overlapping, mislabelled, pickled or absent weights: a typed error, nothing is executed."""
    damage(model)
    with pytest.raises((InvalidRequestError, UnsupportedError)):
        load(model)


TEXT_FILES: list[tuple[str, bytes | None]] = [
    ("config.json", None),
    ("config.json", b"[]"),
    ("config.json", b"{"),
    ("config.json", b"[" * 100_000),
    ("config.json", b'{"x": "' + b"y" * (1 << 20) + b'"}'),
    ("generation_config.json", b'{"eos_token_id": -1}'),
    ("generation_config.json", b'{"eos_token_id": [1, "2"]}'),
    ("generation_config.json", b'{"eos_token_id": 100000}'),
    ("tokenizer.json", None),
    ("tokenizer.json", b"{}"),
    ("tokenizer.json", b"\xff\xfe"),
    ("tokenizer_config.json", b"nonsense"),
    ("tokenizer_config.json", b'{"chat_template": "{% for %}"}'),
    ("tokenizer_config.json", b'{"chat_template": [{"name": "tool_use", "template": "x"}]}'),
]


@pytest.mark.parametrize(("name", "content"), TEXT_FILES, ids=lambda value: repr(value)[:30])
def test_damaged_text_files_are_a_typed_error(model: Path, name: str, content: bytes | None) -> None:
    """Missing, malformed, nested or oversized JSON and templates: a typed error each."""
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_bytes(content)
    with pytest.raises(BulkheadError) as caught:
        load(model)
    assert isinstance(caught.value, InvalidRequestError | UnsupportedError)


def test_a_tensor_that_memory_does_not_hold_is_a_typed_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with holes costs its maker nothing and may exceed any memory: the allocator's refusal has a name."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(weights.torch, "empty", refuse)
    with DirectorySource(model) as source, pytest.raises(InvalidRequestError, match="does not fit in memory"):
        weights.open_weights(source).take("model.norm.weight", 64)


def test_a_tokenizer_of_a_million_entries_that_the_model_lacks_is_refused(model: Path) -> None:
    """Token ids without an embedding row are found at load, not by an index error while serving; in seconds of work."""
    document = json.loads((model / "tokenizer.json").read_text())
    document["model"]["vocab"] |= {f"token{i}": i for i in range(300, 1_000_000)}
    (model / "tokenizer.json").write_text(json.dumps(document))
    started_s = time.process_time()
    with pytest.raises(InvalidRequestError, match="no embedding"):
        load(model)
    assert time.process_time() - started_s < 30


def test_memory_for_no_context_is_a_configuration_error(model: Path) -> None:
    """Memory that holds less than a block is said when the engine starts; a little memory lowers the context."""
    small = EngineConfig(model_path=model, threads=1, kv_memory_mib=1, block_tokens=1024)
    with pytest.raises(ConfigError, match="kv_memory_mib"):
        runner._plan_memory(small, dataclasses.replace(read_spec(DirectorySource(model)), layers=100))
    config = EngineConfig(model_path=model, threads=1, kv_memory_mib=4, max_context_tokens=100)
    assert ModelRunner(config, DirectorySource(model)).description.context_tokens == 100


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}, 4 * CONTEXT),
        ({"rope_type": "yarn", "factor": 2.5}, CONTEXT * 5 // 2),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT // 4}, CONTEXT),
        ({"type": "linear", "factor": 2.0}, 2 * CONTEXT),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            CONTEXT,
        ),
    ],
)
def test_scaled_positions_make_the_context(model: Path, scaling: dict[str, object], context: int) -> None:
    """As in vLLM, linear and yarn lengthen what config.json states, once; llama3's statement is the whole context."""
    change(model / "config.json", rope_scaling=scaling)
    assert read_spec(DirectorySource(model)).context == context


def test_of_several_chat_templates_the_default_one_is_used(model: Path) -> None:
    """A list of named templates serves conversations by the one that transformers takes without tools."""
    turns = (ChatMessage(role="user", content="hello"),)
    expected = tokenizer_of(model).encode_chat(turns)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    change(model / "tokenizer_config.json", chat_template=named)
    assert tokenizer_of(model).encode_chat(turns) == expected


def test_weights_are_read_once_straight_into_tensors_the_largest_first(model: Path) -> None:
    """Each tensor is one read of its whole size: the table first, then layer by layer the largest product first."""
    reads: list[tuple[str, int]] = []
    with DirectorySource(model) as source:
        places = {place.offset: name for name, place in read_header(source, "model.safetensors").items()}
        really = source.read_into

        def recorded(path: str, offset: int, target: memoryview) -> None:
            if path == "model.safetensors" and offset in places:
                reads.append((places[offset], target.nbytes))
            really(path, offset, target)

        source.read_into = recorded  # type: ignore[method-assign]
        ModelRunner(EngineConfig(model_path=model, threads=1, kv_memory_mib=4), source)
        sizes = {name: place.size for name, place in read_header(source, "model.safetensors").items()}
    assert dict(reads) == sizes
    assert len(reads) == len(sizes)
    order = [name for name, _ in reads]
    assert order[0] == "model.embed_tokens.weight"
    first = [name.removeprefix("model.layers.0.").removesuffix(".weight") for name in order if ".layers.0." in name]
    assert first[:7] == [
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ]
    layers = [name.split(".")[2] for name in order if ".layers." in name]
    assert layers == sorted(layers)


@pytest.mark.parametrize(
    "settings", [{"threads": 0}, {"max_running": 0}, {"step_tokens": 8}, {"weights": "int3"}, {"max_context_tokens": 1}]
)
def test_limits_out_of_range_are_configuration_errors(model: Path, settings: dict[str, object]) -> None:
    """A worker's configuration is checked before anything is loaded."""
    with pytest.raises(ConfigError):
        EngineConfig(model_path=model, **({"threads": 1} | settings))  # type: ignore[arg-type]


async def test_shards_and_an_untied_head_serve_as_a_single_file_does(model: Path, tmp_path: Path) -> None:
    """The same weights in two shards, with the tied head written out as a tensor of its own, answer the same."""
    async with running_engine(model) as engine:
        expected = await answer(engine, token_request("r", (5, 6, 7), max_tokens=20))
    entries, data = header(model)
    tensors = {}
    for name, entry in entries.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]  # type: ignore[misc]
            tensors[name] = np.frombuffer(data[begin:end], dtype=np.float32).reshape(entry["shape"])  # type: ignore[call-overload]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    other = make_tiny_model(tmp_path / "other", seed=1)
    (other / "model.safetensors").unlink()
    for shard, held in shards.items():
        write_safetensors(other / shard, {name: tensors[name] for name in held})
    places = {name: shard for shard, held in shards.items() for name in held}
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    change(other / "config.json", tie_word_embeddings=False)
    async with running_engine(other) as engine:
        assert (await answer(engine, token_request("r", (5, 6, 7), max_tokens=20))).tokens == expected.tokens
        assert engine.describe().context_tokens == CONTEXT
    # An index that leaves a tensor out hides none: it is read, or named as one that nothing explains.
    del places["model.norm.weight"]
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load(other)
    held = {name: tensors[name] for name in names[::2]}
    write_safetensors(other / "a.safetensors", held | {"model.secret.bias": tensors["model.norm.weight"]})
    with pytest.raises(InvalidRequestError, match=r"model\.secret\.bias"):
        load(other)
