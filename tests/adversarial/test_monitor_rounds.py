"""A platform that lies about its rounds to a tenant's monitor: what it commits to between two checks is found out."""

# ruff: noqa: D102 - the port documents the methods

import dataclasses
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.cli import program as operator_program
from audit.log.rounds import PastRound
from audit.model import Head
from bulkhead.cli.program import program
from bulkhead.client.monitoring import Check
from bulkhead.encoding import b64decode, b64encode, canonical_json
from bulkhead.errors import ConfigError, InternalError, NotFoundError, RecordError, UnavailableError
from bulkhead.protocol.saved import PublicPins
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.rounds import RoundPage, RoundPath
from tests.simulator.audit_world import OTHER, decision, opened
from tests.simulator.monitored import Server, World, kinds, make_round, monitored, split

BY_HAND = {"round_interval_s": 600.0, "publish_interval_s": 0.05}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A log with some records and a neighbour's, whose first round was checked."""
    async with monitored(tmp_path, BY_HAND) as found:
        await found.log.ensure_log(OTHER)
        await found.request()
        await make_round(found.log)
        first = await check(found)
        assert (first.alarms, first.round, first.first_round, first.rounds) == ((), 1, 1, 1)
        yield found


class Liar(Server):
    """Shows rounds as they were made, whatever the database says; what it shows can be changed on the way."""

    def __init__(self, world: World, *made: PastRound) -> None:
        super().__init__(world.log, world.log_id)
        self.made = {one.round.number: one for one in made}
        self.change: Callable[[RoundPage], RoundPage] = lambda page: page

    async def round_paths(self, after: int, *, limit: int, size: int, platform_size: int) -> RoundPage:
        platform, slot = self.log.platform_log.log_id, self.log._known.info(self.log_id).slot
        paths, heads = [], []
        for number in range(after + 1, after + 1 + limit):
            made = self.made[number].round
            receipt = await self.log.receipt(platform, self.made[number].record.index)
            salt = self.log._keys.salt(number, slot)
            paths.append(RoundPath(slot, salt, made.head(slot).text(), made.path(slot), receipt))
            head = min(size, made.sizes[slot])
            heads.append((await self.log.extension(self.log_id, head, size))[0])
        extension, _ = await self.log.extension(platform, platform_size)
        return self.change(RoundPage(paths[0].receipt.checkpoint, extension, tuple(paths), tuple(heads)))


async def check(world: World, source: object = None, **changes: object) -> Check:
    pins = PublicPins(platform_vkey=world.log.vkey(1))
    return await world.check(source, **({"pins": pins} | changes))


async def test_a_fork_between_two_checks(world):
    """A forked head in one round, with the honest one in the rounds around it, is a fork that names round and roots."""
    forged = Head(world.log_id, Frontier().extend([bytes(32)] * 3))
    await world.request()
    made = [await make_round(world.log), await make_round(world.log, forged=forged), await make_round(world.log)]
    found = await check(world, Liar(world, *made))
    assert kinds(found) == ["fork"]
    message = found.alarms[0].message
    assert "round 3 has root" in message
    assert forged.frontier.root().hex() in message
    assert world.monitor().state.followed.frontier.root().hex() in message
    assert (found.round, found.rounds) == (1, 0)
    again = await check(world, Liar(world, *made))
    assert kinds(again) == ["fork"]


async def test_a_fork_that_the_database_does_not_hold(world):
    """A control plane does not answer for a round whose root is not that of the heads in its database, and says so."""
    forged = Head(world.log_id, Frontier().extend([bytes(32), bytes(32)]))
    await make_round(world.log, forged=forged)
    await make_round(world.log)
    found = await check(world)
    assert kinds(found) == ["invalid"]
    assert "round 2 cannot be made again" in found.alarms[0].message
    assert "round 2 cannot be made again" in world.log.health().rounds


async def test_a_newest_round_that_the_database_does_not_hold(world):
    """A platform that says that it cannot make its newest round again is an alarm; the log is checked."""
    await make_round(world.log, forged=Head(world.log_id, Frontier().extend([bytes(32), bytes(32)])))
    found = await check(world)
    assert kinds(found) == ["invalid"]
    assert "round 2 cannot be made again" in found.alarms[0].message
    assert found.size == 2
    await make_round(world.log)
    assert "round 2 cannot be made again" in (await check(world)).alarms[0].message


