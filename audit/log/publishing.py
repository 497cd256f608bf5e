"""Publishes the platform's log: its checkpoint counts as published once a quorum of witnesses has cosigned it.

Appends and requests never wait for this. What waits is what a tenant is shown of the platform's log: its path into a
round leads to a published checkpoint only. Without witnesses every checkpoint is published at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from audit.config import WitnessTarget
from audit.model import Head, LogInfo
from audit.witness.client import WitnessClient
from bulkhead.errors import BulkheadError
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.merkle import Frontier

__all__ = ["Published", "Publisher", "keep_publishing"]

PUBLICATION: Final = "publication"
_TIMEOUT_S: Final = 5.0  # for one request to a witness


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint of the platform's log.

    Attributes:
        frontier: of its tree.
        note: signed by the log and cosigned by the quorum.
    """

    frontier: Frontier
    note: str


class Publisher:
    """Gathers cosignatures, one checkpoint at a time.

    Args:
        targets: the witnesses.
        quorum: how many of them must cosign.
        sign: returns the signed checkpoint of a tree of the platform's log; blocks.
        extension: returns the consistency proof between two sizes of it, and the later's checkpoint.
        keep: stores the cosignature lines of a size some time soon.
    """

    def __init__(
        self,
        *,
        targets: Sequence[WitnessTarget],
        quorum: int,
        sign: Callable[[LogInfo, Frontier], str],
        extension: Callable[[int, int], Awaitable[tuple[tuple[bytes, ...], str]]],
        keep: Callable[[int, int, str], None],
    ) -> None:
        self._clients = [
            WitnessClient(target.url, tuple(map(Witness.from_vkey, target.vkeys)), _TIMEOUT_S) for target in targets
        ]
        self._quorum = quorum
        self._sign = sign
        self._extension = extension
        self._keep = keep
        self.published: Published | None = None
        self.failures: dict[str, BulkheadError] = {}
        """Why a witness did not cosign last time, by its name; :data:`PUBLICATION`: why nobody was asked."""

    @property
    def witnessed(self) -> bool:
        """Whether publication waits for witnesses at all."""
        return self._quorum > 0

    async def publish(self, http: aiohttp.ClientSession, info: LogInfo, head: Head) -> None:
        """Try to publish the platform's head."""
        note = await asyncio.to_thread(self._sign, info, head.frontier)
        answers = await asyncio.gather(*(self._ask(client, http, note) for client in self._clients))
        found = [lines for lines in answers if lines]
        if len(found) < self._quorum:
            return
        cosignatures = "".join(line for lines in found for line in lines)
        if cosignatures:
            self._keep(info.log_id, head.size, cosignatures)
        self.published = Published(head.frontier, note + cosignatures)

    async def _ask(self, client: WitnessClient, http: aiohttp.ClientSession, note: str) -> tuple[str, ...]:
        try:
            lines = await client.cosign(http, note, self._proof)
        except BulkheadError as error:  # the others may be enough; health() tells
            self.failures[client.name] = error
            return ()
        self.failures.pop(client.name, None)
        return lines

    async def _proof(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        return (await self._extension(old_size, new_size))[0]


async def keep_publishing(
    publisher: Publisher,
    *,
    interval_s: float,
    state: Callable[[], Awaitable[tuple[LogInfo, Head]]],
    ended: Callable[[], bool],
) -> None:
    """Publish whenever the platform's log has grown, at most once per interval, until cancelled or ``ended``."""
    async with aiohttp.ClientSession() as http:
        while not ended():
            await asyncio.sleep(interval_s)
            try:
                info, head = await state()
                done = publisher.published
                if done is None or done.frontier.size != head.size:
                    await publisher.publish(http, info, head)
            except BulkheadError as error:  # e.g. the database cannot be read now: the next turn tries again
                publisher.failures[PUBLICATION] = error
            else:
                publisher.failures.pop(PUBLICATION, None)
