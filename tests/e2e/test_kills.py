"""Processes die: nothing that looked whole was cut, nothing acknowledged is lost, and service comes back by itself."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulkhead.client import Bulkhead
from bulkhead.errors import AuditLeaseError, BulkheadError, TruncatedError, UnavailableError
from scripts.local_platform import BIN, LocalPlatform
from tests.conftest import start_platform, stop_platform

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(180)]

# The grace is longer than an agent's longest pause between two tries to reconnect (5 s): less would take workers for
# lost that a restarted control plane is about to hear of.
QUICK = """
heartbeat_timeout_s = 2
agent_grace_s = 8
lease_s = 4
lease_interval_s = 0.5
receipts_interval_s = 1
"""
LONG_ANSWER_TOKENS = 400


@pytest.fixture(scope="module")
def quick(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform that notices losses within seconds; each test leaves it whole, the last one stops it."""
    platform = start_platform(tiny_model, control=QUICK)  # appended below [fleet]
    yield platform
    stop_platform(platform)


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def agent_of(platform: LocalPlatform, session_partition: str) -> tuple[str, int]:
    """Return name and process id of the agent that runs a partition."""
    partition = next(p for p in platform.admin("fleet", "partitions") if p["partition_id"] == session_partition)
    name = partition["agent_id"]
    return name, next(entry.pid for entry in platform.processes.remembered() if entry.name == name)


def states(platform: LocalPlatform) -> dict[str, str]:
    """Return partition id -> state, ended ones included."""
    return {entry["partition_id"]: entry["state"] for entry in platform.admin("fleet", "partitions", "--all")}


def verify_log(platform: LocalPlatform, tmp_path: Path) -> None:
    """Export the tenant's log as its officer and verify it offline."""
    export = tmp_path / f"export-{time.monotonic_ns()}.jsonl"
    platform.run([str(BIN / "bulkhead"), "audit", "export", str(export)], profile="officer")
    platform.run([str(BIN / "bulkhead"), "audit", "verify", str(export)], profile="officer")


def test_a_worker_killed_mid_stream_is_a_typed_loss_and_is_replaced(quick: LocalPlatform, tmp_path: Path) -> None:
    """The SDK raises instead of ending normally; the partition is scrubbed, and the next open gets another."""
    with Bulkhead.from_profile("acme", path=quick.client_config) as client:
        session = client.open_session().__enter__()
        partition = session.worker.descriptor.partition
        _, agent_pid = agent_of(quick, partition)
        generation = iter(session.generate("Tell me a very long story.", max_tokens=LONG_ANSWER_TOKENS))
        next(generation)
        for worker in children(agent_pid):
            os.kill(worker, signal.SIGKILL)
        with pytest.raises((TruncatedError, UnavailableError)):
            list(generation)
        until(lambda: states(quick)[partition] in {"free", "cordoned"}, "the lost partition is scrubbed")
        assert states(quick)[partition] == "free"
        with client.open_session() as another:
            assert another.worker.descriptor.partition != partition
            assert another.generate_text("hello", max_tokens=4).usage.completion_tokens > 0
    verify_log(quick, tmp_path)


def test_a_killed_agent_takes_its_workers_along_and_sessions_find_another(quick: LocalPlatform) -> None:
    """Workers end when their agent dies, its partitions are lost within the grace, a new open is placed elsewhere."""
    with Bulkhead.from_profile("acme", path=quick.client_config) as client:
        session = client.open_session().__enter__()
        partition = session.worker.descriptor.partition
        name, agent_pid = agent_of(quick, partition)
        workers = children(agent_pid)
        assert workers
        quick.processes.kill(name)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers end by themselves")
        until(lambda: states(quick)[partition] == "lost", "the partition is lost")
        with pytest.raises(BulkheadError):
            session.generate_text("hello", max_tokens=4)
        with client.open_session() as again:
            assert again.worker.descriptor.partition != partition
            assert again.worker.descriptor.agent != name
            assert again.generate_text("hello", max_tokens=4).usage.completion_tokens > 0
        quick.start_agent(name)
        quick.wait_for_agents()


def test_a_killed_control_plane_loses_nothing(quick: LocalPlatform, tmp_path: Path) -> None:
    """Streams in progress finish with a receipt; after the restart session, worker and every record are there."""
    with Bulkhead.from_profile("acme", path=quick.client_config) as client, client.open_session() as session:
        before = session.generate_text("hello", max_tokens=4)
        generation = session.generate("Tell me a long story.", max_tokens=LONG_ANSWER_TOKENS)
        for number, _ in enumerate(generation):
            if number == 0:
                quick.processes.kill("control-plane")
        assert generation.receipt.status == "ok"
        quick.start_control_plane()
        quick.wait_for_agents()
        partition = session.worker.descriptor.partition
        until(lambda: states(quick).get(partition) == "ready", "the worker is taken over")
        session.renew()
        assert session.worker.descriptor.partition == partition
        after = session.generate_text("hello", max_tokens=4)
        assert after.usage == before.usage
        session_id = session.session_id
    listing = [str(BIN / "bulkhead"), "audit", "list", "--session", session_id, "--json"]
    for action in ("session.open", "outcome", "session.closed", "receipts"):
        until(lambda action=action: f'"{action}"' in quick.run(listing, profile="officer"), f"{action} is recorded")
    verify_log(quick, tmp_path)


def test_without_the_control_plane_workers_stop_when_their_lease_ends(quick: LocalPlatform) -> None:
    """No acknowledgement, no new request: AUDIT_LEASE_EXPIRED after the lease, service again after the restart."""
    with Bulkhead.from_profile("acme", path=quick.client_config) as client, client.open_session() as session:
        assert session.generate_text("hello", max_tokens=4).usage.completion_tokens > 0
        quick.processes.kill("control-plane")

        def refused() -> bool:
            try:
                session.generate_text("hello", max_tokens=4)
            except AuditLeaseError:
                return True
            return False

        until(refused, "the lease ends", timeout_s=15)
        quick.start_control_plane()
        quick.wait_for_agents()
        until(lambda: not refused(), "the lease is renewed", timeout_s=15)


def test_sigterm_ends_everything(quick: LocalPlatform) -> None:
    """An orderly stop leaves no process of the platform and no socket, with a session still open."""
    client = Bulkhead.from_profile("acme", path=quick.client_config)
    client.open_session().__enter__()
    running = [entry.pid for entry in quick.processes.remembered()]
    tree = [*running, *(child for pid in running for child in children(pid))]
    assert len(tree) > len(running)
    quick.processes.stop()
    until(lambda: not any(_lives(pid) for pid in tree), "every process has ended", timeout_s=10)
    assert list(quick.run_directory.rglob("*.sock")) == []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
