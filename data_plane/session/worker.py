"""A worker process from its first message to its end.

States::

    WAITING --start--> LOADING --listening--> SERVING --drain, agent gone, engine failed--> ENDING --> over

- Keys are made first, since a sealed model's key is sealed to them (:mod:`data_plane.session.loading`); they live in
  this process only, and are renewed at half their life.
- The model's digest is computed here, from the files that are then loaded; another digest than ordered is a failure.
- When the agent goes away nothing can be recorded any more: running requests end with an error at once.
- At the end the keys are destroyed, whatever happened.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import structlog

from bulkhead.errors import (
    AgentUnavailableError,
    AuditLeaseError,
    BulkheadError,
    DeadlineError,
    InternalError,
    MalformedRequestError,
    ShuttingDownError,
)
from bulkhead.protocol.server import SealedServer
from bulkhead.protocol.tickets import TicketVerifier
from data_plane.engine import EngineConfig, open_engine
from data_plane.inference.port import Engine
from data_plane.session.keys import KeyRing
from data_plane.session.lease import WorkerLease
from data_plane.session.loading import ModelLoader, certificate_der
from data_plane.session.messages import (
    AgentLink,
    Drain,
    LeaseGrant,
    ModelKey,
    ReceiptDurable,
    StartWorker,
    ToWorker,
    WorkerFailed,
    WorkerMetrics,
    WorkerReady,
)
from data_plane.session.observing import Observation, coarse
from data_plane.session.receipts import ReceiptDesk
from data_plane.session.refusals import RefusalReporter
from data_plane.session.serving import RequestServer

__all__ = ["Listener", "WorkerProgram"]

_log = structlog.get_logger(__name__)

START_TIMEOUT_S: Final = 30.0  # the agent sends the first message at once
REPORT_EVERY_S: Final = 1.0
ORPHAN_S: Final = 5.0  # for ending requests when the agent is gone; the restarted agent waits a little longer
CLOSE_S: Final = 1.0
MIN_PAUSE_S: Final = 0.05  # between two looks at the keys' ages
_MS: Final = 1000


class Listener(Protocol):
    """A running transport."""

    async def drain(self) -> None:
        """Say that nothing new is taken."""
        ...

    async def stop(self, *, grace_s: float) -> None:
        """Close it."""
        ...


Listen = Callable[..., Awaitable[Listener]]


class WorkerProgram:
    """One worker.

    Args:
        link: to the agent.
        listen: starts the transport; called with the request server, ``identity`` (gives the current TLS identity,
            from any thread) and ``socket_path``.
        sandbox: names of the confinements that hold.
        wall_s: Unix seconds.
        monotonic_s: seconds that never go backwards.
        load: opens an engine.
    """

    def __init__(
        self,
        *,
        link: AgentLink,
        listen: Listen,
        sandbox: tuple[str, ...],
        wall_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        load: Callable[[EngineConfig], Awaitable[Engine]] = open_engine,
    ) -> None:
        self._link = link
        self._listen = listen
        self._sandbox = sandbox
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._loader = ModelLoader(link=link, load=load, sandbox=sandbox)
        self._lease = WorkerLease(wall_s=wall_s, monotonic_s=monotonic_s)
        self._desk = ReceiptDesk(link=link, monotonic_s=monotonic_s)
        self._requests: RequestServer | None = None
        self._tickets: TicketVerifier | None = None
        self._gone = asyncio.Event()
        self._drain: Drain | None = None
        self._ending = asyncio.Event()

    def agent_lost(self) -> None:
        """Take note that the agent has ended (its end of the socket pair closed, or the kernel's signal)."""
        self._gone.set()
        self._ending.set()

    async def run(self) -> bool:
        """Serve until told otherwise; tell whether the end was an orderly one."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                start = await self._link.receive()
        except TimeoutError:
            start = None
        if not isinstance(start, StartWorker):
            _log.error("worker.no_start")
            return False
        structlog.contextvars.bind_contextvars(partition_id=start.partition_id)
        try:
            return await self._run(start)
        except BulkheadError as error:
            _log.error("worker.failed", code=error.code, reason=error.message)
            with contextlib.suppress(AgentUnavailableError):
                await self._link.send(WorkerFailed(code=error.code, message=error.message))
            return False

    async def _run(self, start: StartWorker) -> bool:
        reading = asyncio.create_task(self._read())
        ending = asyncio.create_task(self._ending.wait())
        ring = KeyRing(authority=start.authority, wall_s=self._wall_s, life_s=start.key_life_s)
        loading = asyncio.create_task(self._loader.open(start, ring))
        try:
            await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                raise DeadlineError("the node agent ended the worker while it was loading")
            engine = loading.result()
            try:
                return await self._serve(start, engine, ring)
            finally:
                ring.destroy()
                await engine.aclose()
        finally:
            ring.destroy()
            for task in (reading, ending, loading):
                task.cancel()
            await asyncio.gather(reading, ending, loading, return_exceptions=True)

    async def _serve(self, start: StartWorker, engine: Engine, ring: KeyRing) -> bool:
        sealed, requests = self._request_server(start, engine, ring)
        self._requests = requests
        listener = await self._listen(requests, identity=ring.identity, socket_path=Path(start.socket_path))
        context_tokens = engine.describe().context_tokens
        tasks = [
            asyncio.create_task(requests.engine_failed.wait()),
            asyncio.create_task(self._ending.wait()),
            asyncio.create_task(self._report(requests, engine)),
            asyncio.create_task(_tell_totals(requests)),
            asyncio.create_task(self._rotate(start, sealed, ring, context_tokens)),
        ]
        try:
            await self._link.send(self._ready(start, ring, context_tokens))
            _log.info("worker.ready", model=start.model_name, sandbox=list(self._sandbox))
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            failed = requests.engine_failed.is_set()
            await self._end(requests, listener, failed=failed)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await listener.stop(grace_s=CLOSE_S)
        return not failed and not self._gone.is_set()

    async def _rotate(self, start: StartWorker, sealed: SealedServer, ring: KeyRing, context_tokens: int) -> None:
        """Renew the keys at half their life, and destroy each generation when its time has passed."""
        while True:
            await asyncio.sleep(max(MIN_PAUSE_S, ring.due_s))
            for keys in ring.take_expired():
                sealed.retire_keys(keys.key_id)
            if (renewed := ring.rotate()) is not None:
                sealed.add_keys(renewed)
                _log.info("worker.keys_renewed")
                with contextlib.suppress(AgentUnavailableError):  # then this worker is at its end
                    await self._link.send(self._ready(start, ring, context_tokens))

    def _ready(self, start: StartWorker, ring: KeyRing, context_tokens: int) -> WorkerReady:
        keys = ring.current
        return WorkerReady(
            keyset=keys.keyset.encoded,
            certificate=certificate_der(ring),
            model_digest=start.model_digest,
            context_length=context_tokens,
            sandbox=self._sandbox,
        )

    def _request_server(self, start: StartWorker, engine: Engine, ring: KeyRing) -> tuple[SealedServer, RequestServer]:
        lease = self._lease
        tickets = self._tickets = TicketVerifier(issuer_keys=start.ticket_issuers)
        sealed = SealedServer(
            authority=start.authority,
            tenant=start.tenant_id,
            partition=start.partition_id,
            model_digest=start.model_digest,
            tickets=tickets,
            keys=ring.current,
            is_revoked=lambda claims: claims.session in lease.revoked,
            knows_evidence=lease.knows_evidence,
            tenant_root=start.tenant_root or None,
        )
        return sealed, RequestServer(
            sealed=sealed,
            engine=engine,
            lease=lease,
            desk=self._desk,
            refusals=RefusalReporter(link=self._link, tickets=tickets, monotonic_s=self._monotonic_s),
            max_in_flight=start.max_running_requests + start.max_queued_requests,
            max_output_tokens=start.max_output_tokens,
            wall_s=self._wall_s,
        )

    async def _read(self) -> None:
        """Follow the agent's messages until it is gone."""
        try:
            while (message := await self._link.receive()) is not None:
                self._take(message)
        except MalformedRequestError as error:
            _log.error("worker.bad_frame", reason=error.message)
        self.agent_lost()

    def _take(self, message: ToWorker) -> None:
        match message:
            case LeaseGrant():
                self._lease.grant(message)
                if self._tickets is not None and message.ticket_issuers:
                    self._tickets.trust(message.ticket_issuers)
                if self._requests is not None:
                    self._requests.end_revoked()
            case ReceiptDurable():
                self._desk.settle(message)
            case Drain():
                self._drain = message
                self._ending.set()
            case ModelKey():
                self._loader.take_key(message)
            case StartWorker():
                _log.warning("worker.started_twice")

    async def _report(self, requests: RequestServer, engine: Engine) -> None:
        observation = Observation(now_s=self._monotonic_s())
        with contextlib.suppress(AgentUnavailableError):
            while True:
                await self._link.send(requests.load())
                if observation.due(now_s=self._monotonic_s(), answered=requests.answered):
                    await self._link.send(WorkerMetrics(metrics=coarse(engine.metrics())))
                await asyncio.sleep(REPORT_EVERY_S)

    async def _end(self, requests: RequestServer, listener: Listener, *, failed: bool) -> None:
        """Finish what runs as far as the cause of the end allows."""
        requests.begin_drain()
        await listener.drain()
        quiet = asyncio.create_task(requests.quiet())
        try:
            if self._drain is not None and not failed:
                await self._drain_until(quiet, self._drain.until_ms / _MS - self._wall_s())
            if self._gone.is_set():
                self._desk.close()
                requests.end_all(AuditLeaseError("the node agent is gone: nothing can be recorded"))
            elif failed:
                requests.end_all(InternalError("the worker's engine failed"))
            else:
                requests.end_all(ShuttingDownError("the worker shuts down"))
            await asyncio.wait({quiet}, timeout=ORPHAN_S)
            await requests.tell_totals(all_sessions=True)
        finally:
            quiet.cancel()
            await asyncio.gather(quiet, return_exceptions=True)

    async def _drain_until(self, quiet: "asyncio.Task[None]", rest_s: float) -> None:
        lost = asyncio.create_task(self._gone.wait())
        await asyncio.wait({quiet, lost}, timeout=max(0.0, rest_s), return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)


async def _tell_totals(requests: RequestServer) -> None:
    """Tell the totals of strict sessions as they end; apart from the rest, since it waits for the spool."""
    while True:
        await requests.tell_totals()
        await asyncio.sleep(REPORT_EVERY_S)
