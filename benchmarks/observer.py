"""What an observer who learns from many traces makes of sealed traffic, under each padding (docs/threat-model.md).

``benchmarks/shape.py`` asks a simple one (the nearest of a few traces); this one has sixty traces of each prompt,
knows their sizes and times in many forms, and picks the best of eight classifiers (:mod:`tests.simulator.classifiers`).
"""

from typing import Final

from benchmarks.report import Row, verdict
from bulkhead.sealing import PaddingMode
from tests.simulator.classifiers import Guesser, best_guess, size_features, time_features
from tests.simulator.observer import Trace, different_lengths, equal_lengths, measure

TOKENS: Final = 40
TOKEN_S: Final = 0.02
ROUNDS: Final = 60
CONNECTIONS: Final = 15
CHANCE: Final = 1 / 6
LUCK: Final = 0.09  # three standard deviations of a blind guesser in 360 tries, and the best of eight


async def rows() -> list[Row]:
    """Return a row for each padding, over six answers of one length and six of different lengths."""
    found = []
    for name, asks in (
        ("one length", equal_lengths(tokens=TOKENS)),
        ("different lengths", different_lengths(tokens=TOKENS)),
    ):
        for mode in PaddingMode:
            _, traces = await measure(asks, mode, rounds=ROUNDS, token_s=TOKEN_S, connections=CONNECTIONS)
            found.append(_row(name, mode, traces))
    return found


def _row(name: str, mode: PaddingMode, traces: list[Trace]) -> Row:
    asked = [trace.ask for trace in traces]
    sizes, times = ([features(trace) for trace in traces] for features in (size_features, time_features))
    both = best_guess([[*a, *b] for a, b in zip(sizes, times, strict=True)], asked)
    by_size, by_time = max(best_guess(sizes, asked), key=_right), max(best_guess(times, asked), key=_right)
    most = max((*both, by_size, by_time), key=_right)
    strict = mode is PaddingMode.STRICT
    return Row(
        f"six prompts told apart by an observer with {ROUNDS} traces of each, answers of {name}, padding {mode.value}",
        f"{most.accuracy:.2f} right ({most.name}); nearest {both[0].accuracy:.2f}, logistic {both[1].accuracy:.2f}; "
        f"sizes alone {by_size.accuracy:.2f}, times alone {by_time.accuracy:.2f}",
        f"chance {CHANCE:.2f}, {len(traces)} traces",
        f"chance (below {CHANCE + LUCK:.2f})" if strict else "",
        verdict(met=most.accuracy < CHANCE + LUCK) if strict else "",
    )


def _right(guesser: Guesser) -> float:
    return float(guesser.accuracy)
