"""The contract of the state store, over SQLite and PostgreSQL; what is SQLite's alone says so by its fixture."""

import asyncio
import dataclasses
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text

from bulkhead import ids
from bulkhead.errors import AlreadyExistsError, ConfigError, ConflictError, StateUnavailableError
from control_plane.domain.bundles import BundleStatus, PolicyBundle
from control_plane.domain.roles import ROLE_SCOPES, CredentialKind, Role
from control_plane.domain.tenancy import Credential, Model, ModelStatus, Principal, Tenant
from control_plane.storage import migrate as migrations
from control_plane.storage import schema
from control_plane.storage.engine import RETRIES, Database, Transaction
from control_plane.storage.migrate import SCHEMA_REVISION, migrate
from control_plane.storage.policy import Bundles, Requests, UsedRequest
from control_plane.storage.tenancy import Credentials, Models, Principals, Tenants
from tests.simulator.administered import wanted_tenant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """Where an empty database is."""
    if request.param == "sqlite":
        return f"sqlite:///{path}"
    found: str = request.getfixturevalue("postgres_url")
    return found.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """An empty database of this build's schema."""
    opened = Database(url=url, timeout_s=5.0, busy_timeout_s=0.2)
    await migrate(opened)
    yield opened
    await opened.close()


def _tenant(name: str = "acme") -> Tenant:
    return dataclasses.replace(wanted_tenant(name), tenant_id=ids.new_id(ids.TENANT), revision=1, log_vkey="v")


def _principal(*, tenant_id: str = "", name: str = "kim", role: Role = Role.ADMIN) -> Principal:
    return Principal(
        principal_id=ids.new_id(ids.PRINCIPAL),
        tenant_id=tenant_id,
        name=name,
        role=role,
        subject_id=ids.new_id(ids.SUBJECT),
        created_us=1,
    )


def _bundle(number: int) -> PolicyBundle:
    return PolicyBundle(
        bundle_id=ids.new_id(ids.BUNDLE),
        digest="ab" * 32,
        number=number,
        status=BundleStatus.CANDIDATE,
        published_by=ids.new_id(ids.SUBJECT),
        activated_by="",
        created_us=number,
        activated_us=0,
    )


async def test_migrations_make_exactly_the_declared_schema(database: Database) -> None:
    """The migrations and the tables that the code uses are the same schema."""

    def differences(engine: Engine) -> list[object]:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "state_schema"})
            found = compare_metadata(context, schema.metadata)
            connection.rollback()
            return list(found)

    assert await database.run_blocking(differences) == []


async def test_migrating_twice_changes_nothing_and_a_newer_schema_is_refused(database: Database) -> None:
    """A second start finds its schema; a database of a newer build is not touched."""
    await migrate(database)

    def stamp(tx: Transaction) -> None:
        tx.connection.execute(text("UPDATE state_schema SET version_num = '9999'"))

    await database.write(stamp)
    with pytest.raises(StateUnavailableError, match=f"this build knows {SCHEMA_REVISION}"):
        await migrate(database)


