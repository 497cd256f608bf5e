"""An administrator rewrites the whole audit log, with and without the keys, or puts an older copy back; both databases.

What one database cannot show by itself is shown as well: a rewrite of everything with the signing key in hand passes
until it meets something that was kept elsewhere: the lock store, a checkpoint that somebody holds, or a witness.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from audit.chain import GENESIS, LockState
from audit.cli import program
from audit.keys import LogKeys
from audit.lockstore import FileLockStore
from audit.witness.client import WitnessClient
from bulkhead.errors import ConsistencyError, LogForkError
from bulkhead.transparency.export import verify_export
from tests.simulator.audit_forgery import (
    RECORDS,
    StoppedPlatform,
    edit,
    forge,
    lock_of,
    rewrite,
    stopped_platform,
    verify,
)
from tests.simulator.audit_world import TENANT, decision, opened
from tests.simulator.postgres import PostgresServer
from tests.simulator.witnesses import our_witness, pinned

WITNESS = "witness.test/w1"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoppedPlatform:
    directory = tmp_path_factory.mktemp("audit")
    if request.param == "sqlite":
        return stopped_platform(directory, directory / "audit.db")
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return stopped_platform(directory, postgres.url(postgres.new_database()))


@pytest.fixture
def copied(platform: StoppedPlatform, postgres: PostgresServer, tmp_path: Path) -> Path | str:
    """A copy of the database, to be rewritten."""
    return copy_of(platform.database, postgres, tmp_path / "copy.db")


def copy_of(database: Path | str, postgres: PostgresServer, target: Path) -> Path | str:
    if isinstance(database, Path):
        shutil.copy(database, target)
        return target
    return postgres.url(postgres.new_database(template=database.split("/")[3].split("?")[0]))


def keys_of(platform: StoppedPlatform) -> LogKeys:
    return LogKeys.load(platform.directory / "keys")


def fitting(platform: StoppedPlatform, directory: Path, state: LockState) -> Path:
    """Make the files beside a rewritten database: the true keys, and a lock store that says what fits it."""
    shutil.copytree(platform.directory / "keys", directory / "keys")
    lock = FileLockStore(directory / "lock" / "audit.lock")
    lock.open(create=True)
    assert lock.move(GENESIS, state) == state
    lock.close()
    return directory


def test_a_rewrite_without_the_key_meets_the_checkpoints(platform, copied):
    """Everything rewritten but the signatures: a kept checkpoint contradicts it, and names the range."""
    rewrite(copied, None, forge)
    with pytest.raises(ConsistencyError, match="size 91") as caught:
        verify(platform, copied, lock=False)
    assert caught.value.details["last"] == "90"


def test_a_rewrite_with_the_key_meets_the_lock_store(platform, copied):
    """Everything rewritten and signed anew verifies by itself; the lock store's chain is not in it."""
    rewrite(copied, keys_of(platform), forge)
    verify(platform, copied, lock=False)  # the plain limit of one database alone
    with pytest.raises(ConsistencyError, match="lock store"):
        verify(platform, copied)


async def test_a_rewritten_database_is_not_written_to(platform, copied):
    """Beside the true lock store a platform does not start on the rewritten database."""
    rewrite(copied, keys_of(platform), forge)
    with pytest.raises(LogForkError):
        await opened(platform.directory, database=copied)


async def test_with_key_and_lock_store_nothing_on_the_platform_tells(platform, copied, tmp_path):
    """The plain limit: with database, key and lock store rewritten everything verifies, and the platform goes on."""
    state = rewrite(copied, keys_of(platform), forge)
    directory = fitting(platform, tmp_path / "forged", state)
    report = verify(replace(platform, locked=lock_of(directory)), copied)
    assert report.lock_checked
    assert report.signatures == report.checkpoints
    log = await opened(directory, database=copied)
    assert (await log.append(2, decision())).index == RECORDS + 1
    await log.close()


