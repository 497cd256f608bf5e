"""What the shape of sealed traffic tells an observer of the network, under each padding (docs/threat-model.md)."""

import random

import pytest

from bulkhead.sealing import PaddingMode
from data_plane.session import response
from tests.simulator.classifiers import best_guess, size_features, time_features
from tests.simulator.observer import Leak, Trace, different_lengths, equal_lengths, measure

pytestmark = pytest.mark.alone  # times are what is measured

TICK_S = 0.05
TOKEN_S = 0.012
SLACK = 0.3  # four standard deviations of a blind guesser's luck in 30 tries


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strict answer takes 1.6 s for 16 ticks: here half of that, and tokens as much faster."""
    monkeypatch.setattr(response, "TICK_S", TICK_S)


def _total(trace: Trace) -> int:
    return sum(size for _, size in trace.down)


async def test_padding_hides_which_answer_of_equal_length_was_given() -> None:
    """Without padding the sizes give the answer away; buckets hide it from sizes, strict padding from times too."""
    leaks: dict[PaddingMode, Leak] = {}
    for mode in PaddingMode:
        leaks[mode], _ = await measure(equal_lengths(tokens=24), mode, rounds=5, token_s=TOKEN_S)
    off, default, strict = leaks.values()
    assert off.by_size > 0.6  # a busy machine puts tokens together: 0.8 of a quiet one's 1.0
    assert default.by_size < off.by_size - 0.2
    assert strict.by_size < strict.chance + 0.1
    assert strict.accuracy < strict.chance + SLACK
    assert off.size < default.size < strict.size


async def test_strict_padding_hides_the_lengths_of_prompt_and_answer() -> None:
    """Prompts and answers of any length within the same doubling are one sequence of sizes at fixed times."""
    leak, traces = await measure(different_lengths(tokens=24), PaddingMode.STRICT, rounds=5, token_s=TOKEN_S)
    sizes = {tuple(size for _, size in trace.down) for trace in traces if len(trace.down) == 16}
    assert len(sizes) <= 2  # an HTTP/2 setting may ride on a record
    assert sum(len(trace.down) == 16 for trace in traces) > 0.8 * len(traces)
    assert leak.by_size < leak.chance + SLACK
    assert leak.accuracy < leak.chance + SLACK
    assert max(map(_total, traces)) < 2.1 * min(map(_total, traces))


async def test_buckets_do_not_hide_lengths() -> None:
    """Default padding still tells answers of different lengths apart, as the threat model says."""
    leak, _ = await measure(different_lengths(tokens=24), PaddingMode.DEFAULT, rounds=4, token_s=TOKEN_S)
    assert leak.accuracy > 0.6


def test_the_observers_classifiers_learn() -> None:
    """Both find a difference of one record's size or one gap in noise, and nothing where there is nothing."""
    chosen = random.Random(3)

    def trace(told: int) -> Trace:
        sizes = [1_500 + chosen.randrange(3) * 100 + (500 * told if place == 2 else 0) for place in range(6)]
        moments = [0.1 * place + chosen.random() * 0.02 + (0.05 * told if place > 3 else 0.0) for place in range(6)]
        return Trace(told, ((0.0, 900),), tuple(zip(moments, sizes, strict=True)), 0.1, 0.6)

    asked = [number % 3 for number in range(120)]
    telling, silent = [trace(told) for told in asked], [trace(0) for _ in asked]
    for features in (size_features, time_features):
        for guess in best_guess([features(item) for item in telling], asked):
            assert guess.accuracy > 0.7, guess
        for guess in best_guess([features(item) for item in silent], asked):
            assert guess.accuracy < 0.55, guess
