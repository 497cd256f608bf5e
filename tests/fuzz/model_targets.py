"""Fuzz targets of ``bulkhead.models`` and of the engine's readers: a model's directory, and the form of an answer."""

import asyncio
import json
from collections.abc import Mapping
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.model_digest import ModelFile
from bulkhead.encoding import canonical_json
from bulkhead.models import SealedManifest, WrappedKey
from data_plane.engine.generation import read_defaults
from data_plane.engine.grammar import GrammarCompiler
from data_plane.engine.spec import read_spec
from data_plane.engine.template import ChatTemplate
from data_plane.engine.tensor_file import read_header
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.port import ChatMessage
from data_plane.inference.sampling_params import Structure, StructureKind
from tests.fuzz.registry import FuzzTarget
from tests.simulator import tiny_model

_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_SIGNERS = (_SIGNER.public_key().public_bytes_raw(),)


class _Files:
    """A model in memory."""

    name = "fuzzed"

    def __init__(self, data: Mapping[str, bytes]) -> None:
        self._data = data
        self.files: Mapping[str, int] = {path: len(content) for path, content in data.items()}

    def read_into(self, path: str, offset: int, target: memoryview) -> None:
        if offset < 0 or offset + len(target) > self.files[path]:
            raise AssertionError("the reader left its file")
        target[:] = self._data[path][offset : offset + len(target)]

    def close(self) -> None:
        """Keep nothing."""


def _manifest(data: bytes) -> None:
    opened = SealedManifest.open(data, signers=_SIGNERS)
    if opened.sign(_SIGNER) != data:
        raise AssertionError("two documents for one manifest")


def _manifests() -> list[bytes]:
    files = tuple(ModelFile(path=path, size=size, sha256=bytes(32)) for path, size in (("a/b.json", 0), ("c", 1 << 40)))
    made = [
        SealedManifest(
            model="fuzzed",
            version=version,
            chunk_bytes=4096 << version,
            files=files[:version],
            commitment=bytes(32),
            wrapped=(WrappedKey(kek="file:0", data=bytes(60)),),
            signer=_SIGNERS[0],
        )
        for version in (1, 2)
    ]
    return [manifest.sign(_SIGNER) for manifest in made]


def _headers() -> list[bytes]:
    headers = (
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}},
        {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
         "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}},
    )  # fmt: skip
    encoded = [(canonical_json(header), 12 if "w" in header else 4) for header in headers]
    return [len(text).to_bytes(8, "little") + text + bytes(size) for text, size in encoded]


def _config(data: bytes) -> None:
    """Read config.json and, behind a NUL, generation_config.json."""
    config, found, generation = data.partition(b"\0")
    files = {"config.json": config} | ({"generation_config.json": generation} if found else {})
    read_spec(_Files(files))
    read_defaults(_Files(files))


def _configs() -> list[bytes]:
    config = json.dumps(tiny_model._config(259)).encode()
    windowed = tiny_model._config(259) | {
        "architectures": ["MistralForCausalLM"], "sliding_window": 8, "layer_types": ["sliding_attention"] * 2,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256,
                            "rope_theta": 10000.0},
    }  # fmt: skip
    generation = b'{"eos_token_id":[1,2],"max_new_tokens":9,"temperature":0.6,"top_k":20,"top_p":0.9}'
    return [config, config + b"\0" + generation, json.dumps(windowed).encode()]


def _tokenizer(data: bytes) -> None:
    """Read tokenizer.json and, behind a NUL, tokenizer_config.json; then use them."""
    tokens, found, config = data.partition(b"\0")
    files = {"tokenizer.json": tokens} | ({"tokenizer_config.json": config} if found else {})
    made = Tokenizer(source=_Files(files), vocabulary=512, context_tokens=64)
    made.decode(made.encode("Why not?\n\u20ac <|im_end|>", special=True))
    made.spellings("stop")


def _tokenizers() -> list[bytes]:
    whole = json.dumps(tiny_model._tokenizer()).encode()
    config = json.dumps({"eos_token": {"content": "<|im_end|>"}, "chat_template": tiny_model.CHAT_TEMPLATE}).encode()
    small = {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"Why": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
    }  # fmt: skip
    return [whole, whole + b"\0" + config, json.dumps(small).encode()]


def _template(data: bytes) -> None:
    turns = [ChatMessage(role="user", content="Why?"), ChatMessage(role="assistant", content="{{ 7 }}")]
    ChatTemplate(source=data.decode("utf-8", "replace"), variables={"bos_token": "<s>"}).render(turns)


def _templates() -> list[bytes]:
    loops = (
        "{%- set ns = namespace(n=0) -%}{% macro turn(m, i=1) %}{{ m.role|upper ~ i }}{{ m['content']|trim }}"
        "{% endmacro %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ turn(m) }}"
        "{{ messages[1:]|tojson(indent=2) if loop.last else bos_token ~ m.role }}{% endfor %}"
    )
    return [tiny_model.CHAT_TEMPLATE.encode(), loops.encode()]


@cache
def _compiler() -> tuple[asyncio.AbstractEventLoop, GrammarCompiler]:
    tokenizer = json.dumps(tiny_model._tokenizer())
    return asyncio.new_event_loop(), GrammarCompiler(
        tokenizer_json=tokenizer, vocabulary=259, ending=frozenset({2}), at_once=True
    )


def _form(data: bytes) -> None:
    """Compile the form of an answer; the first byte chooses its kind."""
    kind, text = tuple(StructureKind)[data[0] % 3] if data else StructureKind.REGEX, data[1:].decode("utf-8", "replace")
    patterns = tuple(text.split("\0")) if kind is StructureKind.CHOICE else (text,)
    loop, compiler = _compiler()
    loop.run_until_complete(compiler.compile(Structure(kind=kind, patterns=patterns), answers=1))


def _forms() -> list[bytes]:
    schema = {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"$ref": "#/$defs/c"}},
        "required": ["a"], "$defs": {"c": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3}},
    }  # fmt: skip
    return [b"\0" + json.dumps(schema).encode(), b"\1[a-z]{2,5}(x|y)*", b"\2yes\0no"]


TARGETS = (
    FuzzTarget(name="model-manifest", parse=_manifest, seeds=_manifests, max_bytes=8192),
    FuzzTarget(
        name="safetensors-header",
        parse=lambda data: read_header(_Files({"model.safetensors": data}), "model.safetensors"),
        seeds=_headers,
        max_bytes=4096,
    ),
    FuzzTarget(name="model-config", parse=_config, seeds=_configs, max_bytes=4096),
    FuzzTarget(name="tokenizer", parse=_tokenizer, seeds=_tokenizers, max_bytes=8192),
    FuzzTarget(name="chat-template", parse=_template, seeds=_templates, max_bytes=2048),
    FuzzTarget(name="answer-form", parse=_form, seeds=_forms, max_bytes=1024),
)
