"""Classifiers that learn which prompt was asked from the sizes and times of its traffic: k nearest, and logistic.

Both are judged on traces that they have not learnt from (five folds), and the observer keeps whichever does best, for
each number of neighbours and strength of regularisation: that favours him a little, which is the side to err on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Guesser", "Shape", "best_guess", "size_features", "time_features"]

FOLDS: Final = 5
NEIGHBOURS: Final = (1, 3, 7, 15, 31)
DECAYS: Final = (1e-2, 1e-1, 1.0)  # of the squared weights, per trace
STEPS: Final = 200
PLACES: Final = 64  # the first so many records count one by one
BIN_BYTES: Final = 256
BINS: Final = 80  # up to a record of TLS

Table: TypeAlias = npt.NDArray[Any]


class Shape(Protocol):
    """A trace: (time in seconds, bytes) of each record, either way."""

    @property
    def up(self) -> tuple[tuple[float, int], ...]:
        """Of the request."""
        ...

    @property
    def down(self) -> tuple[tuple[float, int], ...]:
        """Of the response."""
        ...


@dataclass(frozen=True, slots=True)
class Guesser:
    """The best classifier of a kind, and its share of right guesses on traces that it did not learn from."""

    name: str
    accuracy: float


def size_features(trace: Shape) -> list[float]:
    """Return sums, counts, the sizes one by one and added up, and how many records there are of each size."""
    up, down = ([float(size) for _, size in way] for way in (trace.up, trace.down))
    counts = np.bincount([min(int(size) // BIN_BYTES, BINS - 1) for size in down], minlength=BINS)
    return [sum(up), float(len(up)), sum(down), float(len(down)), *_placed(down), *_placed(accumulate(down)), *counts]


def time_features(trace: Shape) -> list[float]:
    """Return the wait for the first record, the whole time, the gaps one by one, their order, and the times."""
    moments = [at_s for at_s, _ in trace.down] or [0.0]
    began = trace.up[0][0] if trace.up else moments[0]
    gaps = [after - before for before, after in pairwise(moments)] or [0.0]
    spread = [min(gaps), max(gaps), sum(gaps) / len(gaps), float(np.std(gaps))]
    return [moments[0] - began, moments[-1] - began, *spread, *_placed(gaps), *_placed(at - began for at in moments)]


def best_guess(features: Sequence[Sequence[float]], asked: Sequence[int], *, seed: int = 11) -> tuple[Guesser, Guesser]:
    """Return the best nearest-neighbours and the best logistic classifier.

    Args:
        features: of each trace.
        asked: which prompt each trace is of, from 0.
        seed: of the folds.
    """
    table, labels = np.asarray(features, dtype=float), np.asarray(asked)
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    folds = [np.array(order[start::FOLDS]) for start in range(FOLDS)]
    nearest = [Guesser(f"{k} nearest", _judge(table, labels, folds, _Nearest(k))) for k in NEIGHBOURS]
    logistic = [Guesser(f"logistic, {decay:g}", _judge(table, labels, folds, _Logistic(decay))) for decay in DECAYS]
    return max(nearest, key=lambda guess: guess.accuracy), max(logistic, key=lambda guess: guess.accuracy)


class _Classifier(Protocol):
    def guess(self, known: Table, labels: Table, asked: Table) -> Table:
        """Learn from ``known`` and return a label for each row of ``asked``."""
        ...


@dataclass(frozen=True)
class _Nearest:
    neighbours: int

    def guess(self, known: Table, labels: Table, asked: Table) -> Table:
        """Return the label of most of the nearest known rows."""
        distance = (known**2).sum(axis=1)[None, :] - 2.0 * asked @ known.T  # less the asked row's own square
        nearest = labels[np.argsort(distance, axis=1)[:, : self.neighbours]]
        votes = (nearest[:, :, None] == np.arange(labels.max() + 1)).sum(axis=1)
        return np.asarray(votes.argmax(axis=1))


@dataclass(frozen=True)
class _Logistic:
    decay: float

    def guess(self, known: Table, labels: Table, asked: Table) -> Table:
        """Fit a softmax by gradient descent with momentum, and return its likeliest labels."""
        wanted = np.eye(labels.max() + 1)[labels]
        known, asked = (np.hstack((rows, np.ones((len(rows), 1)))) for rows in (known, asked))
        weights = np.zeros((known.shape[1], wanted.shape[1]))
        speed = np.zeros_like(weights)
        rate = 1.0 / (0.5 * (known**2).sum(axis=1).mean() + self.decay)  # bound of the loss's curvature
        for _ in range(STEPS):
            scores = known @ weights
            likely = np.exp(scores - scores.max(axis=1, keepdims=True))
            likely /= likely.sum(axis=1, keepdims=True)
            slope = known.T @ (likely - wanted) / len(known) + self.decay * weights
            speed = 0.9 * speed - rate * slope
            weights += speed
        return np.asarray((asked @ weights).argmax(axis=1))


def _judge(table: Table, labels: Table, folds: Sequence[Table], classifier: _Classifier) -> float:
    right = 0
    for place, held in enumerate(folds):
        known = np.concatenate([fold for other, fold in enumerate(folds) if other != place])
        mean, spread = table[known].mean(axis=0), table[known].std(axis=0)
        scaled = (table - mean) / np.where(spread > 0, spread, 1.0)
        right += int((classifier.guess(scaled[known], labels[known], scaled[held]) == labels[held]).sum())
    return right / len(labels)


def _placed(values: Any) -> list[float]:
    return ([float(value) for value in values] + [0.0] * PLACES)[:PLACES]
