"""One partition as its agent runs it: the worker's process, what the worker says, its end and its scrub.

What a worker says is bounded and concerns its own tenant: a message that is not leads to the worker's end. A receipt is
answered once its event is durable in the spool.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from bulkhead.encoding import MAX_SAFE_INTEGER
from bulkhead.errors import (
    BulkheadError,
    ConflictError,
    DeadlineError,
    ExhaustedError,
    WorkerLostError,
    error_from_code,
)
from bulkhead.ids import MAX_ID_LENGTH
from data_plane.inference.metrics import EngineMetrics
from data_plane.ports import Assignment, PartitionSpec, PartitionState
from data_plane.sandbox import SandboxPlan
from data_plane.session.commands import Released
from data_plane.session.events import ReceiptRecorded, RequestRefused
from data_plane.session.live_evidence import LiveEvidence
from data_plane.session.messages import (
    Drain,
    FromWorker,
    LeaseGrant,
    ModelKey,
    ReceiptDurable,
    ReceiptReady,
    StartWorker,
    ToWorker,
    WorkerBooted,
    WorkerFailed,
    WorkerLoad,
    WorkerLoading,
    WorkerMetrics,
    WorkerReady,
    WorkerRefused,
)
from data_plane.session.observing import sound
from data_plane.session.process import WorkerProcess
from data_plane.session.spool import Spool

__all__ = ["Partition", "PartitionPorts", "WorkerLink"]

_log = structlog.get_logger(__name__)

MAX_OPEN_RECEIPTS: Final = 8_192  # one per request in flight, and a worker never has more
MAX_CODE_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 512
MAX_TOKENS: Final = 2**31 - 1
MAX_KEYSET_BYTES: Final = 8_192
MAX_CERTIFICATE_BYTES: Final = 16_384
_DIGEST_BYTES: Final = 32
_STATUSES: Final = frozenset({"ok", "cancelled", "failed"})

Progress = Callable[[str, str], None]


class WorkerLink(Protocol):
    """The agent's end of the socket pair."""

    async def send(self, message: ToWorker) -> None:
        """Send one message, or raise WorkerLostError."""
        ...

    async def receive(self) -> FromWorker | None:
        """Return the next message, None at the end, or raise MalformedRequestError."""
        ...

    def close(self) -> None:
        """Close this end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPorts:
    """What partitions work with; the same for all of an agent.

    Attributes:
        spool: takes events.
        open_link: takes over the agent's end of a socket pair.
        now_us: Unix microseconds.
        stop_timeout_s: from the end of a drain until a worker that has not exited is killed.
    """

    spool: Spool
    open_link: Callable[[socket.socket], Awaitable[WorkerLink]]
    now_us: Callable[[], int]
    stop_timeout_s: float


class Partition:
    """One live partition.

    Attributes:
        state: where it is in its life; set by the agent.
        fence: under which it was created.
        assignment: what its tier gave it.
        booted: what the worker of a sealed model said while it waited for the model's key; None once it has it.
        ready: what the worker said when it began to listen.
        load: what it said last.
        metrics: its last snapshot, taken at ``metrics_us``; None before there is one.
        evidence: what was issued for it and holds still.
        scrub: the scrub under way or done, once there is one.
        tenant_root: fingerprint of the root that must have certified session keys; None where the tenant has none.
    """

    def __init__(
        self, *, spec: PartitionSpec, fence: int, slot: int, assignment: Assignment, ports: PartitionPorts
    ) -> None:
        self.spec: Final = spec
        self.fence: Final = fence
        self.slot: Final = slot
        self.assignment: Final = assignment
        self.state = PartitionState.CREATING
        self.booted: WorkerBooted | None = None
        self.ready: WorkerReady | None = None
        self.load = WorkerLoad(running_requests=0, queued_requests=0)
        self.metrics: EngineMetrics | None = None
        self.metrics_us = 0
        self.evidence = LiveEvidence()
        self.scrub: asyncio.Task[Released] | None = None
        self.model_name = ""
        self.ticket_issuers: tuple[bytes, ...] = ()
        self.tenant_root: bytes | None = None
        self._ports = ports
        self._process: WorkerProcess | None = None
        self._link: WorkerLink | None = None
        self._following: asyncio.Task[None] | None = None
        self._answered: asyncio.Future[WorkerReady | WorkerBooted] = asyncio.get_running_loop().create_future()
        self._receipts: set[asyncio.Task[None]] = set()
        self._progress: Progress = _no_progress
        self._granting = 0
        self._heard_s = self._asked_s = asyncio.get_running_loop().time()

    @property
    def partition_id(self) -> str:
        """Its id."""
        return self.spec.partition_id

    @property
    def process(self) -> WorkerProcess | None:
        """The worker's process, once it was spawned."""
        return self._process

    def spawn(
        self,
        *,
        plan: SandboxPlan,
        channel: tuple[socket.socket, socket.socket],
        cwd: Path,
        environment: dict[str, str],
        arguments: tuple[str, ...],
    ) -> WorkerProcess:
        """Start the worker's process; to be called from the main thread.

        Raises:
            WorkerLostError: it could not be started.
        """
        self._process = WorkerProcess.spawn(
            plan=plan, channel=channel, cwd=cwd, environment=environment, arguments=arguments
        )
        return self._process

    async def start(self, start: StartWorker, *, timeout_s: float, progress: Progress) -> WorkerReady | WorkerBooted:
        """Tell the spawned worker what to serve; return what it says when it listens, or waits for its model's key.

        Raises:
            DeadlineError: it is not ready in time.
            WorkerLostError: it ended before that.
            BulkheadError: its own failure.
        """
        if self._process is None:
            raise WorkerLostError("the worker was not spawned")
        self._progress = progress
        self.model_name, self.ticket_issuers = start.model_name, start.ticket_issuers
        self.tenant_root = start.tenant_root or None
        self._link = await self._ports.open_link(self._process.channel)
        self._following = asyncio.create_task(self._follow(self._link))
        return await self._answer_to(self._link, start, timeout_s)

    async def load_model(self, key: ModelKey, *, timeout_s: float, progress: Progress) -> WorkerReady:
        """Hand a booted worker its model's key and return what it says when it listens.

        Raises:
            ConflictError: it does not wait for one.
            DeadlineError, WorkerLostError, BulkheadError: as :meth:`start`.
        """
        if self.booted is None or self._link is None:
            raise ConflictError("the partition's worker waits for no key")
        self.booted, self._progress = None, progress
        self._answered = asyncio.get_running_loop().create_future()
        answer = await self._answer_to(self._link, key, timeout_s)
        if not isinstance(answer, WorkerReady):
            raise WorkerLostError("the worker asks for a second key")
        return answer

    async def _answer_to(
        self, link: WorkerLink, message: StartWorker | ModelKey, timeout_s: float
    ) -> WorkerReady | WorkerBooted:
        await link.send(message)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await asyncio.shield(self._answered)
        except TimeoutError as error:
            raise DeadlineError(f"the worker was not ready within {timeout_s:.0f} s") from error
        self._progress = _no_progress
        if isinstance(answer, WorkerReady):
            self.ready = answer
        else:
            self.booted = answer
        return answer

    async def grant(self, grant: LeaseGrant) -> None:
        """Hand a lease to the worker; one that does not take it is ended, and its partition lost."""
        if self._link is None or self.ready is None:
            return
        self._granting += 1
        try:
            await self._link.send(grant)
        except WorkerLostError:
            await self.kill()
        finally:
            self._granting -= 1

    @property
    def is_being_granted(self) -> bool:
        """Whether the worker has not taken the last lease yet."""
        return self._granting > 0

    def is_silent(self, patience_s: float) -> bool:
        """Whether a worker that listens has said nothing for ``patience_s``; to be asked regularly.

        After a pause of the agent itself nobody is silent: what they said waits to be read.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s > patience_s / 2:
            self._heard_s = now_s
        self._asked_s = now_s
        return self.ready is not None and now_s - self._heard_s > patience_s

    async def kill(self) -> None:
        """End a worker that does not behave; who supervises it learns of its exit."""
        if self._process is not None:
            await self._process.end()

    async def exited(self) -> int:
        """Return the exit status of the worker when it is gone."""
        return await self._process.wait() if self._process is not None else 0

    async def drain(self, *, until_ms: int, rest_s: float) -> None:
        """Let running requests finish for ``rest_s`` seconds (until ``until_ms``), then let the worker end itself."""
        if self._process is None or self._process.is_gone or self._link is None:
            return
        with contextlib.suppress(WorkerLostError):
            await self._link.send(Drain(until_ms=until_ms))
            await asyncio.wait(
                {asyncio.ensure_future(self._process.wait())},
                timeout=max(0.0, rest_s) + self._ports.stop_timeout_s,
            )

    async def end(self) -> bool:
        """End the worker now if it still runs; tell whether it is proven gone. Idempotent."""
        gone = True if self._process is None else await self._process.end()
        if self._following is not None:
            # The channel is at its end now; what the worker still sent, receipts above all, is taken first.
            await asyncio.wait({self._following}, timeout=self._ports.stop_timeout_s)
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._receipts:
            await asyncio.wait(self._receipts, timeout=self._ports.stop_timeout_s)
        if self._link is not None:
            self._link.close()
        elif self._process is not None:
            self._process.channel.close()
        if not self._answered.done():
            self._answered.set_exception(WorkerLostError("the worker was ended before it was ready"))
            self._answered.exception()
        return gone

    async def _follow(self, link: WorkerLink) -> None:
        """Take the worker's messages until its end."""
        try:
            while (message := await link.receive()) is not None:
                self._take(message)
        except BulkheadError as error:
            _log.error("worker.nonsense", partition_id=self.partition_id, reason=error.message)
            if self._process is not None:
                await self._process.end()
        if not self._answered.done():
            self._answered.set_exception(WorkerLostError("the worker ended before it was ready"))
            self._answered.exception()

    def _take(self, message: FromWorker) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        match message:
            case WorkerLoading():
                self._progress("loading", message.text[:MAX_TEXT_CHARS])
            case WorkerLoad():
                self.load = message
            case WorkerMetrics():
                _require(sound(message.metrics))
                self.metrics, self.metrics_us = message.metrics, self._ports.now_us()
            case WorkerBooted() | WorkerReady():
                self._take_keys(message)
            case WorkerFailed():
                if not self._answered.done():
                    error = error_from_code(message.code[:MAX_CODE_CHARS], message.message[:MAX_TEXT_CHARS])
                    self._answered.set_exception(error)
                    self._answered.exception()
            case WorkerRefused():
                _require(max(len(message.code), len(message.session_id), len(message.tenant_id)) <= MAX_ID_LENGTH)
                self._background(self._spool_refusal(message))
            case ReceiptReady():
                _check_receipt(message)
                _require(len(self._receipts) < MAX_OPEN_RECEIPTS)
                self._background(self._spool_receipt(message))

    def _take_keys(self, message: WorkerBooted | WorkerReady) -> None:
        _require(len(message.keyset) <= MAX_KEYSET_BYTES and len(message.certificate) <= MAX_CERTIFICATE_BYTES)
        _require(len(message.model_digest) == _DIGEST_BYTES)
        if not self._answered.done():
            self._answered.set_result(message)
        elif self.ready is not None and isinstance(message, WorkerReady):
            self.ready = message  # its keys were renewed

    def _background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._receipts.add(task)
        task.add_done_callback(self._receipts.discard)

    async def _spool_receipt(self, receipt: ReceiptReady) -> None:
        durable = True
        try:
            await self._ports.spool.append(
                ReceiptRecorded(
                    partition_id=self.partition_id,
                    ts_us=self._ports.now_us(),
                    session_id=receipt.session_id,
                    session_number=receipt.session_number,
                    tenant_id=self.spec.tenant_id,
                    request_id=receipt.request_id,
                    receipt_digest=receipt.receipt_digest,
                    prompt_tokens=receipt.prompt_tokens,
                    completion_tokens=receipt.completion_tokens,
                    status=receipt.status,
                )
            )
        except BulkheadError as error:
            durable = False
            _log.error("spool.receipt_refused", partition_id=self.partition_id, code=error.code)
        if self._link is not None:
            with contextlib.suppress(WorkerLostError):
                await self._link.send(ReceiptDurable(receipt_number=receipt.receipt_number, durable=durable))

    async def _spool_refusal(self, refusal: WorkerRefused) -> None:
        try:
            await self._ports.spool.append(
                RequestRefused(
                    partition_id=self.partition_id,
                    ts_us=self._ports.now_us(),
                    code=refusal.code,
                    session_id=refusal.session_id,
                    tenant_id=refusal.tenant_id,
                )
            )
        except BulkheadError as error:
            _log.warning("spool.refusal_dropped", partition_id=self.partition_id, code=error.code)


def _no_progress(_phase: str, _text: str) -> None:
    """Take progress that nobody waits for."""


def _require(holds: bool) -> None:  # noqa: FBT001  reads as the condition itself
    if not holds:
        raise ExhaustedError("a message of the worker is out of bounds")


def _check_receipt(receipt: ReceiptReady) -> None:
    _require(0 < len(receipt.session_id) <= MAX_ID_LENGTH and 0 < len(receipt.request_id) <= MAX_ID_LENGTH)
    _require(0 < receipt.session_number <= MAX_SAFE_INTEGER)
    _require(len(receipt.receipt_digest) == _DIGEST_BYTES and receipt.status in _STATUSES)
    _require(receipt.prompt_tokens <= MAX_TOKENS and receipt.completion_tokens <= MAX_TOKENS)
