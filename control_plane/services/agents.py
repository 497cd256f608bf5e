"""One node agent as this process knows it: what it reported, its stream if there is one, its unanswered commands."""

from collections.abc import Callable
from typing import Protocol

from control_plane.domain.fleet import ControlNotice
from control_plane.domain.inventory import Inventory
from control_plane.services.commands import Commands
from control_plane.services.receipts import Spool
from control_plane.storage.partitions import AgentRow

__all__ = ["Agent", "Stream"]


class Stream(Protocol):
    """An agent's stream, as the servicer holds it."""

    def put(self, notice: ControlNotice) -> None:
        """Queue a notice.

        Raises:
            AgentUnavailableError: the stream is over, or the agent does not read.
        """

    def close(self) -> None:
        """End the stream: it was replaced, or the agent fell silent."""


class Agent:
    """One node agent.

    Args:
        row: as SQL has it.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(self, *, row: AgentRow, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._stream: Stream | None = None
        self.row = row
        self.cordoned = row.cordoned
        self.inventory = Inventory.from_json(row.inventory)
        self.commands = Commands(now_us=now_us)
        self.spool: Spool | None = None
        self.last_seen_us = row.last_seen_us
        self.connected_us = 0
        self.disconnected_us: int | None = now_us()
        self.reported_lost = False

    @property
    def agent_id(self) -> str:
        """Its name."""
        return self.row.agent_id

    @property
    def connected(self) -> bool:
        """Whether a stream of it is alive."""
        return self._stream is not None

    def attach(self, row: AgentRow, stream: Stream, *, spool: Spool, same_process: bool) -> None:
        """Use a new stream; an older one is closed, and commands of an older process end."""
        older, self._stream = self._stream, stream
        if older is not None:
            older.close()
        if not same_process:
            self.commands.fail_all("the node agent was restarted meanwhile")
        self.row, self.cordoned, self.inventory = row, row.cordoned, Inventory.from_json(row.inventory)
        self.spool = spool
        self.last_seen_us = self.connected_us = self._now_us()
        self.disconnected_us = None
        self.reported_lost = False
        self.commands.attach(stream)

    def detach(self, stream: Stream) -> bool:
        """Note that ``stream`` is over; return whether it was the live one."""
        if self._stream is not stream:
            return False
        self._stream = None
        self.disconnected_us = self._now_us()
        self.commands.detach()
        return True

    def drop_stream(self) -> None:
        """End the live stream from this side."""
        if (stream := self._stream) is not None:
            self.detach(stream)
            stream.close()

    def heard(self) -> None:
        """Note that the agent has just said something."""
        self.last_seen_us = self._now_us()

    def notify(self, notice: ControlNotice) -> None:
        """Send a notice.

        Raises:
            AgentUnavailableError: it is not connected, or does not read.
        """
        if self._stream is not None:
            self._stream.put(notice)
