import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit.cli import program
from audit.cli.options import Ticker
from bulkhead.transparency.tiles import verify_tiles
from tests.simulator.audit_world import OTHER, TENANT, decision, opened


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped platform's audit files: ten decisions of one tenant, one of another."""
    found = tmp_path_factory.mktemp("audit")

    async def make() -> None:
        log = await opened(found)
        for number in range(10):
            await log.write(decision(number=number, allow=number % 5 > 0))
        await log.write(decision(tenant=OTHER))
        await log.close()

    asyncio.run(make())
    return found


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_list_shows_who_what_and_why(directory):
    """A filtered list shows decision, reason, subject, model and tier of each record, newest first."""
    shown = run("list", "--db", directory / "audit.db", "--tenant", TENANT, "--decision", "deny").stdout
    lines = shown.splitlines()
    assert len(lines) == 3
    assert [line.split()[3] for line in lines[1:]] == ["6", "1"]
    for word in ("deny", "SESSION_LIMIT", "subj_01h455vb4pex5vsknk084sn02q", "tiny", "gpu", "sess_5"):
        assert word in lines[1]


def test_list_pages(directory):
    """The token of a page continues the list; --json is for programs."""
    database = directory / "audit.db"
    first = json.loads(run("list", "--db", database, "--limit", 8, "--json").stdout)
    second = json.loads(run("list", "--db", database, "--limit", 8, "--json", "--after", first["next"]).stdout)
    ids = [item["record_id"] for item in first["records"] + second["records"]]
    assert (len(ids), len(set(ids)), second["next"]) == (14, 14, "")
    assert (first["indexed"], first["size"]) == (14, 14)
    oldest = json.loads(run("list", "--db", database, "--json", "--oldest-first").stdout)
    assert [item["record_id"] for item in oldest["records"]] == ids[::-1]


def test_list_by_time(directory):
    """Times bound a list; a malformed time is a usage error."""
    database = directory / "audit.db"
    assert "No record" in run("list", "--db", database, "--until", "2020-01-01").stdout
    assert len(run("list", "--db", database, "--since", "2020-01-01T00:00:00Z").stdout.splitlines()) == 15
    run("list", "--db", database, "--since", "yesterday", code=2)


def test_tail_shows_the_newest_last(directory):
    """The tail ends with the newest record."""
    lines = run("tail", "--db", directory / "audit.db", "--limit", 3).stdout.splitlines()
    assert len(lines) == 3
    assert OTHER in lines[-1]
    assert (
        json.loads(run("tail", "--db", directory / "audit.db", "--limit", 1, "--json").stdout)["record"]["tenant"]
        == OTHER
    )


