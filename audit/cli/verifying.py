"""`verify` and `reindex`."""

import os
from pathlib import Path
from typing import Final

import click

from audit.chain import LockState
from audit.cli.options import DATABASE, Ticker, key_options, pinned_keys, reading, with_directory
from audit.lockstore import FileLockStore
from audit.sql import SqlAuditReader, SqlLockStore, open_store
from audit.sql.verify import verify_database
from audit.store import LockStore
from bulkhead.cli.console import emit, example, json_option
from bulkhead.cli.pins import Pins, read_note
from bulkhead.errors import ConfigError
from bulkhead.transparency.export import verify_export

__all__ = ["reindex", "verify"]

_SQLITE: Final = b"SQLite format 3\x00"
_BUSY_S: Final = 2.0
_INDEX_CHUNK: Final = 2_000
_MAX_PROCESSES: Final = 8  # more would wait for the one that puts their answers together
_LARGE: Final = 100_000  # records: some seconds; starting processes takes one


@click.command(
    "verify",
    epilog=example(
        "bulkhead-audit verify audit.db --keys keys --lock audit.lock",
        "bulkhead-audit verify audit.db --keys keys --processes 1",
        "bulkhead-audit verify acme.jsonl --log-key vkeys.txt --json",
    ),
)
@click.argument("path", type=DATABASE)
@key_options
@click.option(
    "--lock", "lock_path", type=DATABASE,
    help="The lock store beside which the database must belong: a file, or a PostgreSQL URL (databases only).",
)  # fmt: skip
@click.option(
    "--checkpoint", "seen", multiple=True, metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A checkpoint (signed note) from earlier that must be part of the same history (exports only). Repeatable.",
)  # fmt: skip
@click.option("--witness", "witnesses", multiple=True, help="Public key of a witness that must cosign (exports only).")
@click.option("--quorum", type=click.IntRange(0), help="How many of the witnesses are enough; default: all.")
@click.option(
    "--processes", type=click.IntRange(1, _MAX_PROCESSES),
    help="How many processes read records (databases only); default: one for each core, of a large database.",
)  # fmt: skip
@json_option
def verify(
    path: Path | str,
    *,
    log_keys: tuple[str, ...],
    keys_dir: Path | None,
    lock_path: Path | str | None,
    seen: tuple[Path, ...],
    witnesses: tuple[str, ...],
    quorum: int | None,
    processes: int | None,
    as_json: bool,
) -> None:
    """Verify an audit database, a copy of one, or an export. Exit code 1 names the first record that does not hold."""
    pinned = pinned_keys(log_keys)
    if isinstance(path, str) or _is_sqlite(path):
        _verify_database(path, pinned, keys_dir, lock_path, processes, as_json=as_json)
    else:
        _verify_export(path, Pins.of(list(pinned.values()), witnesses, quorum), seen, as_json=as_json)


@click.command("reindex", epilog=example("bulkhead-audit reindex --db audit.db"))
@click.option("--db", "database", type=DATABASE, required=True)
@json_option
def reindex(database: Path | str, *, as_json: bool) -> None:
    """Rebuild the query index from the records.

    PostgreSQL: the platform may run on, and the index stays whole meanwhile. SQLite: the platform must be stopped, a
    second writer is refused.
    """
    store = open_store(database, busy_timeout_s=_BUSY_S)
    try:
        total, done, ticker = sum(head.size for head in store.heads()), 0, Ticker("indexed")
        while (reached := store.rebuild_index(done, _INDEX_CHUNK)) > done:
            done = reached
            ticker(done, max(total, done))
    finally:
        store.close()
    emit({"indexed": done}, as_json=as_json, text=f"Indexed {done:,} records.")


def _verify_database(
    path: Path | str,
    pinned: dict[str, str],
    keys_dir: Path | None,
    lock_path: Path | str | None,
    processes: int | None,
    *,
    as_json: bool,
) -> None:
    with reading(path) as reader:
        vkeys = with_directory(pinned, keys_dir, reader.logs())
        locked = None if lock_path is None else _read_lock(lock_path, reader)
        if processes is None:
            large = sum(head.size for head in reader.heads()) >= _LARGE
            processes = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES) if large else 1
        report = verify_database(reader, vkeys=vkeys, locked=locked, progress=Ticker("verified"), processes=processes)
    lines = [f"Verified {report.records:,} records in {report.logs:,} logs and {report.commits:,} commits."]
    lines.append(f"Checkpoints: {report.checkpoints:,}, signatures: {report.signatures:,}, index: {report.indexed:,}.")
    if report.signatures < report.checkpoints:
        lines.append("Signatures not checked for every checkpoint: give --log-key or --keys.")
    if not report.lock_checked:
        lines.append("Not compared with the lock store: give --lock. An older copy would look the same.")
    emit(report, as_json=as_json, text="\n".join(lines))


def _verify_export(path: Path, pins: Pins, seen: tuple[Path, ...], *, as_json: bool) -> None:
    if not pins.vkeys:
        raise ConfigError("an export is verified against the keys of its logs: give --log-key")
    ticker = Ticker("verified")
    notes = [read_note(note) for note in seen]
    with path.open("rb") as file:
        found = verify_export(
            file,
            vkeys=pins.vkeys,
            seen=notes,
            progress=lambda done: ticker(done, 0),
            witnesses=pins.witnesses,
            quorum=pins.quorum,
        )
    lines = [
        f"{log.origin}: {log.records:,} records from {log.first:,} on, covered by a signed checkpoint of size "
        f"{log.checkpoint.size:,}."
        for log in found.logs
    ]
    emit(found, as_json=as_json, text="\n".join([f"Verified {found.records:,} records.", *lines]))


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _read_lock(path: Path | str, reader: SqlAuditReader) -> LockState:
    lock: LockStore
    if isinstance(path, Path):
        lock = FileLockStore(path)
    else:
        origin = next((info.origin for info in reader.logs() if info.tenant is None), "")
        lock = SqlLockStore(path, name=origin.partition("/")[0].removeprefix("audit."), limit_s=_BUSY_S)
    lock.open(create=False)
    try:
        return lock.read()
    finally:
        lock.close()
