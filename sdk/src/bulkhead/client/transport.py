"""gRPC channels of the SDK: TLS with own roots, bounded calls, deadlines, retries, and our errors only.

Rules that hold for every call made here:

* a unary call has a deadline below 30 s (gRPC core gives up on a pending call after 30 s, at random among them);
* at most :data:`MAX_UNARY_IN_FLIGHT` unary calls are in flight on a channel, the others wait inside their deadline
  (above about 1,000 pending, core rejects calls with CANCELLED before any handler sees them);
* a call is repeated only if the caller calls it idempotent, and only after UNAVAILABLE or a CANCELLED that the server
  side sent; at most :attr:`RetryPolicy.attempts` times, with full jitter, inside the same deadline;
* a stream has an idle limit between messages as well as a total deadline: a peer that goes silent is an error;
* an exception of grpc never leaves: :mod:`bulkhead.client.status` maps it;
* every call of the control plane carries a request id of this client's making, in the request or else in the metadata
  ``bulkhead-request-id``; repetitions carry the same. The journal, where there is one, has it before it is sent.
"""

import asyncio
import itertools
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from bulkhead.client.journal import RequestJournal
from bulkhead.client.status import Peer, error_from_rpc
from bulkhead.errors import (
    BulkheadError,
    ConfigError,
    ConnectionFailedError,
    DeadlineError,
    InvalidRequestError,
    MessageTooLargeError,
    SessionClosedError,
)
from bulkhead.idle import IdleWatch
from bulkhead.ids import REQUEST, REQUEST_ID_METADATA, new_id

__all__ = [
    "MAX_DEADLINE_S",
    "MAX_REQUEST_BYTES",
    "MAX_UNARY_IN_FLIGHT",
    "Channel",
    "RetryPolicy",
    "check_address",
]

MAX_UNARY_IN_FLIGHT: Final = 64
MAX_OPENS_IN_FLIGHT: Final = 64  # streams have a gate of their own, so that a slow open never holds back a renewal
DEFAULT_DEADLINE_S: Final = 20.0
MAX_DEADLINE_S: Final = 29.0
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024  # what a gRPC server takes by default; larger is refused here, unsent
MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024
_ADDRESS: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?):([0-9]{1,5})"
)

_Metadata: TypeAlias = tuple[tuple[str, str], ...]
_RETRIED_STATUS: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_FINAL_CODES: Final = frozenset({"WORKER_LOST", "AUDIT_LEASE_EXPIRED", "LOG_FORK"})
"""Codes under UNAVAILABLE that repeating the same call cannot heal."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how slowly an idempotent call is repeated.

    The wait before repetition n (from 0) is drawn evenly from 0 to ``min(base_s * 2**n, cap_s)``.
    """

    attempts: int = 3
    base_s: float = 0.1
    cap_s: float = 1.0


@dataclass(slots=True)
class _Call:
    """A call's metadata, and whether a message of its answer has come."""

    metadata: _Metadata
    heard: bool = False


