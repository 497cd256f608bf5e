"""FleetAdminService and FleetQueryService. Admission has authenticated the caller and checked the scope."""

from typing import Any, Final

from bulkhead.v1 import fleet_pb2 as pb
from bulkhead.v1 import fleet_pb2_grpc
from control_plane.domain.issuers import TicketIssuerEntry
from control_plane.domain.partitions import Partition
from control_plane.rpc.caller import current_caller
from control_plane.rpc.session_convert import tier_number
from control_plane.services.agents import Agent
from control_plane.services.authorisation import AdminCall
from control_plane.services.fleet_admin import FleetAdmin, FleetQuery
from control_plane.services.issuers import IssuerAdmin
from control_plane.services.paging import page_size, page_token
from service.interceptors import current_request_id

__all__ = ["FleetAdminServicer", "FleetQueryServicer"]

US_PER_S: Final = 1_000_000


class FleetAdminServicer(fleet_pb2_grpc.FleetAdminServiceServicer):
    """Changes the fleet."""

    def __init__(self, *, fleet: FleetAdmin, issuers: IssuerAdmin) -> None:
        self._fleet = fleet
        self._issuers = issuers

    async def CordonAgent(self, request: pb.CordonAgentRequest, context: Any) -> pb.CordonAgentResponse:  # noqa: N802, ARG002  gRPC's names
        """Take nothing new on an agent."""
        call = AdminCall(current_caller(), request.request_id)
        agent = await self._fleet.set_cordoned(call, request.agent_id, cordoned=True)
        return pb.CordonAgentResponse(agent=_agent(agent, 0))

    async def UncordonAgent(self, request: pb.UncordonAgentRequest, context: Any) -> pb.UncordonAgentResponse:  # noqa: N802, ARG002  gRPC's names
        """Take new partitions on an agent again."""
        call = AdminCall(current_caller(), request.request_id)
        agent = await self._fleet.set_cordoned(call, request.agent_id, cordoned=False)
        return pb.UncordonAgentResponse(agent=_agent(agent, 0))

    async def ReleasePartition(self, request: pb.ReleasePartitionRequest, context: Any) -> pb.ReleasePartitionResponse:  # noqa: N802, ARG002  gRPC's names
        """Release a partition."""
        call = AdminCall(current_caller(), request.request_id)
        partition = await self._fleet.release(call, request.partition_id)
        return pb.ReleasePartitionResponse(partition=_partition(partition, 0))

    async def AddTicketIssuer(self, request: pb.AddTicketIssuerRequest, context: Any) -> pb.AddTicketIssuerResponse:  # noqa: N802, ARG002  gRPC's names
        """Make a further issuer."""
        entry = await self._issuers.add(AdminCall(current_caller(), request.request_id))
        return pb.AddTicketIssuerResponse(issuer=_issuer(entry))

    async def ActivateTicketIssuer(  # noqa: N802  gRPC's name
        self,
        request: pb.ActivateTicketIssuerRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.ActivateTicketIssuerResponse:
        """Have an issuer sign."""
        entry = await self._issuers.activate(AdminCall(current_caller(), request.request_id), request.issuer_id)
        return pb.ActivateTicketIssuerResponse(issuer=_issuer(entry))

    async def RetireTicketIssuer(  # noqa: N802  gRPC's name
        self,
        request: pb.RetireTicketIssuerRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.RetireTicketIssuerResponse:
        """Have nobody take an issuer's tickets."""
        call = AdminCall(current_caller(), request.request_id)
        entry = await self._issuers.retire(call, request.issuer_id, at_once=request.at_once)
        return pb.RetireTicketIssuerResponse(issuer=_issuer(entry))


class FleetQueryServicer(fleet_pb2_grpc.FleetQueryServiceServicer):
    """Reads the fleet."""

    def __init__(self, *, fleet: FleetQuery, issuers: IssuerAdmin) -> None:
        self._fleet = fleet
        self._issuers = issuers

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:  # noqa: N802, ARG002  gRPC's names
        """List agents."""
        found = await self._fleet.agents(AdminCall(current_caller(), current_request_id()))
        return pb.ListAgentsResponse(agents=[_agent(agent, partitions) for agent, partitions in found])

    async def ListPartitions(self, request: pb.ListPartitionsRequest, context: Any) -> pb.ListPartitionsResponse:  # noqa: N802, ARG002  gRPC's names
        """List partitions, newest first."""
        limit = page_size(request.page.size)
        found = await self._fleet.partitions(
            AdminCall(current_caller(), current_request_id()),
            tenant_id=request.tenant_id,
            live_only=request.live_only,
            after=page_token(request.page.token),
            limit=limit,
        )
        return pb.ListPartitionsResponse(
            partitions=[_partition(partition, sessions) for partition, sessions in found],
            next_page_token=found[-1][0].partition_id if len(found) == limit else "",
        )

    async def ListTicketIssuers(  # noqa: N802  gRPC's name
        self,
        request: pb.ListTicketIssuersRequest,  # noqa: ARG002  gRPC's signature
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.ListTicketIssuersResponse:
        """List ticket issuers, the oldest first."""
        found = await self._issuers.all(AdminCall(current_caller(), current_request_id()))
        return pb.ListTicketIssuersResponse(issuers=map(_issuer, found))


def _issuer(entry: TicketIssuerEntry) -> pb.TicketIssuer:
    return pb.TicketIssuer(
        issuer_id=entry.issuer_id,
        fingerprint=entry.fingerprint,
        public_key=entry.public_key,
        status=entry.status.value,
        created_unix_s=entry.created_us // US_PER_S,
        activated_unix_s=entry.activated_us // US_PER_S,
        replaced_unix_s=entry.replaced_us // US_PER_S,
        retired_unix_s=entry.retired_us // US_PER_S,
    )


def _agent(agent: Agent, partitions: int) -> pb.Agent:
    inventory = agent.inventory
    return pb.Agent(
        agent_id=agent.agent_id,
        rack=inventory.rack,
        tray=inventory.tray,
        region=inventory.region,
        connected=agent.connected,
        cordoned=agent.cordoned,
        simulated=inventory.simulated,
        gpus=len(inventory.gpus),
        gpu_product=inventory.gpus[0].product if inventory.gpus else "",
        partitions=partitions,
        last_seen_unix_s=agent.last_seen_us // US_PER_S,
        tiers=[tier_number(tier) for tier in sorted(inventory.tiers)],
    )


def _partition(partition: Partition, sessions: int) -> pb.Partition:
    place = partition.placement
    return pb.Partition(
        partition_id=partition.partition_id,
        tenant_id=partition.tenant_id,
        model=partition.model,
        tier=tier_number(partition.tier),
        simulated=partition.simulated,
        agent_id=partition.agent_id,
        state=partition.state.value,
        gpu_uuids=place.gpu_uuids,
        mig_profile_id=place.mig_profile_id,
        memory_slice_start=place.memory_slice_start,
        memory_slices=place.memory_slices,
        sessions=sessions,
        created_unix_s=partition.created_us // US_PER_S,
    )
