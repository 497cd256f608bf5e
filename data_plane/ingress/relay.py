"""A TCP relay to the workers' Unix sockets, chosen by TLS server name.

It holds no key and reads nothing but the hello. A connection is closed without a word when its hello is malformed,
late, or names no worker of this tray: a stranger learns nothing about which partitions exist beyond that.

Bounds: connections in all and per worker, connections that have not sent their hello, time for the hello, time for the
worker to accept, time that one side may leave bytes unread, and idle time. Each direction is copied with the kernel's
own back-pressure; end of file in one direction is passed on as such and leaves the other open.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bulkhead.errors import MalformedRequestError
from data_plane.ingress.client_hello import MAX_HELLO_BYTES, parse_server_name
from service.config import require_between

__all__ = ["Ingress", "IngressLimits"]

_log = structlog.get_logger(__name__)

COPY_BYTES: Final = 65_536
BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressLimits:
    """How much strangers may ask of the relay.

    Attributes:
        max_connections: open at once, in all.
        max_connections_per_worker: open at once to one worker, so that one tenant cannot use up the tray's.
        max_pending: connections whose hello is not complete.
        hello_timeout_s: from accept to complete hello.
        connect_timeout_s: for the worker's socket to accept.
        stall_timeout_s: for a side to take bytes that wait for it.
        idle_timeout_s: without a byte in either direction.
    """

    max_connections: int = 2048
    max_connections_per_worker: int = 512
    max_pending: int = 1024
    hello_timeout_s: float = 5.0
    connect_timeout_s: float = 5.0
    stall_timeout_s: float = 60.0
    idle_timeout_s: float = 900.0

    def __post_init__(self) -> None:
        for count in (self.max_connections, self.max_connections_per_worker, self.max_pending):
            require_between(count, 1, 1_000_000)
        for seconds in (self.hello_timeout_s, self.connect_timeout_s, self.stall_timeout_s, self.idle_timeout_s):
            require_between(seconds, 0.01, 86_400)


class _Route:
    """One worker's socket and the connections to it."""

    __slots__ = ("path", "tasks")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tasks: set[asyncio.Task[None]] = set()


class _Activity:
    """When a byte last moved in either direction, on the event loop's clock."""

    __slots__ = ("last_s",)

    def __init__(self) -> None:
        self.touch()

    def touch(self) -> None:
        self.last_s = asyncio.get_running_loop().time()


class Ingress:
    """Listens, reads hellos and relays. All methods run on one event loop.

    Args:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        limits: see :class:`IngressLimits`.
    """

    def __init__(self, *, host: str, port: int, limits: IngressLimits) -> None:
        self._host = host
        self._wanted_port = port
        self._limits = limits
        self._routes: dict[str, _Route] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The TCP port it listens on; 0 before :meth:`start`."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server is not None else 0

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the address cannot be had.
        """
        self._server = await asyncio.start_server(
            self._accept, self._host, self._wanted_port, backlog=BACKLOG, limit=COPY_BYTES
        )

    def add_route(self, authority: str, path: Path) -> None:
        """Relay connections that name ``authority`` to the Unix socket at ``path``."""
        self._routes[authority] = _Route(path)

    def remove_route(self, authority: str) -> None:
        """Take no new connection for ``authority`` and close those that are open."""
        route = self._routes.pop(authority, None)
        if route is not None:
            for task in route.tasks:
                task.cancel()

    async def aclose(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        full = len(self._connections) >= self._limits.max_connections or self._pending >= self._limits.max_pending
        if task is None or full:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, MalformedRequestError) as error:
            _log.debug("ingress.closed", reason=type(error).__name__)
        except asyncio.CancelledError:
            # Only route removal and shutdown cancel; the stream server expects its callback to end quietly.
            _log.debug("ingress.closed", reason="route removed")
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pending += 1
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                name, hello = await _read_hello(reader)
        finally:
            self._pending -= 1
        route = self._routes.get(name)
        task = asyncio.current_task()
        if route is None or task is None or len(route.tasks) >= self._limits.max_connections_per_worker:
            return
        route.tasks.add(task)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                worker_reader, worker_writer = await asyncio.open_unix_connection(str(route.path), limit=COPY_BYTES)
            try:
                worker_writer.write(hello)
                if await self._relay(reader, writer, worker_reader, worker_writer):
                    await self._flush(writer, worker_writer)
            finally:
                worker_writer.transport.abort()
        finally:
            route.tasks.discard(task)

    async def _relay(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        worker_reader: asyncio.StreamReader,
        worker_writer: asyncio.StreamWriter,
    ) -> bool:
        """Copy both ways; tell whether both sides ended in order (else what is unsent is dropped)."""
        activity = _Activity()
        directions = {
            asyncio.create_task(self._copy(client_reader, worker_writer, activity)),
            asyncio.create_task(self._copy(worker_reader, client_writer, activity)),
        }
        try:
            while directions:
                rest_s = activity.last_s + self._limits.idle_timeout_s - asyncio.get_running_loop().time()
                if rest_s <= 0:
                    return False
                done, directions = await asyncio.wait(directions, timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
                if any(task.exception() is not None for task in done):
                    return False
            return True
        finally:
            for task in directions:
                task.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _flush(self, *writers: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.stall_timeout_s):
            for writer in writers:
                writer.close()
                await writer.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, activity: _Activity) -> None:
        while data := await reader.read(COPY_BYTES):
            activity.touch()
            writer.write(data)
            async with asyncio.timeout(self._limits.stall_timeout_s):
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            async with asyncio.timeout(self._limits.stall_timeout_s):
                await writer.drain()


async def _read_hello(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Return the server name and all bytes read so far.

    Raises:
        MalformedRequestError: not a hello that can be routed.
    """
    data = b""
    while len(data) < MAX_HELLO_BYTES:
        more = await reader.read(MAX_HELLO_BYTES - len(data))
        if not more:
            break
        data += more
        name = parse_server_name(data)
        if name is not None:
            return name, data
    raise MalformedRequestError("the connection ended before its hello")
