"""How an engine is set up. Torch-free, so a worker's configuration may hold one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from bulkhead.errors import ConfigError
from bulkhead.models import DirectorySource, ModelSource

__all__ = ["EngineConfig", "WeightFormat"]

WeightFormat: TypeAlias = Literal["fp32", "bf16", "int8"]

MAX_THREADS: Final = 1024
MAX_RUNNING: Final = 4096  # rows of one decode step; above it a step's logits alone are gigabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and formats of the native engine.

    Attributes:
        model_path: a Hugging Face model directory (config.json, *.safetensors, tokenizer.json).
        threads: intra-operation threads: cores / active partitions of the machine.
        weights: ``fp32`` gives the exact answers of the model; ``bf16`` rounds weights and, where ``max_running`` lets
            more than a few requests run, the activations that meet them: see :mod:`.linear`.
        kv_memory_mib: memory for attention state; committed as it is first used.
        block_tokens: tokens per block of attention state.
        max_running: requests in one batch.
        max_waiting: requests queued beyond that; one more gets QueueFullError.
        step_tokens: most tokens computed in one step; long prompts are cut into chunks of at most this.
        guess_tokens: most tokens guessed ahead for one request in one step (prompt lookup): greedy answers stay what
            they are, and texts that repeat their prompt come faster; 0 guesses nothing.
        guess_running: nothing is guessed while more requests run.
        forms_at_load: read the vocabulary for structured output while loading, which takes time and memory: see
            :mod:`.grammar`; else the first request in a form pays, and every stream waits for it.
        max_context_tokens: lowers the model's own context length; None keeps it.
        source: where the model's files come from, closed by the caller; None reads the directory ``model_path``.

    Raises:
        ConfigError: a value outside its range.
    """

    model_path: Path
    threads: int
    weights: WeightFormat = "fp32"
    kv_memory_mib: int = 1024
    block_tokens: int = 32
    max_running: int = 64
    max_waiting: int = 256
    step_tokens: int = 512
    guess_tokens: int = 0
    guess_running: int = 2
    forms_at_load: bool = False
    max_context_tokens: int | None = None
    source: ModelSource | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("threads", 1, MAX_THREADS),
            ("kv_memory_mib", 1, 2**24),
            ("block_tokens", 1, 1024),
            ("max_running", 1, MAX_RUNNING),
            ("max_waiting", 0, 2**20),
            ("step_tokens", 1, 2**20),
            ("guess_tokens", 0, 64),
            ("guess_running", 1, MAX_RUNNING),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"engine.{name} is between {low} and {high}, not {value}")
        if self.weights not in {"fp32", "bf16", "int8"}:
            raise ConfigError(f"engine.weights is fp32, bf16 or int8, not {self.weights}")
        if self.step_tokens < self.max_running:
            raise ConfigError("engine.step_tokens is at least engine.max_running: each running request needs a row")
        if self.max_context_tokens is not None and self.max_context_tokens < 2:
            raise ConfigError("engine.max_context_tokens is at least 2: one token of prompt, one of answer")

    @contextmanager
    def open_model(self) -> Iterator[ModelSource]:
        """Give the model's files for the time of loading.

        Raises:
            InvalidRequestError: ``model_path`` is no model directory.
        """
        if self.source is not None:
            yield self.source
            return
        with DirectorySource(self.model_path) as source:
            yield source
