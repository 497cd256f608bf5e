"""The PostgreSQL server that tests run against."""

import psycopg
import pytest

from tests.simulator.postgres import PostgresServer


def test_databases_are_apart(postgres: PostgresServer) -> None:
    """Each test gets an empty database of its own on one durable server."""
    first, second = (postgres.new_database() for _ in range(2))
    postgres.execute("CREATE TABLE t (x int)", database=first)
    with pytest.raises(psycopg.errors.UndefinedTable):
        postgres.execute("SELECT * FROM t", database=second)
    assert postgres.execute("SHOW fsync") == [("on",)]
