"""Publication of the platform's log: it waits for a quorum of witnesses, and nothing else does."""

import asyncio
import shutil
import sqlite3

import pytest

from audit.config import WitnessTarget
from audit.log import AuditLog
from bulkhead.errors import ConfigError
from bulkhead.transparency import verify_round_path
from bulkhead.transparency.cosignature import open_cosigned
from bulkhead.transparency.tlog_proof import verify_record_proof, write_record_proof
from tests.simulator.audit_world import OTHER, TENANT, decision, opened
from tests.simulator.witnesses import omniwitness, our_witness, pinned

FIRST, SECOND = "witness.test/w1", "witness.test/w2"
AWAY = "http://127.0.0.1:9"
FAST = {"round_interval_s": 0.05, "publish_interval_s": 0.05}


def target(name: str, url: str) -> WitnessTarget:
    return WitnessTarget(url, tuple(key.vkey for key in pinned(name)))


async def platform_vkey(directory) -> str:
    """Return the platform log's key, which a witness pins before the platform runs with it."""
    log = await opened(directory)
    vkey = log.vkey(log.platform_log.log_id)
    await log.close()
    return vkey


async def path_of(log: AuditLog, log_id: int, *, least: int = 0, wait_s: float = 5.0):
    """Return the log's path into a published round that holds at least so many of its records, or None."""
    for _ in range(int(wait_s / 0.05)):
        path = await log.round_path(log_id)
        if path is not None and int(path.checkpoint_text.split("\n")[1]) >= least:
            return path
        await asyncio.sleep(0.05)
    return None


async def test_publication_waits_for_a_quorum(tmp_path):
    """With one of two required witnesses away nothing is published while records are appended; then both cosign."""
    vkey = await platform_vkey(tmp_path / "log")
    async with our_witness(FIRST, tmp_path / "w1", [vkey]) as one, our_witness(SECOND, tmp_path / "w2", [vkey]) as two:
        targets = (target(FIRST, one), target(SECOND, AWAY))
        log = await opened(tmp_path / "log", witnesses=targets, witness_quorum=2, **FAST)
        info = await log.ensure_log(TENANT)
        for number in range(5):
            await log.append(info.log_id, decision(number=number))
        assert await path_of(log, info.log_id, wait_s=0.8) is None
        assert set(log.health().witnesses) == {SECOND}
        assert log.health().writable
        await log.close()

        targets = (target(FIRST, one), target(SECOND, two))
        log = await opened(tmp_path / "log", witnesses=targets, witness_quorum=2, **FAST)
        await log.append(info.log_id, decision(number=6))
        path = await path_of(log, info.log_id, least=7)
        assert path is not None
        verified = verify_round_path(
            path, slot=0, origin=info.origin, platform_vkey=vkey, platform_origin=log.platform_log.origin
        )
        assert verified.checkpoint.size == 7
        cosigned = open_cosigned(
            path.receipt.checkpoint,
            vkey=vkey,
            origin=log.platform_log.origin,
            witnesses=[*pinned(FIRST), *pinned(SECOND)],
            quorum=2,
        )
        assert [name for name, _ in cosigned.witnesses] == [FIRST, SECOND]
        assert not log.health().witnesses
        await log.close()
    with sqlite3.connect(tmp_path / "log" / "audit.db") as connection:
        kept = connection.execute("SELECT note, cosigs FROM audit_checkpoint WHERE cosigs IS NOT NULL").fetchall()
    assert kept
    for note, lines in kept:
        open_cosigned(note + lines, vkey=vkey, origin=log.platform_log.origin, witnesses=pinned(SECOND), quorum=1)


async def test_a_proof_file_reaches_the_witnesses(tmp_path):
    """A record's tlog-proof file, checked offline, shows the record, its round and who cosigned it."""
    vkey = await platform_vkey(tmp_path / "log")
    async with omniwitness(FIRST, tmp_path / "w1", [vkey]) as url:
        log = await opened(tmp_path / "log", witnesses=(target(FIRST, url),), witness_quorum=1, **FAST)
        info = await log.ensure_log(TENANT)
        appended = await log.append(info.log_id, decision(number=1))
        path = await path_of(log, info.log_id, least=2)
        size = int(path.checkpoint_text.split("\n")[1])
        await log.append(info.log_id, decision(number=2))
        receipt = await log.receipt(info.log_id, appended.index, size=size)
        text = write_record_proof(receipt, path)
        tenant_vkey = log.vkey(info.log_id)
        await log.close()
    proven = verify_record_proof(text, vkey=tenant_vkey, platform_vkey=vkey, slot=0, witnesses=pinned(FIRST), quorum=1)
    assert proven.leaf.leaf == appended.leaf
    assert proven.round.checkpoint.size == size
    assert [name for name, _ in proven.witnesses] == [FIRST]


async def test_a_restored_platform_is_found_out_by_its_witness(tmp_path):
    """A platform whose files, lock store included, were put back to an older copy cannot publish; health says so."""
    vkey = await platform_vkey(tmp_path / "log")
    async with our_witness(FIRST, tmp_path / "w1", [vkey]) as url:
        options = {"witnesses": (target(FIRST, url),), "witness_quorum": 1, **FAST}
        log = await opened(tmp_path / "log", **options)
        info = await log.ensure_log(TENANT)
        assert await path_of(log, info.log_id) is not None
        await log.close()
        shutil.copytree(tmp_path / "log", tmp_path / "older")
        log = await opened(tmp_path / "log", **options)
        for number in range(3):
            await log.append(info.log_id, decision(number=number))
            await path_of(log, info.log_id, least=number + 2)
        await log.close()

        log = await opened(tmp_path / "older", **(options | {"round_interval_s": 600.0}))
        for _ in range(100):
            if log.health().witnesses:
                break
            await asyncio.sleep(0.05)
        assert "records are gone" in log.health().witnesses[FIRST]
        assert await log.round_path(info.log_id) is None
        await log.close()


async def test_the_newest_round_is_not_made_again_by_who_made_it(tmp_path):
    """A neighbour's damaged record takes the newest round from nobody while the process that made it runs."""
    log = await opened(tmp_path, round_interval_s=0.05)
    mine, theirs = [await log.ensure_log(tenant) for tenant in (TENANT, OTHER)]
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE audit_leaf SET leaf_hash = zeroblob(32) WHERE log_id = ?", [theirs.log_id])
    for number in range(5):
        path = await path_of(log, mine.log_id, least=number + 1)
        verify_round_path(
            path,
            slot=mine.slot,
            origin=mine.origin,
            platform_vkey=log.vkey(1),
            platform_origin=log.platform_log.origin,
        )
        await log.append(mine.log_id, decision(number=number))
    await log.close()


@pytest.mark.parametrize(
    ("url", "vkeys", "quorum"),
    [
        ("ftp://x", [pinned(FIRST)[0].vkey], 0),
        ("http://x/", [pinned(FIRST)[0].vkey], 0),
        ("http://x", [], 0),
        ("http://x", ["nonsense"], 0),
        ("http://x", [pinned(FIRST)[0].vkey, pinned(SECOND)[0].vkey], 0),
        ("http://x", [pinned(FIRST)[0].vkey], 2),
    ],
)
async def test_a_wrong_configuration_is_refused(tmp_path, url, vkeys, quorum):
    """A witness needs a URL and keys under one name, and a quorum no more witnesses than there are."""
    with pytest.raises(ConfigError):
        await opened(tmp_path, witnesses=(WitnessTarget(url, tuple(vkeys)),), witness_quorum=quorum)
