import itertools
import sqlite3
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.errors import QueryCanceled
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from audit.chain import GENESIS
from audit.model import Page, RecordFilter
from audit.sql import open_reader, open_sqlite, open_store
from audit.sql.queries import run_query
from audit.sql.schema import SCHEMA_REVISION, migrate
from audit.sql.sqlite import open_for_reading
from audit.sql.store import read_errors
from audit.sql.tables import METADATA
from audit.sql.verify import verify_database
from bulkhead.errors import AuditUnavailableError
from tests.contract.test_audit_store import FIRST, PLATFORM
from tests.simulator.audit_world import decision, new_leaf, opening

CHANGES = {"ALTER", "CREATE", "DELETE", "DROP", "INSERT", "UPDATE"}


def test_migrations_make_the_tables(tmp_path):
    """A migrated database has exactly the tables that the code speaks of."""
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        migrate(connection)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "audit_schema"})
        assert compare_metadata(context, METADATA) == []


def test_migrations_go_back(tmp_path):
    """Downgrading removes every table, upgrading makes them again."""
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        migrate(connection)
        migrate(connection, "base")
        left = connection.execute(text("SELECT name FROM sqlite_master WHERE name LIKE 'audit_%'")).scalars().all()
        assert left == ["audit_schema"]
        migrate(connection)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    return tmp_path / "a.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")


def test_migrations_keep_the_records(database):
    """Back to the first schema and forward again, step by step, with records inside: they verify as before."""
    store = open_store(database, busy_timeout_s=1.0)
    store.commit([opening(PLATFORM), opening(FIRST), *(new_leaf(2, decision(number=n)) for n in range(300))], GENESIS)
    last = store.last_commit()
    while store.project(1_000):
        pass
    steps = [f"{number:04}" for number in range(1, int(SCHEMA_REVISION) + 1)]
    for revision in (*reversed(steps[:-1]), *steps[1:]):
        with store._writing() as connection:
            migrate(connection, revision)
            assert connection.execute(text("SELECT version_num FROM audit_schema")).scalar() == revision
            assert connection.execute(text("SELECT count(*) FROM audit_leaf")).scalar() == 302
    assert store.last_commit() == last
    report = verify_database(store, vkeys={})
    assert (report.records, report.indexed) == (302, 302)
    assert len(store.commit([new_leaf(2, decision())], last).places) == 1
    store.close()


def test_a_migration_that_is_interrupted(tmp_path):
    """A migration that ends at any of its statements has changed nothing; the next start makes it whole."""
    database = tmp_path / "a.db"
    store = open_store(database, busy_timeout_s=1.0)
    store.commit([opening(PLATFORM), opening(FIRST), new_leaf(2, decision())], GENESIS)
    with store._writing() as connection:
        migrate(connection, "0001")
    store.close()
    for stop in itertools.count():
        changes = itertools.count()

        def interrupt(_connection, _cursor, statement, *_rest, changes=changes, stop=stop):
            if statement.lstrip().split()[0] in CHANGES and next(changes) == stop:
                raise KeyError(statement)

        event.listen(Engine, "before_cursor_execute", interrupt)
        try:
            store = open_store(database, busy_timeout_s=1.0)
        except KeyError:
            with pytest.raises(AuditUnavailableError, match="schema 0001"):
                open_reader(database)
            continue
        finally:
            event.remove(Engine, "before_cursor_execute", interrupt)
        break
    assert stop > 5
    report = verify_database(store, vkeys={})
    assert report.records == 3
    store.close()


def test_a_page_of_a_span_of_time_is_found_in_the_index_alone(tmp_path):
    """The database sorts a span's places without a look into the table for each; only the page's rows are fetched."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    asked = []
    with store.reading() as connection:
        event.listen(connection, "before_cursor_execute", lambda *call: asked.append(call[2:4]))
        run_query(connection, RecordFilter(log_id=2, since_us=1, until_us=2), Page())
        statement, parameters = asked[0]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    store.close()
    assert any("USING COVERING INDEX ix_audit_index_time" in row.detail for row in plan), plan


def test_opening_again_keeps_the_records(tmp_path):
    """A second opening finds what the first has committed."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    store.commit([opening(PLATFORM), opening(FIRST), new_leaf(2, decision())], GENESIS)
    last = store.last_commit()
    store.close()
    again = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    assert again.last_commit() == last
    assert len(again.leaves(2, 0, 9)) == 2
    again.close()


def test_a_second_writer_is_refused(tmp_path):
    """While one store is open for writing, another is refused; afterwards it is not."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    with pytest.raises(AuditUnavailableError, match="another process"):
        open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    store.close()
    open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2).close()


def test_a_newer_database_is_refused(tmp_path):
    """A database of a later schema is neither opened nor changed."""
    open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2).close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE audit_schema SET version_num = '9999'")
    for opener in (lambda path: open_sqlite(path, busy_timeout_s=0.2), open_for_reading):
        with pytest.raises(AuditUnavailableError, match=f"9999.*{SCHEMA_REVISION}"):
            opener(tmp_path / "a.db")


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_something_else_is_not_opened_for_reading(tmp_path, content):
    """A file that is no audit database is a typed error."""
    (tmp_path / "a.db").write_bytes(content)
    with pytest.raises(AuditUnavailableError):
        open_for_reading(tmp_path / "a.db")


def test_readers_cannot_write(tmp_path):
    """A reading connection refuses to change anything."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    with pytest.raises(AuditUnavailableError, match="readonly"), store.reading() as connection:
        connection.execute(text("DELETE FROM audit_commit"))
    store.close()


def test_a_read_that_takes_too_long_says_so(tmp_path):
    """What is stopped because it would hold the database up is told from a database that is down, on both."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    with pytest.raises(AuditUnavailableError, match="took too long"), store.reading() as connection:
        connection.execute(text(endless))
    store.close()
    cancelled = OperationalError("SELECT 1", None, QueryCanceled("canceling statement due to statement timeout"))
    with pytest.raises(AuditUnavailableError, match="took too long"), read_errors():
        raise cancelled


def test_long_work_may_read_for_longer(tmp_path, monkeypatch):
    """Where a read takes several seconds, as on a busy machine, the platform's is stopped and verification's is not."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    reader = open_reader(tmp_path / "a.db")
    seconds = itertools.count(step=3)
    monkeypatch.setattr("audit.sql.sqlite.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    # Between one and nine looks at the clock, one every 10,000 operations: from 4 to 30 of them to a row.
    query = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3000) SELECT max(x) FROM n")
    with pytest.raises(AuditUnavailableError, match="took too long"), store.reading() as connection:
        connection.execute(query)
    with reader.reading() as connection:
        assert connection.execute(query).scalar() == 3_000
    reader.close()
    store.close()


def test_the_database_is_durable_by_pragma(tmp_path):
    """The writing connection runs in WAL mode with full synchronisation and never checkpoints by itself."""
    store = open_sqlite(tmp_path / "a.db", busy_timeout_s=0.2)
    with store._writing() as connection:
        found = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
        ]
    assert found == ["wal", 2, 0]
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600
    store.close()
