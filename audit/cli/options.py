"""What the commands share: options, opening a database, progress."""

import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from audit.keys import LogKeys
from audit.model import LogInfo
from audit.sql import SqlAuditReader, open_reader
from bulkhead.encoding import JsonObject
from bulkhead.errors import CheckpointError, ConfigError, NotFoundError
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.note import NoteVerifier

__all__ = [
    "DATABASE",
    "Ticker",
    "database_option",
    "find_log",
    "key_options",
    "moment_us",
    "pinned_keys",
    "reading",
    "record_json",
    "with_directory",
]

Function = TypeVar("Function", bound=Callable[..., Any])
_TICK_S: Final = 1.0
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Database(click.ParamType[Path | str]):
    """A SQLite file that exists, or a URL."""

    name = "FILE|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return the path or the URL."""
        text = str(value)
        if text.startswith(("postgresql:", "postgres:", "postgresql+psycopg:")):
            return text
        return Path(str(_FILE.convert(text, param, ctx)))


DATABASE: Final = _Database()


def database_option(function: Function) -> Function:
    """Add ``--db``."""
    return click.option(
        "--db", "database", type=DATABASE, required=True, envvar="BULKHEAD_AUDIT_DB", show_envvar=True,
        help="Audit database, or a copy of one: a file, or a PostgreSQL URL.",
    )(function)  # fmt: skip


def key_options(function: Function) -> Function:
    """Add ``--log-key`` and ``--keys``."""
    function = click.option(
        "--keys", "keys_dir", type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="The platform's own directory of log keys, where this is run beside the platform.",
    )(function)  # fmt: skip
    return click.option(
        "--log-key", "log_keys", multiple=True, metavar="VKEY",
        help="Public key of a log (name+id+base64), or a file of them, one per line. Repeatable.",
    )(function)  # fmt: skip


def pinned_keys(log_keys: tuple[str, ...]) -> dict[str, str]:
    """Return vkeys by origin, from values and files.

    Raises:
        ConfigError: a value is neither a file of vkeys nor a vkey.
    """
    found: dict[str, str] = {}
    for value in log_keys:
        path = Path(value)
        try:
            lines = path.read_text(encoding="utf-8").split() if "+" not in value and path.is_file() else [value]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--log-key: {value} cannot be read") from error
        for line in lines:
            try:
                found[NoteVerifier.from_vkey(line).name] = line
            except CheckpointError as error:
                where = "neither a file nor a public key" if line is value else "a file that holds another thing"
                raise ConfigError(f"--log-key {value}: {where}: {error.message}") from error
    return found


def with_directory(found: dict[str, str], keys_dir: Path | None, logs: tuple[LogInfo, ...]) -> dict[str, str]:
    """Return ``found`` with the keys that the directory gives for logs without a pinned one.

    Raises:
        ConfigError: the key file cannot be used.
    """
    if keys_dir is None:
        return found
    keys = LogKeys.load(keys_dir)
    return {log.origin: keys.signer(log.origin).vkey for log in logs} | found


@contextmanager
def reading(database: Path | str) -> Iterator[SqlAuditReader]:
    """Open a database for reading.

    Raises:
        AuditUnavailableError: it is not an audit database.
    """
    reader = open_reader(database)
    try:
        yield reader
    finally:
        reader.close()


def find_log(logs: tuple[LogInfo, ...], *, tenant: str, origin: str) -> LogInfo | None:
    """Return the log that is named; None if nothing is.

    Raises:
        NotFoundError: there is no such log.
    """
    if not tenant and not origin:
        return None
    wanted = None if tenant == "platform" else tenant
    matches = [log for log in logs if (log.origin == origin if origin else log.tenant == wanted)]
    if not matches:
        raise NotFoundError(f"the database has no log of {origin or tenant}")
    return matches[-1]


class Ticker:
    """Progress on standard error, at most one line a second; silent when nobody looks."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = time.monotonic()
        self._any = False

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now - self._shown < _TICK_S and not (self._any and done == total):
            return
        self._shown, self._any = now, True
        share = f" of {total:,} ({done / total:.0%})" if total else ""
        click.echo(f"{self._what}: {done:,}{share} records", file=sys.stderr)


def moment_us(_ctx: click.Context, _param: click.Parameter, value: dt.datetime | None) -> int | None:
    """Turn a parsed time option (UTC) into microseconds."""
    return None if value is None else int(value.replace(tzinfo=dt.UTC).timestamp() * 1_000_000)


def record_json(origin: str, index: int, fields: LeafFields, leaf: bytes) -> JsonObject:
    """Return a record for programs: its place, and the leaf's own JSON."""
    return {"log": origin, "index": index, "record_id": fields.record_id, "record": json.loads(leaf)}