def test_tail_follows(directory, tmp_path, monkeypatch):
    """With --follow, records that come later are shown, each once."""
    shutil.copytree(directory, tmp_path / "live")

    async def more() -> None:
        log = await opened(tmp_path / "live")
        await log.write(decision(number=77))
        await log.close()

    polls = 0

    def sleep(_seconds: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 1:
            asyncio.run(more())
        if polls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("audit.cli.listing.time.sleep", sleep)
    result = run("tail", "--db", tmp_path / "live" / "audit.db", "--limit", 2, "--follow", code=1)
    assert result.output.count("sess_77") == 1
    assert "Aborted" in result.output


def test_show_prints_one_record(directory):
    """A record is shown in full by its id; an unknown one is not found, nonsense is refused."""
    listed = json.loads(run("list", "--db", directory / "audit.db", "--json", "--action", "decision").stdout)
    record = listed["records"][0]
    assert json.loads(run("show", "--db", directory / "audit.db", record["record_id"], "--json").stdout) == record
    run("show", "--db", directory / "audit.db", "rec_01h455vb4pex5vsknk084sn02q", code=1)
    run("show", "--db", directory / "audit.db", "nonsense", code=1)


def test_export_and_verify(directory, tmp_path):
    """An export of everything verifies with the printed keys and nothing else at hand."""
    keys = tmp_path / "vkeys.txt"
    keys.write_text(run("vkeys", "--db", directory / "audit.db", "--keys", directory / "keys").stdout)
    out = tmp_path / "out.jsonl"
    assert "14 records" in run("export", "--db", directory / "audit.db", "--out", out).stdout
    found = json.loads(run("verify", out, "--log-key", keys, "--json").stdout)
    assert [log["checkpoint"]["size"] for log in found["logs"]] == [1, 11, 2]
    assert "Verified 14 records" in run("verify", out, "--log-key", keys).stdout


def test_verify_needs_a_key(directory, tmp_path):
    """An export without a pinned key is a usage error; another log's key is a failed verification."""
    out = tmp_path / "out.jsonl"
    run("export", "--db", directory / "audit.db", "--tenant", TENANT, "--out", out)
    run("verify", out, code=2)
    platform, *_ = run("vkeys", "--db", directory / "audit.db", "--keys", directory / "keys").stdout.split()
    assert "no key is pinned" in run("verify", out, "--log-key", platform, code=1).output
    for wrong in ("nonsense", out):
        assert str(wrong) in run("verify", out, "--log-key", wrong, code=2).output


def test_what_cannot_be_written_is_named(directory, tmp_path):
    """A file or directory that cannot be written is named with the reason, and nothing half made is left behind."""
    database, file = directory / "audit.db", tmp_path / "file"
    file.write_text("")
    for command in (["export", "--out", file / "x.jsonl"], ["tiles", "--out", file / "x"]):
        shown = run(command[0], "--db", database, *command[1:], code=2).output
        assert str(file) in shown
        assert "Not a directory" in shown
    (tmp_path / "taken").mkdir()
    run("export", "--db", database, "--out", tmp_path / "taken", code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_verify_says_what_it_did_not_check(directory):
    """Without keys or lock store the summary says what was left out; with them nothing is."""
    database = directory / "audit.db"
    alone = run("verify", database).stdout
    assert "Signatures not checked" in alone
    assert "Not compared with the lock store" in alone
    full = run("verify", database, "--keys", directory / "keys", "--lock", directory / "lock" / "audit.lock").stdout
    assert "ot c" not in full


def test_verify_refuses_something_else(tmp_path):
    """A file that is neither database nor export fails; a missing one is a usage error."""
    (tmp_path / "x").write_text("x")
    run("verify", tmp_path / "x", "--log-key", "audit.test/t/a/1+00000000+AAAA", code=2)
    run("verify", tmp_path / "missing", code=2)
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE x (y)").connection.close()
    shown = run("verify", tmp_path / "empty.db", code=1).output
    assert "no audit log" in shown
    assert "empty.db" in shown
    assert "try again" not in shown


def test_reindex_repairs_the_index(directory, tmp_path):
    """An edited index fails verification and holds again once rebuilt; not while the platform runs."""
    database = tmp_path / "copy.db"
    shutil.copy(directory / "audit.db", database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE audit_index SET decision = 'allow'")
    connection.close()
    assert "index says" in run("verify", database, code=1).output
    assert "Indexed 14" in run("reindex", "--db", database).stdout
    run("verify", database)

    async def while_open() -> None:
        log = await opened(tmp_path / "running")
        result = await asyncio.to_thread(
            CliRunner().invoke, program, ["reindex", "--db", str(tmp_path / "running" / "audit.db")]
        )
        await log.close()
        assert result.exit_code == 1
        assert "another process" in result.output

    asyncio.run(while_open())


def test_tiles_are_written_and_served(directory, tmp_path):
    """A log is written as files that verify, and served over HTTP by a process that prints its URL and ends."""
    written = run("tiles", "--db", directory / "audit.db", "--tenant", TENANT, "--out", tmp_path / "tiles", "--json")
    assert json.loads(written.stdout)["entries"] == 11
    vkeys = run("vkeys", "--db", directory / "audit.db", "--keys", directory / "keys").stdout.split()
    checkpoint = (tmp_path / "tiles" / "checkpoint").read_text()
    vkey = next(key for key in vkeys if key.startswith(checkpoint.partition("\n")[0] + "+"))
    found = verify_tiles(
        lambda path: (tmp_path / "tiles" / path).read_bytes(), vkey=vkey, origin=vkey.partition("+")[0]
    )
    assert found.checkpoint.size == 11

    command = [
        sys.executable,
        "-c",
        "from audit.cli import main; main()",
        "serve-tiles",
        "--db",
        directory / "audit.db",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.endswith("/platform/1/")  # tenants' logs only where they are named
            with urllib.request.urlopen(f"{url}checkpoint") as reply:  # noqa: S310 - our own server
                assert reply.read().decode().startswith("audit.bulkhead.test/platform/1\n")
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_damaged_tile_is_named(directory, tmp_path):
    """Writing tiles from a database whose records are not those of the checkpoint fails, and names the record."""
    shutil.copy(directory / "audit.db", tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        connection.execute("UPDATE audit_leaf SET leaf = replace(leaf, 'tiny', 'TINY') WHERE log_id = 2 AND idx = 4")
    connection.close()
    shown = run("tiles", "--db", tmp_path / "copy.db", "--tenant", TENANT, "--out", tmp_path / "tiles", code=1).output
    assert "record 4 (rec_" in shown
    assert not (tmp_path / "tiles" / "checkpoint").exists()


def test_unknown_logs_are_not_found(directory):
    """A tenant or log that the database does not have is named as missing."""
    for option in ("--tenant", "--log"):
        assert "no log of x" in run("list", "--db", directory / "audit.db", option, "x", code=1).output


def test_progress_is_shown_at_most_once_a_second(capsys, monkeypatch):
    """Long work tells on standard error how far it is, short work nothing."""
    clock = [0.0]
    monkeypatch.setattr("audit.cli.options.time.monotonic", lambda: clock[0])
    quick, slow = Ticker("quick"), Ticker("slow")
    for done in range(1, 11):
        quick(done, 10)
    for done in range(1, 11):
        clock[0] += 0.4
        slow(done, 10)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in shown] == ["slow"] * 4
    assert shown[-1] == "slow: 10 of 10 (100%) records"
