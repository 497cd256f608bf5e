"""What a config.json means by a name that it leaves out, or says null for, against transformers' own reading of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bulkhead.models import DirectorySource
from data_plane.engine.spec import DecoderSpec, read_spec
from tests.unit.test_engine_architectures import ANSWER, LOGIT_ERROR, PROMPT, engine_logits, make

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 30, "num_attention_heads": 32,
}  # fmt: skip
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
STATED = {
    "num_key_value_heads": 16, "head_dim": 4, "max_position_embeddings": 777, "rms_norm_eps": 1e-3, "rope_theta": 5e4,
    "tie_word_embeddings": True, "eos_token_id": 7, "attention_bias": True, "mlp_bias": True, "sliding_window": 33,
    "use_sliding_window": True, "max_window_layers": 11, "hidden_act": "silu", "rope_scaling": None,
}  # fmt: skip
NULLS = [
    (family, name)
    for name in ("num_key_value_heads", "eos_token_id", "sliding_window", "rope_scaling", "head_dim")
    for family in FAMILIES
    if name != "head_dim" or family in {"Llama", "Mistral"}  # transformers builds none of the others
]


def write(path: Path, family: str, fields: dict[str, Any]) -> None:
    path.mkdir()
    document = SIZES | fields | {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower()}
    (path / "config.json").write_text(json.dumps(document))


def as_transformers_reads_it(path: Path) -> dict[str, Any]:
    """Return what transformers builds of a config.json, without memory for its weights."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    window = getattr(config, "sliding_window", None) or 0
    always = "sliding_attention" if config.model_type == "mistral" else "full_attention"
    kinds = getattr(config, "layer_types", None) or [always] * config.num_hidden_layers
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    first, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    end = transformers.GenerationConfig.from_model_config(config).eos_token_id
    return {
        "kv_heads": config.num_key_value_heads,
        "head_dim": first.head_dim,
        "context": config.max_position_embeddings,
        "norm_epsilon": model.model.norm.variance_epsilon,
        "theta": config.rope_theta,
        "tied_head": config.tie_word_embeddings,
        "end_tokens": frozenset() if end is None else {end},
        "input_bias": first.q_proj.bias is not None,
        "output_bias": first.o_proj.bias is not None,
        "mlp_bias": mlp.down_proj.bias is not None,
        "windows": [window if kind == "sliding_attention" else 0 for kind in kinds],
    }


def as_read_here(path: Path) -> dict[str, Any]:
    spec: DecoderSpec = read_spec(DirectorySource(path))
    names = ("kv_heads", "head_dim", "context", "norm_epsilon", "tied_head", "end_tokens")
    biases = ("input_bias", "output_bias", "mlp_bias")
    return {name: getattr(spec, name) for name in (*names, *biases)} | {
        "theta": spec.rope.theta,
        "windows": [spec.window if layer in spec.windowed else 0 for layer in range(spec.layers)],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_that_is_left_out_has_the_familys_default(tmp_path: Path, family: str) -> None:
    """Every name alone, all together, and none: what is built is what transformers builds."""
    cases = {name: {key: value for key, value in STATED.items() if key != name} for name in STATED}
    cases |= {"nothing is left out": STATED, "everything is": {}, "all but its use": {"use_sliding_window": True}}
    for name, fields in cases.items():
        write(tmp_path / name, family, fields)
        assert as_read_here(tmp_path / name) == as_transformers_reads_it(tmp_path / name), name


@pytest.mark.parametrize(("family", "name"), NULLS)
def test_null_says_that_there_is_none(tmp_path: Path, family: str, name: str) -> None:
    """Which is not what leaving the name out says: no window, no heads of their own, no end-of-turn token."""
    write(tmp_path / "m", family, STATED | {name: None})
    assert as_read_here(tmp_path / "m") == as_transformers_reads_it(tmp_path / "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_model_that_leaves_its_defaults_out_are_transformers(tmp_path: Path, family: str) -> None:
    """A directory whose config.json gives no more than the sizes is computed as transformers computes it."""
    import transformers

    options: dict[str, Any] = {"num_attention_heads": 32, "tie_word_embeddings": False, "intermediate_size": 48}
    options |= {"num_key_value_heads": 8 if family == "Mistral" else 32}
    options |= {"head_dim": 128} if family == "Qwen3" else {}
    make(tmp_path / "m", family, options)
    path = tmp_path / "m" / "config.json"
    kept = {*SIZES, "architectures", "model_type"}
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key in kept}))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    tokens = torch.randint(3, 96, (PROMPT + ANSWER,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0, PROMPT - 1 : -1]
    own = engine_logits(tmp_path / "m", tokens, step_tokens=64, block_tokens=16, memory_mib=8)
    assert (own - expected).abs().max().item() < LOGIT_ERROR
    assert expected.std().item() > 0.1
