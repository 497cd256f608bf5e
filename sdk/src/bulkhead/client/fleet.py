"""Administration of node agents and partitions over gRPC. Needs role admin.

Every change carries a request id of its own, so that a repetition after a lost answer changes nothing twice.
"""

from collections.abc import AsyncGenerator, Iterable

from bulkhead.client import convert
from bulkhead.client.paging import pages
from bulkhead.client.transport import Channel
from bulkhead.client.views import AgentView, PartitionView, TicketIssuerView
from bulkhead.ids import REQUEST, new_id
from bulkhead.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc

__all__ = ["FleetAdmin"]


class FleetAdmin:
    """Node agents and partitions.

    Args:
        channel: to the control plane, with an admin's credential.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._admin = fleet_pb2_grpc.FleetAdminServiceStub(channel.raw)
        self._query = fleet_pb2_grpc.FleetQueryServiceStub(channel.raw)

    async def agents(self) -> tuple[AgentView, ...]:
        """Return every node agent."""
        reply = await self._channel.unary(self._query.ListAgents, fleet_pb2.ListAgentsRequest(), idempotent=True)
        return tuple(map(convert.agent_view, reply.agents))

    def partitions(self, *, tenant_id: str = "", live_only: bool = True) -> AsyncGenerator[PartitionView, None]:
        """Yield partitions; an empty tenant means every tenant's."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[PartitionView], str]:
            request = fleet_pb2.ListPartitionsRequest(tenant_id=tenant_id, live_only=live_only, page=page)
            reply = await self._channel.unary(self._query.ListPartitions, request, idempotent=True)
            return map(convert.partition_view, reply.partitions), reply.next_page_token

        return pages(fetch)

    async def cordon(self, agent_id: str) -> AgentView:
        """Place nothing more on the agent's tray; open sessions run out."""
        request = fleet_pb2.CordonAgentRequest(request_id=new_id(REQUEST), agent_id=agent_id)
        reply = await self._channel.unary(self._admin.CordonAgent, request, idempotent=True)
        return convert.agent_view(reply.agent)

    async def uncordon(self, agent_id: str) -> AgentView:
        """Place on the agent's tray again."""
        request = fleet_pb2.UncordonAgentRequest(request_id=new_id(REQUEST), agent_id=agent_id)
        reply = await self._channel.unary(self._admin.UncordonAgent, request, idempotent=True)
        return convert.agent_view(reply.agent)

    async def release(self, partition_id: str) -> PartitionView:
        """End a partition's worker after its running requests, scrub and free it."""
        request = fleet_pb2.ReleasePartitionRequest(request_id=new_id(REQUEST), partition_id=partition_id)
        reply = await self._channel.unary(self._admin.ReleasePartition, request, idempotent=True)
        return convert.partition_view(reply.partition)

    async def ticket_issuers(self) -> tuple[TicketIssuerView, ...]:
        """Return every ticket issuer, the oldest first."""
        request = fleet_pb2.ListTicketIssuersRequest()
        reply = await self._channel.unary(self._query.ListTicketIssuers, request, idempotent=True)
        return tuple(map(convert.ticket_issuer_view, reply.issuers))

    async def add_ticket_issuer(self) -> TicketIssuerView:
        """Make a further issuer: workers take its tickets within seconds, nothing is signed with it yet."""
        request = fleet_pb2.AddTicketIssuerRequest(request_id=new_id(REQUEST))
        reply = await self._channel.unary(self._admin.AddTicketIssuer, request, idempotent=True)
        return convert.ticket_issuer_view(reply.issuer)

    async def activate_ticket_issuer(self, issuer_id: str) -> TicketIssuerView:
        """Have an accepted issuer sign from now on; the one before stays accepted."""
        request = fleet_pb2.ActivateTicketIssuerRequest(request_id=new_id(REQUEST), issuer_id=issuer_id)
        reply = await self._channel.unary(self._admin.ActivateTicketIssuer, request, idempotent=True)
        return convert.ticket_issuer_view(reply.issuer)

    async def retire_ticket_issuer(self, issuer_id: str, *, at_once: bool = False) -> TicketIssuerView:
        """Have nobody take an issuer's tickets any more.

        Raises:
            ConflictError: it signs, or (without ``at_once``) tickets of it have not all expired.
        """
        request = fleet_pb2.RetireTicketIssuerRequest(request_id=new_id(REQUEST), issuer_id=issuer_id, at_once=at_once)
        reply = await self._channel.unary(self._admin.RetireTicketIssuer, request, idempotent=True)
        return convert.ticket_issuer_view(reply.issuer)
