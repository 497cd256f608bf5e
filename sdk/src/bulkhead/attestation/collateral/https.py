"""Asking vendors over HTTPS: TLS verified, no redirect, every size and time bounded, nothing kept between calls.

The standard library's client is enough for five hosts and two methods (docs/adr): it brings no dependency into a
tenant's process. ``HTTPS_PROXY`` and ``NO_PROXY`` are honoured, as TLS ends at the vendor all the same.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Final
from urllib.parse import unquote, urlsplit

from bulkhead.attestation.collateral.cache import Answer
from bulkhead.attestation.collateral.kinds import CollateralItem, CollateralKind
from bulkhead.attestation.collateral.nvidia import check_ocsp_nonce
from bulkhead.attestation.obligations import failed
from bulkhead.errors import ConnectionFailedError, EvidencePolicyError

__all__ = ["HttpsFetcher"]

TIMEOUT_S: Final = 10.0  # for connecting, and again for each wait on the service
DEADLINE_S: Final = 30.0  # for the whole answer
MAX_CHAIN_CHARS: Final = 49_152  # of a URL-encoded chain of a few certificates; http.client stops at 64 KiB a line
_CHUNK_BYTES: Final = 16_384
_HTTPS_PORT: Final = 443
_PROXY_PORT: Final = 80
_OK: Final = 200


class HttpsFetcher:
    """Fetches collateral of allowed kinds from vendors' hosts, or from mirrors.

    Args:
        allowed: kinds that may be asked for; every other is refused here, too, not only by the cache's policy.
        mirrors: kind -> URL in place of the vendor's scheme and host.
        context: for TLS; None verifies against the system's authorities, which ``SSL_CERT_FILE`` replaces.
        timeout_s: for each wait.
        deadline_s: for each answer as a whole.
    """

    def __init__(
        self,
        *,
        allowed: frozenset[CollateralKind],
        mirrors: Mapping[CollateralKind, str] | None = None,
        context: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._allowed = allowed
        self._mirrors = dict(mirrors or {})
        self._context = context if context is not None else ssl.create_default_context()
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s

    def fetch(self, item: CollateralItem) -> Answer:
        """Return the service's answer for ``item``.

        Raises:
            EvidencePolicyError: the kind is not allowed; nothing was asked.
            ConnectionFailedError: not reached, not trusted, slow, redirected, too long, or an error of the service.
            EvidenceError: an OCSP answer that does not repeat the question's nonce.
        """
        if item.kind not in self._allowed:
            raise failed(
                item.kind.obligation, f"the policy does not allow to fetch {item.kind.value}", EvidencePolicyError
            )
        url = self._mirrors.get(item.kind, item.kind.origin) + item.path
        until_s = time.monotonic() + self._deadline_s
        connection = self._connection(url)
        try:
            with _ended_at(connection, self._deadline_s):
                answer = _ask(connection, item, url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= until_s
            reason = "the answer takes too long" if late else _reason(error)
            raise ConnectionFailedError(f"{url}: {reason}") from error
        finally:
            connection.close()
        if time.monotonic() >= until_s:  # a body without a stated length ends where it is cut
            raise ConnectionFailedError(f"{url}: the answer takes too long")
        if item.nonce:
            check_ocsp_nonce(answer.data, item.nonce)
        return answer

    def _connection(self, url: str) -> http.client.HTTPSConnection:
        target = urlsplit(url)
        host, port = target.hostname or "", target.port or _HTTPS_PORT
        proxy = urllib.request.getproxies().get("https")
        if target.scheme != "https" or not host:
            raise ConnectionFailedError(f"{url}: only HTTPS is spoken")
        if not proxy or urllib.request.proxy_bypass(host):
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._context)
        through = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPSConnection(
            through.hostname or "", through.port or _PROXY_PORT, timeout=self._timeout_s, context=self._context
        )
        connection.set_tunnel(host, port)
        return connection


@contextlib.contextmanager
def _ended_at(connection: http.client.HTTPSConnection, deadline_s: float) -> Iterator[None]:
    """Cut a connection whose service keeps each wait short and the whole endless."""

    def cut() -> None:
        with contextlib.suppress(OSError, AttributeError):  # None before it is connected: its own time-out holds
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(connection: http.client.HTTPSConnection, item: CollateralItem, url: str) -> Answer:
    target = urlsplit(url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "bulkhead", "Connection": "close"}
    if item.body is not None:
        headers |= {"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"}
    path = f"{target.path}?{target.query}" if target.query else target.path
    connection.request("GET" if item.body is None else "POST", path, body=item.body, headers=headers)
    response = connection.getresponse()
    if response.status != _OK:
        # A redirect, too: it would ask a host that nobody allowed.
        raise ConnectionFailedError(f"{url}: answered with status {response.status}")
    chain = _chain(response.headers, item.kind, url)
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > item.max_bytes:
            raise ConnectionFailedError(f"{url}: the answer is longer than {item.max_bytes} bytes")
    if not data or response.length:
        raise ConnectionFailedError(f"{url}: the answer is empty or cut short")
    return Answer(data=bytes(data), chain=chain, source=url)


def _chain(headers: Message, kind: CollateralKind, url: str) -> bytes:
    if kind.chain_header is None:
        return b""
    value = headers.get(kind.chain_header)
    if not value or len(value) > MAX_CHAIN_CHARS:
        raise ConnectionFailedError(f"{url}: the answer lacks the header {kind.chain_header}")
    return unquote(value, errors="replace").encode("utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
