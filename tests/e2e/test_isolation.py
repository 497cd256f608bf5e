"""Prompts of one scope and the time of another's: on the real engine, measured as a tenant would."""

import json
import random
from typing import Any

import pytest

from bulkhead.client import AsyncBulkhead, AsyncSession
from bulkhead.client.config import load_profile
from bulkhead.client.isolation import measure_isolation, rank_test
from bulkhead.errors import InvalidRequestError
from scripts.local_platform import LocalPlatform
from tests.simulator.live import cli

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SHARED = " ".join(["The patient's history, as every request of this ward begins with it:"] * 4)


def test_a_tenant_measures_that_scopes_are_apart(platform: LocalPlatform) -> None:
    """Another session's prompts take as long as new ones, p > 0.01, while one's own are told from them."""
    # At p > 0.01 one run in a hundred is a false alarm by chance, three in a row are one in a million. A state that is
    # shared fails every run: p_here shows by how much. What the worker itself says it reused is no matter of chance.
    for tries_left in (2, 1, 0):
        done = cli(platform, "acme", "bulkhead", "isolation-test", "--samples", "40", "--words", "60", "--json")
        report = json.loads(done.stdout)
        assert report["cached_elsewhere"] == 0
        if done.returncode == 0 or not tries_left:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert (report["isolated"], report["can_tell"], report["cached_elsewhere"]) == (True, True, 0)
    assert report["p_elsewhere"] > 0.01
    assert report["p_here"] < 0.01
    assert report["simulated"] is True


class Shared:
    """A session whose every prompt is asked with a salt: who names the same one shares its state."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def generate_text(self, prompt: str, *, max_tokens: int) -> object:
        """Ask with the salt."""
        return await self._session.generate_text(prompt, max_tokens=max_tokens, cache_salt="leak")


async def test_a_leak_between_scopes_is_seen(platform: LocalPlatform) -> None:
    """Where two sessions do share their prompts' state, the measurement says so, by time alone too."""
    profile = load_profile("acme", path=platform.client_config)
    async with AsyncBulkhead(profile=profile) as client, client.open_session() as one, client.open_session() as two:
        for tries_left in (2, 1, 0):  # by time, which a machine that is busy elsewhere may blur
            report = await measure_isolation(Shared(one), Shared(two), samples=40, words=60)  # type: ignore[arg-type]
            assert not report.isolated
            assert report.cached_elsewhere > 0
            if report.p_elsewhere < 0.01 or not tries_left:
                break
        assert report.p_elsewhere < 0.01
        assert report.asked_elsewhere_s < report.never_asked_s


async def test_state_is_shared_within_a_session_or_a_salt_only(platform: LocalPlatform) -> None:
    """A prompt's state is reused in its session, and by whoever names its salt; not by another session or salt."""
    profile = load_profile("acme", path=platform.client_config)
    async with AsyncBulkhead(profile=profile) as client, client.open_session() as one, client.open_session() as two:

        async def cached(session: object, **options: str) -> int:
            answer = await session.generate_text(SHARED, max_tokens=1, **options)  # type: ignore[attr-defined]
            return int(answer.cached_tokens)

        assert await cached(one) == 0
        assert await cached(one) > 0
        assert await cached(two) == 0
        assert await cached(one, cache_salt="ward") == 0
        assert await cached(two, cache_salt="ward") > 0
        assert await cached(two, cache_salt="wards") == 0


async def test_sessions_that_share_nothing_cannot_be_measured(platform: LocalPlatform) -> None:
    """One session with itself is no comparison, and too few samples prove nothing."""
    profile = load_profile("acme", path=platform.client_config)
    async with AsyncBulkhead(profile=profile) as client, client.open_session() as one, client.open_session() as two:
        with pytest.raises(InvalidRequestError, match="nothing to compare"):
            await measure_isolation(one, one, samples=10, words=20)
        with pytest.raises(InvalidRequestError, match="samples"):
            await measure_isolation(one, two, samples=9, words=20)


def test_the_rank_test_tells_what_differs_and_nothing_else() -> None:
    """Equal distributions are seldom told apart at 0.01, shifted ones always; ties and constants are no difference."""
    rng = random.Random(7)

    def drawn(mean: float) -> list[float]:
        return [rng.gauss(mean, 1) for _ in range(40)]

    assert sum(rank_test(drawn(0), drawn(0)) < 0.01 for _ in range(500)) < 15
    assert rank_test(drawn(0), drawn(2)) < 1e-6
    assert rank_test([1.0] * 20, [1.0] * 20) == 1.0
    # A textbook case: U = 3 of 5 and 5 has an exact two-sided p of 0.056, by the approximation 0.06.
    assert rank_test([1, 2, 3, 4, 8], [5, 6, 7, 9, 10]) == pytest.approx(0.06, abs=0.01)
