"""A server that lies to a tenant's monitor: every lie is found out, and by which check."""

# ruff: noqa: D102 - the port documents the methods

import asyncio
import io
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from audit.config import WitnessTarget
from bulkhead.client.own_witness import OwnWitness
from bulkhead.errors import UnavailableError
from bulkhead.ids import REQUEST, new_id
from bulkhead.protocol.saved import PublicPins
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.rounds import RoundPage
from bulkhead.transparency.tlog_proof import write_record_proof
from tests.simulator.audit_world import decision, opened
from tests.simulator.monitored import FAST, Server, World, kinds, monitored, rounds, split
from tests.simulator.saved_receipts import saved_answer
from tests.simulator.sealed_world import NOW_S
from tests.simulator.sealed_world import World as SealedWorld
from tests.simulator.witnesses import our_witness, pinned

YEAR_US = 365 * 86_400 * 1_000_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with monitored(tmp_path) as found:
        yield found


async def test_a_record_nobody_asked_for(world):
    """A record whose request no journal holds is a stranger, once the time for journals to arrive is over."""
    await world.request()
    await world.request(sent=False)
    assert kinds(await world.check()) == []
    world.now_us += 61_000_000
    check = await world.check()
    assert kinds(check) == ["stranger"]
    assert "record 2 (rec_" in check.alarms[0].message
    assert kinds(await world.check()) == ["stranger"]
    monitor = world.monitor()
    monitor.acknowledge()
    assert kinds(await monitor.check()) == []


async def test_an_answered_request_without_record(world):
    """A request that was answered, and of which the log says nothing, is a gap; a refused or unanswered one is not."""
    await world.request(recorded=False, code="POLICY_DENIED")
    await world.request(recorded=False, code=None)
    world.journal.sent(new_id(REQUEST), "GetCheckpoint")
    assert kinds(await world.check()) == []
    missing = await world.request(recorded=False)
    check = await world.check()
    assert kinds(check) == ["gap"]
    assert missing in check.alarms[0].message


async def test_a_fork_at_the_same_size(world):
    """Another signed tree of the remembered size is a fork, and is not taken over."""
    await world.request()
    await world.check()

    class Forked(Server):
        async def checkpoint(self):
            info = self.log._known.info(self.log_id)
            return sign_checkpoint(Checkpoint(info.origin, 2, bytes(32)), self.log._keys.signer(info.origin)), self.vkey

    check = await world.check(Forked(world.log, world.log_id))
    assert kinds(check) == ["fork"]
    assert "two roots for size 2" in check.alarms[0].message
    assert check.size == 2
    assert kinds(await world.check()) == ["fork"]


async def test_a_fork_behind_the_remembered_size(world, tmp_path):
    """A server that continues another history than the remembered one, with everything signed, is found out."""
    await world.request()
    forked = await split(world)
    await world.request()
    assert kinds(await world.check()) == []
    for number in range(3):
        await forked.append(world.log_id, decision(number=number))
    check = await world.check(Server(forked, world.log_id))
    assert kinds(check) == ["fork"]
    assert check.size == 3
    await forked.close()


async def test_a_rewind(world, tmp_path):
    """A log that is smaller than before is a rewind."""
    await world.request()
    forked = await split(world)
    await world.request()
    await world.check()
    assert kinds(await world.check(Server(forked, world.log_id))) == ["rewind"]
    await forked.close()


async def test_an_edited_record(world):
    """A record that is changed on its way is invalid, whatever its hash says."""
    await world.request()

    class Editing(Server):
        async def export(self, *, first: int) -> AsyncGenerator[bytes, None]:
            async for chunk in super().export(first=first):
                yield chunk.replace(b"cred_1", b"cred_2")

    check = await world.check(Editing(world.log, world.log_id))
    assert kinds(check) == ["invalid"]
    assert "record 1" in check.alarms[0].message


async def test_an_export_of_less(world):
    """An export that leaves out the newest records of the checkpoint shown with it is found out."""
    await world.request()

    stream = io.BytesIO()
    await world.log.export([world.log_id], stream)
    await world.request()

    class Short(Server):
        async def export(self, *, first: int) -> AsyncGenerator[bytes, None]:
            yield stream.getvalue()

    check = await world.check(Short(world.log, world.log_id))
    assert kinds(check) == ["fork"]
    assert "rewind" in check.alarms[0].message


async def test_another_key(world):
    """A log under another key than the pinned one is invalid."""
    other = NoteSigner.from_seed(world.log._known.info(world.log_id).origin, bytes(32))
    assert kinds(await world.check(vkey=other.vkey)) == ["invalid"]


