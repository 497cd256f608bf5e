"""The witness over HTTP: ``POST /add-checkpoint``."""

import asyncio

from aiohttp import web

from audit.witness.core import WitnessCore
from bulkhead.errors import AuditUnavailableError
from bulkhead.transparency.witnessing import MAX_REQUEST_BYTES

__all__ = ["witness_application"]


def witness_application(core: WitnessCore) -> web.Application:
    """Return the web application. Requests carry no authentication: only checkpoints of known logs are looked at."""

    async def add_checkpoint(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            answer = await asyncio.to_thread(core.add_checkpoint, body)
        except AuditUnavailableError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        return web.Response(status=answer.status, text=answer.body, content_type=answer.content_type)

    application = web.Application(client_max_size=MAX_REQUEST_BYTES)
    application.router.add_post("/add-checkpoint", add_checkpoint)
    return application
