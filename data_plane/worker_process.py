"""The worker as a process: confined first, then connected to its agent."""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from data_plane.rpc.control_channel import AgentChannel
from data_plane.rpc.inference_server import InferenceServer
from data_plane.sandbox import SandboxPlan, confine
from data_plane.session.serving import RequestServer
from data_plane.session.worker import WorkerProgram
from service.tls import Identity

__all__ = ["run_worker"]

_log = structlog.get_logger(__name__)

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
HANG_S: Final = 60  # after the agent's end; a loop that hangs does not keep keys alive for longer


def run_worker(plan: SandboxPlan) -> int:
    """Confine this process, serve its agent, and return the exit status.

    Raises:
        ConfigError: a required confinement is not possible, or there is no agent at the other end.
        AgentUnavailableError: the agent has ended.
    """
    sandbox = confine(plan)
    return asyncio.run(_serve(plan, sandbox))


async def _listen(requests: RequestServer, *, identity: Callable[[], Identity], socket_path: Path) -> InferenceServer:
    gc.collect()
    gc.freeze()  # model and libraries stay: a collection that walked all of it would hold up a step and its streams
    return await InferenceServer.start(requests, identity=identity, socket_path=socket_path)


async def _serve(plan: SandboxPlan, sandbox: tuple[str, ...]) -> int:
    link = await AgentChannel.open(socket.socket(fileno=plan.keep_fd))
    program = WorkerProgram(link=link, listen=_listen, sandbox=sandbox, wall_s=time.time, monotonic_s=time.monotonic)
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        signal.alarm(HANG_S)  # its default action ends the process even if this loop hangs
        program.agent_lost()

    loop.add_signal_handler(signal.SIGTERM, orphaned)
    orderly = await program.run()
    _log.info("worker.ended", orderly=orderly)
    link.close()
    sys.stderr.flush()
    # A model that is being loaded cannot be interrupted, and the interpreter would wait for its thread.
    os._exit(EXIT_DONE if orderly else EXIT_FAILED)
