"""The model with its memory: loads a model directory, computes steps, and overwrites everything at the end."""

from collections.abc import Sequence as Sequences
from functools import partial
from itertools import islice

import torch

from bulkhead.errors import ConfigError
from bulkhead.models import ModelSource
from data_plane.engine.batch import Cut, make_batch
from data_plane.engine.blocks import BlockPool
from data_plane.engine.cache import KvCache, bytes_per_block
from data_plane.engine.config import EngineConfig
from data_plane.engine.decoder import Decoder
from data_plane.engine.generation import read_defaults
from data_plane.engine.linear import make_linear
from data_plane.engine.memory import overwriting_what_is_freed, returning_what_is_freed
from data_plane.engine.sampling import Choice, Sampler, choose
from data_plane.engine.scheduler import Chunk, Scheduler
from data_plane.engine.spec import DecoderSpec, read_spec
from data_plane.engine.weights import open_weights
from data_plane.inference.port import ModelDescription

__all__ = ["ModelRunner"]


class ModelRunner:
    """Computes steps of one model.

    Args:
        config: limits and formats.
        source: the model's files (untrusted); not kept.

    Raises:
        UnsupportedError, InvalidRequestError: as :func:`read_spec` and :func:`open_weights`.
        SealedModelError: as :meth:`ModelSource.read_into`.
        ConfigError: the memory for attention state holds no context at all.
    """

    def __init__(self, config: EngineConfig, source: ModelSource) -> None:
        self.spec = read_spec(source)
        block_tokens = config.block_tokens
        blocks, context = _plan_memory(config, self.spec)
        with torch.inference_mode(), returning_what_is_freed(), overwriting_what_is_freed():
            make = partial(make_linear, weights=config.weights, rows=config.max_running)
            self._decoder = Decoder(spec=self.spec, source=open_weights(source), make=make)
            self._cache = KvCache(spec=self.spec, blocks=blocks, block_tokens=block_tokens)
        self._cut = Cut(
            blocks=blocks,
            block_tokens=block_tokens,
            heads=self.spec.heads,
            kv_heads=self.spec.kv_heads,
            window=self.spec.window,
        )
        self.pool = BlockPool(total=blocks, scrub=self._cache.scrub)
        self.scheduler = Scheduler(
            pool=self.pool,
            block_tokens=block_tokens,
            max_running=config.max_running,
            step_tokens=config.step_tokens,
            guess_tokens=config.guess_tokens,
            guess_running=config.guess_running,
        )
        self.description = ModelDescription(
            name=source.name,
            architecture=self.spec.architecture,
            context_tokens=context,
            weight_bytes=self._decoder.weight_bytes,
            vocabulary=self.spec.vocabulary,
            compute="fp32",
            weights=config.weights,
            defaults=read_defaults(source),
        )

    def step(self, chunks: Sequences[Chunk], samplers: Sequences[Sampler]) -> list[list[Choice]]:
        """Compute ``chunks``; return the choices of each: none if it does not sample, several if guesses are right.

        ``samplers`` are those of the chunks, in the same order. Runs under ``torch.inference_mode``.
        """
        logits, told = self.logits(chunks)
        by_chunk = dict(zip(map(id, chunks), samplers, strict=True))
        if any(chunk.prompt_rows for chunk in told):
            logits = _observed(logits, told, by_chunk)
        sampled = [chunk for chunk in told if chunk.samples]
        if not sampled:
            return [[] for _ in chunks]
        chosen = iter(choose(logits, [by_chunk[id(chunk)] for chunk in sampled for _ in range(1 + len(chunk.guesses))]))
        choices = {id(chunk): _confirmed(chunk, list(islice(chosen, 1 + len(chunk.guesses)))) for chunk in sampled}
        return [choices.get(id(chunk), []) for chunk in chunks]

    def logits(self, chunks: Sequences[Chunk]) -> tuple[torch.Tensor, list[Chunk]]:
        """Compute ``chunks``; return logits [rows, vocabulary], and the chunks that they belong to in order."""
        batch, sampled = make_batch(chunks, self._cut)
        return self._decoder.logits(batch, self._cache), sampled

    def erase(self) -> None:
        """Overwrite and release the weights and the memory for attention state, whose blocks were all given back.

        The runner is of no use afterwards. Runs under ``torch.inference_mode``.
        """
        self.pool.forget()
        with overwriting_what_is_freed():
            self._decoder.erase()
        del self._decoder, self._cache, self.pool, self.scheduler


def _observed(logits: torch.Tensor, chunks: Sequences[Chunk], samplers: dict[int, Sampler]) -> torch.Tensor:
    """Show samplers the logits of their prompts; return the rows that tokens are chosen from."""
    chosen: list[torch.Tensor] = []
    at = 0
    for chunk in chunks:
        place, rows = chunk.start + 1, chunk.prompt_rows
        if rows:
            tokens = chunk.sequence.tokens[place : place + rows]
            samplers[id(chunk)].observe(logits[at : at + rows], tokens, place=place)
        at += rows
        if chunk.samples:
            chosen.append(logits[at : at + 1 + len(chunk.guesses)])
            at += 1 + len(chunk.guesses)
    return torch.cat(chosen) if chosen else logits[:0]


def _confirmed(chunk: Chunk, choices: list[Choice]) -> list[Choice]:
    """Return the choices up to the first that differs from its guess: what follows was computed after a wrong token."""
    right = 0
    while right < len(chunk.guesses) and choices[right].token == chunk.guesses[right]:
        right += 1
    return choices[: right + 1]


def _plan_memory(config: EngineConfig, spec: DecoderSpec) -> tuple[int, int]:
    """Return the number of blocks and the context in tokens that they are to hold."""
    blocks = (config.kv_memory_mib << 20) // bytes_per_block(spec, config.block_tokens)
    context = min(spec.context, config.max_context_tokens or spec.context, blocks * config.block_tokens)
    if context < 2:
        raise ConfigError("engine.kv_memory_mib is too small for any context of this model")
    most = config.max_running * -(-context // config.block_tokens)
    return min(blocks, most), context
