"""The tray's relay: routes by name, passes bytes and ends of file on, bounds strangers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from data_plane.ingress import Ingress, IngressLimits
from tests.unit.test_ingress_client_hello import hello, sni

QUICK = IngressLimits(hello_timeout_s=0.2, connect_timeout_s=0.2, stall_timeout_s=0.5, idle_timeout_s=5)


class Worker:
    """Echoes what it gets after the hello, and says goodbye at the end of file."""

    def __init__(self) -> None:
        self.received = b""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
            writer.write(b"bye")
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def relay(directory: Path, limits: IngressLimits = QUICK) -> AsyncIterator[tuple[Ingress, dict[str, Worker]]]:
    workers = {"a.example": Worker(), "b.example": Worker()}
    ingress = Ingress(host="127.0.0.1", port=0, limits=limits)
    await ingress.start()
    servers = []
    for name, worker in workers.items():
        path = directory / f"{name[0]}.sock"
        servers.append(await asyncio.start_unix_server(worker.serve, path))
        ingress.add_route(name, path)
    try:
        yield ingress, workers
    finally:
        await ingress.aclose()
        for server in servers:
            server.close()


async def connect(ingress: Ingress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", ingress.port)


async def test_a_connection_reaches_the_worker_it_names_and_no_other(tmp_path: Path) -> None:
    """Bytes of the hello and after it arrive unchanged at the named worker only; the answer comes back."""
    async with relay(tmp_path) as (ingress, workers):
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")) + b"payload")
        assert (await reader.readexactly(len(hello(sni(b"a.example"))) + 7)).endswith(b"payload")
        writer.close()
        assert workers["a.example"].received == hello(sni(b"a.example")) + b"payload"
        assert workers["b.example"].connections == 0


async def test_an_end_of_file_is_passed_on_and_the_other_direction_stays_open(tmp_path: Path) -> None:
    """A client that has finished sending still gets what the worker says afterwards, to the last byte."""
    async with relay(tmp_path) as (ingress, _):
        reader, writer = await connect(ingress)
        body = bytes(300_000)
        writer.write(hello(sni(b"a.example")) + body)
        writer.write_eof()
        everything = await asyncio.wait_for(reader.read(-1), 5)
        assert everything.endswith(b"bye")
        assert len(everything) == len(hello(sni(b"a.example"))) + len(body) + 3


@pytest.mark.parametrize(
    "first", [hello(sni(b"c.example")), b"GET / HTTP/1.1\r\n\r\n", bytes(100), hello(sni(b"a.example", b"b.example"))]
)
async def test_unknown_names_and_garbage_are_closed_without_a_word(tmp_path: Path, first: bytes) -> None:
    """What names no worker of the tray gets an end of file and reaches nobody."""
    async with relay(tmp_path) as (ingress, workers):
        reader, writer = await connect(ingress)
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        assert all(worker.connections == 0 for worker in workers.values())


async def test_a_hello_that_does_not_come_is_timed_out(tmp_path: Path) -> None:
    """A connection that sends half a hello, or nothing, is closed after the time-out."""
    async with relay(tmp_path) as (ingress, _):
        for first in (b"", hello(sni(b"a.example"))[:20]):
            reader, writer = await connect(ingress)
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_one_workers_connections_are_bounded_and_leave_room_for_another(tmp_path: Path) -> None:
    """Connections beyond a worker's share are closed; another worker is still reached."""
    limits = IngressLimits(max_connections=10, max_connections_per_worker=2, max_pending=5)
    async with relay(tmp_path, limits) as (ingress, _):
        held = []
        for _ in range(2):
            reader, writer = await connect(ingress)
            writer.write(hello(sni(b"a.example")))
            await reader.readexactly(10)
            held.append(writer)
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"b.example")))
        assert await asyncio.wait_for(reader.readexactly(10), 2)


async def test_connections_without_a_hello_are_bounded(tmp_path: Path) -> None:
    """Silent connections beyond the bound are closed at once, while those before them wait for their time-out."""
    limits = IngressLimits(max_connections=10, max_pending=2, hello_timeout_s=5)
    async with relay(tmp_path, limits) as (ingress, _):
        silent = [await connect(ingress) for _ in range(2)]
        await asyncio.sleep(0.05)
        reader, _ = await connect(ingress)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        assert not silent[0][0].at_eof()


async def test_removing_a_route_closes_its_connections(tmp_path: Path) -> None:
    """A released worker's connections end at once and its name is unknown from then on."""
    async with relay(tmp_path) as (ingress, _):
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")))
        await reader.readexactly(10)
        ingress.remove_route("a.example")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 2)
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_a_reader_who_takes_nothing_is_cut(tmp_path: Path) -> None:
    """When one side leaves bytes unread beyond the time-out the connection ends, and the relay's memory is freed."""
    async with relay(tmp_path) as (ingress, workers):
        _, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")))
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(5):
                while True:
                    writer.write(bytes(1 << 20))
                    await writer.drain()
        async with asyncio.timeout(5):
            while ingress._connections:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.05)
        assert workers["a.example"].connections == 1


async def test_a_worker_that_is_not_there_costs_its_caller_only(tmp_path: Path) -> None:
    """A route to a socket that nobody serves closes the connection; others go on."""
    async with relay(tmp_path) as (ingress, _):
        ingress.add_route("gone.example", tmp_path / "gone.sock")
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"gone.example")))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        reader, writer = await connect(ingress)
        writer.write(hello(sni(b"a.example")))
        assert await asyncio.wait_for(reader.readexactly(10), 2)


async def test_connections_side_by_side_keep_their_bytes_apart(tmp_path: Path) -> None:
    """Bytes of many connections at once, through one reading buffer, come back each to its own, whole and in order."""

    async def echoed(ingress: Ingress, number: int) -> bool:
        reader, writer = await connect(ingress)
        sent = hello(sni(b"a.example" if number % 2 else b"b.example")) + bytes([number]) * 400_000
        writer.write(sent)
        writer.write_eof()
        back = await reader.read(-1)
        writer.close()
        return back == sent + b"bye"

    async with relay(tmp_path, IngressLimits()) as (ingress, _), asyncio.timeout(30):
        assert all(await asyncio.gather(*(echoed(ingress, number) for number in range(8))))
