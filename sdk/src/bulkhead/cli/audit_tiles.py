"""`bulkhead audit serve-tiles`: the own log, from an export, as static files that other people's tools read."""

import http.server
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from bulkhead.cli.console import emit, example, json_option, note
from bulkhead.cli.settings import settings_of
from bulkhead.errors import ConfigError, InvalidRequestError

__all__ = ["serve_tiles"]


@click.command(
    "serve-tiles",
    epilog=example(
        "bulkhead audit export log.jsonl && bulkhead audit serve-tiles log.jsonl --listen 127.0.0.1:8080",
        "bulkhead audit serve-tiles log.jsonl --out tiles/",
    ),
)
@click.argument("file", metavar="EXPORT", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--log-key", help="Pinned verifier key (vkey) of the log; default: the profile's log_vkey.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write the files there; serve nothing.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Where to serve; a loopback address.")
@json_option
@click.pass_context
def serve_tiles(
    ctx: click.Context, file: Path, *, log_key: str | None, out: Path | None, listen: str, as_json: bool
) -> None:
    """Verify EXPORT and serve its log as C2SP tlog-tiles on this machine, until interrupted; prints the URL.

    The operator serves a live log with `bulkhead-audit serve-tiles`.
    """
    vkey = log_key or settings_of(ctx).profile().log_vkey
    if vkey is None:
        raise ConfigError("no log key is pinned: give --log-key, or log_vkey in the profile")
    if out is not None:
        origin, size = _write(file, vkey, out)
        value = {"log": origin, "records": size, "directory": str(out)}
        emit(value, as_json=as_json, text=f"{origin}: {size} records in {out}")
        return
    host, _, port = listen.rpartition(":")
    if host not in {"127.0.0.1", "localhost", "[::1]"} or not port.isdigit():
        raise InvalidRequestError("--listen takes a loopback address and a port: a tenant's log is not public")
    with tempfile.TemporaryDirectory() as directory:
        origin, size = _write(file, vkey, Path(directory))
        handler = partial(_Files, directory=directory)
        with http.server.ThreadingHTTPServer((host.strip("[]"), int(port)), handler) as server:
            url = f"http://{host}:{server.server_address[1]}/"
            emit({"log": origin, "records": size, "url": url}, as_json=as_json, text=url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                note("ended")


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves the files; says nothing of requests, and lists no directory."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""

    def list_directory(self, path: Any) -> None:
        """Refuse: the format has no listings."""
        del path
        self.send_error(404)


def _write(file: Path, vkey: str, directory: Path) -> tuple[str, int]:
    from bulkhead.transparency.export_tiles import export_to_tiles

    try:
        with file.open("rb") as stream:
            return export_to_tiles(stream, vkey=vkey, directory=directory)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {file} or write {directory}: {error.strerror}") from error
