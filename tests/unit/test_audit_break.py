"""A break, rehearsed: a restored backup is refused, two persons declare it, every log goes on in a new epoch."""

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.chain import GENESIS
from audit.cli import program
from audit.log.breaking import BreakStatement, declare_break, find_break
from bulkhead.errors import CheckpointError, ConflictError, ConsistencyError, LogForkError, PermissionDeniedError
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.note import NoteSigner, sign_note
from tests.simulator.audit_world import OTHER, TENANT, config, decision, opened, stamper, verified
from tests.simulator.postgres import PostgresServer

OFFICERS = [NoteSigner.from_seed(name, bytes([number] * 32)) for number, name in enumerate(("ada", "ben"))]
PINNED = [officer.vkey for officer in OFFICERS]


async def restored_backup(directory: Path, database: Path | str, postgres: PostgresServer) -> Path | str:
    """Make a log with a history, put a backup of its database back, and return where it is."""
    log = await opened(directory, database=database)
    info, other = await log.ensure_log(TENANT), await log.ensure_log(OTHER)
    await log.append(info.log_id, decision())
    await log.append(other.log_id, decision(tenant=OTHER))
    await log.close()
    if isinstance(database, Path):
        backup: Path | str = directory / "backup.db"
        shutil.copy(database, backup)
    else:
        backup = postgres.url(postgres.new_database(template=database.split("/")[3].split("?")[0]))
    log = await opened(directory, database=database)
    for number in range(5):
        await log.append(info.log_id, decision(number=number))
    await log.close()
    return backup


@pytest.fixture(params=["sqlite", "postgresql"])
async def backup(request, tmp_path, postgres):
    database = tmp_path / "audit.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")
    return await restored_backup(tmp_path, database, postgres)


async def test_the_way_out_of_a_break(tmp_path, backup):
    """Writes are refused; once two officers have declared the break every log's new epoch cites both histories."""
    where = config(tmp_path, database=backup)
    with pytest.raises(LogForkError, match="two persons declare a break"):
        await opened(tmp_path, database=backup)
    statement = find_break(where, "restored after the fire")
    assert statement.lock is not None
    assert statement.lock.seq > statement.database.seq
    note = sign_note(statement.text(), OFFICERS)
    done = declare_break(where, note, PINNED, stamp=stamper().stamp)
    assert (done.officers, done.state.seq) == (("ada", "ben"), statement.lock.seq + 1)

    log = await opened(tmp_path, database=backup)
    info, old = await log.ensure_log(TENANT), log.logs()[1]
    assert (info.epoch, info.origin) == (2, old.origin[:-1] + "2")
    assert (await log.append(info.log_id, decision())).index == 1
    first = parse_leaf((await log.receipt(info.log_id, 0)).leaf).data
    cited = first["break"]
    assert isinstance(cited, dict)
    assert cited["statement"] == note
    assert [cited["database"], cited["lock"]] == [
        f"{state.seq} {state.chain.hex()}" for state in (statement.database, statement.lock)
    ]
    assert str(first["predecessor"]).startswith(f"{old.origin}\n2\n")
    fresh = await log.ensure_log("tenant_01h455vb4pex5vsknk084sn02s")
    assert (fresh.epoch, fresh.slot) == (1, 2)
    await log.close()
    report = verified(tmp_path, backup)
    assert report.lock_checked
    assert report.logs == 7
    with pytest.raises(ConflictError, match="no break"):
        find_break(where, "again")


async def test_a_break_needs_two_persons(tmp_path, backup):
    """One signature, one key under two names, a stranger's, or another statement: nothing changes."""
    where = config(tmp_path, database=backup)
    statement = find_break(where, "restored")
    text = statement.text()
    stranger = NoteSigner.from_seed("eve", bytes([9] * 32))
    twin = NoteSigner.from_seed("ada2", bytes([0] * 32))
    for signers, pinned in (
        ([OFFICERS[0]], PINNED),
        ([OFFICERS[0], stranger], PINNED),
        ([OFFICERS[0], twin], [*PINNED, twin.vkey]),
    ):
        with pytest.raises(PermissionDeniedError, match="two persons"):
            declare_break(where, sign_note(text, signers), pinned, stamp=stamper().stamp)
    forged = sign_note(text, OFFICERS).replace("restored", "resorted")
    with pytest.raises(CheckpointError):
        declare_break(where, forged, PINNED, stamp=stamper().stamp)
    other = dataclasses.replace(statement, lock=GENESIS)
    with pytest.raises(ConflictError, match="other histories"):
        declare_break(where, sign_note(other.text(), OFFICERS), PINNED, stamp=stamper().stamp)
    with pytest.raises(LogForkError):
        await opened(tmp_path, database=backup)


