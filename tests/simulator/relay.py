"""A TCP relay that keeps every byte it passes, in both directions: what an observer on the wire sees."""

import asyncio
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["RecordingRelay", "Seen"]

_READ_BYTES = 65_536
_START_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observer sees of one piece of traffic: when, on which connection, which way, what bytes."""

    at_s: float
    connection: int
    upwards: bool
    data: bytes


class RecordingRelay:
    """Listens on a free loopback port and relays to ``target``; use as a context manager from synchronous tests.

    The target is ``host:port`` or ``unix:path``. It may be set after the start, so that a process can be configured
    with the relay's address first.

    The relay runs on an event loop of its own thread, so that it works whatever the test's own loop does.
    """

    def __init__(self, *, target: str = "127.0.0.1:1") -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recording-relay", daemon=True)
        self._server: asyncio.Server | None = None
        self._recorded: list[bytes] = []
        self.connections = 0
        self.seen: list[Seen] = []
        self._cut = False

    def cut(self) -> None:
        """End every connection and relay nothing until :meth:`mend`."""
        self._cut = True
        asyncio.run_coroutine_threadsafe(self._end_connections(), self._loop).result(_START_TIMEOUT_S)

    def mend(self) -> None:
        """Relay new connections again."""
        self._cut = False

    @property
    def address(self) -> str:
        """``host:port`` to dial."""
        if self._server is None:
            raise RuntimeError("the relay is not started")
        port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    @property
    def recorded(self) -> bytes:
        """Every byte so far, in the order it was read, both directions."""
        return b"".join(self._recorded)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = starting.result(_START_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_TIMEOUT_S)
        self._loop.close()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._end_connections()

    async def _end_connections(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        if self._cut:
            writer.close()
            return
        try:
            host, _, port = self.target.rpartition(":")
            if host == "unix":
                up_reader, up_writer = await asyncio.open_unix_connection(port)
            else:
                up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(
                self._pump(reader, up_writer, connection, upwards=True),
                self._pump(up_reader, writer, connection, upwards=False),
            )
        finally:
            writer.close()
            up_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int, *, upwards: bool
    ) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                self._recorded.append(data)
                self.seen.append(Seen(time.monotonic(), connection, upwards, data))
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.close()
