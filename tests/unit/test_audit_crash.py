"""The writer killed with SIGKILL at each step of a commit and at random times, under load, again and again."""

import contextlib
import os
import random
import selectors
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit.keys import LogKeys
from audit.lockstore import FileLockStore
from audit.log.opening import open_parts
from audit.model import no_failpoint
from audit.sql import open_reader
from audit.sql.verify import DatabaseReport, verify_database
from tests.simulator.audit_world import config

ROOT = Path(__file__).parents[2]
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


def run_until_killed(
    directory: Path, database: Path | str, step: str, nth: int, kill_after_s: float | None = None
) -> list[tuple[int, int, str]]:
    """Run the writer until it dies; return what it acknowledged as (log, index, record)."""
    command = [sys.executable, "-m", "tests.simulator.audit_crash_writer", str(directory), step, str(nth)]
    command += [database] if isinstance(database, str) else []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    output = b""
    deadline = time.monotonic() + 30
    kill_at = None
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        stack.callback(process.kill)
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if kill_after_s is not None and kill_at is None and b"ready" in output:
                kill_at = time.monotonic() + kill_after_s
            if kill_at is not None and time.monotonic() >= kill_at:
                process.kill()
                kill_at = None
            if not selector.select(0.005):
                continue
            data = os.read(process.stdout.fileno(), 65_536)
            if not data:
                break
            output += data
    process.wait(10)
    errors = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == -9, errors
    lines = output.decode().splitlines()
    if output and not output.endswith(b"\n"):
        lines.pop()
    return [
        (int(log), int(index), record) for log, index, record in (line.split() for line in lines if line != "ready")
    ]


def check(directory: Path, database: Path | str, acknowledged: list[tuple[int, int, str]]) -> DatabaseReport:
    """Check after a restart: every acknowledged record is there once, in its place, and everything verifies."""
    parts = open_parts(
        config(directory, database=database), random_bytes=os.urandom, failpoint=no_failpoint
    )  # restart without help
    while parts.store.project(2_000):
        pass
    parts.lock.close()
    parts.store.close()
    reader = open_reader(database)
    keys = LogKeys.load(directory / "keys")
    lock = FileLockStore(directory / "lock" / "audit.lock")
    lock.open(create=False)
    report = verify_database(
        reader, vkeys={log.origin: keys.signer(log.origin).vkey for log in reader.logs()}, locked=lock.read()
    )
    found = {
        stored.record_id: (stored.log_id, stored.index)
        for log in reader.logs()
        for start in range(0, 100_000, 4_000)
        for stored in reader.leaves(log.log_id, start, start + 4_000)
    }
    lock.close()
    reader.close()
    for log_id, index, record in acknowledged:
        assert found[record] == (log_id, index)
    assert len({record for *_, record in acknowledged}) == len(acknowledged)
    assert report.lock_checked
    return report


def test_killed_at_every_step(tmp_path, database):
    """Killed at each step of a commit in turn, over one database: nothing acknowledged is lost, moved or doubled."""
    rng = random.Random(3)
    acknowledged: list[tuple[int, int, str]] = []
    records = 0
    for step in STEPS:
        acknowledged += run_until_killed(tmp_path, database, step, rng.randint(5, 25))
        report = check(tmp_path, database, acknowledged)
        assert report.records >= records
        records = report.records
    assert len(acknowledged) > 100


def test_killed_at_random_times(tmp_path, database):
    """Killed at random moments under load: the same."""
    rng = random.Random(4)
    acknowledged: list[tuple[int, int, str]] = []
    for _ in range(3):
        acknowledged += run_until_killed(tmp_path, database, "none", 1, kill_after_s=rng.uniform(0.02, 0.4))
        check(tmp_path, database, acknowledged)
    assert acknowledged


def test_a_writer_killed_beside_another(tmp_path, audit_url):
    """One of two writers is killed at each step in turn: the other goes on, and both histories are one."""
    rng = random.Random(6)
    acknowledged: list[tuple[int, int, str]] = []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_until_killed, tmp_path, audit_url, "none", 1, kill_after_s=6.0)
        for step in ("commit.begun", "commit.chained", "commit.done", "lock.moving", "lock.written", "lock.moved"):
            acknowledged += run_until_killed(tmp_path, audit_url, step, rng.randint(5, 15))
        acknowledged += other.result()
    check(tmp_path, audit_url, acknowledged)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_killed_two_hundred_times(tmp_path, database):
    """The full count: 200 random times and 20 rounds over every step."""
    rng = random.Random(5)
    acknowledged: list[tuple[int, int, str]] = []
    for _ in range(200):
        acknowledged += run_until_killed(tmp_path, database, "none", 1, kill_after_s=rng.uniform(0.0, 0.4))
    for step in STEPS * 20:
        acknowledged += run_until_killed(tmp_path, database, step, rng.randint(1, 25))
    check(tmp_path, database, acknowledged)