@pytest.mark.parametrize("step", ["commit.chained", "commit.done", "lock.written", "lock.synced"])
async def test_a_declaration_cut_short_is_taken_up_again(tmp_path, backup, step):
    """A crash at any step of the declaration leaves a state in which the same declaration ends the matter."""
    where = config(tmp_path, database=backup)
    note = sign_note(find_break(where, "restored").text(), OFFICERS)

    class Killed(BaseException):
        pass

    def failpoint(name: str) -> None:
        if name == step:
            raise Killed

    with pytest.raises(Killed):
        declare_break(where, note, PINNED, stamp=stamper().stamp, failpoint=failpoint)
    done = declare_break(where, note, PINNED, stamp=stamper().stamp)
    assert len(done.logs) == 3
    log = await opened(tmp_path, database=backup)
    assert [info.epoch for info in log.logs()] == [1, 1, 1, 2, 2, 2]
    await log.close()
    assert verified(tmp_path, backup).lock_checked


async def test_a_lost_lock_store(tmp_path):
    """The lock store is gone: the break says so, and a new one begins at the new epochs."""
    log = await opened(tmp_path)
    await log.ensure_log(TENANT)
    await log.close()
    (tmp_path / "lock" / "audit.lock").unlink()
    with pytest.raises(LogForkError, match="missing"):
        await opened(tmp_path)
    where = config(tmp_path)
    statement = find_break(where, "the disk of the lock store is gone")
    assert statement.lock is None
    declare_break(where, sign_note(statement.text(), OFFICERS), PINNED, stamp=stamper().stamp)
    log = await opened(tmp_path)
    assert log.platform_log.epoch == 2
    await log.close()
    assert verified(tmp_path, tmp_path / "audit.db").lock_checked


async def test_a_break_does_not_hide_an_edit_before_it(tmp_path, postgres):
    """What was edited before the break is found across it."""
    backup = await restored_backup(tmp_path, tmp_path / "audit.db", postgres)
    where = config(tmp_path, database=backup)
    declare_break(where, sign_note(find_break(where, "restored").text(), OFFICERS), PINNED, stamp=stamper().stamp)
    with sqlite3.connect(backup) as connection:
        connection.execute("UPDATE audit_commit SET chain = zeroblob(32) WHERE seq = 3")
    connection.close()
    with pytest.raises(ConsistencyError, match="commit 3"):
        verified(tmp_path, backup)


@pytest.mark.parametrize("text", ["", "x\n", "bulkhead audit break v1\nd\ndatabase 1 zz\nlock lost\nreason r\n"])
def test_something_else_is_no_statement(text):
    """A text that is not exactly a statement is refused."""
    with pytest.raises(CheckpointError):
        BreakStatement.parse(text)


async def test_the_commands(tmp_path, postgres):
    """The whole way on the command line: keys, statement, two signatures, declaration."""
    database = await restored_backup(tmp_path, tmp_path / "audit.db", postgres)
    where = ["--db", str(database), "--lock", str(tmp_path / "lock" / "audit.lock")]

    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(program, ["break", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    pins = [run("officer-key", name, "--out", tmp_path / f"{name}.key").strip() for name in ("ada", "ben")]
    assert (tmp_path / "ada.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "b.txt").write_text(run("statement", *where, "--reason", "rehearsal"))
    run("sign", tmp_path / "b.txt", "--key", tmp_path / "ada.key")
    officers = [argument for pin in pins for argument in ("--officer", pin)]
    assert "two persons" in run("declare", tmp_path / "b.txt", *where, *officers, code=1)
    run("sign", tmp_path / "b.txt", "--key", tmp_path / "ada.key", code=1)
    run("sign", tmp_path / "b.txt", "--key", tmp_path / "ben.key")
    assert "New epoch: audit.bulkhead.test/platform/2" in run("declare", tmp_path / "b.txt", *where, *officers)
    assert verified(tmp_path, database).lock_checked
