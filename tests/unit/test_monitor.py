"""The tenant's monitor on an honest log, its state, and the journals that it reads."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bulkhead.client.journal import JournalReader, RequestJournal
from bulkhead.errors import ConfigError, ConnectionFailedError
from bulkhead.transparency.note import NoteSigner
from tests.simulator.monitored import Server, World, kinds, monitored, rounds


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with monitored(tmp_path) as found:
        yield found


async def test_an_honest_log_raises_nothing(world):
    """Requests of the own clients, over restarts of the monitor and while the log grows, raise no alarm."""
    assert (await world.check()).size == 1
    for count in (3, 1, 300, 0):
        for _ in range(count):
            await world.request()
        check = await world.check()
        assert (check.new, check.alarms) == (count, ())
    assert check.size == 305


async def test_a_journal_that_arrives_late(world):
    """A journal of another machine that arrives within the time is an excuse."""
    request_id = await world.request(sent=False)
    await world.check()
    RequestJournal(world.directory / "other.journal").sent(request_id, "OpenSession")
    world.now_us += 61_000_000
    both = (world.directory / "app.journal", world.directory / "other.journal")
    assert kinds(await world.check(journals=both)) == []


async def test_an_answer_that_is_journalled_after_the_check(world):
    """A record that was seen before its answer was journalled is remembered over a restart: no gap."""
    request_id = await world.request(code=None)
    await world.check()
    world.journal.answered(request_id, "")
    assert kinds(await world.check()) == []
    assert not world.monitor().state.followed.found


async def test_a_server_that_is_away(world):
    """A server that cannot be reached is an error, not an alarm."""

    class Away(Server):
        async def checkpoint(self):
            raise ConnectionFailedError("refused")

    with pytest.raises(ConnectionFailedError):
        await world.check(Away(world.log, world.log_id))


async def test_the_platform_s_round_is_followed(world):
    """The log's path into the platform's rounds is verified from round to round."""
    first = await rounds(world)
    await world.request()
    await asyncio.sleep(0.3)
    second = await rounds(world)
    assert (first.alarms, second.alarms) == ((), ())
    assert second.round > first.round >= 1


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"v":2}', b"x"])
async def test_a_damaged_state_file(world, damage):
    """A damaged state file, or one of another log, is an error: the monitor does not begin again by itself."""
    await world.check()
    path = world.directory / "monitor"
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match="damaged"):
        world.monitor()


async def test_the_state_of_another_log(world):
    """A state file is of one log."""
    await world.check()
    other = NoteSigner.from_seed("audit.test/t/x/1", bytes(32))
    with pytest.raises(ConfigError, match="another log"):
        world.monitor(vkey=other.vkey)


async def test_a_journal_that_was_cut(world):
    """A journal from which entries are missing is an error: what it would have shown is not known."""
    await world.request()
    await world.check()
    path = world.directory / "app.journal"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="shorter"):
        await world.check()
    path.unlink()
    with pytest.raises(ConfigError, match="gone"):
        await world.check()


def test_the_journal_s_lines(tmp_path):
    """Each request has a line before it is sent and one after; a line that is being written is left for later."""
    path = tmp_path / "journal"
    journal = RequestJournal(path, wall_ns=lambda: 5_000)
    journal.sent("req_a", "OpenSession")
    journal.answered("req_a", "")
    journal.sent("req_b", "OpenSession")
    journal.answered("req_b", "POLICY_DENIED")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["sent", "answered"] * 2
    assert path.stat().st_mode & 0o077 == 0
    with path.open("ab") as file:
        file.write(b'{"v":1,"event":"sent","id":"req')
    entries = JournalReader([path], {}).read()
    assert (entries.sent, entries.answered, entries.due) == ({"req_a", "req_b"}, {"req_a", "req_b"}, {"req_a"})


@pytest.mark.parametrize(
    "line", [b"x\n", b"{}\n", b'{"v":2,"event":"sent","id":"a","call":"b","ts_us":1}\n', b"\xff\n"]
)
def test_what_is_no_journal(tmp_path, line):
    """A file that is no journal is refused."""
    (tmp_path / "journal").write_bytes(line)
    with pytest.raises(ConfigError, match="not a request journal"):
        JournalReader([tmp_path / "journal"], {}).read()


@pytest.mark.parametrize("cut", [1, 10, 40, -1])
def test_a_line_that_was_left_half_written(tmp_path, cut):
    """Half a line, at the end or ended by whoever wrote next, is no entry; all others stand."""
    path = tmp_path / "journal"
    journal = RequestJournal(path, wall_ns=lambda: 5_000)
    journal.sent("req_a", "OpenSession")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole.replace(b"req_a", b"req_b")[:cut])
    growing = JournalReader([path], {})
    assert growing.read().sent == {"req_a"}
    journal.sent("req_c", "OpenSession")
    RequestJournal(path).answered("req_a", "")
    for reader in (growing, JournalReader([path], {})):
        entries = reader.read()
        assert (entries.sent, entries.answered, entries.due) == ({"req_a", "req_c"}, {"req_a"}, {"req_a"})


def test_a_write_that_ends_in_the_middle(tmp_path, monkeypatch):
    """A full disk that takes a part of a line, and then of what should end it: not sent, and the journal goes on."""
    path = tmp_path / "journal"
    journal = RequestJournal(path)
    journal.sent("req_a", "OpenSession")
    write = os.write
    monkeypatch.setattr("bulkhead.client.journal.os.write", lambda fd, data: write(fd, data[:7]))
    for request_id in ("req_b", "req_c"):
        with pytest.raises(ConfigError, match="cannot be written"):
            journal.sent(request_id, "OpenSession")
        assert JournalReader([path], {}).read().sent == {"req_a"}
    monkeypatch.undo()
    journal.sent("req_d", "OpenSession")
    assert JournalReader([path], {}).read().sent == {"req_a", "req_d"}


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    """What no writer leaves behind is an error that says where it stands, also in what was appended since."""
    path = tmp_path / "journal"
    journal = RequestJournal(path)
    journal.sent("req_a", "OpenSession")
    reader = JournalReader([path], {})
    reader.read()
    with path.open("ab") as file:
        file.write(b'{"v":1,"event":"sent"\n')
    journal.sent("req_b", "OpenSession")
    with pytest.raises(ConfigError, match=r"journal, line 2: not a request journal"):
        reader.read()
    with pytest.raises(ConfigError, match=r"journal, line 2: not a request journal"):
        JournalReader([path], {}).read()


def test_a_journal_that_cannot_be_written(tmp_path):
    """A request that cannot be journalled is not sent."""
    with pytest.raises(ConfigError, match="cannot be written"):
        RequestJournal(tmp_path / "missing" / "journal").sent("req_a", "OpenSession")


async def test_what_is_not_looked_at_is_said(world):
    """Without a journal or a platform key the check says what it leaves out; with both it says nothing."""
    assert len((await world.check(journals=())).notes) == 2
    await world.request()
    await world.check()
    assert len((await world.check()).notes) == 1
    assert (await rounds(world)).notes == ()


async def test_a_journal_that_is_not_there_is_said(world):
    """A journal whose file is not there holds no request, and the check says so: its name may be wrong."""
    missing = world.directory / "ap.journal"
    check = await world.check(journals=(missing,))
    assert any(str(missing) in note for note in check.notes)


async def test_a_journal_that_is_given_later(world):
    """Records that were followed without a journal make no gaps of its older requests, and later ones are held."""
    await world.request()
    await world.check(journals=())
    first = await world.check()
    assert (first.alarms, any("new to this state" in note for note in first.notes)) == ((), True)
    await world.request(recorded=False)
    assert kinds(await world.check()) == ["gap"]


async def test_a_journal_that_arrives_too_late(world):
    """A journal that comes after its requests were called strangers does not make gaps of them, too."""
    away = world.directory / "away.journal"
    await world.request(sent=False)
    (record,) = await stranger(world)
    late = RequestJournal(away)
    late.sent(record, "OpenSession")
    late.answered(record, "")
    assert kinds(await world.check(journals=(world.directory / "app.journal", away))) == ["stranger"]


async def stranger(world: World) -> list[str]:
    """Check until the one stranger is told; return the ids of the requests that were called so."""
    away = world.directory / "away.journal"
    journals = (world.directory / "app.journal", away)
    world.journal.sent("req_other", "GetCheckpoint")
    assert kinds(await world.check(journals=journals)) == []
    world.now_us += 61_000_000
    check = await world.check(journals=journals)
    assert kinds(check) == ["stranger"]
    return [alarm.message.split("the request ")[1].split(",")[0] for alarm in check.alarms]
