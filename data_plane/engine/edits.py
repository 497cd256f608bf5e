"""What changes a row of logits before a token is chosen from it: penalties, bias, and tokens that are forbidden.

Each edit works in place on one row, fp32 [vocabulary], and costs what it changes, not the vocabulary. Their order is
that of :mod:`data_plane.inference.sampling_params`. State grows by the tokens that :meth:`Edit.accept` is told of, each
once, also across a preemption: the tokens of a preempted request are computed again, not chosen again.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import torch

from data_plane.inference.sampling_params import SamplingParams

__all__ = ["BadWords", "Bias", "Edit", "Minimum", "Penalties", "make_edits"]

FORBIDDEN: Final = float("-inf")
_GROWTH: Final = 256  # distinct tokens by which the table of penalties grows


class Edit(Protocol):
    """One change of a row of logits."""

    def apply(self, row: torch.Tensor) -> None:
        """Change ``row`` in place."""
        ...

    def accept(self, token: int, /) -> None:
        """Take note that ``token`` was chosen."""
        ...


class Penalties:
    """Repetition, frequency and presence penalties over a table of the distinct tokens so far."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._repetition = params.repetition_penalty
        self._frequency = params.frequency_penalty
        self._presence = params.presence_penalty
        seen = dict.fromkeys(prompt) if self._repetition != 1.0 else {}  # the only one that looks at the prompt
        self._places = {token: place for place, token in enumerate(seen)}
        self._tokens = torch.tensor([*seen, *[0] * _GROWTH])
        self._counts = torch.zeros(len(self._tokens))  # in the answer

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = torch.cat((self._tokens, torch.empty_like(self._tokens)))
            self._counts = torch.cat((self._counts, torch.zeros_like(self._counts)))
        self._tokens[place] = token
        return place

    def apply(self, row: torch.Tensor) -> None:
        """Change the logits of the tokens seen."""
        seen = len(self._places)
        if not seen:
            return
        tokens, counts = self._tokens[:seen], self._counts[:seen]
        values = row[tokens]
        if self._repetition != 1.0:
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        values -= counts * self._frequency + (counts > 0) * self._presence
        row[tokens] = values

    def accept(self, token: int) -> None:
        """Count a token of the answer."""
        self._counts[self._place(token)] += 1


class Bias:
    """Adds to the logits of given tokens."""

    def __init__(self, pairs: Sequence[tuple[int, float]]) -> None:
        self._tokens = torch.tensor([token for token, _ in pairs])
        self._values = torch.tensor([bias for _, bias in pairs], dtype=torch.float32)

    def apply(self, row: torch.Tensor) -> None:
        """Add."""
        row.index_add_(0, self._tokens, self._values)

    def accept(self, _: int, /) -> None:
        """Nothing: a bias has no memory."""


class Minimum:
    """Forbids what would end the answer until it has its least length."""

    def __init__(self, tokens: int, ending: Iterable[int]) -> None:
        self._left = tokens
        self._ending = torch.tensor(sorted(ending), dtype=torch.int64)

    def apply(self, row: torch.Tensor) -> None:
        """Forbid the ending tokens."""
        if self._left > 0:
            row[self._ending] = FORBIDDEN

    def accept(self, _: int, /) -> None:
        """Count a token of the answer."""
        self._left -= 1


class BadWords:
    """Forbids the token that would complete a forbidden sequence."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [tuple(word) for word in words if word]
        self._longest = max((len(word) for word in self._words), default=1)
        self._recent: list[int] = []

    def apply(self, row: torch.Tensor) -> None:
        """Forbid last tokens whose others have just been said."""
        for word in self._words:
            begun = len(word) - 1
            if begun == 0 or tuple(self._recent[-begun:]) == word[:-1]:
                row[word[-1]] = FORBIDDEN

    def accept(self, token: int) -> None:
        """Remember the last tokens."""
        self._recent = [*self._recent, token][-self._longest :]


def make_edits(
    params: SamplingParams,
    *,
    prompt: Sequence[int],
    bad_words: Sequence[Sequence[int]],
    ending: frozenset[int],
) -> tuple[Edit, ...]:
    """Return the edits that ``params`` ask for, in order; empty for most requests.

    Args:
        params: what is asked for.
        prompt: token ids of the prompt.
        bad_words: token sequences of ``params.bad_words``.
        ending: tokens that end an answer.
    """
    edits: list[Edit] = []
    if (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0):
        edits.append(Penalties(params, prompt))
    if params.logit_bias:
        edits.append(Bias(params.logit_bias))
    if bad_words:
        edits.append(BadWords(bad_words))
    if params.min_tokens:
        edits.append(Minimum(params.min_tokens, ending))
    return tuple(edits)
