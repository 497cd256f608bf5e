"""One timer for all who wait for a commit."""

import asyncio

import pytest

from audit.log.deadlines import Deadlines
from bulkhead.errors import AuditUnavailableError


async def test_each_waits_as_long_as_allowed_and_no_longer():
    """Whoever is late gets the error that names its record; whoever was answered keeps the answer."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 0.05, lambda what: AuditUnavailableError(f"{what} is late"))
    futures = [loop.create_future() for _ in range(4)]
    for number, future in enumerate(futures[:3]):
        deadlines.watch(future, f"record {number}")
    futures[0].set_result("there")
    futures[1].cancel()
    with pytest.raises(AuditUnavailableError, match="record 2 is late"):
        await futures[2]
    assert futures[0].result() == "there"
    assert futures[1].cancelled()
    deadlines.watch(futures[3], "another")  # the timer is set again after it was not needed
    with pytest.raises(AuditUnavailableError, match="another is late"):
        await futures[3]


async def test_what_is_done_is_forgotten():
    """Futures that ended are not kept until their time is over."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 600.0, AuditUnavailableError)
    for _ in range(100):
        future = loop.create_future()
        deadlines.watch(future, "record")
        future.set_result(None)
    assert len(deadlines._waiting) == 1
