"""A complete Hugging Face model directory with random weights, written in milliseconds: the real engine serves it."""

import json
import random
from pathlib import Path

import numpy as np

HIDDEN = 64
LAYERS = 2
HEADS = 4
KV_HEADS = 2
INTERMEDIATE = 128
CONTEXT = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order (tokenizers calls this ByteLevel)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(spare)) for byte in range(256)]


def _tokenizer() -> dict[str, object]:
    vocab = {text: index for index, text in enumerate((*SPECIAL, *_byte_alphabet()))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, text in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _tensors(seed: int, vocabulary: int) -> dict[str, np.ndarray]:
    # The gains let layers outweigh the residual: with tied embeddings the model would else repeat its last token.
    generator = np.random.default_rng(seed)
    head = HIDDEN // HEADS

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return np.asarray(generator.standard_normal((rows, columns)) * gain * columns**-0.5, dtype=np.float32)

    def norm() -> np.ndarray:
        return np.asarray(1.0 + 0.1 * generator.standard_normal(HIDDEN), dtype=np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN), "model.norm.weight": norm()}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": norm(),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": matrix(HEADS * head, HIDDEN),
            prefix + "self_attn.k_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            prefix + "self_attn.v_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            prefix + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * head, gain=8.0),
            prefix + "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            prefix + "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            prefix + "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE, gain=8.0),
        }
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write fp32 tensors in the safetensors layout: u64 header length, JSON header, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    encoded = json.dumps(header, sort_keys=True).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = b"".join(tensor.tobytes() for _, tensor in sorted(tensors.items()))
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def make_tiny_model(path: Path, *, seed: int = 0) -> Path:
    """Write a byte-level Llama with random weights (2 layers, hidden size 64, context 512) and return ``path``.

    Equal seeds give equal bytes. Its answers are noise: it shows plumbing, not language.
    """
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = len(SPECIAL) + 256
    documents: dict[str, object] = {
        "config.json": _config(vocabulary),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2]},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_safetensors(path / "model.safetensors", _tensors(seed, vocabulary))
    return path


def random_prompts(count: int, *, seed: int, low: int = 3, high: int = 100) -> list[tuple[int, ...]]:
    """Return the token ids of ``count`` prompts of ``low`` to ``high`` tokens, without special tokens."""
    source = random.Random(seed)
    return [
        tuple(source.randrange(len(SPECIAL), len(SPECIAL) + 256) for _ in range(source.randint(low, high)))
        for _ in range(count)
    ]
