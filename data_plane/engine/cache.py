"""The memory that holds attention state (keys and values), cut into blocks."""

import mmap
from collections.abc import Sequence

import torch

from bulkhead.errors import ConfigError
from data_plane.engine.spec import DecoderSpec

__all__ = ["KvCache", "bytes_per_block"]


def bytes_per_block(spec: DecoderSpec, block_tokens: int) -> int:
    """Return the bytes of one block over all layers: fp32 keys and values."""
    return spec.layers * 2 * spec.kv_heads * block_tokens * spec.head_dim * 4


class KvCache:
    """Keys and values of all layers: fp32 [layers, 2, blocks, kv_heads, block_tokens, head_dim].

    The memory is an anonymous mapping: it starts as zeros, is committed as blocks are first used, and stays out of core
    dumps.
    """

    def __init__(self, *, spec: DecoderSpec, blocks: int, block_tokens: int) -> None:
        size = blocks * bytes_per_block(spec, block_tokens)
        try:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ConfigError(f"{size >> 20} MiB of attention state cannot be mapped") from error
        self._memory.madvise(mmap.MADV_DONTDUMP)
        shape = (spec.layers, 2, blocks, spec.kv_heads, block_tokens, spec.head_dim)
        self._state = torch.frombuffer(self._memory, dtype=torch.float32).view(shape)
        self._flat = self._state.view(spec.layers, -1, spec.head_dim).unbind()
        self._views = [(layer[0], layer[1]) for layer in self._state.unbind()]
        self.block_tokens = block_tokens
        self.blocks = blocks

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values of a layer, each a view [blocks, kv_heads, block_tokens, head_dim]."""
        return self._views[index]

    def write(self, index: int, slots: torch.Tensor, state: torch.Tensor) -> None:
        """Store keys and values [rows, 2 * kv_heads, head_dim] at ``slots`` [rows, 2 * kv_heads] of a layer.

        A slot counts vectors of the layer: keys first, then values, each [blocks, kv_heads, block_tokens].
        """
        self._flat[index].index_put_((slots,), state)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Overwrite blocks with zeros in every layer."""
        for block in blocks:
            self._state[:, :, block].zero_()

    def is_clear(self, blocks: Sequence[int]) -> bool:
        """Whether the blocks hold only zeros, in every layer."""
        return not self._state.index_select(2, torch.tensor(blocks, dtype=torch.int64)).any().item()