async def test_an_honest_platform_between_two_checks(world):
    """Rounds over a growing log, and over none, are all checked, whoever shows them; so are none at all."""
    made = []
    for count in (0, 1, 3, 0, 0, 7):
        for _ in range(count):
            await world.request()
        made.append(await make_round(world.log))
    shown = await check(world, Liar(world, *made), state=copied(world))
    assert (shown.alarms, shown.round, shown.rounds) == ((), 7, 6)
    again = await check(world)
    assert (again.alarms, again.round, again.rounds, again.first_round) == ((), 7, 6, 1)
    none = await check(world)
    assert (none.alarms, none.round, none.rounds) == ((), 7, 0)


def copied(world: World) -> Path:
    """Return a copy of the monitor's state."""
    copy = world.directory / "copy"
    copy.write_bytes((world.directory / "monitor").read_bytes())
    return copy


async def test_a_smaller_head_in_a_later_round(world):
    """A round that commits to fewer records than the one before is a rewind, though both are of one history."""
    older = world.log._known.head(world.log_id)
    await world.request()
    made = [await make_round(world.log), await make_round(world.log, forged=older), await make_round(world.log)]
    found = await check(world, Liar(world, *made))
    assert kinds(found) == ["rewind"]
    assert "round 3 commits to 2 records" in found.alarms[0].message


async def test_a_head_larger_than_the_log(world):
    """A round that commits to more records than the log shows is a fork."""
    larger = Head(world.log_id, world.log._known.head(world.log_id).frontier.append(bytes(32)))
    made = [await make_round(world.log, forged=larger), await make_round(world.log)]
    found = await check(world, Liar(world, *made))
    assert kinds(found) == ["fork"]
    assert "the log shows 2 records" in found.alarms[0].message


def without(page: RoundPage, at: int) -> RoundPage:
    return dataclasses.replace(
        page, paths=page.paths[:at] + page.paths[at + 1 :], heads=page.heads[:at] + page.heads[at + 1 :]
    )


def twice(page: RoundPage, at: int, instead: int) -> RoundPage:
    """Show a round's path in another's place."""
    paths, heads = list(page.paths), list(page.heads)
    paths[instead], heads[instead] = paths[at], heads[at]
    return dataclasses.replace(page, paths=tuple(paths), heads=tuple(heads))


def longer(page: RoundPage) -> RoundPage:
    return dataclasses.replace(page, paths=page.paths + page.paths[-1:], heads=page.heads + page.heads[-1:])


def under(page: RoundPage, at: int, note: str) -> RoundPage:
    """Show a round's record under another checkpoint than the page's."""
    paths = list(page.paths)
    paths[at] = dataclasses.replace(paths[at], receipt=dataclasses.replace(paths[at].receipt, checkpoint=note))
    return dataclasses.replace(page, paths=tuple(paths))


def signed_by_nobody(page: RoundPage) -> RoundPage:
    """Show the whole page under a checkpoint that says the same, with another signature."""
    text, encoded = page.checkpoint.rsplit(" ", 1)
    signature = bytearray(b64decode(encoded.rstrip("\n"), what="the signature"))
    signature[-1] ^= 1
    note = f"{text} {b64encode(bytes(signature))}\n"
    for at in range(len(page.paths)):
        page = under(page, at, note)
    return dataclasses.replace(page, checkpoint=note)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda page: without(page, 1), "gap", "round 3 is missing: round 4"),
        (lambda page: without(page, 0), "gap", "round 2 is missing: round 3"),
        (lambda page: twice(page, 0, 1), "gap", "round 3 is missing: round 2"),
        (lambda page: twice(page, 2, 1), "gap", "round 3 is missing: round 4"),
        (longer, "invalid", "more rounds than"),
        (lambda page: dataclasses.replace(page, paths=(), heads=()), "invalid", "at least one"),
        (lambda page: dataclasses.replace(page, heads=page.heads[:1]), "invalid", "at least one"),
        (lambda page: dataclasses.replace(page, heads=((),) * 3), "fork", "round 2"),
        (lambda page: dataclasses.replace(page, extension=()), "fork", "the platform's log has root"),
        (lambda page: dataclasses.replace(page, checkpoint=page.checkpoint[:-4]), "invalid", ""),
        (lambda page: under(page, 0, page.checkpoint[:-4]), "invalid", "under another checkpoint"),
        (lambda page: under(page, 2, ""), "invalid", "under another checkpoint"),
        (signed_by_nobody, "invalid", "signature"),
    ],
)
async def test_a_page_that_was_changed(world, change, kind, message):
    """A number left out or twice, a path of another round or checkpoint, a proof or signature that fails: an alarm."""
    made = []
    for _ in range(3):
        await world.request()
        made.append(await make_round(world.log))
    liar = Liar(world, *made)
    liar.change = change
    found = await check(world, liar)
    assert kinds(found) == [kind]
    assert message in found.alarms[0].message
    assert (found.round, found.rounds) == (1, 0)