async def test_the_newest_migration_goes_back_and_forth(database: Database) -> None:
    """Back to the schema before, tenants stay and their roots are gone; forth again, a root can be recorded."""
    tenant = dataclasses.replace(_tenant(), tenant_root=b"r" * 32)
    await database.write(lambda tx: Tenants.of(tx).insert(tenant))

    def back(engine: Engine) -> None:
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(Path(migrations.__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            command.downgrade(config, "0004")

    await database.run_blocking(back)
    with pytest.raises(StateUnavailableError):
        await database.read(lambda tx: Tenants.of(tx).find(tenant.tenant_id))
    await migrate(database)
    bare = dataclasses.replace(tenant, tenant_root=b"")
    assert await database.read(lambda tx: Tenants.of(tx).find(tenant.tenant_id)) == bare
    again = dataclasses.replace(tenant, revision=2)
    assert await database.write(lambda tx: Tenants.of(tx).update(again, from_revision=1))
    assert await database.read(lambda tx: Tenants.of(tx).find(tenant.tenant_id)) == again


async def test_values_come_back_as_they_went(database: Database) -> None:
    """Tenants, principals, credentials, models and bundles read back equal, by every key they are found by."""
    tenant, model, bundle = _tenant(), _model(), _bundle(1)
    principal = _principal(tenant_id=tenant.tenant_id, role=Role.DEVELOPER)
    credential = Credential(
        credential_id=ids.new_id(ids.CREDENTIAL),
        principal_id=principal.principal_id,
        kind=CredentialKind.API_KEY,
        scopes=ROLE_SCOPES[Role.DEVELOPER],
        created_us=1,
        expires_us=2,
    )

    def put(tx: Transaction) -> None:
        Tenants.of(tx).insert(tenant)
        Principals.of(tx).insert(principal)
        Credentials.of(tx).insert(credential, secret_sha256=b"h" * 32)
        Models.of(tx).insert(model)
        Bundles.of(tx).insert(bundle, b"bytes")

    await database.write(put)

    def check(tx: Transaction) -> None:
        assert Tenants.of(tx).find(tenant.tenant_id) == Tenants.of(tx).find_by_name("acme") == tenant
        assert Principals.of(tx).find_by_name(tenant.tenant_id, "kim") == principal
        assert Principals.of(tx).find_by_name("", "kim") is None
        found = Credentials.of(tx).find_with_principal(credential_id=credential.credential_id)
        assert found == (credential, principal, b"h" * 32)
        assert Credentials.of(tx).find_with_principal(fingerprint="f") is None
        assert Models.of(tx).find("tiny") == model
        assert Bundles.of(tx).find(bundle.bundle_id) == bundle
        assert Bundles.of(tx).content(bundle.bundle_id) == b"bytes"

    await database.read(check)


def _model() -> Model:
    return Model(
        name="tiny",
        digest=b"d" * 32,
        path="tiny",
        status=ModelStatus.ACTIVE,
        context_length=128,
        memory_mib=64,
        created_us=1,
    )


async def test_a_failed_unit_leaves_nothing(database: Database) -> None:
    """An exception in the middle of a write undoes all of it, and reaches the caller unchanged."""
    tenant = _tenant()

    def work(tx: Transaction) -> None:
        Tenants.of(tx).insert(tenant)
        raise AlreadyExistsError("stop")

    with pytest.raises(AlreadyExistsError, match="stop"):
        await database.write(work)
    assert await database.read(lambda tx: Tenants.of(tx).find(tenant.tenant_id)) is None


async def test_unique_names_hold(database: Database) -> None:
    """Names of tenants, of principals within a tenant and within the platform, and fingerprints are unique."""
    tenant = _tenant()
    await database.write(lambda tx: Tenants.of(tx).insert(tenant))
    await database.write(lambda tx: Principals.of(tx).insert(_principal()))
    await database.write(lambda tx: Principals.of(tx).insert(_principal(tenant_id=tenant.tenant_id, role=Role.OFFICER)))
    for again in (
        lambda tx: Tenants.of(tx).insert(_tenant()),
        lambda tx: Principals.of(tx).insert(_principal()),
        lambda tx: Principals.of(tx).insert(_principal(tenant_id=tenant.tenant_id, role=Role.OFFICER)),
    ):
        with pytest.raises(ConflictError):
            await database.write(again)


async def test_references_hold(database: Database) -> None:
    """A principal of a tenant that does not exist is refused by the database itself."""
    orphan = _principal(tenant_id=ids.new_id(ids.TENANT), role=Role.DEVELOPER)
    with pytest.raises(ConflictError):
        await database.write(lambda tx: Principals.of(tx).insert(orphan))


async def test_an_update_of_an_old_revision_changes_nothing(database: Database) -> None:
    """Two updates of one revision: the second is told that it lost."""
    tenant = _tenant()
    await database.write(lambda tx: Tenants.of(tx).insert(tenant))
    newer = dataclasses.replace(tenant, session_limit=5, revision=2)
    assert await database.write(lambda tx: Tenants.of(tx).update(newer, from_revision=1))
    assert not await database.write(lambda tx: Tenants.of(tx).update(newer, from_revision=1))


async def test_one_bundle_is_active(database: Database) -> None:
    """Activating supersedes the bundle before, which a rollback then finds."""
    first, second = _bundle(1), _bundle(2)

    def put(tx: Transaction) -> None:
        Bundles.of(tx).insert(first, b"1")
        Bundles.of(tx).insert(second, b"2")
        Bundles.of(tx).activate(first.bundle_id, subject_id=first.published_by, now_us=10)
        Bundles.of(tx).activate(second.bundle_id, subject_id=first.published_by, now_us=20)

    await database.write(put)

    def check(tx: Transaction) -> None:
        active, before = Bundles.of(tx).active(), Bundles.of(tx).active_before()
        assert active is not None
        assert before is not None
        assert (active.number, before.number, Bundles.of(tx).highest_number()) == (2, 1, 2)
        assert before.status is BundleStatus.SUPERSEDED

    await database.read(check)


async def test_a_request_id_is_used_once_per_principal(database: Database) -> None:
    """Another principal may use the same request id; the same one may not, even at the same time."""
    request_id = ids.new_id(ids.REQUEST)

    async def use(principal: str) -> None:
        used = UsedRequest(b"c" * 32, "x")
        await database.write(lambda tx: Requests.of(tx).insert(principal, request_id, used, now_us=1))

    await use("prin_a")
    await use("prin_b")
    with pytest.raises(ConflictError):
        await use("prin_a")
    assert await database.read(lambda tx: Requests.of(tx).find("prin_a", request_id)) == UsedRequest(b"c" * 32, "x")


async def test_pages_cover_everything_once(database: Database) -> None:
    """Keyset pages return every row exactly once, also while rows are added in between."""
    tenants = [_tenant(f"t{number}") for number in range(5)]
    for tenant in tenants:
        await database.write(lambda tx, tenant=tenant: Tenants.of(tx).insert(tenant))  # type: ignore[misc]
    seen: list[str] = []

    def next_page(tx: Transaction) -> list[Tenant]:
        return Tenants.of(tx).page(after=seen[-1] if seen else "", limit=2)

    while page := await database.read(next_page):
        seen += [tenant.tenant_id for tenant in page]
    assert seen == sorted(tenant.tenant_id for tenant in tenants)


async def test_readers_cannot_write(database: Database) -> None:
    """A write through a read is refused by the database, so that no use case writes by mistake."""
    with pytest.raises(StateUnavailableError):
        await database.read(lambda tx: Tenants.of(tx).insert(_tenant()))


async def test_reads_go_on_while_a_write_is_open(database: Database) -> None:
    """A long write does not keep readers waiting, and they do not see its half."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        Tenants.of(tx).insert(_tenant())
        inside.set()
        go_on.wait(5)

    writing = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(inside.wait, 5)
    assert await database.read(lambda tx: Tenants.of(tx).page(after="", limit=10)) == []
    go_on.set()
    await writing
    assert len(await database.read(lambda tx: Tenants.of(tx).page(after="", limit=10))) == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_locked_database_is_unavailable_and_comes_back(database: Database, path: Path) -> None:
    """While another process holds the write lock a write fails soon and typed; afterwards it works again."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateUnavailableError) as caught:
        await database.write(lambda tx: Tenants.of(tx).insert(_tenant()))
    assert caught.value.code == "STATE_UNAVAILABLE"
    other.execute("ROLLBACK")
    other.close()
    await database.write(lambda tx: Tenants.of(tx).insert(_tenant()))


async def test_a_call_that_waits_too_long_is_given_up(path: Path) -> None:
    """A queue that does not move fails its callers within the bound, and the waiting work is never done."""
    database = Database(url=f"sqlite:///{path}", timeout_s=0.3)
    await migrate(database)
    release = threading.Event()
    blocking = asyncio.create_task(database.write(lambda _: release.wait(5)))
    await asyncio.sleep(0.05)
    with pytest.raises(StateUnavailableError, match="did not answer"):
        await database.write(lambda tx: Tenants.of(tx).insert(_tenant()))
    release.set()
    with pytest.raises(StateUnavailableError):
        await blocking
    await asyncio.sleep(0.05)
    assert await database.read(lambda tx: Tenants.of(tx).page(after="", limit=10)) == []
    await database.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """Garbage in the database's place is a typed error, not a stack."""
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 100)
    database = Database(url=f"sqlite:///{path}")
    with pytest.raises(StateUnavailableError):
        await migrate(database)
    await database.close()


async def test_a_closed_database_is_unavailable(path: Path) -> None:
    """A call after the close is a typed error."""
    database = Database(url=f"sqlite:///{path}")
    await database.close()
    with pytest.raises(StateUnavailableError, match="closed"):
        await database.read(lambda tx: tx.connection.execute(select(1)).scalar())


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "no url", "nosuchdialect:///x"])
def test_unusable_urls_are_configuration_errors(url: str) -> None:
    """A URL without a file, malformed, or of an unknown driver is told as a configuration error."""
    with pytest.raises(ConfigError):
        Database(url=url)


