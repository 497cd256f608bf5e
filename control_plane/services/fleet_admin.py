"""Administration of the fleet: cordon and uncordon agents, release partitions, list both."""

from collections.abc import Sequence

from audit.records import Action, PlatformReason
from bulkhead import ids
from bulkhead.encoding import JsonObject
from bulkhead.errors import NotFoundError
from control_plane.authz.input import AdminResource
from control_plane.domain.partitions import HOLDING, Partition
from control_plane.services.administration import Administration, Change, Step
from control_plane.services.agents import Agent
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.lifecycle import platform_origin
from control_plane.services.release import Releaser
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.partitions import Agents, Partitions

__all__ = ["FleetAdmin", "FleetQuery"]


class FleetAdmin:
    """Changes the fleet.

    Args:
        administration: makes the changes.
        fleet: the agents.
        book: partitions in memory.
        releaser: gives partitions back.
    """

    def __init__(
        self, *, administration: Administration, fleet: Fleet, book: PartitionBook, releaser: Releaser
    ) -> None:
        self._administration = administration
        self._fleet = fleet
        self._book = book
        self._releaser = releaser

    async def set_cordoned(self, call: AdminCall, agent_id: str, *, cordoned: bool) -> Agent:
        """Cordon an agent (nothing new is placed there; open sessions run out) or uncordon it, and return it.

        Raises:
            NotFoundError: no agent of that name ever connected.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_name(agent_id, "agent_id")
        named = ("agent", agent_id)
        question = Question(
            action="fleet.cordon" if cordoned else "fleet.uncordon",
            resource=AdminResource(type="agent", id=agent_id),
            named=named,
        )
        step = Step(
            action=Action.AGENT_CORDONED if cordoned else Action.AGENT_UNCORDONED,
            details={},
            result_id=agent_id,
            write=lambda tx: Agents(tx.connection).set_cordoned(agent_id, cordoned=cordoned),
        )

        def plan(tx: Transaction) -> Change:
            if Agents(tx.connection).get(agent_id) is None:
                raise NotFoundError("no such agent")
            return Change.of(question, step)

        content: JsonObject = {"method": "CordonAgent" if cordoned else "UncordonAgent", "agent_id": agent_id}
        made = await self._administration.change(
            call, content=content, plan=plan, load=lambda tx, name: Agents(tx.connection).get(name)
        )
        state = made.value is not None and made.value.cordoned  # what SQL says now, also for a repeated request
        return self._fleet.note_cordoned(agent_id, cordoned=state)

    async def release(self, call: AdminCall, partition_id: str) -> Partition:
        """Begin to release a partition, and return it as it is now.

        Raises:
            NotFoundError: no such partition.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_id(partition_id, ids.PARTITION)

        def plan(tx: Transaction) -> Change:
            partition = Partitions(tx.connection).get(partition_id)
            resource = AdminResource(type="partition", id=partition_id, tenant=partition.tenant_id)
            question = Question(
                action="fleet.release",
                resource=resource,
                named=("partition", partition_id),
                tenant_id=partition.tenant_id,
            )
            step = Step(
                action=Action.PARTITION_RELEASED,
                details={"state": partition.state.value},
                result_id=partition_id,
                tenant_id=partition.tenant_id,
                write=lambda _: None,  # its steps are taken, and written, as the agent takes them
            )
            return Change.of(question, step)

        made = await self._administration.change(
            call,
            content={"method": "ReleasePartition", "partition_id": partition_id},
            plan=plan,
            load=lambda tx, found: Partitions(tx.connection).get(found),
        )
        held = self._book.get(partition_id)
        if held is not None:
            self._releaser.release_soon(held, platform_origin(PlatformReason.ADMIN), reason="an administrator's order")
        return held or made.value


class FleetQuery:
    """Reads the fleet.

    Args:
        database: the state.
        authorisation: asks policy.
        fleet: the agents.
        book: partitions in memory.
    """

    def __init__(self, *, database: Database, authorisation: Authorisation, fleet: Fleet, book: PartitionBook) -> None:
        self._database = database
        self._authorisation = authorisation
        self._fleet = fleet
        self._book = book

    async def agents(self, call: AdminCall) -> Sequence[tuple[Agent, int]]:
        """Return every agent that ever connected, with how many partitions it holds.

        Raises:
            PolicyDeniedError, PolicyEngineError: policy does not allow it.
        """
        await self._authorise(call, "agent")
        return [(agent, len(self._book.of_agent(agent.agent_id))) for agent in self._fleet.agents()]

    async def partitions(
        self, call: AdminCall, *, tenant_id: str, live_only: bool, after: str, limit: int
    ) -> Sequence[tuple[Partition, int]]:
        """Return partitions, newest first, with how many sessions are open on each.

        Raises:
            PolicyDeniedError, PolicyEngineError: policy does not allow it.
            InvalidRequestError: the tenant or token is no identifier.
        """
        if tenant_id:
            ids.check_id(tenant_id, ids.TENANT)
        if after:
            ids.check_id(after, ids.PARTITION)
        await self._authorise(call, "partition")

        def work(tx: Transaction) -> Sequence[tuple[Partition, int]]:
            partitions = Partitions(tx.connection)
            states = HOLDING if live_only else None
            found = partitions.page(tenant_id=tenant_id, states=states, after=after, limit=limit)
            counts = partitions.session_counts([partition.partition_id for partition in found])
            return [(partition, counts.get(partition.partition_id, 0)) for partition in found]

        return await self._database.read(work)

    async def _authorise(self, call: AdminCall, kind: str) -> None:
        question = Question(action="fleet.read", resource=AdminResource(type=kind), named=("fleet", kind))
        await self._authorisation.authorise(call, question, record_allow=False)
