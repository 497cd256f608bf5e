"""Chooses the next token of each row from its logits. Every request draws from a stream of its own."""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bulkhead.errors import BulkheadError, InternalError, InvalidRequestError
from bulkhead.protocol.payloads import TokenLogprob
from data_plane.engine.edits import Edit
from data_plane.inference.sampling_params import SamplingParams

__all__ = ["Choice", "Sampler", "choose", "likeliest", "logprobs_of"]

_STRETCH = 256  # tokens of a row that are searched place by place


@dataclass(frozen=True, slots=True)
class Choice:
    """What came out of one row: a token, with log probabilities if asked for; or why its request ends.

    The texts of log probabilities are empty: whoever has a tokenizer fills them in.
    """

    token: int
    logprobs: TokenLogprob | None = None
    error: BulkheadError | None = None


class Sampler:
    """One request's choices: parameters, edits with their memory, and a random stream that nothing else draws from.

    Args:
        params: what is asked for.
        edits: in order; a grammar is the last.
    """

    def __init__(self, params: SamplingParams, edits: Sequence[Edit] = ()) -> None:
        self.params = params
        self.edits = tuple(edits)
        self.prompt: list[TokenLogprob] = []  # of the prompt's tokens from the second on
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._stream = random.Random(seed)  # noqa: S311 - repeatable sampling, not a secret

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token of the model is taken as it is: such tokens can be guessed and checked."""
        return self.params.temperature == 0.0 and not self.edits and self.params.logprobs is None

    def observe(self, logits: torch.Tensor, tokens: Sequence[int], *, place: int) -> None:
        """Note log probabilities of prompt tokens from ``place`` on; those of a preempted prompt are known already."""
        known = 1 + len(self.prompt) - place
        if known < len(tokens):
            count = self.params.prompt_logprobs or 0
            self.prompt += logprobs_of(logits[max(0, known) :], tokens[max(0, known) :], count=count)

    def choose(self, row: torch.Tensor) -> Choice:
        """Return the choice from one row of logits [vocabulary] (fp32), which it changes, and remember it."""
        raw = row.clone() if self.params.logprobs is not None and self.edits else row
        try:
            for edit in self.edits:
                edit.apply(row)
            token = self._pick(row)
            for edit in self.edits:
                edit.accept(token)
        except BulkheadError as error:
            return Choice(token=-1, error=error)
        if self.params.logprobs is None:
            return Choice(token)
        return Choice(token, logprobs_of(raw[None], [token], count=self.params.logprobs)[0])

    def _pick(self, row: torch.Tensor) -> int:
        if not bool(row.amax().isfinite()):
            raise InvalidRequestError("no token is left to choose from: what the request forbids leaves none")
        return self.draw(row) if self.params.temperature > 0.0 else int(likeliest(row[None])[1])

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token drawn from one row of logits [vocabulary] (fp32): temperature, min-p, top-k, top-p.

        Consumes one number of the stream per call, whatever the parameters.
        """
        params = self.params
        point = self._stream.random()
        # Below the highest, else a tiny temperature overflows.
        scaled = (logits.double() - logits.max()).div_(params.temperature)
        tokens: torch.Tensor | None = None
        if params.min_p > 0.0:
            # In logarithms: a probability of at least min_p times the highest, whatever their sum is.
            tokens = (scaled >= torch.tensor(params.min_p, dtype=torch.float64).log()).nonzero()[:, 0]
            scaled = scaled[tokens]
        if 0 < params.top_k < len(scaled):
            scaled, kept = scaled.topk(params.top_k)
            tokens = kept if tokens is None else tokens[kept]
        weights = torch.softmax(scaled, dim=-1)
        if params.top_p < 1.0:
            weights, kept = _nucleus(weights, params.top_p)
            tokens = kept if tokens is None else tokens[kept]
        cumulative = weights.cumsum(0)
        place = int(torch.searchsorted(cumulative, point * cumulative[-1].item(), right=True))
        place = min(place, len(cumulative) - 1)
        return place if tokens is None else int(tokens[place])


def _nucleus(weights: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fewest highest weights that reach ``top_p`` together, highest first, and their places.

    What lies below half its share of the rest is less than the rest together: only what is left, mostly little, is
    sorted. (Half, so that rounding leaves something of weights that are all alike.)
    """
    places = (weights >= (1.0 - top_p) / (2 * len(weights))).nonzero()[:, 0]
    ordered, order = weights[places].sort(descending=True, stable=True)
    count = int((ordered.cumsum(0) < top_p).sum()) + 1
    return ordered[:count], places[order[:count]]


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """Return one choice for each row of ``logits`` [rows, vocabulary]; rows of requests that edit are changed.

    A row that is not of numbers (damaged weights, arithmetic that overflowed on this prompt) is its request's error.
    """
    highest, tokens = likeliest(logits)
    finite: list[bool] = highest.isfinite().tolist()
    greedy: list[int] = tokens.tolist()
    return [
        (Choice(token) if sampler.greedy else sampler.choose(logits[row]))
        if finite[row]
        else Choice(token=-1, error=InternalError("the model produced logits that are not finite"))
        for row, (token, sampler) in enumerate(zip(greedy, samplers, strict=True))
    ]


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest value of each row [rows, vocabulary] and its token; the first of several.

    Torch searches a row for its highest place by place, but finds the highest value alone by vectors: so first the
    highest of each stretch, then the place within the first stretch that has the highest of all.
    """
    vocabulary = logits.shape[-1]
    whole = vocabulary - vocabulary % _STRETCH
    peaks = logits[:, :whole].view(len(logits), whole // _STRETCH, _STRETCH).amax(-1)
    if whole < vocabulary:
        peaks = torch.cat((peaks, logits[:, whole:].amax(-1, keepdim=True)), dim=-1)
    highest, stretch = peaks.max(dim=-1)
    places = (stretch[:, None] * _STRETCH + torch.arange(_STRETCH)).clamp_(max=vocabulary - 1)
    return highest, places.gather(1, logits.gather(1, places).argmax(-1, keepdim=True))[:, 0]


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], *, count: int) -> list[TokenLogprob]:
    """Return the log probability of one token a row, its rank from 1, and the ``count`` likeliest of the row."""
    values = torch.log_softmax(logits.float(), dim=-1)
    chosen = values.gather(1, torch.tensor(tokens)[:, None])
    ranks = (values > chosen).sum(-1) + 1
    top = values.topk(count, dim=-1)
    rows = zip(tokens, chosen[:, 0].tolist(), ranks.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenLogprob(
            token_id=token,
            text="",
            logprob=own,
            rank=rank,
            top=tuple((likely, "", value) for likely, value in zip(ids, tops, strict=True)),
        )
        for token, own, rank, ids, tops in rows
    ]
