"""Each architecture, with each variant of its config.json, against transformers on tiny random models."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bulkhead.errors import UnsupportedError
from bulkhead.models import DirectorySource
from data_plane.engine.config import EngineConfig
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sequence import Sequence

LOGIT_ERROR = 1e-3
PROMPT, ANSWER = 45, 12
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, untied, every head its own": ("Llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama, one key-value head, biases": (
        "Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, llama3 scaling": ("Llama", {"rope_scaling": LLAMA3}),
    "llama, linear scaling": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama, yarn": ("Llama", {"rope_scaling": YARN}),
    "llama, yarn with its own magnitude": ("Llama", {"rope_scaling": YARN | {"attention_factor": 1.3, "beta_fast": 8}}),
    "mistral, window": ("Mistral", {"sliding_window": 9}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window above the first layer": (
        "Qwen2", {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, biases, window, untied": (
        "Qwen3",
        {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": False,
         "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
    ),
}  # fmt: skip


def make(path: Path, family: str, options: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> Any:
    """Write a tiny random model in shards and return transformers' own of it."""
    import transformers

    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**(sizes | options))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants, which would hide a mistake
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.to(dtype).save_pretrained(path, max_shard_size="40KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    # Read again, for ``to`` rounded the rotary frequencies as well.
    return type(model).from_pretrained(path, dtype=torch.float32).eval()


def engine_logits(
    path: Path, tokens: list[int], *, step_tokens: int, block_tokens: int, memory_mib: int = 2
) -> torch.Tensor:
    """Return the logits after each token from the prompt's last one on [answer, vocabulary]."""
    config = EngineConfig(
        model_path=path,
        threads=1,
        kv_memory_mib=memory_mib,
        block_tokens=block_tokens,
        max_running=2,
        step_tokens=step_tokens,
    )
    rows: list[torch.Tensor] = []
    with torch.inference_mode(), DirectorySource(path) as source:
        runner = ModelRunner(config, source)
        sequence = Sequence(request_id="r", tokens=tokens[:PROMPT], prompt_tokens=PROMPT, max_tokens=ANSWER)
        runner.scheduler.add(sequence)
        while len(rows) < ANSWER:
            (chunk,) = runner.scheduler.schedule()
            logits, sampled = runner.logits([chunk])
            rows.extend(logits if sampled else [])
            runner.scheduler.computed(chunk, tokens[chunk.start + chunk.count] if chunk.samples else None)
    return torch.stack(rows)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    """The prompt, whole and in chunks, and each decoded token give transformers' logits within 1e-3."""
    family, options = MODELS[name]
    oracle = make(tmp_path / "m", family, options)
    tokens = torch.randint(3, 96, (PROMPT + ANSWER,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0, PROMPT - 1 : -1]
    for step_tokens, block_tokens in ((64, 16), (13, 4)):
        own = engine_logits(tmp_path / "m", tokens, step_tokens=step_tokens, block_tokens=block_tokens)
        assert (own - expected).abs().max().item() < LOGIT_ERROR
    assert expected.std().item() > 0.1  # a model whose logits are all alike would show nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_weights_stored_in_half_the_bits_are_computed_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    """A checkpoint in bf16 or fp16 gives the logits of transformers in fp32, not of rounded arithmetic."""
    oracle = make(tmp_path / "m", "Qwen3", {"head_dim": 16}, dtype=dtype)
    tokens = torch.randint(3, 96, (PROMPT + ANSWER,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0, PROMPT - 1 : -1]
    own = engine_logits(tmp_path / "m", tokens, step_tokens=64, block_tokens=16)
    assert (own - expected).abs().max().item() < LOGIT_ERROR


def test_every_tensor_of_a_model_is_overwritten_at_the_end(tmp_path: Path) -> None:
    """Norms of heads too, which only some architectures have."""
    make(tmp_path / "m", "Qwen3", {"head_dim": 16})
    with torch.inference_mode(), DirectorySource(tmp_path / "m") as source:
        runner = ModelRunner(EngineConfig(model_path=tmp_path / "m", threads=1, kv_memory_mib=2), source)
        decoder = runner._decoder
        runner.erase()
    kept = [decoder._embedding, decoder._norm, *(value for layer in decoder._layers for value in vars(layer).values())]
    tensors = [value for value in kept if isinstance(value, torch.Tensor)]
    assert len(tensors) == 2 + 3 * len(decoder._layers)
    assert not any(tensor.any() for tensor in tensors)


def test_an_architecture_of_another_kind_is_refused_with_advice(tmp_path: Path) -> None:
    """A model that the native engine does not run is refused by name, with the back end that does."""
    make(tmp_path / "m", "Llama", {})
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MixtralForCausalLM"))
    with pytest.raises(UnsupportedError, match=r"MixtralForCausalLM.*vLLM"), DirectorySource(tmp_path / "m") as source:
        ModelRunner(EngineConfig(model_path=tmp_path / "m", threads=1), source)
