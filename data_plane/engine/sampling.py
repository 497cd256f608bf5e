"""Chooses the next token of each row from its logits. Every request draws from a stream of its own."""

import random
import secrets
from collections.abc import Sequence

import torch

from bulkhead.errors import InternalError
from data_plane.engine.port import SamplingParams

__all__ = ["Sampler", "choose"]

NUCLEUS_GUESS = 1024  # top-p is usually decided among so few tokens; else the whole vocabulary is sorted


class Sampler:
    """One request's choices: parameters and a random stream that nothing else draws from."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._stream = random.Random(seed)  # noqa: S311 - repeatable sampling, not a secret

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token drawn from one row of logits [vocabulary] (fp32): temperature, then top-k, then top-p.

        Consumes one number of the stream per call, whatever the parameters.
        """
        params = self.params
        point = self._stream.random()
        scaled = logits.double() / params.temperature
        tokens: torch.Tensor | None = None
        if 0 < params.top_k < len(scaled):
            scaled, tokens = scaled.topk(params.top_k)
        weights = torch.softmax(scaled, dim=-1)
        if params.top_p < 1.0:
            weights, kept = _nucleus(weights, params.top_p)
            tokens = kept if tokens is None else tokens[kept]
        cumulative = weights.cumsum(0)
        place = int(torch.searchsorted(cumulative, point * cumulative[-1].item(), right=True))
        place = min(place, len(cumulative) - 1)
        return place if tokens is None else int(tokens[place])


def _nucleus(weights: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fewest highest weights that reach ``top_p`` together, highest first, and their places."""
    ordered, places = weights.topk(min(NUCLEUS_GUESS, len(weights)))
    cumulative = ordered.cumsum(0)
    if cumulative[-1] < top_p:
        ordered, places = weights.sort(descending=True, stable=True)
        cumulative = ordered.cumsum(0)
    count = int((cumulative < top_p).sum()) + 1
    return ordered[:count], places[:count]


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Return one token for each row of ``logits`` [rows, vocabulary].

    Raises:
        InternalError: logits that are not numbers: damaged weights, or arithmetic that overflowed.
    """
    highest, greedy = logits.max(dim=-1)
    if not bool(highest.isfinite().all()):
        raise InternalError("the model produced logits that are not finite")
    tokens: list[int] = greedy.tolist()
    for row, sampler in enumerate(samplers):
        if sampler.params.temperature > 0.0:
            tokens[row] = sampler.draw(logits[row])
    return tokens
