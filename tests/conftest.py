"""What many tests share: a platform of real processes, a control plane in this process, databases."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from audit.sql import open_store
from control_plane.domain.roles import Caller
from scripts.local_platform import LocalPlatform
from tests.simulator import provisioned
from tests.simulator.commands import CommandedPlatform
from tests.simulator.fake_agent import FakeAgent
from tests.simulator.postgres import PostgresServer, postgres_server
from tests.simulator.relay import RecordingRelay
from tests.simulator.session_world import SessionWorld, session_world
from tests.simulator.tiny_model import make_tiny_model

# How fast the machine is says nothing about an example: a slow one must not fail a test by chance.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

LONG_TIMEOUT_S = 1_800  # of a full count, at least four times what it took on two busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give full counts the time they need."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _one_state_of_new_platforms(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep it where all processes of this run find it: several at a time have directories beside each other."""
    own = tmp_path_factory.getbasetemp()
    provisioned.keep_in(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model's directory."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def start_platform(
    model: Path,
    *,
    control: str = "",
    agent: str = "",
    trays: int = 2,
    internal: RecordingRelay | None = None,
    ingress: RecordingRelay | None = None,
    environment: dict[str, str] | None = None,
) -> LocalPlatform:
    """Return a running platform with a state directory of its own; the caller stops it with :func:`stop_platform`.

    With ``internal``, agents reach the control plane through that relay; with ``ingress``, clients reach the one tray's
    workers through that one.
    """
    root = Path(tempfile.mkdtemp(prefix="bh-"))
    platform = CommandedPlatform(
        root=root, model=model, trays=trays, say=lambda _: None, model_name="tiny", control_overrides=control,
        agent_overrides=agent, internal_address=None if internal is None else internal.address,
        environment=environment or {},
    )  # fmt: skip
    if internal is not None:
        root.mkdir(exist_ok=True)
        internal.target = f"127.0.0.1:{platform.ports_wanted()['internal']}"
    if ingress is not None:
        port = platform.ports_wanted()["spare"]
        platform.agent_overrides += f'[ingress]\nport = {port}\nadvertise = "{ingress.address}"\n'
        ingress.target = f"127.0.0.1:{port}"
    try:
        provisioned.fill(platform)
        platform.up()
    except BaseException:
        stop_platform(platform)
        raise
    return platform


def stop_platform(platform: LocalPlatform) -> None:
    """Stop every process and remove the state directory."""
    platform.down()
    shutil.rmtree(platform.root, ignore_errors=True)


@pytest.fixture(scope="session")
def platform(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform shared by the tests that leave it as they found it."""
    started = start_platform(tiny_model)
    yield started
    stop_platform(started)


@pytest.fixture
def own_platform(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform of the test's own, to be broken."""
    started = start_platform(tiny_model)
    yield started
    stop_platform(started)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SessionWorld]:
    """Sessions and fleet of a control plane in the test's own process; others have their own."""
    async with session_world(tmp_path) as opened:
        yield opened


@pytest.fixture
async def acme(world: SessionWorld) -> Caller:
    """A tenant of that world."""
    return await world.tenant("acme")


@pytest.fixture
async def agent(world: SessionWorld) -> FakeAgent:
    """A tray of that world."""
    return await world.agent()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server shared by the tests that leave it running; each takes a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of an empty database."""
    return postgres.url(postgres.new_database())


@pytest.fixture(scope="session")
def audit_template(postgres: PostgresServer) -> str:
    """A database with the audit log's tables and nothing in them, to be copied."""
    name = postgres.new_database()
    open_store(postgres.url(name), busy_timeout_s=1.0).close()
    return name


@pytest.fixture
def audit_url(postgres: PostgresServer, audit_template: str) -> str:
    """The URL of an audit database of the test's own, empty."""
    return postgres.url(postgres.new_database(template=audit_template))
