"""The agent's parts that need no worker: commands once, fences, records on disk, ends of processes, places, config."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.attestation.tiers import Tier
from bulkhead.errors import (
    ConfigError,
    ConflictError,
    DeadlineError,
    ExhaustedError,
    InvalidRequestError,
    TenantRootRequiredError,
)
from bulkhead.ids import PARTITION, TENANT, new_id
from data_plane.__main__ import main
from data_plane.config import WorkerConfig
from data_plane.inference.metrics import EngineMetrics
from data_plane.partitions import HostBackend, SimulatedRackBackend
from data_plane.partitions.rack import StandInMemory
from data_plane.ports import Assignment, PartitionSpec, PartitionState
from data_plane.rpc.control_channel import WorkerChannel
from data_plane.sandbox import SandboxConfig, Step
from data_plane.session import ordering
from data_plane.session.commands import Command, CreatePartition, Release, Released
from data_plane.session.messages import WorkerLoad, WorkerMetrics, WorkerReady
from data_plane.session.ordering import CommandMemory
from data_plane.session.partition import Partition, PartitionPorts
from data_plane.session.process import ProcessIdentity, end_stranger
from data_plane.session.rundir import PartitionRecord, RunDirectory
from data_plane.session.scrubbing import Scrubber
from data_plane.session.spool import Spool
from data_plane.session.starting import WorkerStarter, authority_of

NOW_S = 1_900_000_000.0
DONE = Released(scrubbed=True, detail="")


def command(partition_id: str = "", *, fence: int = 1, deadline_s: float = 10, command_id: str = "c") -> Command:
    return Command(
        command_id=command_id,
        partition_id=partition_id or new_id(PARTITION),
        fence=fence,
        deadline_ms=int((NOW_S + deadline_s) * 1000),
        order=Release(reason="", drain_until_ms=0),
    )


async def test_a_repeated_command_is_done_once() -> None:
    """The same id gives the first result, while it is under way and afterwards; another id is other work."""
    memory = CommandMemory(wall_s=lambda: NOW_S)
    begun = 0
    gate = asyncio.Event()

    async def work() -> Released:
        nonlocal begun
        begun += 1
        await gate.wait()
        return Released(scrubbed=True, detail=str(begun))

    first = asyncio.create_task(memory.once("a", work))
    second = asyncio.create_task(memory.once("a", work))
    await asyncio.sleep(0)
    gate.set()
    assert await first == await second == await memory.once("a", work)
    assert begun == 1
    assert (await memory.once("b", work)) == Released(scrubbed=True, detail="2")


async def test_a_caller_that_goes_away_does_not_stop_the_work() -> None:
    """The stream that brought a command may break; the command goes on and its result is there for the next one."""
    memory = CommandMemory(wall_s=lambda: NOW_S)
    gate = asyncio.Event()

    async def work() -> Released:
        await gate.wait()
        return DONE

    first = asyncio.create_task(memory.once("a", work))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await memory.once("a", work) == DONE


async def test_remembered_results_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished results make room for new commands; unfinished ones are never forgotten, so more are refused."""
    monkeypatch.setattr(ordering, "MAX_RESULTS", 2)
    memory = CommandMemory(wall_s=lambda: NOW_S)
    gate = asyncio.Event()

    async def blocked() -> Released:
        await gate.wait()
        return DONE

    async def quick() -> Released:
        return DONE

    for name in "abc":
        await memory.once(name, quick)
    held = [asyncio.create_task(memory.once(name, blocked)) for name in "de"]
    await asyncio.sleep(0)
    with pytest.raises(ExhaustedError):
        await memory.once("f", quick)
    gate.set()
    await asyncio.gather(*held)


def test_an_older_fence_is_refused() -> None:
    """Per partition the newest fence counts; the same one again is fine, and other partitions are not concerned."""
    memory = CommandMemory(wall_s=lambda: NOW_S)
    partition_id = new_id(PARTITION)
    for fence in (3, 3, 5):
        memory.check(command(partition_id, fence=fence))
    with pytest.raises(ConflictError):
        memory.check(command(partition_id, fence=4))
    memory.check(command(fence=1))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"deadline_ms": int(NOW_S * 1000)}, DeadlineError),
        ({"partition_id": "../../etc"}, InvalidRequestError),
        ({"partition_id": "tenant_01m85f4qb9ech9dc5sd19j68db"}, InvalidRequestError),
        ({"command_id": ""}, InvalidRequestError),
        ({"command_id": "c" * 100}, InvalidRequestError),
    ],
)
def test_what_no_command_may_be(changes: dict[str, Any], error: type[Exception]) -> None:
    """A command after its deadline, or with malformed ids, is refused and leaves no fence."""
    with pytest.raises(error):
        CommandMemory(wall_s=lambda: NOW_S).check(replace(command(), **changes))


def record(partition_id: str, **changes: Any) -> PartitionRecord:
    spec = PartitionSpec(partition_id=partition_id, tenant_id=new_id(TENANT), tier=Tier.PROCESS)
    fields: dict[str, Any] = {"spec": spec, "fence": 2**60, "state": PartitionState.CREATING, "process": None}
    return PartitionRecord(**(fields | changes))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory whose path leaves room for that of a socket, which may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bh-") as name:
        yield Path(name)


