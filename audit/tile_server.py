"""Serves logs as C2SP tlog-tiles over HTTP, from a database or a copy of one. Reads only.

A log's files stand under its origin's path: ``audit.example/platform/1`` is served at ``/platform/1/``. Tiles and
entries never change and may be kept by any cache; the checkpoint is the newest that was signed (for the platform's
log, where witnesses are required, the newest that their quorum cosigned).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from audit.tiling import LogTiles
from bulkhead.errors import AuditUnavailableError, BulkheadError, NotFoundError
from bulkhead.transparency.tiles import CHECKPOINT_PATH

__all__ = ["prefix_of", "tile_application"]

_FOREVER: Final = "public, max-age=31536000, immutable"
_BRIEFLY: Final = "public, max-age=1"


def prefix_of(origin: str) -> str:
    """Return the URL path under which a log is served: its origin without the host part."""
    return origin.partition("/")[2]


def tile_application(logs: Callable[[], Mapping[str, LogTiles]]) -> web.Application:
    """Return the web application.

    Args:
        logs: returns the served logs by URL path; asked, off the event loop, for each request.
    """
    application = web.Application()
    application.router.add_get("/{path:.+}", _handler(logs))
    return application


def _handler(logs: Callable[[], Mapping[str, LogTiles]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    def find(path: str) -> bytes:
        for prefix, tiles in logs().items():
            if path.startswith(f"{prefix}/"):
                return tiles.get(path.removeprefix(f"{prefix}/"))
        raise NotFoundError("there is no such log")

    async def handle(request: web.Request) -> web.Response:
        path = request.match_info["path"]
        try:
            data = await asyncio.to_thread(find, path)
        except NotFoundError as error:
            return web.Response(status=404, text=f"{error.message}\n")
        except AuditUnavailableError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        except BulkheadError as error:  # damaged data is told, never served
            return web.Response(status=500, text=f"{error.code}: {error.message}\n")
        if path.endswith(f"/{CHECKPOINT_PATH}"):
            return web.Response(text=data.decode("utf-8"), headers={"Cache-Control": _BRIEFLY})
        response = web.Response(body=data, content_type="application/octet-stream")
        response.headers["Cache-Control"] = _FOREVER
        if "/tile/entries/" in path:
            response.enable_compression()
        return response

    return handle
