"""What does not belong into the audit log: a typed error names the record or file, and nothing is lost."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from audit.chain import GENESIS
from audit.cli import program as operators
from audit.keys import LogKeys
from audit.log import AuditLog
from audit.model import Page, RecordFilter
from audit.sql import open_store
from audit.store import NewLeaf
from bulkhead.cli.program import program as tenants
from bulkhead.encoding import canonical_json
from bulkhead.errors import ConfigError, InvalidRequestError, RecordError
from bulkhead.ids import RECORD, new_id
from bulkhead.transparency.leaf import MAX_LEAF_BYTES
from bulkhead.transparency.merkle import leaf_hash
from tests.simulator.audit_forgery import StoppedPlatform, lock_of, stopped_platform
from tests.simulator.audit_world import TENANT, config, decision, opened, verified


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "audit.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> StoppedPlatform:
    directory = tmp_path_factory.mktemp("audit")
    return stopped_platform(directory, directory / "audit.db")


@pytest.fixture
def export(platform: StoppedPlatform, tmp_path: Path) -> Path:
    """The tenant's export."""
    out = tmp_path / "log.jsonl"
    run(operators, "export", "--db", platform.database, "--tenant", TENANT, "--out", out)
    return out


def run(program: click.Command, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


async def settled(log: AuditLog, ready: Callable[[], bool]) -> None:
    """Wait until the log's housekeeping has come to something."""
    for _ in range(6_000):
        if ready():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(log.health())


async def test_a_record_over_16_kib(tmp_path, database):
    """A record over 16 KiB is refused with its id before it is sent; what was and comes after it is in the log."""
    log = await opened(tmp_path, database=database)
    info = await log.ensure_log(TENANT)
    assert (await log.append(info.log_id, decision())).index == 1
    with pytest.raises(InvalidRequestError) as caught:
        await log.append(info.log_id, decision(padding="x" * MAX_LEAF_BYTES))
    assert caught.value.details["record"].startswith("rec_")
    assert "16384" in caught.value.message.replace(",", "") or "16 KiB" in caught.value.message
    assert (await log.append(info.log_id, decision())).index == 2
    await log.close()


async def with_leaf(directory: Path, database: Path | str, record: str, leaf: bytes) -> AuditLog:
    """Return a log that goes on behind a leaf at index 2 that no record of this build's schema is."""
    log = await opened(directory, database=database)
    info = await log.ensure_log(TENANT)
    await log.append(info.log_id, decision())
    await log.close()
    store = open_store(database, busy_timeout_s=1.0)
    store.commit([NewLeaf(info.log_id, record, leaf, leaf_hash(leaf))], lock_of(directory))
    store.close()  # its lock store follows at the next start, as after a crash
    log = await opened(directory, database=database)
    assert (await log.append(info.log_id, decision())).index == 3
    return log


async def test_an_unknown_schema_version_in_the_database(tmp_path, database):
    """A record of a later schema is never shown as one of this: whoever reads it is told which; appending goes on."""
    record = new_id(RECORD)
    log = await with_leaf(
        tmp_path, database, record, canonical_json(json.loads(decision().leaf) | {"v": 2, "id": record})
    )
    await settled(log, lambda: log.health().unindexed == 0)
    assert log.health().writable
    for read in (log.receipt(2, 2), log.records(RecordFilter(log_id=2), Page())):
        with pytest.raises(RecordError, match="version") as caught:
            await read
        assert caught.value.details["record"] == record
    assert (await log.receipt(2, 3)).index == 3
    await log.close()
    with pytest.raises(RecordError, match=r"record 2 .*version") as caught:
        verified(tmp_path, database)
    assert caught.value.details["record"] == record


async def test_a_leaf_that_is_no_record(tmp_path, database):
    """A leaf of which nothing can be read stops the index and is named; appends and the database's upkeep go on."""
    record = new_id(RECORD)
    log = await with_leaf(tmp_path, database, record, b"nonsense")
    await settled(log, lambda: record in log.health().reason)
    assert log.health().writable
    assert log.health().unindexed == 2
    maintained: list[bool] = []
    log._store.maintain = lambda *, idle: maintained.append(idle)  # type: ignore[method-assign]
    await settled(log, lambda: bool(maintained))
    await log.close()
    with pytest.raises(RecordError, match="record 2 ") as caught:
        verified(tmp_path, database)
    assert caught.value.details["record"] == record


def test_an_unknown_schema_version_in_an_export(platform, export, tmp_path):
    """An export whose record says another version is refused, naming the record."""
    lines = export.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if '"index":5,' in line)
    line = json.loads(lines[at])
    line["leaf"] = canonical_json(json.loads(line["leaf"]) | {"v": 2}).decode()
    lines[at] = json.dumps(line)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join(lines) + "\n")
    for program in (operators, tenants):
        arguments = ["verify", changed, "--log-key", platform.vkeys[platform.origin]]
        shown = run(program, *(["audit"] if program is tenants else []), *arguments, code=1).output
        assert "record 5" in shown
        assert "schema version 1 is expected, 2 is there" in shown


def test_a_truncated_export(platform, export, tmp_path):
    """An export that was cut is refused, naming the line and how many records were whole."""
    data = export.read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(data[: data.index(b'"index":120,') - 5])
    arguments = ["audit", "verify", tmp_path / "cut.jsonl", "--log-key", platform.vkeys[platform.origin]]
    shown = run(tenants, *arguments, code=1).output
    assert "cut.jsonl: the export is truncated" in shown
    assert "after 120 records" in shown