async def test_a_round_over_another_history(world, tmp_path):
    """A round that commits to another tree of the log than the one that is shown is a fork."""
    await world.request()
    forked = await split(world)
    await forked.append(world.log_id, decision(number=9))
    await world.request()

    class Mixed(Server):
        async def round_path(self):
            return await Server(forked, world.log_id).round_path()

    for _ in range(100):
        if await forked.round_path(world.log_id) is not None:
            break
        await asyncio.sleep(0.05)
    check = await world.check(Mixed(world.log, world.log_id), pins=PublicPins(platform_vkey=world.log.vkey(1)))
    assert kinds(check) == ["fork"]
    assert "round" in check.alarms[0].message
    await forked.close()


async def test_an_older_round(world):
    """A round that is older than the newest that was verified is a rewind."""
    await rounds(world)
    old = await world.server.round_path()
    await world.request()
    await asyncio.sleep(0.3)
    await rounds(world)

    class Replaying(Server):
        async def round_path(self):
            return old

    pins = PublicPins(platform_vkey=world.log.vkey(1))
    assert kinds(await world.check(Replaying(world.log, world.log_id), pins=pins)) == ["rewind"]


async def test_rounds_that_stop(world):
    """A platform that shows no round, or none that is new, for longer than it promises is a gap."""

    class Silent(Server):
        async def round_path(self):
            raise UnavailableError("no round yet")

    await world.request()
    pins = PublicPins(platform_vkey=world.log.vkey(1))
    check = await world.check(Silent(world.log, world.log_id), pins=pins)
    assert (check.alarms, len(check.notes)) == ((), 1)
    world.now_us += 1_000_000_000
    assert kinds(await world.check(Silent(world.log, world.log_id), pins=pins)) == ["gap"]


async def test_witnesses_are_required(world, tmp_path):
    """With a quorum pinned, a round under a checkpoint that nobody cosigned is invalid; a cosigned one counts."""
    vkey = world.log.vkey(1)
    pins = PublicPins(platform_vkey=vkey, witnesses=pinned("witness.test/w"), quorum=1)
    assert kinds(await rounds(world, pins=pins)) == ["invalid"]
    await world.log.close()
    async with our_witness("witness.test/w", tmp_path / "w", [vkey]) as url:
        target = WitnessTarget(url, tuple(key.vkey for key in pinned("witness.test/w")))
        world.log = world.server.log = await opened(tmp_path / "log", witnesses=(target,), witness_quorum=1, **FAST)
        await world.request()
        check = await rounds(world, pins=pins, state=tmp_path / "second")
        assert (check.alarms, check.witnesses) == ((), ("witness.test/w",))
        lying = Uncosigned(world.log, world.log_id)
        for _ in range(100):
            await world.request()
            check = await world.check(lying, pins=pins, state=tmp_path / "second")
            if check.alarms:
                break
            await asyncio.sleep(0.05)
        assert kinds(check) == ["invalid"]
        assert "has 0 cosignatures" in check.alarms[0].message


class Uncosigned(Server):
    """Shows the rounds behind the newest under the log's own signature alone."""

    async def round_paths(self, after: int, **asks: int) -> RoundPage:
        page = await super().round_paths(after, **asks)
        text, _, lines = page.checkpoint.partition("\n\n")
        note = f"{text}\n\n{lines.splitlines()[0]}\n"
        paths = (replace(path, receipt=replace(path.receipt, checkpoint=note)) for path in page.paths)
        return replace(page, checkpoint=note, paths=tuple(paths))


async def test_proofs_that_were_kept(world, tmp_path):
    """A proof from before is of the log's history, or a fork; a file that is none is invalid."""
    await world.request()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a.tlog-proof").write_text(write_record_proof(await world.log.receipt(world.log_id, 1)))
    await world.request()
    assert kinds(await world.check(kept=(kept,))) == []
    assert len(world.monitor().state.settled) == 1
    forked = await split(world)
    await world.request()
    await forked.append(world.log_id, decision(number=9))
    (kept / "b.tlog-proof").write_text(write_record_proof(await forked.receipt(world.log_id, 3)))
    (kept / "c").write_text("nonsense")
    check = await world.check(kept=(kept,))
    assert kinds(check) == ["fork", "invalid"]
    await forked.close()


async def test_two_monitors_gossip(world, tmp_path):
    """Two clients that are shown different histories, each of them whole and signed, find out by what they left."""
    await world.request()
    forked = await split(world)
    theirs = Server(forked, world.log_id)
    shared = {"gossip": tmp_path / "shared", "journals": ()}
    for number in range(3):
        assert kinds(await world.check(state=tmp_path / "mine", **shared)) == []
        assert kinds(await world.check(theirs, state=tmp_path / "theirs", **shared)) == []
        if number < 2:  # both see the same, so far
            record = decision(number=number)
            await world.log.append(world.log_id, record)
            await forked.append(world.log_id, record)
    await world.log.append(world.log_id, decision(number=7))
    await forked.append(world.log_id, decision(number=8))
    await forked.append(world.log_id, decision(number=9))
    mine = await world.check(state=tmp_path / "mine", **shared)
    found = await world.check(theirs, state=tmp_path / "theirs", **shared)
    again = await world.check(state=tmp_path / "mine", **shared)
    assert (kinds(mine), kinds(found), kinds(again)) == ([], ["fork"], ["fork"])
    assert len(list((tmp_path / "shared").iterdir())) == 2  # one each, however often they began anew
    await forked.close()