def test_records_survive_and_strangers_are_set_aside(tmp_path: Path) -> None:
    """An agent finds exactly what an earlier one noted; a damaged file stops nothing and is kept for a person."""
    run = RunDirectory(tmp_path / "r", shared=False)
    first = record(new_id(PARTITION), process=ProcessIdentity(77, 12345))
    run.write(first)
    (tmp_path / "r/partitions/broken.json").write_text("{", "utf-8")
    again = RunDirectory(tmp_path / "r", shared=False)
    assert again.records() == [first]
    assert (tmp_path / "r/partitions/broken.unreadable").exists()
    again.forget(first.spec.partition_id)
    assert again.records() == []


def test_a_run_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    """A path that no socket fits below is a configuration error at the start, not a failure at the first worker."""
    with pytest.raises(ConfigError, match="characters too long"):
        RunDirectory(tmp_path / ("d" * 80), shared=False)


async def test_an_orphan_of_an_earlier_agent_is_ended() -> None:
    """A worker that was left behind is killed after its time; one that ended meanwhile is not waited for."""
    process = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    waiting = asyncio.create_task(process.wait())
    assert await end_stranger(identity, patience_s=0.1)
    assert await waiting == -9
    assert await end_stranger(identity, patience_s=60)


async def test_a_process_that_took_over_the_pid_is_left_alone() -> None:
    """Pid and start time together name a worker: another process with its pid is not touched."""
    process = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    assert await end_stranger(replace(identity, started=identity.started - 1), patience_s=5)
    assert identity.is_alive
    process.kill()
    await process.wait()


class StuckMemory(StandInMemory):
    """Memory that does not become clear until a test lets it."""

    clears = False

    def is_clear(self, slices: range) -> bool:
        """Tell what the test wants told."""
        return self.clears and super().is_clear(slices)


async def scrubber(tmp_path: Path, backend: Any) -> tuple[Scrubber, RunDirectory, Spool]:
    run = RunDirectory(tmp_path / "r", shared=False)
    spool = Spool(path=tmp_path / "spool", new_id=lambda: "s")
    await spool.open()
    return Scrubber(backend=backend, run=run, spool=spool, wall_s=lambda: NOW_S), run, spool


async def test_an_unproven_end_cordons_the_place_across_restarts(tmp_path: Path) -> None:
    """A process that cannot be ended leaves its place cordoned and noted; a restart that can prove it frees it."""
    backend = HostBackend(rack="r", tray=0, region="eu", process_slots=1)
    parts = await scrubber(tmp_path, backend)
    partition = record(new_id(PARTITION))
    await backend.create(partition.spec)
    released = await parts[0].scrub(partition.spec, fence=4, gone=False)
    assert not released.scrubbed
    (noted,) = parts[1].records()
    assert noted.state is PartitionState.CORDONED
    await parts[2].aclose()
    again = await scrubber(tmp_path, HostBackend(rack="r", tray=0, region="eu", process_slots=1))
    await again[0].recover(noted)
    outcome = again[0].outcome(partition.spec.partition_id)
    assert outcome is not None
    assert outcome.scrubbed
    assert again[1].records() == []
    steps = [event.event for event in again[2].pending_after(0, limit=9)]
    assert [(step.from_state, step.to_state) for step in steps] == [("cordoned", "free")]  # type: ignore[union-attr]
    await again[2].aclose()


async def test_memory_that_does_not_clear_is_never_reported_scrubbed(tmp_path: Path) -> None:
    """The backend's doubt is the agent's: unproven, cordoned, and the place is refused to the next partition."""
    backend = SimulatedRackBackend(rack="r", tray=0, region="eu", process_slots=1, memory=StuckMemory)
    parts = await scrubber(tmp_path, backend)
    spec = replace(record(new_id(PARTITION)).spec, tier=Tier.GPU, gpu_uuids=(backend.inventory().gpus[0].uuid,))
    await backend.create(spec)
    released = await parts[0].scrub(spec, fence=1, gone=True)
    assert not released.scrubbed
    assert "simulated" in released.detail
    with pytest.raises(ConflictError):
        await backend.create(replace(spec, partition_id=new_id(PARTITION)))
    await parts[2].aclose()


async def test_a_worker_that_falls_silent_is_noticed_and_a_pause_of_the_agent_is_not(tmp_path: Path) -> None:
    """Silence counts only while the agent itself keeps looking, and only for workers that listen."""
    spool = Spool(path=tmp_path / "spool", new_id=lambda: "s")
    spec = record(new_id(PARTITION)).spec
    partition = Partition(
        spec=spec,
        fence=1,
        slot=0,
        assignment=Assignment(device_uuids=(), memory_mib=0),
        ports=PartitionPorts(spool=spool, open_link=WorkerChannel.open, now_us=lambda: 0, stop_timeout_s=1),
    )
    partition._heard_s -= 100
    assert not partition.is_silent(30)
    partition.ready = WorkerReady(keyset=b"", certificate=b"", model_digest=b"", context_length=1, sandbox=())
    assert partition.is_silent(30)
    partition._take(WorkerLoad(running_requests=0, queued_requests=0))
    assert not partition.is_silent(30)
    partition._heard_s -= 100
    partition._asked_s -= 100
    assert not partition.is_silent(30)


