"""`break`: the way out when database and lock store disagree (docs/audit.md section 11)."""

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from audit.cli.options import database_option
from audit.config import AuditConfig
from audit.log.breaking import BreakStatement, declare_break, find_break
from audit.records import Stamper
from audit.sql import open_reader
from bulkhead.cli.console import emit, example, json_option
from bulkhead.errors import CheckpointError, ConfigError, NotFoundError
from bulkhead.transparency.note import NoteSigner, make_signer_key, sign_note

__all__ = ["breaking"]

Function = TypeVar("Function", bound=Callable[..., Any])
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)
_BUSY_S: Final = 10.0  # longest wait for a database; nobody is served meanwhile


@click.group(
    "break",
    epilog=example(
        "bulkhead-audit break officer-key ada --out ada.key",
        "bulkhead-audit break statement --db audit.db --lock audit.lock --reason 'restored after the fire' > b.txt",
        "bulkhead-audit break sign b.txt --key ada.key",
        "bulkhead-audit break sign b.txt --key ben.key",
        "bulkhead-audit break declare b.txt --db audit.db --lock audit.lock --officer VKEY --officer VKEY",
    ),
)
def breaking() -> None:
    """Declare a break: after LOG_FORK two persons, each with a key of their own, let every log begin a new epoch."""


def _lock_option(function: Function) -> Function:
    return click.option("--lock", required=True, help="The lock store: its file, or the URL of its database.")(function)


@breaking.command("officer-key", epilog=example("bulkhead-audit break officer-key ada --out ada.key"))
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the secret key is written (0600).")
@json_option
def officer_key(name: str, out: Path, *, as_json: bool) -> None:
    """Make the key with which NAME signs; prints the public key that others pin."""
    skey = make_signer_key(name, secrets.token_bytes(32))
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(skey + "\n")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    vkey = NoteSigner.from_skey(skey).vkey
    emit({"vkey": vkey}, as_json=as_json, text=vkey)


@breaking.command(
    "statement",
    epilog=example('bulkhead-audit break statement --db audit.db --lock audit.lock --reason "disk lost" > b.txt'),
)
@database_option
@_lock_option
@click.option("--reason", required=True, help="One line: what happened.")
@json_option
def statement(database: Path | str, lock: str, reason: str, *, as_json: bool) -> None:
    """Print the statement that two officers would have to sign. The platform must be stopped."""
    text = find_break(_config(database, lock), reason).text()
    emit({"statement": text}, as_json=as_json, text=text.rstrip("\n"))


@breaking.command("sign", epilog=example("bulkhead-audit break sign b.txt --key ada.key"))
@click.argument("path", type=_FILE)
@click.option("--key", "key_path", type=_FILE, required=True, help="The officer's own secret key.")
def sign(path: Path, key_path: Path) -> None:
    """Add the signature of one officer to a statement, after reading it."""
    note = _text(path)
    text, separator, signatures = note.partition("\n\n")
    text = f"{text}\n" if separator else note
    BreakStatement.parse(text)
    signer = NoteSigner.from_skey(_text(key_path).strip())
    if f"— {signer.verifier.name} " in signatures:
        raise CheckpointError(f"{signer.verifier.name} has signed already")
    signed = sign_note(text, [signer])
    path.write_text(signed + signatures if separator else signed, encoding="utf-8")
    click.echo(f"{text}signed by {signer.verifier.name}")


@breaking.command(
    "declare",
    epilog=example(
        "bulkhead-audit break declare b.txt --db audit.db --lock audit.lock --officer ada+1a2b… --officer bob+3c4d…"
    ),
)
@click.argument("path", type=_FILE)
@database_option
@_lock_option
@click.option("--officer", "officers", multiple=True, required=True, metavar="VKEY", help="Pinned public key; twice.")
@json_option
def declare(path: Path, database: Path | str, lock: str, officers: tuple[str, ...], *, as_json: bool) -> None:
    """Let every log begin a new epoch that cites both histories. The platform must be stopped."""
    started_ns = time.monotonic_ns()
    stamper = Stamper(
        writer=secrets.token_hex(8),
        wall_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        started_ns=started_ns,
        random_bytes=secrets.token_bytes,
    )
    done = declare_break(_config(database, lock), _text(path), officers, stamp=stamper.stamp)
    lines = [f"A break was declared by {', '.join(done.officers)}; commit {done.state.seq} is the first after it."]
    lines += [f"New epoch: {info.origin}" for info in done.logs]
    lines.append("Tenants need the new keys: bulkhead-audit vkeys.")
    emit(
        {"officers": done.officers, "commit": done.state.seq, "logs": [info.origin for info in done.logs]},
        as_json=as_json,
        text="\n".join(lines),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text") from error


def _config(database: Path | str, lock: str) -> AuditConfig:
    reader = open_reader(database)
    try:
        origin = next((info.origin for info in reader.logs() if info.tenant is None), "")
    finally:
        reader.close()
    domain = origin.partition("/")[0].removeprefix("audit.")
    if not domain:
        raise NotFoundError("the database holds no platform log")
    return AuditConfig(
        database=database,
        lock=lock if "://" in lock else Path(lock),
        keys_dir=Path(),  # no key is used: nothing is signed
        domain=domain,
        append_timeout_s=_BUSY_S,
    )
