import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bulkhead.errors import BundleError, ConfigError, ConflictError, PolicyEngineError
from control_plane.authz import process as process_module
from control_plane.authz import rundir
from control_plane.authz.bundle import build_bundle
from control_plane.authz.client import PolicyClient
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.sources import read_sources
from control_plane.authz.supervisor import OpaSupervisor
from tests.simulator import policies
from tests.simulator.policies import open_session, supervised

pytestmark = pytest.mark.alone


def changed(number, **replaced):
    """Return a correctly signed bundle of the policies with some files replaced."""
    sources = read_sources(policies.POLICIES)
    sources |= {path.replace("__", "/") + ".rego": text.encode() for path, text in replaced.items()}
    sources = {path: text for path, text in sources.items() if not path.endswith("_test.rego")}
    return build_bundle(sources, number=number, created_us=1, signing_key=policies.signing_key(), opa=find_opa()).data


@pytest.fixture
def base():
    """An empty directory that OPA's account can enter; pytest's own are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="authz-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


async def until_back(client, within_s):
    started = time.monotonic()
    while True:
        try:
            await client.decide(open_session())
        except PolicyEngineError:
            assert time.monotonic() - started < within_s
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - started


async def test_the_policies_decide_through_a_real_opa():
    """An allow with obligations and a deny with a reason come from the signed bundle."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        allowed = await client.decide(open_session(facts={"packs": ("hipaa",)}, purpose="treatment"))
        denied = await client.decide(open_session(facts={"packs": ("hipaa",)}, purpose="marketing"))
    assert allowed.allow
    assert {each.to_json()["type"] for each in allowed.obligations} == {
        "min_tier", "region", "exclusive", "retention", "max_tokens", "padding",
    }  # fmt: skip
    assert not denied.allow
    assert [reason.code for reason in denied.reasons] == ["HIPAA_PURPOSE"]
    assert allowed.bundle_digest == denied.bundle_digest == policies.bundle().info.digest


