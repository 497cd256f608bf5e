"""A Llama-family decoder over paged state: reads its weights, then maps a step's tokens to logits.

What may be done once is done at loading: query, key and value are one product, gate and up another; rotary pairs lie
together. Activations are changed in place where nothing else needs them.
"""

import math

import torch
from torch.nn import functional

from data_plane.engine.attention import Attention
from data_plane.engine.batch import StepBatch
from data_plane.engine.cache import KvCache
from data_plane.engine.linear import Linear, LinearMaker
from data_plane.engine.rotary import Rotary, interleave
from data_plane.engine.spec import DecoderSpec
from data_plane.engine.weights import WeightSource

__all__ = ["Decoder"]

# Buffers that old checkpoints carry; both are computed here from config.json.
IGNORED_TENSORS = ("rotary_emb.inv_freq", "lm_head.weight")


class _Reader:
    """Takes the tensors of one layer."""

    def __init__(self, spec: DecoderSpec, source: WeightSource, index: int) -> None:
        self._spec = spec
        self._source = source
        self._prefix = f"model.layers.{index}."

    def matrix(self, name: str, rows: int, columns: int, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a weight [rows, columns] and its bias [rows]."""
        weight = self._source.take(f"{self._prefix}{name}.weight", rows, columns)
        return weight, self._source.take(f"{self._prefix}{name}.bias", rows) if bias else None

    def norm(self, name: str, size: int) -> torch.Tensor:
        """Return the weights of a norm for :func:`_normalise`, fp32."""
        return _norm_weight(self._source.take(f"{self._prefix}{name}.weight", size))

    def turned(self, name: str, heads: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the projection of query or key with its rotary pairs together."""
        spec = self._spec
        weight, bias = self.matrix(name, heads * spec.head_dim, spec.hidden, bias=spec.input_bias)
        weight = interleave(weight, head_dim=spec.head_dim)
        return weight, None if bias is None else interleave(bias, head_dim=spec.head_dim)

    def head_norms(self) -> torch.Tensor:
        """Return the norms of the query's and the key's heads [heads + kv_heads, head_dim]."""
        spec = self._spec
        query, key = (
            interleave(self.norm(f"self_attn.{name}_norm", spec.head_dim), head_dim=spec.head_dim) for name in "qk"
        )
        return torch.cat((query.expand(spec.heads, -1), key.expand(spec.kv_heads, -1)))


class _Layer:
    """Weights of one decoder layer."""

    def __init__(self, *, spec: DecoderSpec, source: WeightSource, index: int, make: LinearMaker) -> None:
        reader = _Reader(spec, source, index)
        query, kv, hidden, wide = (
            spec.heads * spec.head_dim,
            spec.kv_heads * spec.head_dim,
            spec.hidden,
            spec.intermediate,
        )
        gate_up = [reader.matrix(f"mlp.{name}_proj", wide, hidden, bias=spec.mlp_bias) for name in ("gate", "up")]
        self.gate_up = _joined(gate_up, make)
        self.down = _joined([reader.matrix("mlp.down_proj", hidden, wide, bias=spec.mlp_bias)], make)
        inputs = [
            reader.turned("self_attn.q_proj", spec.heads),
            reader.turned("self_attn.k_proj", spec.kv_heads),
            reader.matrix("self_attn.v_proj", kv, hidden, bias=spec.input_bias),
        ]
        self.attention_in = _joined(inputs, make)
        output = reader.matrix("self_attn.o_proj", hidden, query, bias=spec.output_bias)
        self.attention_out = _joined([output], make)
        self.attention_norm = reader.norm("input_layernorm", hidden)
        self.mlp_norm = reader.norm("post_attention_layernorm", hidden)
        self.head_norms = reader.head_norms() if spec.qk_norm else None
        self.windowed = index in spec.windowed

    def linears(self) -> tuple[Linear, ...]:
        """Return the layer's products, in no order."""
        return self.attention_in, self.attention_out, self.gate_up, self.down


class Decoder:
    """The model, with products that ``make`` gives. Activations and attention state are fp32 throughout."""

    def __init__(self, *, spec: DecoderSpec, source: WeightSource, make: LinearMaker) -> None:
        self._spec = spec
        # The largest come first: what a tensor needs while it is packed then lies beside the least.
        # The table stays in the stored type: looking up a row and widening it is exact and free.
        self._embedding = source.take("model.embed_tokens.weight", spec.vocabulary, spec.hidden)
        tied = spec.tied_head
        head = self._embedding if tied else source.take("lm_head.weight", spec.vocabulary, spec.hidden)
        self._head = make(head, None)
        del head
        self._layers = [_Layer(spec=spec, source=source, index=index, make=make) for index in range(spec.layers)]
        self._norm = _norm_weight(source.take("model.norm.weight", spec.hidden))
        source.finish(ignored_suffixes=IGNORED_TENSORS if tied else IGNORED_TENSORS[:1])
        self._attention = Attention(heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim)
        self._rotary = Rotary(rope=spec.rope, head_dim=spec.head_dim)
        self._epsilon = torch.tensor(math.sqrt(spec.norm_epsilon * spec.hidden))
        self._head_epsilon = torch.tensor(math.sqrt(spec.norm_epsilon * spec.head_dim))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the products' weights and the token table."""
        linears = [linear for layer in self._layers for linear in layer.linears()]
        return self._embedding.nbytes + self._head.bytes + sum(linear.bytes for linear in linears)

    def logits(self, batch: StepBatch, cache: KvCache) -> torch.Tensor:
        """Compute a step: write its keys and values to ``cache`` and return logits, fp32 [sampled rows, vocabulary]."""
        heads, head_dim, rows = self._spec.heads, self._spec.head_dim, len(batch.tokens)
        turned = heads + self._spec.kv_heads
        turns = self._rotary.turns(batch.positions, turned=turned, left=self._spec.kv_heads)
        x = self._embedding.index_select(0, batch.tokens).float()
        for index, layer in enumerate(self._layers):
            vectors = layer.attention_in(_normalise(x, layer.attention_norm, self._epsilon))
            projected = vectors.view(rows, -1, head_dim)
            if layer.head_norms is not None:
                projected[:, :turned] = _normalise(projected[:, :turned], layer.head_norms, self._head_epsilon)
            self._rotary.apply_(vectors, turns)
            cache.write(index, batch.slots, projected[:, heads:])
            attended = self._attention(batch, projected, cache.layer(index), windowed=layer.windowed)
            x.add_(layer.attention_out(attended))
            gate, up = layer.gate_up(_normalise(x, layer.mlp_norm, self._epsilon)).view(rows, 2, -1).unbind(1)
            x.add_(layer.down(functional.silu(gate).mul_(up)))
        if batch.sampled is not None:
            x = x.index_select(0, batch.sampled)
        return self._head(_normalise(x, self._norm, self._epsilon))

    def erase(self) -> None:
        """Overwrite all weights."""
        self._embedding.zero_()
        self._head.erase()
        self._norm.zero_()
        for layer in self._layers:
            for linear in layer.linears():
                linear.erase()
            layer.attention_norm.zero_()
            layer.mlp_norm.zero_()
            if layer.head_norms is not None:
                layer.head_norms.zero_()


def _norm_weight(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() * math.sqrt(len(weight))


def _normalise(x: torch.Tensor, weight: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Return ``x`` by its root mean square over the last dimension: in sums instead of means, for fewer calls.

    ``weight`` holds the root of the width, as :func:`_norm_weight` returns it; ``epsilon`` is the root of the width
    times the model's own.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.div(torch.hypot(size, epsilon)).mul_(weight)


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor | None]], make: LinearMaker) -> Linear:
    """Return one product whose outputs are those of ``parts`` in a row."""
    matrices, biases = [weight for weight, _ in parts], [bias for _, bias in parts if bias is not None]
    weight = matrices[0] if len(parts) == 1 else torch.cat(matrices)
    return make(weight, torch.cat(biases).float() if biases else None)
