"""The native torch engine behind the port that workers use (:mod:`data_plane.inference.port`).

Importing this package imports neither torch nor transformers; :func:`open_engine` imports torch, in a thread.
"""

import asyncio

from data_plane.engine.config import EngineConfig
from data_plane.inference.port import Engine

__all__ = ["EngineConfig", "open_engine"]


async def open_engine(config: EngineConfig) -> Engine:
    """Load a model and start its engine thread; takes seconds (importing torch alone 5 to 9), off the event loop.

    Args:
        config: whose ``model_path`` is not trusted: no code from it runs, sizes and shapes are checked. Whether it is
            the model that was promised is the caller's check (``bulkhead.attestation.model_digest``).

    Raises:
        UnsupportedError: an architecture or format that this engine does not run; the message names it.
        InvalidRequestError: a model directory that is incomplete, corrupt or contradicts itself.
        ConfigError: limits that this model cannot be served with.
    """
    return await asyncio.to_thread(_open_native, config, asyncio.get_running_loop())


def _open_native(config: EngineConfig, loop: asyncio.AbstractEventLoop) -> Engine:
    from data_plane.engine.native import NativeEngine

    return NativeEngine.open(config=config, loop=loop)
