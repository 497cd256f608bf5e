"""The documented SQL views: the documented queries on both databases, and what a reader's role can and cannot do."""

# ruff: noqa: S608 - statements are made of this file's own constants

import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit import records
from audit.cli import program
from audit.model import LogInfo
from audit.sql import open_store
from audit.sql.readers import VIEWS
from audit.store import AuditStore
from tests.simulator.audit_world import OTHER, TENANT, decision, event, new_leaf, opening, stamper
from tests.simulator.postgres import BINARIES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"^SELECT .*;$", DOCUMENT, flags=re.MULTILINE)
PLATFORM = LogInfo(log_id=1, origin="audit.test/platform/1", tenant=None, epoch=1, slot=None)
MINE = LogInfo(log_id=2, origin="audit.test/t/a/1", tenant=TENANT, epoch=1, slot=0)
THEIRS = LogInfo(log_id=3, origin="audit.test/t/b/1", tenant=OTHER, epoch=1, slot=1)


def fill(store: AuditStore) -> None:
    """Two tenants: a denial, an allowed open with its outcome and receipts, one without; another's denial."""
    stamps = stamper(start_us=1_790_000_000_000_000)
    cause = records.tenant_cause(credential="cred_1", request_id="req_1")
    session = {"session": "sess_1", "pair_id": "pair_1"}
    mine = [
        decision(number=0, allow=False, stamps=stamps),
        decision(number=1, stamps=stamps),
        records.outcome(
            stamps.stamp(), tenant=TENANT, subject=None, cause=cause, result="ready", model="tiny", tier="gpu",
            **session,
        ),
        records.receipts(
            stamps.stamp(), tenant=TENANT, cause=records.platform_cause(records.PlatformReason.SPOOL), model="tiny",
            tier="gpu", partition="part_1", root=bytes(32), first=1, count=3, prompt_tokens=10, completion_tokens=20,
            final=True, **session,
        ),
        decision(number=2, stamps=stamps),
        records.audit_read(
            stamps.stamp(), tenant=TENANT, subject=records.Subject("subj_1", ("officer",)), cause=cause, method="/x",
            query={}, returned=1, size=5,
        ),
    ]  # fmt: skip
    theirs = [decision(tenant=OTHER, number=7, allow=False, stamps=stamps)]
    leaves = [*(new_leaf(2, item) for item in mine), *(new_leaf(3, item) for item in theirs), new_leaf(1, event())]
    store.commit([opening(PLATFORM), opening(MINE), opening(THEIRS), *leaves], store.last_commit())
    while store.project(100):
        pass
    store.close()


@pytest.fixture
def filled_url(audit_url: str) -> str:
    fill(open_store(audit_url, busy_timeout_s=1.0))
    return audit_url


def psql(url: str, statement: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BINARIES / "psql", url, "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-At", "-F", "\t", "-c", statement],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def as_role(url: str, role: str) -> str:
    return url.replace("postgresql://postgres@", f"postgresql://{role}@")


@pytest.fixture
def reader_role(filled_url: str, request: pytest.FixtureRequest):
    """Make readers as the operator does; they are dropped again, since roles are the whole server's."""
    made: list[str] = []

    def make(tenant: str | None) -> str:
        role = f"reader_{abs(hash((request.node.name, tenant, filled_url))) % 10**9}"
        options = [] if tenant is None else ["--tenant", tenant]
        result = CliRunner().invoke(program, ["reader", "add", role, "--db", filled_url, *options])
        assert result.exit_code == 0, result.output
        made.append(role)
        return as_role(filled_url, role)

    yield make
    for role in made:
        result = CliRunner().invoke(program, ["reader", "remove", role, "--db", filled_url])
        assert result.exit_code == 0, result.output


def test_documented_queries_on_sqlite(tmp_path):
    """On SQLite each documented query runs read-only and finds what was recorded."""
    fill(open_store(tmp_path / "a.db", busy_timeout_s=1.0))
    with sqlite3.connect(f"file:{tmp_path / 'a.db'}?mode=ro", uri=True) as connection:
        answers = [connection.execute(query.rstrip(";")).fetchall() for query in QUERIES]
    connection.close()
    assert [len(rows) for rows in answers] == [2, 1, 1, 3, 1, 3]
    assert answers[2] == [(TENANT, "tiny", 3, 10, 20)]
    assert answers[0][0][0].startswith("2026-09-21 ")