def check_address(address: str, what: str) -> str:
    """Return ``address`` if it is ``host:port`` or ``[ipv6]:port``: no other gRPC scheme (unix:, xds:) is dialled.

    Raises:
        InvalidRequestError: it is something else.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) <= 65_535:
        raise InvalidRequestError(f"{what}: expected host:port")
    return address


class Channel:
    """One TLS connection to a peer.

    Args:
        peer: whom it reaches; decides what a lost connection means.
        address: ``host:port``.
        roots_pem: the only certificates that may sign the server's; for a worker its own self-signed certificate.
        server_name: name that the server's certificate must have, if it differs from the address's host; also sent as
            TLS server name, by which a tray's ingress relays.
        client_certificate_pem: certificate chain for mutual TLS, with ``client_key_pem``.
        client_key_pem: PEM private key of the client certificate.
        streams_in_flight: how many streams run at once; further ones wait inside their deadline.
        api_key: sent as ``authorization: Bearer`` with every call; never logged.
        retry: see :class:`RetryPolicy`.
        journal: notes every call to the control plane.
        clock: monotonic seconds.
        jitter: even draw from [0, 1).
    """

    def __init__(
        self,
        *,
        peer: Peer,
        address: str,
        roots_pem: bytes,
        server_name: str | None = None,
        client_certificate_pem: bytes | None = None,
        client_key_pem: bytes | None = None,
        api_key: str | None = None,
        streams_in_flight: int = MAX_OPENS_IN_FLIGHT,
        retry: RetryPolicy | None = None,
        journal: RequestJournal | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if (client_certificate_pem is None) != (client_key_pem is None):
            raise ConfigError("a client certificate needs its key, and a key its certificate")
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # no connection is shared with another client of this process
            ("grpc.service_config_disable_resolution", 1),  # DNS must not decide how calls behave
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if server_name is not None:
            options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]
        credentials = grpc.ssl_channel_credentials(
            root_certificates=roots_pem, private_key=client_key_pem, certificate_chain=client_certificate_pem
        )
        self.raw: Final = grpc.aio.secure_channel(
            f"dns:///{check_address(address, 'address')}", credentials, options=options
        )
        """For generated stubs; calls go through :meth:`unary` and :meth:`stream`."""
        self._peer = peer
        self._metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._journal = journal
        self._retry = retry if retry is not None else RetryPolicy()
        self._clock = clock
        self._jitter = jitter
        self._unary_gate = asyncio.Semaphore(MAX_UNARY_IN_FLIGHT)
        self._stream_gate = asyncio.Semaphore(streams_in_flight)
        self._turn = asyncio.Lock()
        self._closed = False

    async def turn(self) -> None:
        """Return when it is the caller's turn to make a request: of many at once, each is sent before the next is made.

        Sealing takes about a millisecond, and gRPC sends from the event loop: without turns the first request of a
        hundred would wait for all of them to be sealed, and the worker with it.
        """
        await self._turn.acquire()
        asyncio.get_running_loop().call_soon(self._turn.release)  # after the caller, before the next in line

    async def unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        idempotent: bool,
        deadline_s: float = DEFAULT_DEADLINE_S,
    ) -> Response:
        """Call a unary method.

        Args:
            method: of a generated stub made from :attr:`raw`.
            request: its request.
            idempotent: whether repeating it after an unknown outcome does no harm.
            deadline_s: for everything: waiting for a slot, every attempt and the pauses between; at most 29 s.

        Raises:
            BulkheadError: the peer's error restored, or :class:`ConnectionFailedError`, :class:`DeadlineError`,
                :class:`MessageTooLargeError`.
        """
        if not 0 < deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequestError(f"a unary deadline is above 0 and at most {MAX_DEADLINE_S:.0f} s")
        self._check(request)
        until = self._clock() + deadline_s
        with self._noted(request) as call:
            try:
                async with asyncio.timeout(deadline_s), self._unary_gate:
                    return await self._attempts(method, request, call.metadata, idempotent=idempotent, until=until)
            except TimeoutError as error:
                raise DeadlineError(f"{self._peer.value}: no answer within {deadline_s:g} s") from error

    async def stream(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Request, Response]",
        request: Request,
        *,
        deadline_s: float,
        idle_s: float,
        idempotent: bool = False,
    ) -> AsyncGenerator[Response, None]:
        """Call a server-streaming method and yield its messages; a normal end is the server's OK status.

        Closing the generator cancels the call.

        Args:
            method: of a generated stub made from :attr:`raw`.
            request: its request.
            deadline_s: for everything: waiting for a slot, every attempt and the pauses between.
            idle_s: longest wait for one message.
            idempotent: whether a broken stream may be started again; its messages then come again from the first.

        Raises:
            BulkheadError: as :meth:`unary`.
        """
        self._check(request)
        until = self._clock() + deadline_s
        with self._noted(request) as call:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._stream_gate.acquire()
            except TimeoutError as error:
                raise DeadlineError(f"{self._peer.value}: too many calls in flight for {deadline_s:g} s") from error
            try:
                for attempt in itertools.count(1):
                    try:
                        running = method(request, timeout=self._left(until), metadata=call.metadata)
                        with self._watched(running, idle_s=idle_s) as watch:
                            while True:
                                with watch:
                                    message = await running.read()
                                if message is grpc.aio.EOF:
                                    break
                                call.heard = True
                                yield cast("Response", message)
                    except BulkheadError as error:
                        if not idempotent or attempt >= self._retry.attempts or not _may_repeat(error):
                            raise
                    else:
                        return
                    await self._pause(attempt)
            finally:
                self._stream_gate.release()

    async def close(self) -> None:
        """End every call and the connection. Repeating it does nothing."""
        if not self._closed:
            self._closed = True
            await self.raw.close()
            if self._journal is not None:
                self._journal.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _attempts(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        metadata: _Metadata,
        *,
        idempotent: bool,
        until: float,
    ) -> Response:
        attempt = 0
        while True:
            try:
                return await method(request, timeout=self._left(until), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                attempt += 1
                ours = error_from_rpc(error, self._peer)
                ours.__cause__ = error
                if not idempotent or attempt >= self._retry.attempts or not _may_repeat(ours):
                    raise ours from error
            except asyncio.CancelledError:
                self._raise_if_closed()
                raise
            await self._pause(attempt)

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._jitter() * min(self._retry.base_s * 2 ** (attempt - 1), self._retry.cap_s))

    def _left(self, until: float) -> float:
        return max(until - self._clock(), 0.001)

    @contextmanager
    def _watched(self, call: "grpc.aio.UnaryStreamCall[Request, Response]", *, idle_s: float) -> "Iterator[IdleWatch]":
        """Cancel a call at the end, and when a message takes too long; what is raised meanwhile becomes our error."""
        watch = IdleWatch(call.cancel, idle_s=idle_s)
        try:
            yield watch
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._peer) from error
        except asyncio.CancelledError as error:
            if watch.expired:
                raise DeadlineError(f"{self._peer.value}: silent for {idle_s:g} s") from error
            self._raise_if_closed()
            raise
        finally:
            watch.stop()
            call.cancel()

    @contextmanager
    def _noted(self, request: Message) -> "Iterator[_Call]":
        """Give the call's metadata; its request id is in the journal before, and how it ended after."""
        if self._peer is not Peer.CONTROL_PLANE:
            yield _Call(self._metadata)
            return
        given: str = getattr(request, "request_id", "")
        request_id = given or new_id(REQUEST)
        call = _Call(self._metadata if given else (*self._metadata, (REQUEST_ID_METADATA, request_id)))
        if self._journal is None:
            yield call
            return
        self._journal.sent(request_id, type(request).__name__.removesuffix("Request"))
        try:
            yield call
        except BulkheadError as error:
            self._journal.answered(request_id, error.code)
            raise
        except GeneratorExit:
            if call.heard:  # the reader of a stream had what it wanted
                self._journal.answered(request_id, "")
            raise
        self._journal.answered(request_id, "")

    def _check(self, request: Message) -> None:
        self._raise_if_closed()
        size = request.ByteSize()
        if size > MAX_REQUEST_BYTES:
            raise MessageTooLargeError(f"the request has {size} bytes; at most {MAX_REQUEST_BYTES} are sent")

    def _raise_if_closed(self) -> None:
        if self._closed and self._peer is Peer.WORKER:
            raise SessionClosedError("the session has been closed")
        if self._closed:
            raise ConnectionFailedError(f"{self._peer.value}: this client has been closed")


def _may_repeat(error: BulkheadError) -> bool:
    """Return whether the same call may succeed if sent again. A cancellation by this side never gets here."""
    cause = error.__cause__
    status = cause.code() if isinstance(cause, grpc.aio.AioRpcError) else None
    return status in _RETRIED_STATUS and error.code not in _FINAL_CODES
