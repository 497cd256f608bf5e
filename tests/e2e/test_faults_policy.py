"""The policy engine fails under a running platform: what was allowed goes on, nothing new begins, and it comes back."""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from bulkhead.client import AsyncBulkhead
from bulkhead.client.session import AsyncSession
from bulkhead.errors import PolicyEngineError
from scripts.local_platform import LocalPlatform
from tests.simulator.live import cli, client, decisions, opa_pid, partitions, refusal, wait_until, workers

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

ANSWER_S = 2.0  # a caller hears of a dead engine within this
BACK_S = 5.0  # the engine serves again within this


@contextmanager
def opa_down(platform: LocalPlatform) -> Iterator[None]:
    """Kill OPA, and each one that is started in its place, until the block ends."""
    over = threading.Event()

    def kill_on() -> None:
        while not over.wait(0.01):
            pid = opa_pid(platform)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)

    first = opa_pid(platform)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    killer = threading.Thread(target=kill_on)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@asynccontextmanager
async def open_session(platform: LocalPlatform) -> AsyncIterator[tuple[AsyncBulkhead, AsyncSession]]:
    """Open a session with a client that repeats nothing."""
    async with client(platform) as opened, opened.open_session() as session:
        yield opened, session


async def opens_again(opened: AsyncBulkhead) -> float:
    """Return after how many seconds an open succeeds; until then each refusal is quick and names the engine."""
    began = time.monotonic()
    while time.monotonic() - began < BACK_S:
        attempt = time.monotonic()
        try:
            async with opened.open_session():
                return time.monotonic() - began
        except PolicyEngineError:
            assert time.monotonic() - attempt < ANSWER_S
            await asyncio.sleep(0.02)
    raise AssertionError(f"no session was opened within {BACK_S} s")


async def stream_until(session: AsyncSession, over: asyncio.Event, begun: asyncio.Event) -> tuple[int, list[float]]:
    """Stream answers one after the other until told; return how many were whole, and when their parts came.

    There are two at least: one that began before, and one that began after it.
    """
    whole, came = 0, []
    while not over.is_set() or whole < 2:
        generation = session.generate("Tell me about the sea.", max_tokens=200)
        async for _ in generation:
            came.append(time.monotonic())
            begun.set()
        assert generation.receipt.status == "ok"  # raises unless the answer is whole, with its receipt
        whole += 1
    return whole, came


async def test_an_open_session_streams_on_while_opa_is_down(platform: LocalPlatform) -> None:
    """OPA killed, and kept dead for two seconds: the session streams on, every open is refused, and OPA comes back.

    Each open is UNAVAILABLE POLICY_ENGINE within 2 s and places nothing; within 5 s of the last kill opens succeed.
    """
    async with open_session(platform) as (opened, session):
        placed, serving = partitions(platform), workers(platform)
        over, begun = asyncio.Event(), asyncio.Event()
        streaming = asyncio.create_task(stream_until(session, over, begun))
        await asyncio.wait_for(begun.wait(), 20)
        refused = []
        with opa_down(platform):
            down = time.monotonic()
            while time.monotonic() - down < 2.0:
                refused.append(await refusal(opened.open_session(tier="gpu")))  # would need a partition of its own
                await asyncio.sleep(0.05)
            up = time.monotonic()
        back_s = await opens_again(opened)
        over.set()
        whole, came = await asyncio.wait_for(streaming, 60)
    assert {error.code for error, _ in refused} == {"POLICY_ENGINE"}
    assert max(seconds for _, seconds in refused) < ANSWER_S
    assert back_s < BACK_S
    during = [moment for moment in came if down <= moment <= up]
    assert whole >= 2
    assert len(during) > 10
    assert max(later - earlier for earlier, later in itertools.pairwise(during)) < ANSWER_S
    assert (partitions(platform), workers(platform)) == (placed, serving)
    assert any(record["decision"] == "error" and "POLICY_ENGINE" in str(record) for record in decisions(platform)), (
        "the first refusals of a minute are recorded one by one"
    )


async def test_opa_killed_once_is_back_in_seconds(platform: LocalPlatform) -> None:
    """One SIGKILL: another process serves within 5 s, and a session opens."""
    async with client(platform) as opened:
        async with opened.open_session():
            pass
        pid = opa_pid(platform)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await opens_again(opened) < BACK_S
    assert opa_pid(platform) not in {None, pid}


async def test_an_opa_that_hangs_is_replaced(platform: LocalPlatform) -> None:
    """OPA stopped (SIGSTOP): opens get UNAVAILABLE POLICY_ENGINE within 2 s, and another process serves within 5 s."""
    async with client(platform) as opened:
        async with opened.open_session():
            pass
        placed, pid = partitions(platform), opa_pid(platform)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            hung = await asyncio.gather(*(refusal(opened.open_session(tier="gpu")) for _ in range(20)))
            back_s = await opens_again(opened)
        finally:
            if opa_pid(platform) == pid:
                os.kill(pid, signal.SIGCONT)
    assert {error.code for error, _ in hung} == {"POLICY_ENGINE"}
    assert max(seconds for _, seconds in hung) < ANSWER_S
    assert back_s < BACK_S
    assert opa_pid(platform) != pid
    assert partitions(platform) == placed


def test_the_command_says_in_one_line_that_policy_is_down(platform: LocalPlatform) -> None:
    """`bulkhead chat` while OPA is down: exit code 1, the code, what to do, and no stack trace."""
    with opa_down(platform):
        done = cli(platform, "acme", "bulkhead", "chat", "hello")
    assert done.returncode == 1
    assert done.stdout == ""
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error POLICY_ENGINE: ")
    assert line.endswith("try again in a few seconds.")

    def answers() -> bool:
        return cli(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "4").returncode == 0

    wait_until(answers, timeout_s=BACK_S + 5, what="policy decides again")
