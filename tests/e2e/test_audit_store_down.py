"""No audit, no service: the audit store of a running platform is locked, or its disk is full."""

import resource
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.client import Bulkhead
from bulkhead.errors import AuditLeaseError, AuditUnavailableError, BulkheadError, UnavailableError
from scripts.local_platform import BIN, LocalPlatform
from tests.conftest import start_platform, stop_platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SHORT_LEASE = """
lease_s = 4
lease_interval_s = 0.5
receipts_interval_s = 1
"""
TOLD_WITHIN_S = 12.0  # three tries of the SDK, each answered within the append's 2 s
BACK_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def short(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform whose leases last four seconds."""
    platform = start_platform(tiny_model, control=SHORT_LEASE)
    yield platform
    stop_platform(platform)


def refused_open(platform: LocalPlatform, profile: str) -> tuple[BulkheadError, float]:
    """Return the error of an open and the seconds that it took."""
    began = time.monotonic()
    with (
        Bulkhead.from_profile(profile, path=platform.client_config) as client,
        pytest.raises(UnavailableError) as caught,
        client.open_session(),
    ):
        pass
    return caught.value, time.monotonic() - began


def partitions_ever(platform: LocalPlatform) -> int:
    """Return how many partitions were ever reserved, from the state database."""
    database = f"file:{platform.root / 'control' / 'state.db'}?mode=ro"
    connection = sqlite3.connect(database, uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM partitions").fetchone()[0])
    finally:
        connection.close()


def serves_again(platform: LocalPlatform, profile: str) -> None:
    """Wait until an open and an answer succeed without anybody's help."""
    deadline = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            with (
                Bulkhead.from_profile(profile, path=platform.client_config) as client,
                client.open_session() as session,
            ):
                assert session.generate_text("hello", max_tokens=2).usage.completion_tokens > 0
        except UnavailableError:
            assert time.monotonic() < deadline, "service did not come back"
            time.sleep(0.3)
        else:
            return


def test_a_locked_store_places_nothing_ends_leases_and_comes_back(short: LocalPlatform, tmp_path: Path) -> None:
    """Opens are AUDIT_UNAVAILABLE in bounded time, nothing is placed, the lease of what runs ends; then all returns."""
    with Bulkhead.from_profile("acme", path=short.client_config) as client, client.open_session() as session:
        assert session.generate_text("hello", max_tokens=2).usage.completion_tokens > 0
        before = partitions_ever(short)
        lock = sqlite3.connect(short.root / "control" / "audit" / "audit.db", isolation_level=None, timeout=10)
        lock.execute("PRAGMA wal_autocheckpoint = 0")
        lock.execute("BEGIN IMMEDIATE")
        try:
            error, took_s = refused_open(short, "mercy")
            assert isinstance(error, AuditUnavailableError)
            assert took_s < TOLD_WITHIN_S
            assert partitions_ever(short) == before
            deadline = time.monotonic() + 15
            while True:
                try:
                    session.generate_text("hello", max_tokens=2)
                except AuditLeaseError:
                    break
                assert time.monotonic() < deadline, "the lease did not end"
                time.sleep(0.3)
        finally:
            lock.execute("ROLLBACK")
            lock.close()
    serves_again(short, "mercy")
    export = tmp_path / "export.jsonl"
    short.run([str(BIN / "bulkhead"), "audit", "export", str(export)], profile="mercy-officer")
    short.run([str(BIN / "bulkhead"), "audit", "verify", str(export)], profile="mercy-officer")


def test_a_full_disk_places_nothing_and_comes_back(short: LocalPlatform) -> None:
    """With no byte left to write the caller hears UNAVAILABLE, nothing is placed; with room, service returns."""
    pid = next(entry.pid for entry in short.processes.remembered() if entry.name == "control-plane")
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    before = partitions_ever(short)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
    try:
        error, took_s = refused_open(short, "mercy")
        assert error.code in {"AUDIT_UNAVAILABLE", "STATE_UNAVAILABLE"}
        assert took_s < 3 * TOLD_WITHIN_S
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    assert partitions_ever(short) == before
    serves_again(short, "mercy")
