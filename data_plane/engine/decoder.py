"""A Llama-family decoder over paged state: reads its weights, then maps a step's tokens to logits."""

import torch
from torch.nn import functional

from data_plane.engine.attention import Attention
from data_plane.engine.batch import StepBatch
from data_plane.engine.cache import KvCache
from data_plane.engine.config import WeightFormat
from data_plane.engine.linear import make_linear
from data_plane.engine.rotary import Rotary
from data_plane.engine.spec import DecoderSpec
from data_plane.engine.weights import WeightSource

__all__ = ["Decoder"]

# Buffers that old checkpoints carry; both are computed here from config.json.
IGNORED_TENSORS = ("rotary_emb.inv_freq", "lm_head.weight")


class _Layer:
    """Weights of one decoder layer; query, key and value, and gate and up, are one product each."""

    def __init__(self, *, spec: DecoderSpec, source: WeightSource, index: int, weights: WeightFormat) -> None:
        prefix = f"model.layers.{index}."
        query, kv, hidden, wide = (
            spec.heads * spec.head_dim,
            spec.kv_heads * spec.head_dim,
            spec.hidden,
            spec.intermediate,
        )

        def take(name: str, *shape: int) -> torch.Tensor:
            return source.take(f"{prefix}{name}.weight", *shape)

        attention = [
            take(f"self_attn.{name}_proj", rows, hidden) for name, rows in (("q", query), ("k", kv), ("v", kv))
        ]
        self.attention_in = make_linear(torch.cat(attention), weights=weights)
        self.attention_out = make_linear(take("self_attn.o_proj", hidden, query), weights=weights)
        gate_up = [take(f"mlp.{name}_proj", wide, hidden) for name in ("gate", "up")]
        self.gate_up = make_linear(torch.cat(gate_up), weights=weights)
        self.down = make_linear(take("mlp.down_proj", hidden, wide), weights=weights)
        self.attention_norm = take("input_layernorm", hidden).float()
        self.mlp_norm = take("post_attention_layernorm", hidden).float()

    def erase(self) -> None:
        for linear in (self.attention_in, self.attention_out, self.gate_up, self.down):
            linear.erase()
        for norm in (self.attention_norm, self.mlp_norm):
            norm.zero_()


class Decoder:
    """The model. Activations and attention state are fp32 throughout."""

    def __init__(self, *, spec: DecoderSpec, source: WeightSource, weights: WeightFormat) -> None:
        self._spec = spec
        # The table stays in the stored type: looking up a row and widening it is exact and free.
        self._embedding = source.take("model.embed_tokens.weight", spec.vocabulary, spec.hidden)
        tied = spec.tied_head
        head = self._embedding if tied else source.take("lm_head.weight", spec.vocabulary, spec.hidden)
        self._head = make_linear(head, weights=weights)
        self._layers = [_Layer(spec=spec, source=source, index=index, weights=weights) for index in range(spec.layers)]
        self._norm = source.take("model.norm.weight", spec.hidden).float()
        source.finish(ignored_suffixes=IGNORED_TENSORS if tied else IGNORED_TENSORS[:1])
        self._attention = Attention(heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim)
        self._rotary = Rotary(head_dim=spec.head_dim, theta=spec.rope_theta)

    def logits(self, batch: StepBatch, cache: KvCache) -> torch.Tensor:
        """Compute a step: write its keys and values to ``cache`` and return logits, fp32 [sampled rows, vocabulary]."""
        cosine, signed_sine = self._rotary.angles(batch.positions)
        rows, head_dim = len(batch.tokens), self._spec.head_dim
        turned_heads = self._spec.heads + self._spec.kv_heads
        x = self._embedding[batch.tokens].float()
        for index, layer in enumerate(self._layers):
            keys, values = cache.layer(index)
            projected = layer.attention_in(self._normalise(x, layer.attention_norm))
            projected = projected.view(rows, -1, head_dim)
            turned = self._rotary.apply(projected[:, :turned_heads], cosine, signed_sine)
            keys.view(-1, head_dim).index_copy_(0, batch.slots, turned[:, self._spec.heads :].reshape(-1, head_dim))
            values.view(-1, head_dim).index_copy_(0, batch.slots, projected[:, turned_heads:].reshape(-1, head_dim))
            x = x + layer.attention_out(self._attention(batch, turned[:, : self._spec.heads], keys, values))
            gate, up = layer.gate_up(self._normalise(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        return self._head(self._normalise(x[batch.sampled], self._norm))

    def erase(self) -> None:
        """Overwrite all weights."""
        self._embedding.zero_()
        self._head.erase()
        self._norm.zero_()
        for layer in self._layers:
            layer.erase()

    def _normalise(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        variance = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(variance.add_(self._spec.norm_epsilon)) * weight
