"""Receipts on their way to the audit log, and those that clients may still fetch.

A receipt is announced to the agent, which answers once its digest is durable in the spool. The final chunk waits for
that. Receipts stay fetchable for :data:`KEEP_S`, also those of requests whose client went away.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bulkhead.errors import AgentUnavailableError, AuditLeaseError, NotFoundError
from bulkhead.protocol.context import RequestInfo
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import ReceiptStatus, SignedReceipt
from data_plane.session.messages import AgentLink, ReceiptDurable, ReceiptReady

__all__ = ["KEEP_S", "ReceiptDesk"]

KEEP_S: Final = 900.0  # the longest life of the ticket that fetches it
MAX_KEPT: Final = 16_384  # about 2 kB each
DURABLE_TIMEOUT_S: Final = 10.0  # a disk that takes longer for one fsync is a failing one


@dataclass(frozen=True, slots=True)
class _Kept:
    receipt: SignedReceipt
    until_s: float


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
        self._last_number = 0
        self._closed = False

    async def record(
        self, signed: SignedReceipt, *, number: int, info: RequestInfo, usage: Usage, status: ReceiptStatus
    ) -> None:
        """Return once the receipt's digest is durable; from then on it can be fetched.

        Raises:
            AuditLeaseError: the agent did not make it durable, or is gone; the final chunk must not be released.
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
                        session_id=info.scope.session,
                        session_number=number,
                        request_id=info.request_id,
                        receipt_digest=signed.digest,
                        prompt_tokens=usage.prompt_tokens,
                        completion_tokens=usage.completion_tokens,
                        status=status.value,
                    )
                )
                durable = await answer
        except (TimeoutError, AgentUnavailableError) as error:
            raise AuditLeaseError("the receipt could not be recorded") from error
        finally:
            self._waiting.pop(place, None)
        if not durable:
            raise AuditLeaseError("the receipt could not be recorded: the agent's spool does not take it")
        self._keep((info.scope.session, info.request_id), signed)

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
