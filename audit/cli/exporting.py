"""`export` and `vkeys`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import click

from audit.cli.options import Ticker, database_option, find_log, key_options, pinned_keys, reading, with_directory
from audit.export import export_log
from audit.keys import LogKeys
from audit.model import LogInfo
from audit.sql.store import SqlAuditReader
from bulkhead.cli.console import emit, emit_rows, example, json_option
from bulkhead.errors import ConfigError, NotFoundError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.export import ExportWriter

__all__ = ["export", "vkeys"]

_PARTIAL: Final = ".partial"


@click.command(
    "export",
    epilog=example(
        "bulkhead-audit export --db audit.db --tenant tenant_01h… --out acme.jsonl",
        "bulkhead-audit export --db audit.db --out everything.jsonl",
    ),
)
@database_option
@click.option("--tenant", default="", help="Tenant id, or 'platform'; default: all logs.")
@click.option("--log", "origin", default="", help="A log by its origin.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@key_options
@json_option
def export(
    database: Path,
    *,
    tenant: str,
    origin: str,
    out: Path,
    log_keys: tuple[str, ...],
    keys_dir: Path | None,
    as_json: bool,
) -> None:
    """Write logs as a self-contained export, each up to its latest signed checkpoint."""
    pinned = pinned_keys(log_keys)
    with reading(database) as reader:
        logs = reader.logs()
        known = with_directory(pinned, keys_dir, logs)
        chosen = find_log(logs, tenant=tenant, origin=origin)
        parts = [_signed(reader, log) for log in (logs if chosen is None else (chosen,))]
        with whole_file(out) as file:
            writer = ExportWriter(file)
            for log, size, note in parts:
                export_log(
                    reader,
                    writer,
                    info=log,
                    vkey=known.get(log.origin, ""),
                    size=size,
                    note=note,
                    progress=Ticker(f"exported from {log.origin}"),
                )
            writer.end()
    records = sum(size for _, size, _ in parts)
    emit(
        {"records": records, "logs": len(parts), "file": str(out)},
        as_json=as_json,
        text=f"Wrote {records:,} records to {out}.",
    )


@click.command("vkeys", epilog=example("bulkhead-audit vkeys --db audit.db --keys keys > vkeys.txt"))
@database_option
@click.option("--keys", "keys_dir", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@json_option
def vkeys(database: Path, *, keys_dir: Path, as_json: bool) -> None:
    """Print the public key of every log, one per line, for tenants and officers to pin."""
    keys = LogKeys.load(keys_dir)
    with reading(database) as reader:
        found = [keys.signer(log.origin).vkey for log in reader.logs()]
    if as_json:
        emit_rows(found, as_json=True, columns={}, empty="")
    else:
        click.echo("\n".join(found))


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside ``path`` that takes its place at the end: what has that name is whole, or is not there.

    Raises:
        ConfigError: it cannot be written.
    """
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            yield cast("BinaryIO", file)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _signed(reader: SqlAuditReader, log: LogInfo) -> tuple[LogInfo, int, str]:
    latest = reader.latest_checkpoint(log.log_id)
    if latest is None:
        raise NotFoundError(f"the database keeps no signed checkpoint of {log.origin}")
    size, note = latest
    Checkpoint.parse(note.partition("\n\n")[0] + "\n")
    return log, size, note
