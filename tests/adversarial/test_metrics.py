"""What whoever watches a partition's metrics may learn, and who may watch."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from data_plane.rpc.metrics_server import MAX_CONNECTIONS, MetricsServer, fetch_metrics, metrics_token
from data_plane.session.observing import MIN_ANSWERED, PERIOD_S, Observation


def test_no_difference_of_two_snapshots_speaks_of_few_requests() -> None:
    """Whenever asked, over random arrivals, snapshots are apart by the period and by that many answered requests."""
    rng = random.Random(5)
    for _ in range(20):
        observation, now_s, answered = Observation(now_s=100.0), 100.0, 0
        given = [(now_s, answered)]
        for _ in range(2_000):
            now_s += rng.choice((0.0, 0.01, 1.0, 5.0))
            answered += rng.choice((0, 0, 1, 3))
            if observation.due(now_s=now_s, answered=answered):
                given.append((now_s, answered))
        assert len(given) > 3
        for (then_s, before), (later_s, after) in itertools.pairwise(given):
            assert later_s - then_s >= PERIOD_S
            assert after - before >= MIN_ANSWERED


def test_an_idle_worker_tells_nothing_however_long_it_is_watched() -> None:
    """Time alone never lets a snapshot out: one request after a quiet day is not shown by itself."""
    observation = Observation(now_s=0.0)
    assert not observation.due(now_s=86_400.0, answered=1)
    assert not observation.due(now_s=10 * 86_400.0, answered=MIN_ANSWERED - 1)
    assert observation.due(now_s=10 * 86_400.0, answered=MIN_ANSWERED)
    assert not observation.due(now_s=20 * 86_400.0, answered=MIN_ANSWERED)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(render=lambda: b"bulkhead:x 1\n", token=metrics_token(directory))
    await server.start(host="127.0.0.1", port=0, directory=directory)
    try:
        yield server
    finally:
        await server.aclose()


async def ask(server: MetricsServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def served(server: MetricsServer, request: bytes) -> bytes:
    """Return the answer, empty from a server that cuts the connection."""
    try:
        return await ask(server, request)
    except ConnectionError:
        return b""


async def test_metrics_are_for_who_has_the_token(tmp_path: Path) -> None:
    """With the token the text comes; without, with another, twice, elsewhere or otherwise: a status and nothing."""
    async with serving(tmp_path) as server:
        assert await asyncio.to_thread(fetch_metrics, tmp_path) == "bulkhead:x 1\n"
        token = metrics_token(tmp_path).decode()
        good = f"Authorization: Bearer {token}\r\n"
        for first, fields, status in (
            ("GET /metrics HTTP/1.1", good, b"200"),
            ("GET /metrics?x=1 HTTP/1.1", good.lower().replace(token.lower(), token), b"200"),
            ("GET /metrics HTTP/1.1", "", b"401"),
            ("GET /metrics HTTP/1.1", good.replace(token, token[:-1]), b"401"),
            ("GET /metrics HTTP/1.1", good.replace(token, token.swapcase()), b"401"),
            ("GET /metrics HTTP/1.1", good * 2, b"401"),
            ("POST /metrics HTTP/1.1", good, b"405"),
            ("GET /other HTTP/1.1", good, b"404"),
            ("GET /metrics HTTP/1.1", f"x: {'y' * 9_000}\r\n", b"431"),
        ):
            answer = await ask(server, f"{first}\r\nHost: localhost\r\n{fields}\r\n".encode())
            assert answer.split(b" ")[1] == status
            assert (b"bulkhead:" in answer) is (status == b"200")
    assert (tmp_path / "metrics.token").stat().st_mode & 0o777 == 0o600


async def test_more_than_a_few_connections_are_turned_away(tmp_path: Path) -> None:
    """While as many as may be are open and say nothing, the next is cut; when they are gone one is served."""
    async with serving(tmp_path) as server:
        request = f"GET /metrics HTTP/1.1\r\nAuthorization: Bearer {metrics_token(tmp_path).decode()}\r\n\r\n".encode()
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
        assert await served(server, request) == b""
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        for _ in range(1_000):  # the server hears of it in its own time
            if answer := await served(server, request):
                break
        assert answer.split(b" ")[1] == b"200"


async def test_a_connection_that_says_nothing_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends half a request does not hold its place for ever."""
    monkeypatch.setattr("data_plane.rpc.metrics_server.TIMEOUT_S", 0.05)
    async with serving(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
