"""Running a small HTTP service from the command line."""

import asyncio
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click
from aiohttp import web

from bulkhead.errors import ConfigError

__all__ = ["listen_option", "serve"]

_DRAIN_S: Final = 2.0
Function = TypeVar("Function", bound=Callable[..., Any])


def listen_option(function: Function) -> Function:
    """Add ``--listen``, passed as ``address``."""
    return click.option(
        "--listen", "address", default="127.0.0.1:0", show_default=True, callback=_address, metavar="HOST:PORT",
        help="Where to listen; port 0 takes a free one, and the URL is printed.",
    )(function)  # fmt: skip


async def serve(
    application: web.Application, address: tuple[str, int], *, what: Callable[[], Iterable[str]] = lambda: ("/",)
) -> None:
    """Serve until SIGINT or SIGTERM; prints one URL per path of ``what`` once it listens.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_DRAIN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *address)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
        host, port = runner.addresses[0][:2]
        paths = await asyncio.to_thread(lambda: list(what()))
        shown = f"[{host}]" if ":" in host else host
        click.echo("\n".join(f"http://{shown}:{port}{path}" for path in paths))
        await stopped.wait()
    finally:
        await runner.cleanup()


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter("expected HOST:PORT")
    return host.strip("[]"), int(port)
