"""A worker's confinement of itself, tried in child processes; and what is found out before one is started."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import ConfigError
from data_plane.sandbox import SandboxConfig, SandboxPlan, Step, check_reachable, plan_for

IS_ROOT = os.geteuid() == 0
PROBE = """
import encodings.idna, json, os, resource, socket, sys  # what is imported later may be out of reach
from data_plane.sandbox import SandboxPlan, confine
plan = SandboxPlan.from_argument(sys.argv[1])
extra = os.open("/dev/null", os.O_RDONLY)
held = confine(plan)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
def tries(action):
    try:
        action()
        return True
    except OSError:
        return False
print(json.dumps({
    "held": held,
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "no_new_privs": status["NoNewPrivs"].strip(), "capabilities": status["CapEff"].strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "extra_open": tries(lambda: os.fstat(extra)), "kept_open": tries(lambda: os.fstat(plan.keep_fd)),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "dials": tries(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 1)),
    "umask": os.umask(0), "locked_kib": int(status["VmLck"].split()[0]),
    "lock_limit": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
}))
"""


def plan(**changes: Any) -> SandboxPlan:
    fields: dict[str, Any] = {
        "network": Step.OFF,
        "uid": -1,
        "parent_pid": os.getpid(),
        "keep_fd": 0,
        "open_files": 512,
        "memory_mib": 0,
    }
    return SandboxPlan(**(fields | changes))


def probe(wanted: SandboxPlan, *, port: int = 1) -> dict[str, Any]:
    """Confine a child as ``wanted`` and return what it found."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, wanted.to_argument(), str(port)],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(wanted.keep_fd,) if wanted.keep_fd > 2 else (),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_always_holds() -> None:
    """No core dump, bounded files, no new privileges, closed descriptors, a private umask; all of it reported."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        found = probe(plan(keep_fd=theirs.fileno()))
    assert found["core"] == [0, 0]
    assert found["files"] == [512, 512]
    assert found["no_new_privs"] == "1"
    assert (found["extra_open"], found["kept_open"]) == (False, True)
    assert found["umask"] == 0o077
    assert {"descriptors", "limits", "no_new_privileges", "not_dumpable"} <= set(found["held"])


def test_memory_is_locked_where_there_is_no_limit_and_said_to_be_only_then() -> None:
    """What the process touched is out of swap's reach if the host lifts the limit; under a limit nothing is claimed."""
    found = probe(plan())
    unlimited = found["lock_limit"] == resource.RLIM_INFINITY
    assert ("memory_locked" in found["held"]) == unlimited == (found["locked_kib"] > 0)


@pytest.mark.skipif(not IS_ROOT, reason="only root has capabilities to lose")
def test_a_worker_that_keeps_root_keeps_no_capability() -> None:
    """Where the user id is kept, every capability is dropped."""
    found = probe(plan())
    assert found["capabilities"] == "0" * 16
    assert "capabilities" in found["held"]


@pytest.mark.skipif(not IS_ROOT, reason="taking another user id needs root")
def test_a_worker_takes_its_own_user_id() -> None:
    """All three user and group ids change and supplementary groups are gone."""
    found = probe(plan(uid=61_190))
    assert found["uid"] == found["gid"] == [61_190] * 3
    assert found["groups"] == []
    assert found["capabilities"] == "0" * 16
    assert "user" in found["held"]


def test_a_network_of_its_own_reaches_nothing() -> None:
    """In its namespace a worker sees a loopback that is down and cannot reach a listener of the host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert probe(plan(), port=port)["dials"]
        found = probe(plan(network=Step.IF_POSSIBLE), port=port)
    if "network" not in found["held"]:
        pytest.skip("this host permits no network namespaces")
    assert found["interfaces"] == ["lo"]
    assert not found["dials"]


def test_an_orphan_does_not_begin() -> None:
    """A worker whose agent has ended before it was confined exits with our error."""
    done = subprocess.run(
        [sys.executable, "-m", "data_plane", "worker", "--sandbox", plan(parent_pid=1).to_argument()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AGENT_UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argument", ["", "{}", "[]", '{"network":"x"}', "null"])
def test_people_do_not_start_workers(argument: str) -> None:
    """A worker that is started by hand says so in one sentence and exits with the status of wrong usage."""
    with pytest.raises(ConfigError):
        SandboxPlan.from_argument(argument)


def test_a_plan_survives_the_command_line() -> None:
    """What the agent decided is what the worker reads."""
    wanted = plan(network=Step.REQUIRE, uid=61_200, keep_fd=9, memory_mib=77)
    assert SandboxPlan.from_argument(wanted.to_argument()) == wanted


def test_a_closed_directory_on_the_way_is_found(tmp_path: Path) -> None:
    """The first step that another user may not pass is named; open ways and own directories are fine."""
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    (closed / "models").mkdir(parents=True)
    closed.chmod(0o700)
    assert check_reachable(closed / "models", uid=61_190) in {closed, *closed.parents}
    assert check_reachable(Path("/usr"), uid=61_190) is None
    assert check_reachable(closed / "models", uid=os.getuid()) is None or not IS_ROOT
    assert check_reachable(tmp_path / "missing", uid=61_190) is not None


def test_a_user_id_that_cannot_be_had_is_a_configuration_error(tmp_path: Path) -> None:
    """Required and impossible is refused with what to do; if possible and impossible is left out."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"sandbox\.user"):
        plan_for(SandboxConfig(user=Step.REQUIRE), slot=0, keep_fd=3, needed=[closed])
    assert plan_for(SandboxConfig(user=Step.IF_POSSIBLE), slot=0, keep_fd=3, needed=[closed]).uid == -1
    assert plan_for(SandboxConfig(user=Step.OFF), slot=0, keep_fd=3, needed=[closed]).uid == -1


@pytest.mark.skipif(not IS_ROOT, reason="taking another user id needs root")
def test_two_partitions_never_share_a_user_id() -> None:
    """Slots map to different ids, and a slot beyond the range is refused."""
    config = SandboxConfig(user=Step.REQUIRE, uid_first=61_190, uid_count=2)
    ids = [plan_for(config, slot=slot, keep_fd=3, needed=[]).uid for slot in (0, 1)]
    assert ids == [61_190, 61_191]
    with pytest.raises(ConfigError, match="range"):
        plan_for(config, slot=2, keep_fd=3, needed=[])