@pytest.fixture
async def shared(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two control planes' state stores over one PostgreSQL database."""
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    both = Database(url=url), Database(url=url)
    await migrate(both[0])
    yield both
    for database in both:
        await database.close()


def _counted(tx: Transaction) -> int:
    found = tx.connection.execute(text("SELECT count(*) FROM tenants")).scalar()
    assert isinstance(found, int)
    return found


async def test_a_transaction_that_could_not_be_put_in_order_runs_again(shared: tuple[Database, Database]) -> None:
    """A unit that another control plane's commit overtook runs again on what is there then; no caller sees an error."""
    mine, theirs = shared
    read, written = threading.Event(), threading.Event()
    seen: list[int] = []

    def add(tx: Transaction) -> None:
        seen.append(_counted(tx))
        read.set()
        assert written.wait(10)
        Tenants.of(tx).insert(_tenant(f"mine-{seen[-1]}"))

    def add_theirs(tx: Transaction) -> None:
        Tenants.of(tx).insert(_tenant(f"theirs-{_counted(tx)}"))

    adding = asyncio.create_task(mine.write(add))
    await asyncio.to_thread(read.wait, 10)
    await theirs.write(add_theirs)
    written.set()
    await adding
    assert seen == [0, 1]  # neither order of the two would have shown both an empty table
    assert await mine.read(_counted) == 2


async def test_transactions_that_are_never_put_in_order_are_unavailable(shared: tuple[Database, Database]) -> None:
    """The runs are bounded: a unit that the server refuses each time is unavailable, and nothing of it is there."""
    mine, _ = shared
    tries: list[int] = []

    def refused(tx: Transaction) -> None:
        tries.append(1)
        Tenants.of(tx).insert(_tenant("acme"))
        tx.connection.execute(text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))

    with pytest.raises(StateUnavailableError, match="SerializationFailure"):
        await mine.write(refused)
    assert len(tries) == RETRIES + 1
    assert await mine.read(_counted) == 0
