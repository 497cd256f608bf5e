"""A deadline that measures the peer, not this process.

When thousands of calls arrive at once, one pass of the event loop can take longer than a whole deadline. A reply that
was in time then still waits in the socket's buffer while the timer fires. Where the loop was late, the reply gets a
little more time to be read; a peer that is slow does not.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["within"]

T = TypeVar("T")
_LATE_S: Final = 0.1  # a timer that fires later than this tells of a busy loop
_GRACE_S: Final = 0.4  # a few passes of a busy loop


async def within(work: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
    """Return what ``work`` returns, or end it after ``timeout_s``.

    Raises:
        TimeoutError: it took longer.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done() and loop.time() - start > timeout_s + _LATE_S:
            await asyncio.wait({task}, timeout=_GRACE_S)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
