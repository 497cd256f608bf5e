"""`audit list --follow` beside a server that goes away and comes back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bulkhead.cli import audit_list
from bulkhead.client import audit as client
from bulkhead.client.audit import AuditRecord, RecordFilter
from bulkhead.errors import ConnectionFailedError
from bulkhead.transparency import parse_leaf
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.note import NoteSigner
from tests.simulator.audit_world import decision

ORIGIN = "audit.test/t/x/1"
AWAY = ConnectionFailedError("the control plane cannot be reached")


class Log:
    """A log of which each look shows the next size, fails, or ends the test."""

    looks: list[int | Exception]

    def __init__(self, _channel: object) -> None:
        self._signer = NoteSigner.from_seed(ORIGIN, bytes(32))

    async def checkpoint(self, *, tenant_id: str) -> tuple[str, str]:
        """Return the checkpoint of the next look."""
        del tenant_id
        if not self.looks:
            raise asyncio.CancelledError
        size = self.looks.pop(0)
        if isinstance(size, Exception):
            raise size
        self.size = size
        return sign_checkpoint(Checkpoint(ORIGIN, size, bytes(32)), self._signer), self._signer.vkey

    async def records(
        self, _wanted: RecordFilter, *, after: int | None, **_order: object
    ) -> AsyncIterator[AuditRecord]:
        """Yield the records behind a place."""
        for index in range(0 if after is None else after + 1, self.size):
            leaf = decision(number=index).leaf
            yield AuditRecord(origin=ORIGIN, index=index, leaf=leaf, fields=parse_leaf(leaf))


async def test_a_follower_waits_for_a_server_that_is_away(monkeypatch, capsys):
    """While the server cannot be asked that is said; afterwards every record is shown, once."""
    monkeypatch.setattr(client, "AuditLog", Log)
    monkeypatch.setattr(Log, "looks", [1, AWAY, AWAY, 4], raising=False)
    with pytest.raises(asyncio.CancelledError):
        await audit_list._follow(None, RecordFilter(), 10, 0, as_json=False)
    shown = capsys.readouterr()
    assert [line.split("  ")[1] for line in shown.out.splitlines()] == ["0", "1", "2", "3"]
    assert shown.err.count("CONNECTION_FAILED") == 2


async def test_a_server_that_is_away_from_the_beginning(monkeypatch):
    """Following begins with an answer: a server that cannot be asked at all is an error."""
    monkeypatch.setattr(client, "AuditLog", Log)
    monkeypatch.setattr(Log, "looks", [AWAY], raising=False)
    with pytest.raises(ConnectionFailedError):
        await audit_list._follow(None, RecordFilter(), 10, 0, as_json=False)
