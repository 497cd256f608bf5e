"""`tiles` and `serve-tiles`: logs as static files that other people's tools read."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from audit.cli.options import Ticker, database_option, find_log, reading
from audit.cli.serving import listen_option, serve
from audit.model import LogInfo
from audit.sql.store import SqlAuditReader
from audit.tile_server import prefix_of, tile_application
from audit.tiling import LogTiles, export_tiles
from bulkhead.cli.console import emit, example, json_option
from bulkhead.errors import NotFoundError

__all__ = ["serve_tiles", "tiles"]


def _selection(function: Any) -> Any:
    for option in (
        click.option("--cosigned", is_flag=True, help="Only up to checkpoints that a quorum of witnesses cosigned."),
        click.option("--log", "origin", default="", help="A log by its origin."),
        click.option("--tenant", default="", help="Tenant id, or 'platform' (the default)."),
    ):
        function = option(function)
    return database_option(function)


@click.command(
    "tiles",
    epilog=example(
        "bulkhead-audit tiles --db audit.db --out /srv/www/platform/1",
        "fsck --storage_url file:///srv/www/platform/1 --public_key vkey.txt --ui=false -N 16",
    ),
)
@_selection
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write.")
@json_option
def tiles(database: Path, *, tenant: str, origin: str, cosigned: bool, out: Path, as_json: bool) -> None:
    """Write one log as C2SP tlog-tiles, up to its latest signed checkpoint. Every record and tile is checked."""
    with reading(database) as reader:
        log = _chosen(reader, tenant, origin)
        note = _note(reader, log, cosigned=cosigned)
        size = export_tiles(reader, log, note, out, progress=Ticker(f"written from {log.origin}"))
    emit(
        {"log": log.origin, "entries": size, "directory": str(out)},
        as_json=as_json,
        text=f"Wrote {size:,} entries of {log.origin} to {out}.",
    )


@click.command(
    "serve-tiles",
    epilog=example(
        "bulkhead-audit serve-tiles --db audit.db --listen 127.0.0.1:8080",
        "curl http://127.0.0.1:8080/platform/1/checkpoint",
    ),
)
@_selection
@click.option("--all", "everything", is_flag=True, help="Every log, tenants' too: for a network that may read them.")
@listen_option
def serve_tiles(
    database: Path, *, tenant: str, origin: str, cosigned: bool, everything: bool, address: tuple[str, int]
) -> None:
    """Serve a log (by default the platform's) as C2SP tlog-tiles over HTTP, as it grows. Read-only, no access control.

    Prints the URL of each log, then serves until interrupted.
    """
    with reading(database) as reader:
        chosen = None if everything else _chosen(reader, tenant, origin)

        def logs() -> Mapping[str, LogTiles]:
            served: dict[str, LogTiles] = {}
            for log in reader.logs() if chosen is None else (chosen,):
                latest = reader.latest_checkpoint(log.log_id, cosigned=cosigned and log.tenant is None)
                if latest is not None:
                    served[prefix_of(log.origin)] = LogTiles(reader, log, latest[1])
            return served

        asyncio.run(serve(tile_application(logs), address, what=lambda: [f"/{prefix}/" for prefix in logs()]))


def _chosen(reader: SqlAuditReader, tenant: str, origin: str) -> LogInfo:
    log = find_log(reader.logs(), tenant=tenant or ("" if origin else "platform"), origin=origin)
    if log is None:
        raise NotFoundError("the database has no platform log yet")
    return log


def _note(reader: SqlAuditReader, log: LogInfo, *, cosigned: bool) -> str:
    latest = reader.latest_checkpoint(log.log_id, cosigned=cosigned)
    if latest is None:
        raise NotFoundError(f"the database keeps no {'cosigned' if cosigned else 'signed'} checkpoint of {log.origin}")
    return latest[1]
