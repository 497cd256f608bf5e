"""The audit store fails under a running platform: no audit, no service; and service returns when the store does."""

import asyncio
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bulkhead.client import AsyncBulkhead
from bulkhead.client.session import AsyncSession
from bulkhead.errors import AuditLeaseError, BulkheadError, UnavailableError
from scripts.local_platform import LocalPlatform
from tests.simulator import provisioned
from tests.simulator.commands import CommandedPlatform
from tests.simulator.live import check_text, cli, client, decisions, partitions, refusal, rows, wait_until, workers
from tests.simulator.small_disk import frozen, full, locked, may_mount, read_only, small_disk

pytestmark = pytest.mark.e2e

QUICK = """\
lease_s = 2.0
lease_interval_s = 0.25
receipts_interval_s = 0.5

[audit]
append_timeout_s = 1.0
"""
ANSWER_S = 4.0  # an append's time-out; the rest is for a busy machine
ENDS_S = 12.0  # receipts interval, append time-outs and the lease, on a busy machine
BACK_S = 10.0
MOST_IN_OLD_BLOCKS = 50  # opens; the write-ahead log is emptied at 1 MiB, of which an open takes some 100 KiB

Fault = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def leased(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform with short leases, its audit database on a small file system of its own where that may be mounted."""
    root = Path(tempfile.mkdtemp(prefix="bh-"))
    platform = CommandedPlatform(
        root=root, model=tiny_model, trays=1, say=lambda _: None, model_name="tiny", control_overrides=QUICK
    )
    store = small_disk(store_of(platform)) if may_mount(root) else None
    try:
        if store is not None:
            root.joinpath("control").mkdir(mode=0o700)
            store.__enter__()
        provisioned.fill(platform)
        platform.up()
        yield platform
    finally:
        platform.down()
        if store is not None:
            store.__exit__(None, None, None)
        shutil.rmtree(root, ignore_errors=True)


def store_of(platform: LocalPlatform) -> Path:
    """Return the directory of the audit database."""
    return platform.root / "control" / "audit"


async def ends_with_its_lease(session: AsyncSession) -> float:
    """Ask again and again until the session is refused; return after how many seconds, and insist on the reason."""
    began = time.monotonic()
    while time.monotonic() - began < ENDS_S:
        try:
            await session.generate_text("still there?", max_tokens=4)
        except AuditLeaseError as error:
            check_text(error.message)
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    raise AssertionError(f"the session was still served after {ENDS_S} s")


async def comes_back(work: Callable[[], object], *, timeout_s: float = BACK_S) -> float:
    """Repeat ``work`` until it succeeds; return after how many seconds. Until then it is UNAVAILABLE."""
    began = time.monotonic()
    while True:
        try:
            await work()  # type: ignore[misc]
        except UnavailableError as error:
            check_text(error.message)
            if time.monotonic() - began > timeout_s:
                raise
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - began


async def opened_and_closed(opened: AsyncBulkhead) -> None:
    """Open a session and close it."""
    async with opened.open_session():
        pass


async def refused_at_last(opened: AsyncBulkhead) -> tuple[BulkheadError, float]:
    """Open sessions until one is refused: a full disk still has room in the blocks that the database has already."""
    for _ in range(MOST_IN_OLD_BLOCKS):
        try:
            return await refusal(opened_and_closed(opened))
        except AssertionError:
            await asyncio.sleep(0)
    raise AssertionError("nothing was refused")


def held(platform: LocalPlatform) -> int:
    """Return how many slots of sessions are taken."""
    return int(rows(platform, "select count(*) from sessions where state in ('opening', 'open')")[0][0])


def verifies(platform: LocalPlatform) -> bool:
    """Return whether an officer's export verifies offline."""
    export = platform.root / "export.jsonl"
    export.unlink(missing_ok=True)
    done = cli(platform, "officer", "bulkhead", "audit", "export", str(export))
    assert done.returncode == 0, done.stderr
    return cli(platform, "officer", "bulkhead", "audit", "verify", str(export)).returncode == 0


async def no_audit_no_service(platform: LocalPlatform, fault: Fault, codes: set[str]) -> None:
    """Show what must hold for every fault of the store; ``codes`` are what callers may be told meanwhile."""
    async with client(platform) as opened, opened.open_session() as session:
        await session.generate_text("before", max_tokens=4)
        before = (partitions(platform), workers(platform), held(platform))
        with fault(store_of(platform)):
            ended = asyncio.create_task(ends_with_its_lease(session))
            answers = [await refused_at_last(opened)]
            # From here on each open would need a partition of its own.
            answers += await asyncio.gather(*(refusal(opened.open_session(tier="gpu")) for _ in range(8)))
            answers.append(await refusal(session.renew()))
            assert {error.code for error, _ in answers} <= codes
            assert max(seconds for _, seconds in answers) < ANSWER_S
            assert await ended < ENDS_S
            assert (await refusal(opened.open_session(tier="gpu")))[0].code in codes
            assert (partitions(platform), workers(platform)) == before[:2]
        await comes_back(lambda: opened_and_closed(opened))
        await comes_back(lambda: session.generate_text("after", max_tokens=4))
        wait_until(lambda: held(platform) == before[2], timeout_s=BACK_S, what="the refused opens' slots are free")
        assert (partitions(platform), workers(platform)) == before[:2]
    assert verifies(platform)


@pytest.fixture
def disk(leased: LocalPlatform) -> LocalPlatform:
    """The platform, if its audit database has a file system of its own."""
    if not store_of(leased).is_mount():
        pytest.skip("mounting a file system is not permitted here: the limit on file sizes stands for it")
    return leased


async def test_locked_store(leased: LocalPlatform) -> None:
    """Another connection holds the database's lock: UNAVAILABLE, nothing placed, the lease runs out, all returns."""
    await no_audit_no_service(leased, locked, {"AUDIT_UNAVAILABLE"})


async def test_full_store(disk: LocalPlatform) -> None:
    """The store's file system is full: UNAVAILABLE, nothing placed, the lease runs out, all returns with space."""
    await no_audit_no_service(disk, full, {"AUDIT_UNAVAILABLE"})


async def test_read_only_store(disk: LocalPlatform) -> None:
    """The store's files cannot be written: UNAVAILABLE, nothing placed, the lease runs out, all returns."""
    await no_audit_no_service(disk, read_only, {"AUDIT_UNAVAILABLE"})


async def test_hanging_store(disk: LocalPlatform) -> None:
    """Whoever writes to the store hangs: callers do not, the lease runs out, and all returns when the store does."""
    await no_audit_no_service(disk, frozen, {"AUDIT_UNAVAILABLE"})


async def test_no_file_can_grow_or_be_written(leased: LocalPlatform) -> None:
    """Every write of the control plane fails, those of its own log too: typed errors, and all returns by itself."""
    plane = next(entry.pid for entry in leased.processes.remembered() if entry.name == "control-plane")

    @contextmanager
    def no_writes(_store: Path) -> Iterator[None]:
        before = resource.prlimit(plane, resource.RLIMIT_FSIZE)
        resource.prlimit(plane, resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.prlimit(plane, resource.RLIMIT_FSIZE, before)

    await no_audit_no_service(leased, no_writes, {"AUDIT_UNAVAILABLE", "STATE_UNAVAILABLE"})


async def test_a_replaced_database_stops_writing_until_a_restart(leased: LocalPlatform) -> None:
    """A database that is not the one that was opened is not written to again, not even when the old one is back."""
    store = store_of(leased)
    async with client(leased) as opened:
        await opened_and_closed(opened)
        (store / "audit.db").rename(store / "away.db")
        shutil.copyfile(store / "away.db", store / "audit.db")
        assert (await refusal(opened.open_session(tier="gpu")))[0].code == "AUDIT_UNAVAILABLE"
        (store / "away.db").replace(store / "audit.db")
        assert (await refusal(opened.open_session(tier="gpu")))[0].code == "AUDIT_UNAVAILABLE"
        leased.processes.stop(["control-plane"])
        leased.start_control_plane()
        leased.wait_for_agents()
        await comes_back(lambda: opened_and_closed(opened))
    assert verifies(leased)


async def test_commands_while_the_store_is_locked(leased: LocalPlatform) -> None:
    """`bulkhead chat` and an officer's read, which is recorded too: exit code 1, one line, what to do."""
    with locked(store_of(leased)):
        for profile, command in (("acme", ("chat", "hello")), ("officer", ("audit", "list"))):
            done = cli(leased, profile, "bulkhead", *command)
            assert done.returncode == 1
            assert done.stdout == ""
            line = done.stderr.strip().splitlines()[-1]
            assert line.startswith("error AUDIT_UNAVAILABLE: ")
            assert line.endswith("try again shortly.")
    async with client(leased) as opened:
        await comes_back(lambda: opened_and_closed(opened))
    assert decisions(leased)
