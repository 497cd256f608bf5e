"""``GET /metrics`` on loopback, for a Prometheus scraper on the same host that has the agent's token.

Loopback alone would show one tenant's load to every process of the host, workers of other tenants included; so each
request names the token. One request a connection, bounded in size, time and number.
"""

import asyncio
import hmac
import http.client
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bulkhead.errors import AgentUnavailableError, ConfigError
from service.files import read_private, write_file

__all__ = ["MetricsServer", "fetch_metrics", "metrics_token"]

TOKEN_FILE: Final = "metrics.token"  # noqa: S105  the name of a file
ADDRESS_FILE: Final = "metrics.address"

MAX_HEAD_BYTES: Final = 8_192
MAX_CONNECTIONS: Final = 16
TIMEOUT_S: Final = 5.0  # for the request's head, and again for taking the answer
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """One listening socket.

    Args:
        render: returns the text; called on the event loop.
        token: bearer token that every request must name.
    """

    def __init__(self, *, render: Callable[[], bytes], token: bytes) -> None:
        self._render = render
        self._authorization = b"bearer " + token
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, *, host: str, port: int, directory: Path) -> None:
        """Listen and write the address to ``directory``; ``port`` 0 takes a free one.

        Raises:
            ConfigError: the address is taken or not one of this host.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"metrics: cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        write_file(directory / ADDRESS_FILE, f"{host} {self.port}\n".encode())

    async def aclose(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, body = await self._answer(reader)
            head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            async with asyncio.timeout(TIMEOUT_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self._open.discard(writer)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return "431 Request Header Fields Too Large", b""
        first, *fields = head.split(b"\r\n")
        given = [value.strip() for name, _, value in (field.partition(b":") for field in fields) if _named(name)]
        if len(given) != 1 or not hmac.compare_digest(given[0][:7].lower() + given[0][7:], self._authorization):
            return "401 Unauthorized", b""
        method, _, rest = first.partition(b" ")
        if method != b"GET":
            return "405 Method Not Allowed", b""
        if rest.partition(b" ")[0].partition(b"?")[0] != b"/metrics":
            return "404 Not Found", b""
        return "200 OK", self._render()


def _named(field: bytes) -> bool:
    return field.strip().lower() == b"authorization"


def metrics_token(directory: Path) -> bytes:
    """Return the token that scrapers name, made at the first call, out of the agent's private directory.

    Raises:
        ConfigError: the file cannot be read, or others can read it.
    """
    path = directory / TOKEN_FILE
    if not path.exists():
        write_file(path, secrets.token_urlsafe(32).encode() + b"\n", replace=False)
    return read_private(path, what="the metrics token").strip()


def fetch_metrics(directory: Path) -> str:
    """Return the metrics of the agent whose private directory this is, as its own user may. Blocks.

    Raises:
        ConfigError: no agent serves metrics there.
        AgentUnavailableError: it does not answer, or not with metrics.
    """
    try:
        host, port = (directory / ADDRESS_FILE).read_text("ascii").split()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no agent serves metrics out of {directory}: is [metrics] enabled?") from error
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {metrics_token(directory).decode()}"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise AgentUnavailableError(f"the agent answers {response.status} {response.reason}")
        return response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise AgentUnavailableError("the agent does not answer: has it stopped?") from error
    finally:
        connection.close()
