"""The writer killed with SIGKILL at each step of a commit and at random times, under load, again and again."""

import itertools
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from audit.log.opening import open_parts
from audit.model import no_failpoint
from audit.sql import open_reader
from audit.sql.verify import DatabaseReport
from tests.simulator.audit_crash_writer import run
from tests.simulator.audit_world import config, verified
from tests.simulator.commands import forking
from tests.simulator.postgres import postgres_server

STEPS = [
    "batch.taken",
    "commit.begun",
    "commit.leaves",
    "commit.tiles",
    "commit.heads",
    "commit.chained",
    "commit.done",
    "lock.moving",
    "lock.written",
    "lock.synced",
    "lock.moved",
    "batch.acknowledged",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "audit.db" if request.param == "sqlite" else request.getfixturevalue("audit_url")


@pytest.fixture(scope="module")
def spawn() -> ForkServerContext:
    """Starts writers from a process that has imported everything already: hundreds of them take seconds."""
    return forking()


class Crashes:
    """Writers over one database, killed one after the other, and what they acknowledged: (log, index, record)."""

    def __init__(self, context: ForkServerContext, directory: Path, **where: Path | str) -> None:
        self.directory = directory
        self.where = config(directory, round_interval_s=0.1, **where)
        self.acknowledged: list[tuple[int, int, str]] = []
        self._context = context
        self._numbers = itertools.count()

    def run(self, step: str, nth: int = 1, *, kill_after_s: float | None = None) -> None:
        """Run a writer until it dies."""
        out = self.directory / f"out-{next(self._numbers)}"
        out.touch()
        process = self._context.Process(target=run, args=(out, self.where, step, nth))
        process.start()
        if kill_after_s is not None:
            deadline = time.monotonic() + 30
            while not out.stat().st_size and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(kill_after_s)
            process.kill()
        process.join(120)
        assert process.exitcode == -9
        *lines, torn = out.read_text().split("\n")
        assert not torn  # a line is one write
        for log, index, record in (line.split() for line in lines if line != "ready"):
            self.acknowledged.append((int(log), int(index), record))


@pytest.fixture
def crashes(spawn: ForkServerContext, tmp_path: Path, database: Path | str) -> Crashes:
    return Crashes(spawn, tmp_path, database=database)


def check(crashes: Crashes) -> DatabaseReport:
    """Check after a restart: every acknowledged record is there once, in its place, and everything verifies."""
    where, acknowledged = crashes.where, crashes.acknowledged
    parts = open_parts(where, random_bytes=os.urandom, failpoint=no_failpoint)  # restart without help
    while parts.store.project(2_000):
        pass
    parts.lock.close()
    parts.store.close()
    report = verified(crashes.directory, where.database, lock=where.lock)
    reader = open_reader(where.database)
    found = {
        stored.record_id: (stored.log_id, stored.index)
        for log in reader.logs()
        for start in range(0, 100_000, 4_000)
        for stored in reader.leaves(log.log_id, start, start + 4_000)
    }
    reader.close()
    for log_id, index, record in acknowledged:
        assert found[record] == (log_id, index)
    assert len({record for *_, record in acknowledged}) == len(acknowledged)
    assert report.lock_checked
    return report


def test_killed_at_every_step(crashes):
    """Killed at each step of a commit in turn, over one database: nothing acknowledged is lost, moved or doubled."""
    rng = random.Random(3)
    records = 0
    for number, step in enumerate(STEPS, start=1):
        crashes.run(step, rng.randint(5, 25))
        if number % 3 == 0:
            report = check(crashes)
            assert report.records >= records
            records = report.records
    assert len(crashes.acknowledged) > 100


def test_killed_at_random_times(crashes):
    """Killed at random moments under load: the same."""
    rng = random.Random(4)
    for _ in range(6):
        crashes.run("none", kill_after_s=rng.uniform(0.0, 0.3))
    for delay_s in (0.3, 1, 3, 10):  # a slow machine acknowledges nothing so soon
        if not crashes.acknowledged:
            crashes.run("none", kill_after_s=delay_s)
    check(crashes)
    assert crashes.acknowledged


def test_a_writer_killed_beside_another(spawn, tmp_path, audit_url):
    """One of two writers is killed at several steps in turn: the other goes on, and there is one history."""
    rng = random.Random(6)
    crashes, beside = (Crashes(spawn, tmp_path / name, database=audit_url) for name in ("one", "other"))
    for each in (crashes, beside):
        each.directory.mkdir()
    (tmp_path / "one" / "lock").mkdir()
    (tmp_path / "other" / "lock").symlink_to(tmp_path / "one" / "lock")  # of one host
    crashes.run("commit.begun", 2)
    shutil.copytree(tmp_path / "one" / "keys", tmp_path / "other" / "keys")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside.run, "none", kill_after_s=2.5)
        for step in ("commit.begun", "commit.chained", "commit.done", "lock.moving", "lock.written", "lock.moved"):
            crashes.run(step, rng.randint(5, 15))
        other.result()
    assert beside.acknowledged
    crashes.acknowledged += beside.acknowledged
    check(crashes)


def test_killed_beside_a_lock_store_on_another_server(spawn, tmp_path, audit_url):
    """With the lock store in a second PostgreSQL server, killed around its move: nothing is lost, and it follows."""
    with postgres_server() as server:
        crashes = Crashes(spawn, tmp_path, database=audit_url, lock=server.url())
        for step in ("commit.done", "lock.moving", "lock.written", "lock.synced", "lock.moved", "batch.acknowledged"):
            crashes.run(step, 7)
        check(crashes)
        assert crashes.acknowledged


_PARTS = 4


@pytest.mark.long
@pytest.mark.parametrize("part", range(_PARTS))
def test_killed_two_hundred_times(crashes, part, record_property):
    """In all 200 random times, and ten rounds over every step; each start is a restart after a kill."""
    rng = random.Random(f"part {part}")
    for _ in range(200 // _PARTS):
        crashes.run("none", kill_after_s=rng.uniform(0.0, 0.4))
    check(crashes)
    rounds = STEPS * 10
    share = len(rounds) // _PARTS
    for step in rounds[part * share : (part + 1) * share]:
        crashes.run(step, rng.randint(1, 25))
    report = check(crashes)
    record_property("acknowledged", len(crashes.acknowledged))
    record_property("records", report.records)
    record_property("commits", report.commits)
    assert len(crashes.acknowledged) > 1_000 / _PARTS