async def test_a_page_s_signature_is_verified_once(world, monkeypatch):
    """However many rounds a page holds, the signature of the checkpoint that they are under is verified once."""
    verified: list[str] = []
    verify = NoteVerifier.verify

    def counted(self: NoteVerifier, text: str, signature: bytes) -> None:
        verified.append(self.name)
        verify(self, text, signature)

    monkeypatch.setattr(NoteVerifier, "verify", counted)
    counts = []
    for many in (2, 30):
        for _ in range(many):
            await make_round(world.log)
        verified.clear()
        assert (await check(world)).rounds == many
        counts.append(verified.count(world.log.platform_log.origin))
    assert counts[0] == counts[1] > 0


async def test_a_round_s_record_under_another_number(world):
    """A path whose record is another round's, with the salt and path of the one asked for, does not hold."""
    made = []
    for _ in range(3):
        await world.request()
        made.append(await make_round(world.log))
    liar = Liar(world, *made)

    def change(page: RoundPage) -> RoundPage:
        wrong = dataclasses.replace(page.paths[1], receipt=page.paths[2].receipt)
        return dataclasses.replace(page, paths=(page.paths[0], wrong, page.paths[2]))

    liar.change = change
    assert kinds(await check(world, liar)) == ["fork"]


@pytest.mark.parametrize("claim", ["there is no such round", "round 2 is of an earlier epoch of the platform's log"])
async def test_a_round_that_is_denied(world, claim):
    """A platform that shows a newest round, and says that one before it does not exist or is of before, is a gap."""
    await make_round(world.log)
    await make_round(world.log)

    class Denying(Server):
        async def round_paths(self, *_: object, **__: object) -> RoundPage:
            raise NotFoundError(claim)

    found = await check(world, Denying(world.log, world.log_id))
    assert kinds(found) == ["gap"]
    assert "denies round 2, though it shows round 3" in found.alarms[0].message


async def test_rounds_that_begin_anew(world):
    """A platform that claims a restart and counts its rounds from 1 again is a rewind."""
    old = await world.server.round_path()
    for _ in range(3):
        await make_round(world.log)
    assert (await check(world)).round == 4

    class Restarted(Server):
        async def round_path(self) -> RoundPath:
            return old

    assert kinds(await check(world, Restarted(world.log, world.log_id))) == ["rewind"]


@pytest.mark.parametrize("error", [UnavailableError("busy"), InternalError("broken")])
async def test_rounds_that_are_never_shown(world, error):
    """A platform whose newest round is always new, and which always fails to show those before, is a gap in time."""

    class Failing(Server):
        async def round_paths(self, *_: object, **__: object) -> RoundPage:
            raise error

    for _ in range(3):
        await make_round(world.log)
        found = await check(world, Failing(world.log, world.log_id))
        assert (found.alarms, found.round) == ((), 1)
        assert any("not checked yet" in note for note in found.notes)
        world.now_us += 400_000_000
    await make_round(world.log)
    found = await check(world, Failing(world.log, world.log_id))
    assert kinds(found) == ["gap"]
    assert "not the rounds behind round 1" in found.alarms[0].message
    world.monitor().acknowledge()
    world.now_us -= 1_200_000_000  # the rounds were made just now
    assert ((await check(world)).alarms, world.monitor().state.followed.behind_us) == ((), 0)


async def test_a_platform_log_that_forks_between_checks(world):
    """Rounds in another platform log than the one that was seen, signed and numbered as they should be, are a fork."""
    forked = await split(world, BY_HAND)
    for log in (world.log, forked):
        await make_round(log)
    assert (await check(world)).round == 2
    for _ in range(2):
        await make_round(forked)
    found = await check(world, Server(forked, world.log_id))
    assert kinds(found) == ["fork"]
    assert "the platform's log has root" in found.alarms[0].message
    await forked.close()


