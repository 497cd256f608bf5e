"""Whether one scope can tell by time what another has asked: measured on a running partition, by its own tenant.

A worker keeps the state of prompts, and a prompt whose state is kept answers sooner. State is shared within a session
or a salt only, so a prompt that *another* session has just asked must take as long as one that nobody ever asked. The
test asks both kinds in random order, from a session of its own, and compares the times to the first token by a
two-sided Mann-Whitney U test. A third kind, the prompt asked again in the *same* session, shows that the measurement
would see a shared state: without that, not finding a difference would mean nothing.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Final

from bulkhead.client.session import AsyncSession
from bulkhead.errors import InvalidRequestError

__all__ = ["IsolationReport", "measure_isolation", "rank_test"]

MIN_SAMPLES: Final = 10
MAX_SAMPLES: Final = 2_000
SIGNIFICANCE: Final = 0.01
_WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll")


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationReport:
    """What was measured; times are medians to the first token in seconds.

    Attributes:
        samples: of each kind.
        prompt_tokens: length of a prompt.
        never_asked_s: prompts that nobody asked before.
        asked_elsewhere_s: prompts that another session asked before.
        asked_here_s: prompts that this session asked before.
        p_elsewhere: chance of a difference as large as that of the first two, if there is none.
        p_here: the same of the first and the third.
        cached_elsewhere: tokens that the worker itself says it reused for prompts of other sessions.
        simulated: whether the worker is simulated.
    """

    samples: int
    prompt_tokens: int
    never_asked_s: float
    asked_elsewhere_s: float
    asked_here_s: float
    p_elsewhere: float
    p_here: float
    cached_elsewhere: int
    simulated: bool

    @property
    def can_tell(self) -> bool:
        """Whether the measurement sees a shared state where there is one."""
        return self.p_here < SIGNIFICANCE and self.asked_here_s < self.never_asked_s

    @property
    def isolated(self) -> bool:
        """Whether nothing of another scope was seen; only worth something if :attr:`can_tell`."""
        return self.p_elsewhere > SIGNIFICANCE and self.cached_elsewhere == 0


async def measure_isolation(
    mine: AsyncSession,
    other: AsyncSession,
    *,
    samples: int,
    words: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> IsolationReport:
    """Return a report on two sessions of one partition.

    Args:
        mine: the session that tries to find out.
        other: the session whose prompts it tries to find out about.
        samples: of each kind, 10 to 2,000.
        words: of a prompt; some hundreds make a kept state worth seeing.
        progress: called with samples done and their number.

    Raises:
        InvalidRequestError: too few or too many samples, or two sessions that do not share a worker.
        BulkheadError: a request failed.
    """
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise InvalidRequestError(f"between {MIN_SAMPLES} and {MAX_SAMPLES} samples")
    if mine.worker.descriptor.partition != other.worker.descriptor.partition or mine.session_id == other.session_id:
        raise InvalidRequestError("the two sessions are not two on one partition: there is nothing to compare")
    await _ask(mine, _prompt(words))  # connections, and memory that is first touched
    await _ask(other, _prompt(words))
    times: dict[str, list[float]] = {"never": [], "elsewhere": [], "here": []}
    cached_elsewhere = prompt_tokens = 0
    kinds = [kind for kind in times for _ in range(samples)]
    secrets.SystemRandom().shuffle(kinds)
    for done, kind in enumerate(kinds):
        prompt = _prompt(words)
        before = _prompt(words) if kind == "never" else prompt  # as much work just before, whatever the kind
        await _ask(mine if kind == "here" else other, before)
        seconds, prompt_tokens, cached = await _ask(mine, prompt)
        times[kind].append(seconds)
        cached_elsewhere += cached if kind == "elsewhere" else 0
        progress(done + 1, len(kinds))
    return IsolationReport(
        samples=samples,
        prompt_tokens=prompt_tokens,
        never_asked_s=median(times["never"]),
        asked_elsewhere_s=median(times["elsewhere"]),
        asked_here_s=median(times["here"]),
        p_elsewhere=rank_test(times["never"], times["elsewhere"]),
        p_here=rank_test(times["never"], times["here"]),
        cached_elsewhere=cached_elsewhere,
        simulated=mine.simulated,
    )


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney U test, by the normal approximation with ties and continuity.

    Source: Mann and Whitney, 1947; good from some ten samples each.
    """
    ordered = sorted([*((value, 0) for value in first), *((value, 1) for value in second)])
    ranks = ties = 0.0
    start = 0
    while start < len(ordered):
        stop = start
        while stop < len(ordered) and ordered[stop][0] == ordered[start][0]:
            stop += 1
        ranks += (start + stop + 1) / 2 * sum(1 for _, which in ordered[start:stop] if which == 0)
        ties += (stop - start) ** 3 - (stop - start)
        start = stop
    n, m, both = len(first), len(second), len(ordered)
    deviation = abs(ranks - n * (n + 1) / 2 - n * m / 2)
    variance = n * m / 12 * ((both + 1) - ties / (both * (both - 1)))
    if variance <= 0:
        return 1.0
    return min(1.0, 2 * (1 - NormalDist().cdf(max(0.0, deviation - 0.5) / math.sqrt(variance))))


def _prompt(words: int) -> str:
    return " ".join([secrets.token_hex(8), *(secrets.choice(_WORDS) for _ in range(words))])


async def _ask(session: AsyncSession, prompt: str) -> tuple[float, int, int]:
    """Return the time to the first token in seconds, the prompt's tokens, and those whose state was reused."""
    began = time.perf_counter()
    completion = await session.generate_text(prompt, max_tokens=1)
    return time.perf_counter() - began, completion.usage.prompt_tokens, completion.cached_tokens
