"""`audit list --follow` beside a server that goes away and comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from audit import records
from bulkhead.cli import audit_list
from bulkhead.client import audit as client
from bulkhead.client.audit import AuditRecord, RecordFilter
from bulkhead.errors import ConnectionFailedError
from bulkhead.transparency import parse_leaf
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.note import NoteSigner
from tests.simulator.audit_world import TENANT, decision, stamper

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


class SharedLog:
    """One log, whose every page is a record before it is answered, in the eyes of one of those who follow it."""

    leaves: list[bytes]
    behind: int  # records that the index does not hold yet
    looks: dict[int, int]  # by follower: how often it may look still

    def __init__(self, channel: int) -> None:
        self._follower = channel
        self._signer = NoteSigner.from_seed(ORIGIN, bytes(32))

    async def checkpoint(self, *, tenant_id: str) -> tuple[str, str]:
        """Return the checkpoint of now."""
        del tenant_id
        if self.looks[self._follower] == 0:
            raise asyncio.CancelledError
        self.looks[self._follower] -= 1
        return sign_checkpoint(Checkpoint(ORIGIN, len(self.leaves), bytes(32)), self._signer), self._signer.vkey

    async def records(
        self,
        wanted: RecordFilter,
        *,
        after: int | None,
        oldest_first: bool,
        on_page: Callable[[int, int], None],
    ) -> AsyncIterator[AuditRecord]:
        """Yield what the index holds behind a place."""
        indexed = len(self.leaves) - self.behind
        found = [
            AuditRecord(origin=ORIGIN, index=index, leaf=self.leaves[index], fields=parse_leaf(self.leaves[index]))
            for index in range(0 if after is None else after + 1, indexed)
        ]
        self.leaves.append(a_read().leaf)
        on_page(indexed, len(self.leaves))
        for record in found if oldest_first else reversed(found):
            if wanted.action in ("", record.fields.action):
                yield record


def a_read() -> records.Record:
    """Return the record of a reading."""
    return records.audit_read(
        stamper().stamp(),
        tenant=TENANT,
        subject=records.Subject("subj_01h455vb4pex5vsknk084sn02q", ("officer",)),
        cause=records.tenant_cause(credential="cred_1", request_id="req_1"),
        method="/bulkhead.v1.AuditService/ListRecords",
        query={},
        returned=1,
        size=1,
    )


def shared(monkeypatch: pytest.MonkeyPatch, *, looks: int, followers: int) -> None:
    """Make the log that each of ``followers`` may look at so often."""
    monkeypatch.setattr(client, "AuditLog", SharedLog)
    monkeypatch.setattr(SharedLog, "leaves", [decision(number=number).leaf for number in range(3)], raising=False)
    monkeypatch.setattr(SharedLog, "behind", 0, raising=False)
    monkeypatch.setattr(SharedLog, "looks", dict.fromkeys(range(followers), looks), raising=False)


async def until(looks: int, *tasks: asyncio.Task[None]) -> None:
    """Wait until each follower has so many looks left."""
    while min(SharedLog.looks.values()) > looks:
        assert not any(task.done() for task in tasks)
        await asyncio.sleep(0)


@pytest.mark.parametrize("followers", [1, 2, 3])
async def test_followers_do_not_keep_each_other_reading(monkeypatch, capsys, followers):
    """Those who follow one log stop reading when nothing else comes, and each shows what does come, once."""
    shared(monkeypatch, looks=2 * audit_list.PATIENCE, followers=followers)
    tasks = [
        asyncio.create_task(audit_list._follow(each, RecordFilter(), 10, 0, as_json=False))  # type: ignore[arg-type]
        for each in range(followers)
    ]
    await until(80, *tasks)
    quiet = len(SharedLog.leaves)
    assert quiet <= 3 + 4 * followers
    await until(70, *tasks)
    assert len(SharedLog.leaves) == quiet
    SharedLog.leaves.append(decision(number=77).leaf)
    await until(65, *tasks)
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown.count(str(quiet)) == followers
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(SharedLog.leaves) <= quiet + 1 + 8 * followers


async def test_what_may_be_a_reading_is_looked_at_in_the_end(monkeypatch, capsys):
    """Where somebody else stopped following, a record is not taken for a reading of theirs for ever."""
    shared(monkeypatch, looks=3 * audit_list.PATIENCE, followers=1)
    SharedLog.leaves += [a_read().leaf, a_read().leaf, a_read().leaf]
    task = asyncio.create_task(audit_list._follow(0, RecordFilter(), 1, 0, as_json=False))  # type: ignore[arg-type]
    await until(175, task)
    SharedLog.leaves += [a_read().leaf, a_read().leaf, a_read().leaf]
    await until(170, task)
    SharedLog.leaves.append(decision(number=77).leaf)
    await asyncio.gather(task, return_exceptions=True)
    assert capsys.readouterr().out.count("decision") == 1


async def test_what_the_index_holds_later_is_shown(monkeypatch, capsys):
    """A record that the index did not hold when the log was read is shown once it does, with a filter, too."""
    for action in ("", "decision"):
        shared(monkeypatch, looks=40, followers=1)
        SharedLog.behind = 2
        wanted = RecordFilter(action=action)
        task = asyncio.create_task(audit_list._follow(0, wanted, 10, 0, as_json=False))  # type: ignore[arg-type]
        await until(30, task)
        SharedLog.behind = 0
        SharedLog.leaves.append(decision(number=7).leaf)
        await asyncio.gather(task, return_exceptions=True)
        lines = [line for line in capsys.readouterr().out.splitlines() if "audit.read" not in line]
        shown = [line.split("  ")[1] for line in lines]
        assert len(shown) == len(set(shown)) == 4
