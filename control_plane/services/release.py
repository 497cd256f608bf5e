"""Giving partitions back: the worker finishes, its process ends, its memory is scrubbed, its place is free again.

A scrub that the agent cannot prove cordons the place. An agent that does not answer leaves the partition lost: its
place stays taken, because a worker that is only unreachable still holds its memory.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from bulkhead.errors import AgentUnavailableError, BulkheadError
from control_plane.domain.fleet import PartitionReport, Released, ReleaseOrder
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.services.agents import Agent
from control_plane.services.book import PartitionBook
from control_plane.services.lifecycle import Lifecycle, Origin
from control_plane.services.settings import FleetSettings

__all__ = ["Releaser"]

_S = PartitionState
_DRAINED_FIRST: Final = (_S.READY, _S.ATTESTING)
_NOTHING_TO_DO: Final = (_S.FREE, _S.CORDONED, _S.RESERVED)

log = structlog.get_logger(__name__)


class Releaser:
    """Releases partitions, each at most once at a time, in the background.

    Args:
        book: partitions in memory.
        lifecycle: takes their steps.
        settings: time-outs.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self, *, book: PartitionBook, lifecycle: Lifecycle, settings: FleetSettings, now_us: Callable[[], int]
    ) -> None:
        self._book = book
        self._lifecycle = lifecycle
        self._settings = settings
        self._now_us = now_us
        self._agents: dict[str, Agent] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def know(self, agent: Agent) -> None:
        """Take note of an agent whose partitions may have to be released."""
        self._agents[agent.agent_id] = agent

    def release_soon(self, partition: Partition, origin: Origin, *, reason: str) -> asyncio.Task[None]:
        """Begin to release a partition, or return the release that is under way."""
        running = self._running.get(partition.partition_id)
        if running is None:
            running = asyncio.create_task(self._release(partition.partition_id, origin, reason), name="release")
            self._running[partition.partition_id] = running
            running.add_done_callback(lambda _: self._running.pop(partition.partition_id, None))
        return running

    def release_stranger(self, agent: Agent, report: PartitionReport) -> None:
        """End a worker that an agent runs and this platform does not know."""
        log.warning("partition.unknown", agent_id=agent.agent_id, partition_id=report.partition_id)
        task = asyncio.create_task(self._release_stranger(agent, report), name="release-stranger")
        self._running[f"stranger:{report.partition_id}"] = task
        task.add_done_callback(lambda _: self._running.pop(f"stranger:{report.partition_id}", None))

    async def stop(self) -> None:
        """Give up the releases under way; after a restart agents' hellos bring them back."""
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _release(self, partition_id: str, origin: Origin, reason: str) -> None:
        try:
            await self._released(partition_id, origin, reason)
        except AgentUnavailableError as error:
            await self._lifecycle.follow(partition_id, _S.LOST, origin, reason=error.message)
        except BulkheadError as error:  # state or audit is out of reach: tried again with the agent's next hello
            log.warning("partition.release_failed", partition_id=partition_id, code=error.code)

    async def _released(self, partition_id: str, origin: Origin, reason: str) -> None:
        partition = self._book.get(partition_id)
        if partition is None or partition.state in _NOTHING_TO_DO:
            return
        drain_s = self._settings.drain_s if partition.state in _DRAINED_FIRST else 0.0
        wanted = _S.DRAINING if partition.state in _DRAINED_FIRST else _S.SCRUBBING
        await self._lifecycle.follow(partition_id, wanted, origin, reason=reason)
        partition = self._book.get(partition_id) or partition
        outcome = await self._agent(partition).commands.run(
            ReleaseOrder(reason=reason, drain_until_unix_ms=self._now_us() // 1_000 + int(drain_s * 1_000)),
            partition_id=partition_id,
            fence=partition.version,
            timeout_s=drain_s + self._settings.release_timeout_s,
        )
        if not isinstance(outcome, Released):
            raise AgentUnavailableError("the node agent answered a release with something else")
        await self._lifecycle.follow(partition_id, _S.SCRUBBING, origin, reason=reason)
        final = _S.FREE if outcome.scrubbed else _S.CORDONED
        await self._lifecycle.follow(partition_id, final, origin, reason=outcome.detail)

    async def _release_stranger(self, agent: Agent, report: PartitionReport) -> None:
        try:
            await agent.commands.run(
                ReleaseOrder(reason="unknown to the control plane", drain_until_unix_ms=self._now_us() // 1_000),
                partition_id=report.partition_id,
                fence=report.fence + 1,
                timeout_s=self._settings.release_timeout_s,
            )
        except BulkheadError as error:
            log.warning("partition.release_failed", partition_id=report.partition_id, code=error.code)

    def _agent(self, partition: Partition) -> Agent:
        agent = self._agents.get(partition.agent_id)
        if agent is None:
            raise AgentUnavailableError("the node agent of the partition never connected")
        return agent
