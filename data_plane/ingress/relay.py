"""A TCP relay to the workers' Unix sockets, chosen by TLS server name.

It holds no key and reads nothing but the hello. A connection is closed without a word when its hello is malformed,
late, or names no worker of this tray: a stranger learns nothing about which partitions exist beyond that.

Bounds: connections in all and per worker, connections that have not sent their hello, time for the hello, time for the
worker to accept, time that one side may leave bytes unread, and idle time. How bytes pass is :mod:`.side`'s.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bulkhead.errors import MalformedRequestError
from data_plane.ingress.client_hello import MAX_HELLO_BYTES, parse_server_name
from data_plane.ingress.side import Side
from service.config import require_between

__all__ = ["Ingress", "IngressLimits"]

_log = structlog.get_logger(__name__)

BACKLOG: Final = 1024
GATHER_S: Final = 0.002  # a small part of a step with as many streams as make it worth while
READ_BYTES: Final = 65_536  # at once; a buffer of asyncio's own would be mapped and unmapped for every message


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
        self._pending: set[Side] = set()
        self._buffer = memoryview(bytearray(READ_BYTES))
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
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self._side(connected=self._accept), self._host, self._wanted_port, backlog=BACKLOG
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

    def _side(self, *, gather_s: float = 0.0, connected: Callable[[Side], None] | None = None) -> Side:
        return Side(
            buffer=self._buffer,
            most=MAX_HELLO_BYTES,
            stall_timeout_s=self._limits.stall_timeout_s,
            gather_s=gather_s,
            connected=connected,
        )

    def _accept(self, client: Side) -> None:
        if len(self._connections) >= self._limits.max_connections or len(self._pending) >= self._limits.max_pending:
            client.abort()
            return
        self._pending.add(client)
        task = asyncio.create_task(self._run(client), name="ingress")
        self._connections.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, client))

    def _ended(self, task: asyncio.Task[None], client: Side) -> None:
        self._connections.discard(task)
        self._pending.discard(client)
        client.abort()

    async def _run(self, client: Side) -> None:
        try:
            await self._serve(client)
        except (OSError, TimeoutError, MalformedRequestError) as error:
            _log.debug("ingress.closed", reason=type(error).__name__)

    async def _serve(self, client: Side) -> None:
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                name = await _read_hello(client)
        finally:
            self._pending.discard(client)
        route = self._routes.get(name)
        task = asyncio.current_task()
        if route is None or task is None or len(route.tasks) >= self._limits.max_connections_per_worker:
            return
        route.tasks.add(task)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                _, worker = await asyncio.get_running_loop().create_unix_connection(
                    lambda: self._side(gather_s=GATHER_S), str(route.path)
                )
            try:
                client.join(worker)
                if await self._over(client, worker):
                    async with asyncio.timeout(self._limits.stall_timeout_s):
                        await asyncio.gather(client.flush(), worker.flush())
            finally:
                worker.abort()
        finally:
            route.tasks.discard(task)

    async def _over(self, client: Side, worker: Side) -> bool:
        """Wait until both sides have ended in order and say so; false else, where what is unsent is dropped."""
        clock = asyncio.get_running_loop().time
        while not client.ended.done():
            rest_s = max(client.last_s, worker.last_s) + self._limits.idle_timeout_s - clock()
            if rest_s <= 0:
                return False
            await asyncio.wait({client.ended}, timeout=rest_s)
        return client.ended.result()


async def _read_hello(client: Side) -> str:
    """Return the server name that a connection's first bytes ask for; they stay with the connection.

    Raises:
        MalformedRequestError: not a hello that can be routed.
    """
    seen = 0
    while await client.more(seen):
        seen = len(client.collected)
        name = parse_server_name(bytes(client.collected))
        if name is not None:
            return name
    raise MalformedRequestError("the connection ended before its hello")