async def test_gossip_of_strangers_is_ignored(world, tmp_path):
    """What the log's key did not sign raises no alarm, whoever put it there."""
    await world.request()
    shared = tmp_path / "shared"
    await world.check(gossip=shared)
    (note,) = shared.iterdir()
    origin = world.log._known.info(world.log_id).origin
    forged = sign_checkpoint(Checkpoint(origin, 2, bytes(32)), NoteSigner.from_seed(origin, bytes(32)))
    (shared / f"{note.name[:16]}-x.checkpoint").write_text(forged)
    (shared / f"{note.name[:16]}-y.checkpoint").write_bytes(b"\xff\xfe")
    assert kinds(await world.check(gossip=shared)) == []


async def test_a_larger_checkpoint_that_the_server_denies(world, tmp_path):
    """A signed checkpoint larger than the log that is shown is a fork, not a reason to wait."""
    await world.request()
    shared = tmp_path / "shared"
    await world.check(gossip=shared)
    (path,) = shared.iterdir()
    origin = world.log._known.info(world.log_id).origin
    larger = sign_checkpoint(Checkpoint(origin, 50, bytes(range(32))), world.log._keys.signer(origin))
    (shared / f"{path.name[:16]}-z.checkpoint").write_text(larger)
    check = await world.check(gossip=shared)
    assert kinds(check) == ["fork"]
    assert "denies" in check.alarms[0].message


async def test_two_monitors_share_a_witness(world, tmp_path):
    """Two clients without a common directory find out by a witness of their own: it cosigns one history only."""
    await world.request()
    forked = await split(world)
    theirs = Server(forked, world.log_id)
    async with our_witness("witness.test/own", tmp_path / "w", [world.server.vkey]) as url:
        own = OwnWitness.of(url, tuple(key.vkey for key in pinned("witness.test/own")))
        shared = {"own_witness": own, "journals": ()}
        for _ in range(2):
            assert kinds(await world.check(state=tmp_path / "mine", **shared)) == []
            assert kinds(await world.check(theirs, state=tmp_path / "theirs", **shared)) == []
        await world.log.append(world.log_id, decision(number=7))
        await forked.append(world.log_id, decision(number=8))
        mine = await world.check(state=tmp_path / "mine", **shared)
        found = await world.check(theirs, state=tmp_path / "theirs", **shared)
        assert (kinds(mine), kinds(found)) == ([], ["fork"])
        await forked.append(world.log_id, decision(number=9))
        again = await world.check(theirs, state=tmp_path / "third", **shared)
        assert kinds(again) == ["fork"]
    away = await world.check(state=tmp_path / "mine", **shared)
    assert kinds(away) == []
    assert any("own witness cannot be reached" in note for note in away.notes)
    await forked.close()


async def test_the_platforms_clock_prolongs_no_wait(world):
    """A platform whose clock is a year ahead delays neither the alarm about a stranger nor that about old rounds."""
    world.now_us -= YEAR_US
    pins = PublicPins(platform_vkey=world.log.vkey(1))
    assert (await rounds(world)).alarms == ()
    held = await world.server.round_path()
    await world.request()
    await world.request(sent=False)

    class Holding(Server):
        async def round_path(self):
            return held

    holding = Holding(world.log, world.log_id)
    assert kinds(await world.check(holding, pins=pins)) == []
    world.now_us += 61_000_000
    assert kinds(await world.check(holding, pins=pins)) == ["stranger"]
    world.now_us += 900_000_000
    assert kinds(await world.check(holding, pins=pins)) == ["gap", "stranger"]


async def test_a_receipt_from_the_future(world, tmp_path):
    """A kept receipt that the log does not hold is a gap once its file is old enough, whatever time it names itself."""
    path = tmp_path / "kept.json"
    sealed = SealedWorld()
    path.write_bytes(saved_answer(sealed).encode())
    kept_s = NOW_S - 1_000_000
    os.utime(path, (kept_s, kept_s))
    world.now_us = (kept_s + 59) * 1_000_000
    monitor = world.monitor(kept=(path,), vkey=sealed.log.vkey)
    await monitor._check_kept()
    assert monitor.state.followed.alarms == {}
    world.now_us += 2_000_000
    await monitor._check_kept()
    assert [alarm.kind for alarm in monitor.state.followed.alarms.values()] == ["gap"]