async def test_opa_does_not_run_as_root_and_listens_on_loopback_only():
    """The process has another account than root's, no wider address, no environment of ours."""
    async with supervised() as supervisor:
        child = psutil.Process(supervisor.pid)
        assert child.uids().real != 0
        assert child.gids().real != 0
        assert {each.laddr.ip for each in child.net_connections() if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert set(child.environ()) == {"HOME", "PATH", "GOGC"}
        assert "-w" not in child.cmdline()
        assert "--watch" not in child.cmdline()


async def test_killed_opa_is_told_at_once_and_back_within_five_seconds():
    """SIGKILL: callers get the typed error within 2 s, and service returns by itself."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        await client.decide(open_session())
        os.kill(supervisor.pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(PolicyEngineError):
            await client.decide(open_session())
        assert time.monotonic() - started < 2.0
        await until_back(client, 5.0)


def stop(pid):
    """Stop a child process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def test_hanging_opa_is_replaced():
    """A process that neither answers nor ends is given up within 2 s by callers, and replaced within 5 s."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        await client.decide(open_session())
        stopped = supervisor.pid
        stop(stopped)
        started = time.monotonic()
        with pytest.raises(PolicyEngineError):
            await client.decide(open_session())
        assert time.monotonic() - started < 2.0
        await until_back(client, 5.0 - (time.monotonic() - started))
        assert supervisor.pid != stopped
        assert not psutil.pid_exists(stopped)


async def test_restarts_go_on_until_one_succeeds(monkeypatch):
    """A failing start is tried again, with pauses, for as long as it takes."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        failures = 2
        launch = supervisor._launch

        async def failing(bundle):
            nonlocal failures
            if failures:
                failures -= 1
                raise PolicyEngineError("no luck")
            return await launch(bundle)

        monkeypatch.setattr(supervisor, "_launch", failing)
        os.kill(supervisor.pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
        await until_back(client, 5.0)
        assert failures == 0


async def test_a_process_that_is_gone_before_it_can_be_watched_is_a_failed_attempt(monkeypatch):
    """A new OPA that is killed and reaped at once does not end the supervision: the next attempt serves."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        await client.decide(open_session())
        gone = []

        def too_late(pid, watch=os.pidfd_open):
            if len(gone) < 2:
                gone.append(pid)
                os.kill(pid, signal.SIGKILL)
                raise ProcessLookupError(3, "No such process")
            return watch(pid)

        monkeypatch.setattr(process_module.os, "pidfd_open", too_late)
        os.kill(supervisor.pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
        await until_back(client, 5.0)
        assert len(gone) == 2


async def test_a_switch_drops_no_question():
    """While bundles change, every question is answered, by the one bundle or by the other."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        tightened = changed(2, extra='package bulkhead.extra\n\nx := "another digest"\n')
        asking = True

        async def ask():
            digests = set()
            while asking:
                digests.add((await client.decide(open_session())).bundle_digest)
            return digests

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        before = supervisor.active
        info = await supervisor.switch(tightened)
        await asyncio.sleep(0.1)
        asking = False
        seen = set.union(*await asyncio.gather(*askers))
    assert info.number == 2
    assert seen == {before.digest, info.digest}


async def test_the_old_process_ends_after_a_switch(monkeypatch):
    """It is drained, then gone."""
    monkeypatch.setattr("control_plane.authz.supervisor.DRAIN_S", 0.1)
    async with supervised() as supervisor:
        old = supervisor.pid
        await supervisor.switch(policies.bundle(2).data)
        assert supervisor.pid != old
        for _ in range(100):
            if not psutil.pid_exists(old):
                break
            await asyncio.sleep(0.02)
        assert not psutil.pid_exists(old)


async def test_an_older_bundle_needs_a_rollback():
    """OPA itself would take it; the order of numbers is held here, also across restarts."""
    async with supervised(3) as supervisor:
        for number in (1, 3):
            with pytest.raises(ConflictError):
                await supervisor.switch(policies.bundle(number).data)
        assert supervisor.active.number == 3
        assert (await supervisor.switch(policies.bundle(1).data, rollback=True)).number == 1
    again = OpaSupervisor(public_key=policies.signing_key().public_key())
    with pytest.raises(ConflictError):
        await again.start(policies.bundle(1).data, minimum_number=3)


ALLOW_ALL = """package bulkhead.policy

decision := {"allow": true, "reasons": [], "obligations": []}
"""
DENY_ALL = """package bulkhead.policy

decision := {"allow": false, "reasons": [{"code": "NO", "policy": "policy", "message": "No."}], "obligations": []}
"""
UNDEFINED = """package bulkhead.policy

decision := {} if input.never
"""
GARBAGE = """package bulkhead.policy

decision := "yes"
"""


@pytest.mark.parametrize(
    "rego", [ALLOW_ALL, DENY_ALL, UNDEFINED, GARBAGE], ids=["allow", "deny", "undefined", "garbage"]
)
async def test_the_last_good_bundle_stays_when_the_new_one_fails_its_self_test(rego):
    """A bundle that lets nobody in particular through, locks everybody out, or decides nothing does not take over."""
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        pid = supervisor.pid
        with pytest.raises(PolicyEngineError):
            await supervisor.switch(changed(2, policy__policy=rego))
        assert supervisor.pid == pid
        assert supervisor.active.number == 1
        assert (await client.decide(open_session())).allow
        assert len(list(supervisor._directory.path.glob("*/config.json"))) == 1


async def test_nothing_is_served_before_start_and_after_close():
    """Asking then is the typed error; closing twice is nothing."""
    supervisor = OpaSupervisor(public_key=policies.signing_key().public_key())
    with pytest.raises(PolicyEngineError):
        supervisor.connection()
    with pytest.raises(PolicyEngineError):
        await supervisor.switch(policies.bundle().data)
    await supervisor.start(policies.bundle().data)
    with pytest.raises(ConflictError):
        await supervisor.start(policies.bundle().data)
    pid, directory = supervisor.pid, supervisor._directory.path
    await supervisor.close()
    await supervisor.close()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()
    with pytest.raises(PolicyEngineError):
        supervisor.connection()


async def test_a_failed_start_leaves_nothing(base, monkeypatch):
    """No process, no directory."""

    async def failing(connection):
        raise PolicyEngineError("self-test")

    monkeypatch.setattr(process_module, "self_test", failing)
    supervisor = OpaSupervisor(public_key=policies.signing_key().public_key(), run_dir=base)
    with pytest.raises(PolicyEngineError):
        await supervisor.start(policies.bundle().data)
    assert list(base.iterdir()) == []
    assert not [each for each in psutil.Process().children() if "opa" in each.name()]


async def test_a_start_that_is_cancelled_leaves_nothing(base, monkeypatch):
    """A control plane that is stopped while it starts takes its OPA with it."""
    waiting = asyncio.Event()

    async def endless(connection):
        waiting.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(process_module, "self_test", endless)
    supervisor = OpaSupervisor(public_key=policies.signing_key().public_key(), run_dir=base)
    task = asyncio.create_task(supervisor.start(policies.bundle().data))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(base.iterdir()) == []


async def test_no_opa_program_is_a_configuration_error(tmp_path, monkeypatch):
    """The message says how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BULKHEAD_CACHE", str(tmp_path))
    monkeypatch.delenv("BULKHEAD_OPA", raising=False)
    with pytest.raises(ConfigError, match="go install"):
        find_opa()
    monkeypatch.setenv("BULKHEAD_OPA", str(tmp_path / "opa"))
    with pytest.raises(ConfigError, match="BULKHEAD_OPA"):
        find_opa()


CONTROL_PLANE = """
import asyncio, sys
from pathlib import Path
from tests.simulator import policies
from control_plane.authz.supervisor import OpaSupervisor

async def main():
    supervisor = OpaSupervisor(public_key=policies.signing_key().public_key(), run_dir=Path(sys.argv[1]))
    await supervisor.start(policies.bundle().data)
    print(supervisor.pid, file=sys.stderr, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_control_plane_takes_its_opa_along(base):
    """`kill -9` of the parent ends the child; the next start removes its directory."""
    parent = subprocess.Popen(
        [sys.executable, "-c", CONTROL_PLANE, str(base)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        child = psutil.Process(int(parent.stderr.readline()))
    finally:
        parent.kill()
        parent.communicate()
    child.wait(timeout=5)
    assert len(list(base.iterdir())) == 1
    rundir.reap_stale(base)
    assert list(base.iterdir()) == []


def test_an_orphan_is_ended_by_its_pid_file(base):
    """Where the parent-death signal failed, the next start ends the process, and no other."""
    directory = rundir.RunDirectory.create(base=base, opa=find_opa(), account=None)
    ours, theirs = directory.new_process(), directory.new_process()
    program = "import time; time.sleep(60)"
    orphan = subprocess.Popen([sys.executable, "-c", program, f"{ours}/config.json"])
    stranger = subprocess.Popen([sys.executable, "-c", program])
    try:
        directory.note_pid(ours, orphan.pid)
        directory.note_pid(theirs, stranger.pid)
        assert rundir.reap_stale(base) == 0  # its owner, this process, lives
        (directory.path / "owner").write_text("4194305 1")  # above the largest pid
        assert rundir.reap_stale(base) == 1
        assert orphan.wait(timeout=5) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        for each in (orphan, stranger):
            each.kill()
            each.wait()
    assert list(base.iterdir()) == []


def test_a_run_directory_that_opa_cannot_reach_is_refused(tmp_path):
    """The message says so, instead of OPA failing in its own words."""
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="other users"):
        rundir.RunDirectory.create(base=tmp_path / "run", opa=find_opa(), account=rundir.NOBODY)


async def test_wrong_bundles_do_not_start():
    """Garbage is refused before any process is started."""
    supervisor = OpaSupervisor(public_key=policies.signing_key().public_key())
    with pytest.raises(BundleError):
        await supervisor.start(b"garbage")
    assert supervisor.pid is None
