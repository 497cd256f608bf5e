"""FleetService: an agent's stream. Its identity comes from the certificate, by the internal port's admission."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    ConflictError,
    DeadlineError,
    InvalidRequestError,
)
from control_plane.domain.fleet import ControlNotice, Hello, LeaseGrant
from control_plane.rpc.caller import current_agent
from control_plane.rpc.fleet_convert import agent_report, control_message
from control_plane.services.agents import Agent
from control_plane.services.fleet import Fleet
from service.bulkhead_fleet.v1 import fleet_pb2 as pb
from service.bulkhead_fleet.v1 import fleet_pb2_grpc

__all__ = ["FleetServicer"]

HELLO_TIMEOUT_S: Final = 10.0  # an agent says hello as soon as it is connected
MAX_QUEUED: Final = 8_192  # notices that an agent has not read; twice the commands that may be pending


class _Outbox:
    """Notices on their way to one stream."""

    def __init__(self) -> None:
        self._queued: deque[ControlNotice] = deque()
        self._changed = asyncio.Event()
        self._end: BulkheadError | None = None

    def put(self, notice: ControlNotice) -> None:
        if self._end is not None or len(self._queued) >= MAX_QUEUED:
            raise AgentUnavailableError("the node agent's stream is over, or it does not read")
        if isinstance(notice, LeaseGrant) and self._queued and isinstance(self._queued[-1], LeaseGrant):
            self._queued.pop()  # only the newest lease counts
        self._queued.append(notice)
        self._changed.set()

    def close(self) -> None:
        self.end(ConflictError("the stream was replaced by a newer one, or the agent was silent for too long"))

    def end(self, error: BulkheadError | None) -> None:
        """End the stream, with the first reason given."""
        if self._end is None:
            self._end = error or AgentUnavailableError("the agent ended its stream")
            self._changed.set()

    async def notices(self) -> AsyncIterator[ControlNotice]:
        """Yield notices until the stream ends; raise the reason."""
        while self._end is None:
            while self._queued:
                yield self._queued.popleft()
            self._changed.clear()
            if not self._queued and self._end is None:
                await self._changed.wait()
        raise self._end


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """Holds agents' streams."""

    def __init__(self, *, fleet: Fleet) -> None:
        self._fleet = fleet

    async def Connect(  # noqa: N802  gRPC's name
        self,
        request_iterator: AsyncIterator[pb.AgentMessage],
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> AsyncIterator[pb.ControlMessage]:
        """Take what an agent says, and tell it what to do."""
        outbox = _Outbox()
        agent = await self._fleet.connect(current_agent(), await _hello(request_iterator), outbox)
        reading = asyncio.create_task(self._read(agent, request_iterator, outbox), name=f"agent:{agent.agent_id}")
        try:
            async for notice in outbox.notices():
                yield control_message(notice)
        finally:
            self._fleet.disconnect(agent, outbox)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, agent: Agent, messages: AsyncIterator[pb.AgentMessage], outbox: _Outbox) -> None:
        ended: BulkheadError | None = None
        try:
            async for message in messages:
                await self._fleet.take(agent, agent_report(message))
        except BulkheadError as error:
            ended = error
        finally:
            outbox.end(ended)


async def _hello(messages: AsyncIterator[pb.AgentMessage]) -> Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            async for message in messages:
                report = agent_report(message)
                if isinstance(report, Hello):
                    return report
                break
    except TimeoutError as error:
        raise DeadlineError(f"no hello within {HELLO_TIMEOUT_S:.0f} s") from error
    raise InvalidRequestError("a stream begins with a hello")