async def test_a_long_absence(world):
    """Rounds come in pages; what interrupts them is no alarm, and the next check goes on behind the last page."""
    for number in range(150):
        if number % 10 == 0:
            await world.request()
        await make_round(world.log)
    asked, told = [], []

    class Failing(Server):
        left = 1

        async def round_paths(self, after: int, **asks: int) -> RoundPage:
            asked.append(after)
            if not self.left:
                raise UnavailableError("away")
            self.left -= 1
            return await super().round_paths(after, **asks)

    found = await check(world, Failing(world.log, world.log_id))
    assert (found.alarms, found.round, found.rounds, asked) == ((), 65, 64, [1, 65])
    monitor = world.monitor(pins=PublicPins(platform_vkey=world.log.vkey(1)))
    monitor._rounds._progress = lambda *at: told.append(at)
    found = await monitor.check()
    assert (found.alarms, found.round, found.rounds, told) == ((), 151, 86, [(129, 151), (151, 151)])


async def test_another_control_plane_answers_alike(world):
    """After a restart the platform's rounds are shown as before, though the process made none of them."""
    for _ in range(4):
        await world.request()
        await make_round(world.log)
    before = await world.server.round_paths(1, limit=3, size=3, platform_size=2)
    await world.log.close()
    world.log = world.server.log = await opened(world.directory / "log", **BY_HAND)
    after = await world.server.round_paths(1, limit=3, size=3, platform_size=2)
    for one, other in zip(before.paths, after.paths, strict=True):
        assert dataclasses.replace(other, receipt=one.receipt) == one
        assert (one.receipt.leaf, one.receipt.index) == (other.receipt.leaf, other.receipt.index)
    await make_round(world.log)
    found = await check(world)
    assert (found.alarms, found.round, found.rounds) == ((), 6, 5)


async def test_where_to_begin(world):
    """A new state begins at the newest round, or at the one that is named; what cannot be is a usage error."""
    for _ in range(5):
        await make_round(world.log)
    newest = await check(world, state=world.directory / "a")
    assert (newest.first_round, newest.round, newest.rounds) == (6, 6, 1)
    named = await check(world, state=world.directory / "b", first_round=3)
    assert (named.first_round, named.round, named.rounds, named.alarms) == (3, 6, 4, ())
    assert (await check(world, state=world.directory / "b", first_round=3)).rounds == 0
    with pytest.raises(ConfigError, match="follows rounds from 3 on"):
        await check(world, state=world.directory / "b", first_round=2)
    with pytest.raises(ConfigError, match="newest is round 6"):
        await check(world, state=world.directory / "c", first_round=7)
    later = await world.log.ensure_log("tenant_01h455vb4pex5vsknk084sn02s")
    await world.log.append(later.log_id, decision(tenant=later.tenant))
    await make_round(world.log)
    theirs = Server(world.log, later.log_id)
    with pytest.raises(ConfigError, match="begin at a later round than 3: round 3 does not hold this log"):
        await check(world, theirs, vkey=theirs.vkey, state=world.directory / "d", first_round=3)


async def test_a_state_file_of_before(world):
    """A state file that knows its newest round alone goes on from there, and every later round is checked."""
    path = world.directory / "monitor"
    old = json.loads(path.read_bytes())
    for name in ("first_round", "round_size", "round_root", "behind_us"):
        del old[name]
    path.write_bytes(canonical_json(old))
    for _ in range(3):
        await world.request()
        await make_round(world.log)
    found = await check(world)
    assert (found.alarms, found.first_round, found.round, found.rounds) == ((), 1, 4, 3)


async def test_a_number_that_stands_twice_in_the_platform_s_log(world):
    """Of two records with one number a tenant is shown one; who reads the platform's log sees both."""
    await make_round(world.log)
    forged = Head(world.log_id, Frontier().extend([bytes(32)] * 2))
    log, platform = world.log, world.log.platform_log
    log._rounds.begin_at(2)
    heads = log._known.heads() | {world.log_id: forged}
    second = log._rounds.prepare(log.stamp, heads, log._known.newest()).record
    await log.append(platform.log_id, second)
    log._rounds.begin_at(3)
    await make_round(log)
    assert (await check(world)).alarms == ()
    stream = io.BytesIO()
    await log.export([platform.log_id], stream)
    stream.seek(0)
    with pytest.raises(RecordError, match="it is round 2, and comes after round 2"):
        verify_export(stream, vkeys=[log.vkey(platform.log_id)])
    await log.close()
    database, tiles = world.directory / "log" / "audit.db", world.directory / "tiles"
    run = CliRunner().invoke
    assert run(operator_program, ["tiles", "--db", str(database), "--out", str(tiles)]).exit_code == 0
    found = run(program, ["audit", "verify", str(tiles), "--log-key", log.vkey(platform.log_id)])
    assert found.exit_code == 1
    assert "it is round 2, and comes after round 2" in found.output
    world.log = world.server.log = await opened(world.directory / "log", **BY_HAND)