def test_with_key_and_lock_store_a_kept_checkpoint_tells(platform, copied, tmp_path):
    """Even so, one checkpoint that a tenant kept shows the fork in any export of the rewritten log."""
    rewrite(copied, keys_of(platform), forge)
    out = tmp_path / "export.jsonl"
    arguments = ["export", "--db", str(copied), "--tenant", TENANT, "--out", str(out)]
    assert CliRunner().invoke(program, arguments).exit_code == 0
    vkeys = [platform.vkeys[platform.origin]]
    with out.open("rb") as file:
        verify_export(file, vkeys=vkeys)
    with out.open("rb") as file, pytest.raises(ConsistencyError, match="earlier checkpoint"):
        verify_export(file, vkeys=vkeys, seen=[platform.kept])
    (tmp_path / "kept").write_text(platform.kept)
    arguments = ["verify", str(out), "--log-key", vkeys[0]]
    assert CliRunner().invoke(program, arguments).exit_code == 0
    assert CliRunner().invoke(program, [*arguments, "--checkpoint", str(tmp_path / "kept")]).exit_code == 1


async def test_with_key_and_lock_store_a_witness_tells(platform, copied, postgres, tmp_path):
    """Even so, a witness that has cosigned the platform's log refuses the rewritten one: nothing can be published."""
    directory = fitting(platform, tmp_path / "forged", rewrite(copied, keys_of(platform), another_round))
    verify(replace(platform, locked=lock_of(directory)), copied)
    shutil.copytree(platform.directory / "lock", tmp_path / "true" / "lock")
    shutil.copytree(platform.directory / "keys", tmp_path / "true" / "keys")
    untouched = copy_of(platform.database, postgres, tmp_path / "untouched.db")
    vkey = next(vkey for origin, vkey in platform.vkeys.items() if "/platform/" in origin)
    async with our_witness(WITNESS, tmp_path / "w", [vkey]) as url, aiohttp.ClientSession() as http:
        client = WitnessClient(url, pinned(WITNESS), 5.0)
        assert len(await cosigned(client, http, tmp_path / "true", untouched)) == 2
        with pytest.raises(ConsistencyError, match="another history"):
            await cosigned(client, http, directory, copied)
        assert await cosigned(client, http, tmp_path / "true", untouched)


def another_round(log_id: int, index: int, leaf: bytes) -> bytes:
    """Let the platform's first round say another root: what it committed all tenants' logs to."""
    if (log_id, index) != (1, 1):
        return leaf
    changed = re.sub(rb'"root":"[0-9a-f]{64}"', b'"root":"' + b"00" * 32 + b'"', leaf)
    assert changed != leaf
    return changed


async def cosigned(
    client: WitnessClient, http: aiohttp.ClientSession, directory: Path, database: Path | str
) -> Sequence[str]:
    """Start the platform over these files and have its log cosigned as it publishes it."""
    log = await opened(directory, database=database)
    platform_id = log.platform_log.log_id

    async def extension(old: int, new: int) -> tuple[bytes, ...]:
        return (await log.extension(platform_id, old, new))[0]

    try:
        return await client.cosign(http, await log.checkpoint(platform_id), extension)
    finally:
        await log.close()


async def test_an_older_copy_is_known_by_the_lock_store(platform, copied):
    """A database cut back to an earlier commit verifies alone if its checkpoints go too; not beside its lock store."""
    edit(
        copied,
        "DELETE FROM audit_leaf WHERE pos > (SELECT pos FROM audit_commit WHERE seq = 2)",
        "DELETE FROM audit_index WHERE pos > (SELECT pos FROM audit_commit WHERE seq = 2)",
        "DELETE FROM audit_tile",
        "DELETE FROM audit_commit WHERE seq > 2",
        "DELETE FROM audit_log WHERE log_id NOT IN (SELECT log_id FROM audit_leaf)",
        "DELETE FROM audit_head WHERE log_id NOT IN (SELECT log_id FROM audit_leaf)",
        "UPDATE audit_head SET size = 1, frontier ="
        " (SELECT leaf_hash FROM audit_leaf WHERE audit_leaf.log_id = audit_head.log_id)",
    )
    with pytest.raises(ConsistencyError, match="audit_round"):
        verify(platform, copied, lock=False)
    edit(copied, "DELETE FROM audit_round")
    with pytest.raises(ConsistencyError, match="records are gone"):
        verify(platform, copied, lock=False)
    edit(copied, "DELETE FROM audit_checkpoint WHERE size > 1 OR log_id NOT IN (SELECT log_id FROM audit_log)")
    verify(platform, copied, lock=False)
    with pytest.raises(ConsistencyError, match="lock store"):
        verify(platform, copied)
    with pytest.raises(LogForkError, match="backup"):
        await opened(platform.directory, database=copied)
