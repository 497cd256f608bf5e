"""Receipts on their way to the audit log, and those that clients may still fetch.

A receipt is announced to the agent, which answers once its digest is durable in the spool. The final chunk waits for
that. Receipts stay fetchable for :data:`KEEP_S`, also those of requests whose client went away.

Under strict padding the agent is told digests without counts, and one total when the session has ended, or the worker
ends (:class:`bulkhead.transparency.totals.SessionTotal`). Totals live in the worker's memory alone until then: a worker
that dies takes them along, and that usage is stated by nobody but the receipts.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from bulkhead.errors import AgentUnavailableError, AuditLeaseError, NotFoundError
from bulkhead.protocol.context import RequestInfo
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import ReceiptStatus, SignedReceipt
from bulkhead.transparency.totals import SessionTotal
from data_plane.session.messages import AgentLink, ReceiptDurable, ReceiptReady

__all__ = ["KEEP_S", "ReceiptDesk"]

_log = structlog.get_logger(__name__)

KEEP_S: Final = 900.0  # the longest life of the ticket that fetches it
MAX_KEPT: Final = 16_384  # about 2 kB each
DURABLE_TIMEOUT_S: Final = 10.0  # a disk that takes longer for one fsync is a failing one
MAX_TOTAL_TOKENS: Final = 1 << 30  # a larger total is told before its session's end, since counts have 31 bits


@dataclass(frozen=True, slots=True)
class _Kept:
    receipt: SignedReceipt
    until_s: float


@dataclass(slots=True)
class _Untold:
    """Usage of a session's receipts that the agent was not told."""

    receipts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ReceiptDesk:
    """The receipts of one worker. All methods run on its event loop.

    Args:
        link: to the agent.
        monotonic_s: seconds that never go backwards.
    """

    def __init__(self, *, link: AgentLink, monotonic_s: Callable[[], float]) -> None:
        self._link = link
        self._monotonic_s = monotonic_s
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._untold: dict[str, _Untold] = {}
        self._last_number = 0
        self._closed = False

    async def record(
        self,
        signed: SignedReceipt,
        *,
        number: int,
        info: RequestInfo,
        usage: Usage,
        status: ReceiptStatus,
        in_total: bool,
    ) -> None:
        """Return once the receipt's digest is durable; from then on it can be fetched.

        Args:
            signed: the receipt.
            number: in its session.
            info: of the request.
            usage: what the receipt states.
            status: likewise.
            in_total: whether the agent is told the usage in the session's total only.

        Raises:
            AuditLeaseError: the agent did not make it durable, or is gone; the final chunk must not be released.
        """
        session = info.scope.session
        told = Usage() if in_total else usage
        durable = await self._announce(
            session, number=number, request_id=info.request_id, digest=signed.digest, usage=told, status=status
        )
        if not durable:
            raise AuditLeaseError("the receipt could not be recorded: the agent's spool does not take it")
        if in_total:
            untold = self._untold.setdefault(session, _Untold())
            untold.receipts += 1
            untold.prompt_tokens += usage.prompt_tokens
            untold.completion_tokens += usage.completion_tokens
        self._keep((session, info.request_id), signed)

    def untold(self, ended: Callable[[str], bool]) -> tuple[str, ...]:
        """Return the sessions whose total is due: ``ended`` says so, or it grows too large."""
        return tuple(
            session
            for session, total in self._untold.items()
            if ended(session) or max(total.prompt_tokens, total.completion_tokens) > MAX_TOTAL_TOKENS
        )

    async def tell_total(self, session: str, *, partition: str, number: int) -> None:
        """Tell the agent a session's total, under a number of its receipts.

        One that the agent's spool refuses is told again later; one whose fate is unknown is not, since usage must not
        be stated twice.
        """
        untold = self._untold.pop(session, None)
        if untold is None:
            return
        total = SessionTotal(
            session=session,
            partition=partition,
            number=number,
            receipts=untold.receipts,
            prompt_tokens=untold.prompt_tokens,
            completion_tokens=untold.completion_tokens,
        )
        usage = Usage(prompt_tokens=total.prompt_tokens, completion_tokens=total.completion_tokens)
        try:
            durable = await self._announce(
                session, number=number, request_id=session, digest=total.digest, usage=usage, status=ReceiptStatus.OK
            )
        except AuditLeaseError as error:
            _log.warning("worker.total_lost", session_id=session, receipts=total.receipts, code=error.code)
            return
        if not durable:
            later = self._untold.setdefault(session, _Untold())
            later.receipts += total.receipts
            later.prompt_tokens += total.prompt_tokens
            later.completion_tokens += total.completion_tokens

    async def _announce(
        self, session: str, *, number: int, request_id: str, digest: bytes, usage: Usage, status: ReceiptStatus
    ) -> bool:
        """Return whether the agent made it durable.

        Raises:
            AuditLeaseError: it is not known.
        """
        if self._closed:
            raise AuditLeaseError("the node agent is gone: the receipt cannot be recorded")
        self._last_number += 1
        place = self._last_number
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[place] = answer
        try:
            async with asyncio.timeout(DURABLE_TIMEOUT_S):
                await self._link.send(
                    ReceiptReady(
                        receipt_number=place,
                        session_id=session,
                        session_number=number,
                        request_id=request_id,
                        receipt_digest=digest,
                        prompt_tokens=usage.prompt_tokens,
                        completion_tokens=usage.completion_tokens,
                        status=status.value,
                    )
                )
                return await answer
        except (TimeoutError, AgentUnavailableError) as error:
            raise AuditLeaseError("the receipt could not be recorded") from error
        finally:
            self._waiting.pop(place, None)

    def settle(self, answer: ReceiptDurable) -> None:
        """Take the agent's answer; one that nobody waits for is ignored."""
        waiting = self._waiting.get(answer.receipt_number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.durable)

    def close(self) -> None:
        """The agent is gone: nothing becomes durable any more."""
        self._closed = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(False)

    def fetch(self, *, session_id: str, request_id: str) -> SignedReceipt:
        """Return the latest receipt of a request of that session, whose right to it the caller checked.

        Raises:
            NotFoundError: none, or none any more.
        """
        kept = self._kept.get((session_id, request_id))
        if kept is None or kept.until_s < self._monotonic_s():
            raise NotFoundError("no receipt of that request is here; receipts are kept for 15 minutes")
        return kept.receipt

    def _keep(self, key: tuple[str, str], receipt: SignedReceipt) -> None:
        now_s = self._monotonic_s()
        self._kept.pop(key, None)
        self._kept[key] = _Kept(receipt, now_s + KEEP_S)
        while len(self._kept) > MAX_KEPT or next(iter(self._kept.values())).until_s < now_s:
            self._kept.popitem(last=False)
