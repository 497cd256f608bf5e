"""A worker's request server, without transport: admission, opening, exchanges, receipts, draining.

A request is refused before anything is decrypted when the worker drains, holds no lease, or has as much in flight as
it may; such refusals, and those of the sealed server, leave as gRPC statuses and are hints only. From then on the
rules of :mod:`data_plane.session.exchange` hold.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from bulkhead.errors import (
    BulkheadError,
    QueueFullError,
    RateLimitError,
    ShuttingDownError,
    TicketError,
    TicketRevokedError,
)
from bulkhead.protocol.context import Method
from bulkhead.protocol.receipts import SignedReceipt
from bulkhead.protocol.server import SealedServer
from bulkhead.protocol.server_request import ServerRequest
from data_plane.inference.port import Engine, EngineState
from data_plane.session.exchange import Exchange, ExchangePorts
from data_plane.session.lease import WorkerLease
from data_plane.session.messages import WorkerLoad
from data_plane.session.receipts import ReceiptDesk
from data_plane.session.refusals import RefusalReporter
from data_plane.session.response import SealedPart

__all__ = ["RequestServer"]

_log = structlog.get_logger(__name__)

GRANT_WAIT_S: Final = 0.5  # the agent has sent the grant before it hands out evidence: it is under way


class RequestServer:
    """Serves one tenant. All methods run on one event loop.

    Args:
        sealed: opens requests.
        engine: serves the model.
        lease: says whether requests may begin.
        desk: makes receipts durable.
        refusals: hears of what was refused.
        max_in_flight: requests at once, running and queued.
        max_output_tokens: most tokens of one answer; 0 leaves it to ticket and model.
        wall_s: Unix seconds.
        random_bytes: source of the secret that bounds reuse of cached prompt prefixes to this worker's tenant.

    Attributes:
        engine_failed: set when the engine has failed.
        answered: requests that produced a token and have ended.
    """

    def __init__(
        self,
        *,
        sealed: SealedServer,
        engine: Engine,
        lease: WorkerLease,
        desk: ReceiptDesk,
        refusals: RefusalReporter,
        max_in_flight: int,
        max_output_tokens: int,
        wall_s: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._sealed = sealed
        self._engine = engine
        self._lease = lease
        self._desk = desk
        self._refusals = refusals
        self._max_in_flight = max_in_flight
        self._wall_s = wall_s
        self._ports = ExchangePorts(
            engine=engine,
            desk=desk,
            wall_s=wall_s,
            scope=random_bytes(32),
            max_output_tokens=max_output_tokens,
            background=self._run_in_background,
        )
        self._exchanges: set[Exchange] = set()
        self._by_session: Counter[str] = Counter()
        self._background: set[asyncio.Task[None]] = set()
        self._draining = False
        self.answered = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.engine_failed = asyncio.Event()

    async def serve(self, method: Method, envelope: bytes, chunks: Sequence[bytes]) -> AsyncGenerator[SealedPart, None]:
        """Answer one sealed request (untrusted bytes); close the generator when its reader has gone away.

        Raises:
            ShuttingDownError, AuditLeaseError, QueueFullError: nothing begins now.
            BulkheadError: as :meth:`bulkhead.protocol.server.SealedServer.open` and :meth:`Exchange.run`.
        """
        self._admit()
        request = await self._open(envelope)
        exchange = Exchange(request=request, ports=self._ports)
        session = exchange.session_id
        if self._by_session[session] >= request.claims.limits.max_concurrent_requests:
            exchange.abort(RateLimitError("the session has as many requests in flight as its ticket allows"))
        self._by_session[session] += 1
        self._exchanges.add(exchange)
        self._quiet.clear()
        try:
            async with contextlib.aclosing(exchange.run(chunks, method=method)) as parts:
                async for part in parts:
                    yield part
        except BulkheadError as error:
            self._refusals.refused_envelope(error, envelope)
            raise
        finally:
            self._leave(exchange)

    def fetch_receipt(
        self, *, ticket: str, request_id: str, signature: bytes, certificate: bytes = b""
    ) -> SignedReceipt:
        """Return the receipt of a request of the caller's session (all arguments untrusted).

        Raises:
            TicketError, CertificateError, SignatureError: the caller has no right to it.
            NotFoundError: there is none.
        """
        try:
            claims = self._sealed.authorise_receipt_fetch(
                ticket=ticket,
                request_id=request_id,
                signature=signature,
                certificate=certificate,
                now_s=int(self._wall_s()),
            )
        except BulkheadError as error:
            self._refusals.refused_ticket(error, ticket)
            raise
        return self._desk.fetch(session_id=claims.session, request_id=request_id)

    def load(self) -> WorkerLoad:
        """Return how busy the worker is."""
        waiting = self._engine.metrics().counters.waiting
        return WorkerLoad(running_requests=len(self._exchanges), queued_requests=waiting)

    def end_revoked(self) -> None:
        """End the running requests of sessions that the lease revokes."""
        for exchange in list(self._exchanges):
            if exchange.session_id in self._lease.revoked:
                exchange.abort(TicketRevokedError("the session was revoked"))

    async def tell_totals(self, *, all_sessions: bool = False) -> None:
        """Tell the agent the totals of strict sessions that have ended, with nothing in flight; at the end, of all."""

        def ended(session: str) -> bool:
            return all_sessions or (session in self._lease.revoked and session not in self._by_session)

        for session in self._desk.untold(ended):
            number = self._sealed.next_receipt_number(session)
            await self._desk.tell_total(session, partition=self._sealed.partition, number=number)

    def begin_drain(self) -> None:
        """Take nothing new."""
        self._draining = True

    def end_all(self, error: BulkheadError) -> None:
        """End every running request with ``error``."""
        for exchange in list(self._exchanges):
            exchange.abort(error)

    async def quiet(self) -> None:
        """Return when no request runs and every receipt is settled."""
        while self._exchanges or self._background:
            await self._quiet.wait()
            await asyncio.gather(*self._background, return_exceptions=True)

    async def _open(self, envelope: bytes) -> ServerRequest:
        try:
            try:
                return self._sealed.open(envelope, now_s=int(self._wall_s()))
            except TicketError:
                claims = self._refusals.claims_of(envelope)
                if claims is None or self._lease.knows_evidence(claims.evidence_digest):
                    raise
            # The ticket may be younger than the last grant, which names the evidence it stands on. Only tickets that
            # the issuer signed get here, so strangers make nobody wait.
            await self._lease.next_grant(timeout_s=GRANT_WAIT_S)
            return self._sealed.open(envelope, now_s=int(self._wall_s()))
        except BulkheadError as error:
            self._refusals.refused_envelope(error, envelope)
            raise

    def _admit(self) -> None:
        if self._draining:
            raise ShuttingDownError("the worker is shutting down: open a new session")
        self._lease.check()
        if len(self._exchanges) >= self._max_in_flight:
            raise QueueFullError(f"the worker has {self._max_in_flight} requests in flight: try again later")

    def _leave(self, exchange: Exchange) -> None:
        self._exchanges.discard(exchange)
        self.answered += exchange.produced
        session = exchange.session_id
        self._by_session[session] -= 1
        if not self._by_session[session]:
            del self._by_session[session]
        if not self._exchanges:
            self._quiet.set()
        if self._engine.health() is EngineState.FAILED:
            self.engine_failed.set()

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("worker.receipt_failed", error=type(error).__name__)