async def test_an_agent_keeps_a_workers_last_snapshot(tmp_path: Path) -> None:
    """What a worker counts is shown with its time; a snapshot that no engine makes is out of bounds."""
    spool = Spool(path=tmp_path / "spool", new_id=lambda: "s")
    partition = Partition(
        spec=record(new_id(PARTITION)).spec,
        fence=1,
        slot=0,
        assignment=Assignment(device_uuids=(), memory_mib=0),
        ports=PartitionPorts(spool=spool, open_link=WorkerChannel.open, now_us=lambda: 5, stop_timeout_s=1),
    )
    assert partition.metrics is None
    partition._take(WorkerMetrics(metrics=EngineMetrics(stopped=3)))
    assert (partition.metrics, partition.metrics_us) == (EngineMetrics(stopped=3), 5)
    with pytest.raises(ExhaustedError):
        partition._take(WorkerMetrics(metrics=EngineMetrics(kv_use=2.0)))


def starter(tmp_path: Path) -> WorkerStarter:
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "models/link").symlink_to(tmp_path / "outside")
    return WorkerStarter(
        worker=WorkerConfig(),
        sandbox=SandboxConfig(user=Step.OFF),
        model_directory=tmp_path / "models",
        run=RunDirectory(tmp_path / "r", shared=False),
        simulated=True,
        ticket_issuers=lambda: (bytes(32),),
        log_arguments=(),
    )


async def test_no_worker_of_tier_confidential_without_a_root(tmp_path: Path) -> None:
    """Whatever the control plane orders: an agent starts no such worker for a tenant whose root it was not told."""
    order = CreatePartition(
        tenant_id=new_id(TENANT),
        tier="confidential",
        gpu_uuids=("GPU-0",),
        mig_profile_id=0,
        memory_slice_start=0,
        memory_slices=0,
        memory_mib=0,
        model_name="tiny",
        model_path="tiny",
        model_digest=bytes(32),
        max_output_tokens=0,
    )
    for root, error in ((b"", TenantRootRequiredError), (b"short", InvalidRequestError)):
        with pytest.raises(error):
            await starter_start(tmp_path / str(len(root)), replace(order, tenant_root=root))


async def starter_start(directory: Path, order: CreatePartition) -> None:
    partition: Any = None  # refused before anything of it is looked at
    await starter(directory).start(partition, order, active=1, timeout_s=1.0, progress=lambda _phase, _text: None)


@pytest.mark.parametrize("path", ["", ".", "..", "../outside", "/etc", "tiny/../../outside", "link", "a\0b", "x" * 600])
def test_model_paths_stay_below_the_model_directory(tmp_path: Path, path: str) -> None:
    """No path of an order leads out of the agent's model directory, through links neither."""
    order = CreatePartition(
        tenant_id=new_id(TENANT),
        tier="process",
        gpu_uuids=(),
        mig_profile_id=0,
        memory_slice_start=0,
        memory_slices=0,
        memory_mib=0,
        model_name="tiny",
        model_path=path,
        model_digest=bytes(32),
        max_output_tokens=0,
    )
    made = starter(tmp_path)
    with pytest.raises(InvalidRequestError):
        made._model_path(order)
    assert made._model_path(replace(order, model_path="tiny")) == tmp_path / "models/tiny"


def test_authorities_are_dns_names() -> None:
    """The name at the ingress has no underscore."""
    assert authority_of("part_01abc") == "part-01abc.worker.bulkhead.internal"


CONFIG = """
agent_id = "rack1-tray01"
state_directory = "s"
run_directory = "r"
model_directory = "."
evidence_key = "k"
[control_plane]
addresses = ["127.0.0.1:1"]
[tls]
certificate = "missing.pem"
private_key = "missing.key"
authority = "missing.pem"
[inventory]
backend = "simulated"
rack = "rack1"
region = "eu"
"""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("", ""), "missing.pem"),
        (('region = "eu"', 'region = "eu"\nnonsense = 1'), "inventory: unknown key nonsense"),
        (('backend = "simulated"', 'backend = "nvml"'), "inventory.backend"),
        (('"127.0.0.1:1"', '"127.0.0.1"'), "host:port"),
        (('rack = "rack1"', 'rack = "Rack 1"'), "rack"),
        (("[tls]", '[sandbox]\nuser = "maybe"\n[tls]'), "sandbox.user"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], told: str
) -> None:
    """``--check-config`` names file and key, exits as wrong usage, and shows no stack."""
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG.replace(*change) if change[0] else CONFIG, "utf-8")
    assert main(["agent", "--config", str(path), "--check-config"]) == 2
    assert told in capsys.readouterr().err


def test_help_shows_an_example() -> None:
    """The program explains itself, and needs no torch to do so."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "data_plane", "--help"], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "example:" in done.stdout
    assert time.monotonic() - started < 10
