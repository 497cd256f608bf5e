"""What an observer of the wire learns from sizes and times under each padding, and what hiding it costs."""

from typing import Final

from benchmarks.report import Row, verdict
from bulkhead.sealing import PaddingMode
from tests.simulator.observer import Leak, different_lengths, equal_lengths, measure

TOKENS: Final = 40
TOKEN_S: Final = 0.02
ROUNDS: Final = 8
LUCK: Final = 0.18  # three standard deviations of a blind guesser's share in 48 tries of six


async def rows() -> list[Row]:
    """Return a row for each padding, over six answers of one length and six of different lengths."""
    found = []
    populations = (
        ("one length", equal_lengths(tokens=TOKENS)),
        ("different lengths", different_lengths(tokens=TOKENS)),
    )
    for name, asks in populations:
        for mode in PaddingMode:
            leak, _ = await measure(asks, mode, rounds=ROUNDS, token_s=TOKEN_S)
            found.append(_row(name, mode, leak))
    return found


def _row(name: str, mode: PaddingMode, leak: Leak) -> Row:
    strict = mode is PaddingMode.STRICT
    return Row(
        f"six prompts told apart by the shape of traffic, answers of {name}, padding {mode.value}",
        f"{leak.accuracy:.2f} right (sizes alone {leak.by_size:.2f}, times alone {leak.by_time:.2f}); {leak.size:,.0f} "
        f"bytes, first text {leak.first_s * 1e3:.0f} ms, whole answer {leak.total_s * 1e3:,.0f} ms",
        f"chance {leak.chance:.2f}",
        f"chance (below {leak.chance + LUCK:.2f})" if strict else "",
        verdict(met=leak.accuracy < leak.chance + LUCK) if strict else "",
    )