def test_documented_queries_with_psql(reader_role):
    """On PostgreSQL a reader's role runs each documented query with psql, over every log."""
    url = reader_role(None)
    answers = [psql(url, query) for query in QUERIES]
    assert [answer.returncode for answer in answers] == [0] * len(QUERIES), [answer.stderr for answer in answers]
    assert [len(answer.stdout.splitlines()) for answer in answers] == [2, 1, 1, 3, 1, 3]
    assert answers[2].stdout.strip().split("\t") == [TENANT, "tiny", "3", "10", "20"]


def test_a_tenant_s_reader_sees_its_own_records_only(reader_role):
    """A role of one tenant sees nothing of another's logs, nor of the platform's, whatever it asks or sets."""
    url = reader_role(TENANT)
    for view in VIEWS:
        column = psql(url, f"SELECT DISTINCT tenant FROM {view}")
        assert column.stdout.split() == [TENANT], column.stderr
    tries = (
        f"SELECT count(*) FROM audit_records WHERE tenant = '{OTHER}'",
        f"SET SESSION AUTHORIZATION postgres; SELECT count(*) FROM audit_records WHERE tenant = '{OTHER}'",
        f"SET ROLE postgres; SELECT count(*) FROM audit_records WHERE tenant = '{OTHER}'",
    )
    found = [psql(url, statement) for statement in tries]
    assert found[0].stdout.strip() == "0"
    assert all(item.returncode != 0 for item in found[1:])


REFUSED = (
    "SELECT * FROM audit_leaf", "SELECT * FROM audit_index", "SELECT * FROM audit_reader", "SELECT * FROM audit_log",
    "SELECT * FROM audit_checkpoint", "INSERT INTO audit_leaf VALUES (1)", "UPDATE audit_records SET tenant = 'x'",
    "DELETE FROM audit_records", "TRUNCATE audit_leaf", "DROP VIEW audit_records", "ALTER TABLE audit_leaf ADD x int",
    "CREATE TABLE x (y int)", "CREATE TEMP TABLE x (y int)",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA s", "CREATE ROLE r", "CREATE DATABASE d", "GRANT SELECT ON audit_records TO PUBLIC",
    "COPY audit_records TO PROGRAM 'cat'", "COPY (SELECT 1) TO '/tmp/x'", "SELECT lo_create(0)",
    "SELECT pg_read_file('/etc/passwd')", "INSERT INTO audit_reader VALUES ('x', NULL)", "BEGIN; LOCK TABLE audit_leaf",
    "VACUUM audit_leaf",
)  # fmt: skip


def test_a_reader_can_do_nothing_else(reader_role):
    """Even after it has switched off its own read-only default, a reader reads no table and changes nothing."""
    url = f"{reader_role(None)}&options=-c%20default_transaction_read_only%3Doff"
    assert psql(url, "SHOW default_transaction_read_only").stdout.strip() == "off"
    for statement in REFUSED:
        done = psql(url, statement)
        assert re.search(
            "permission denied|must be owner|cannot (update|delete|insert)|no privileges were granted", done.stderr
        ), done.stderr


def test_readers_are_listed_and_refused_by_name(filled_url, reader_role):
    """Readers are listed with what they see; a name that is none, and a role that is no reader, are refused."""
    reader_role(TENANT)
    shown = CliRunner().invoke(program, ["reader", "list", "--db", filled_url]).output
    assert TENANT in shown
    for arguments in (("add", "x; DROP"), ("add", "Robert"), ("remove", "nobody_here")):
        result = CliRunner().invoke(program, ["reader", *arguments, "--db", filled_url])
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output


def test_what_a_reader_asks_is_in_the_server_s_log(reader_role, postgres):
    """Each statement of a reader is logged by the server; the reader cannot switch that off."""
    url = reader_role(TENANT)
    writing = f"{url}&options=-c%20default_transaction_read_only%3Doff"
    role = url.removeprefix("postgresql://").partition("@")[0]
    assert "permission denied" in psql(url, "SET log_statement = 'none'").stderr
    assert "permission denied" in psql(f"{url}&options=-c%20log_statement%3Dnone", "SELECT 1").stderr
    for change in ("RESET log_statement", "SET log_statement = 'none'"):
        assert "permission denied" in psql(writing, f"ALTER ROLE {role} {change}").stderr
    psql(writing, f"ALTER ROLE {role} RESET ALL")  # takes back what is the role's own to change, and no more
    assert psql(url, "SHOW log_statement").stdout.strip() == "all"
    assert psql(url, "SELECT count(*) AS reads_of_kim FROM audit_records").returncode == 0
    logged = (postgres.root / "server.log").read_text(encoding="utf-8", errors="replace")
    assert "reads_of_kim FROM audit_records" in logged