def test_what_is_no_export(platform, tmp_path):
    """An empty file, one of something else, and an export without a log are refused by name, not counted as whole."""
    header = '{"type":"bulkhead-audit-export","version":1}\n'
    for content, problem in (
        ("", "not a bulkhead-audit-export"),
        ("nonsense", "not a bulkhead-audit-export"),
        (header + '{"type":"end","logs":0,"records":0}\n', "no log"),
    ):
        (tmp_path / "none.jsonl").write_text(content)
        key = platform.vkeys[platform.origin]
        shown = run(tenants, "audit", "verify", tmp_path / "none.jsonl", "--log-key", key, code=1).output
        assert "none.jsonl: " in shown
        assert problem in shown


def test_files_beside_an_export(platform, export, tmp_path):
    """A checkpoint that is none, tiles without a checkpoint, and keys that are none are named, not the export."""
    key = ["--log-key", platform.vkeys[platform.origin]]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "tiles").mkdir()
    for program in (operators, tenants):
        verify = ["audit", "verify"] if program is tenants else ["verify"]
        shown = run(program, *verify, export, *key, "--checkpoint", tmp_path / "binary", code=1).output
        assert f"cannot read {tmp_path / 'binary'}: it is not text" in shown
        shown = run(program, *verify, export, *key, "--checkpoint", export, code=1).output
        assert f"{export} is no checkpoint" in shown
        assert "'w+x'" in run(program, *verify, export, *key, "--witness", "w+x", code=2).output
    assert "'k+x'" in run(tenants, "audit", "verify", export, "--log-key", "k+x", code=2).output
    shown = run(tenants, "audit", "verify", tmp_path / "tiles", *key, code=1).output
    assert f"{tmp_path / 'tiles' / 'checkpoint'}: No such file" in shown


def test_a_corrupt_tile(platform, export, tmp_path):
    """A directory of tiles with one bit changed is refused, naming the file."""
    key = ["--log-key", platform.vkeys[platform.origin]]
    run(tenants, "audit", "serve-tiles", export, *key, "--out", tmp_path / "tiles")
    run(tenants, "audit", "verify", tmp_path / "tiles", *key)
    for name in ("tile/0/000", "tile/0/001.p/45", "tile/1/000.p/1", "tile/entries/000"):
        target = tmp_path / "tiles" / name
        whole = target.read_bytes()
        target.write_bytes(
            whole[:700] + bytes([whole[700] ^ 1]) + whole[701:] if len(whole) > 700 else b"x" + whole[1:]
        )
        shown = run(tenants, "audit", "verify", tmp_path / "tiles", *key, code=1).output
        assert name in shown or "record " in shown, shown
        target.write_bytes(whole)


def test_a_key_of_another_log(platform, export):
    """A key of another log, or another key of this name, does not verify an export: the log is named."""
    other = next(vkey for origin, vkey in platform.vkeys.items() if origin != platform.origin)
    stolen = LogKeys(bytes(32)).signer(platform.origin).vkey  # its name, another secret
    for vkey in (other, stolen):
        shown = run(tenants, "audit", "verify", export, "--log-key", vkey, code=1).output
        assert platform.origin in shown
        assert "CHECKPOINT" in shown or "key" in shown


def test_a_key_of_another_log_for_the_database(platform, tmp_path):
    """A database is not verified with another platform's keys: the first checkpoint that they did not sign is named."""
    LogKeys.load_or_create(tmp_path / "keys", random_bytes=lambda count: b"\x07" * count)
    shown = run(operators, "verify", platform.database, "--keys", tmp_path / "keys", code=1).output
    assert "kept checkpoint of size" in shown


@pytest.mark.parametrize("found", ["another", "none"])
async def test_a_platform_with_another_key(tmp_path, database, found):
    """A platform does not start with another secret than its log's, nor makes a new one; with its own it does."""
    log = await opened(tmp_path, database=database)
    info = await log.ensure_log(TENANT)
    await log.append(info.log_id, decision())
    await log.close()
    before = lock_of(tmp_path)
    assert before != GENESIS
    (tmp_path / "keys").rename(tmp_path / "own")
    if found == "another":
        LogKeys.load_or_create(tmp_path / "keys", random_bytes=lambda count: b"\x07" * count)
    with pytest.raises(ConfigError, match="keys"):
        await opened(tmp_path, database=database)
    assert (tmp_path / "keys").exists() == (found == "another")
    shutil.rmtree(tmp_path / "keys", ignore_errors=True)
    (tmp_path / "own").rename(tmp_path / "keys")
    log = await opened(tmp_path, database=database)
    assert (await log.append(info.log_id, decision())).index == 2
    await log.close()


async def test_a_clock_set_back_a_year(tmp_path, database):
    """Records after a clock was set back a year are appended in order, say what both clocks showed, and verify."""
    wall = [1_800_000_000_000_000_000]
    log = await AuditLog.open(config(tmp_path, database=database), wall_ns=lambda: wall[0])
    info = await log.ensure_log(TENANT)
    before = await log.append(info.log_id, decision(stamps=log))
    wall[0] -= 365 * 86_400 * 1_000_000_000
    after = await log.append(info.log_id, decision(stamps=log))
    assert after.index == before.index + 1
    await settled(log, lambda: log.health().unindexed == 0)
    page = await log.records(RecordFilter(log_id=info.log_id, action="decision"), Page())
    newest, older = (item.fields for item in page.records)
    assert older.ts_us - newest.ts_us == 365 * 86_400 * 1_000_000  # as the clock said, never nudged
    assert newest.mono_us >= older.mono_us  # so the skew shows: the monotonic clock went on
    assert newest.writer == older.writer
    await log.close()
    assert verified(tmp_path, database).lock_checked
