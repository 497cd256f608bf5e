"""One end of a relayed connection, as asyncio calls it: bytes go from callback to callback, with no task between.

Collecting (until :meth:`Side.join`) -> passing on -> ended, in order or not. A side that is joined passes on what it
gets to its peer, and stops reading while the peer's kernel takes nothing; end of file is passed on as such and leaves
the other direction open.

A worker says one thing to each of its streams after each step of its engine, in a write each. What comes close behind
something else is therefore left to gather for a moment and passes on in one piece: every reader down the way wakes up
once instead of once for every stream. What comes alone, a first token say, passes at once.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

__all__ = ["Side"]

COPY_BYTES: Final = 65_536  # unsent bytes at which the other side is read no further
CLOSE_S: Final = 0.001  # what comes within this of something else is one of several; a single stream's steps take more


class Side(asyncio.BufferedProtocol):
    """One end.

    Args:
        buffer: what is received passes through; all sides of one event loop may share it, since each read is passed on
            before the next one begins.
        most: bytes to collect before it is read no further.
        stall_timeout_s: for its reader to take bytes that wait.
        gather_s: how long what comes close behind something else may gather; 0 passes everything on at once.
        connected: told when it is connected.

    Attributes:
        collected: what came before it was joined.
        finished: whether it has said that it sends no more.
        last_s: when a byte last came, on the event loop's clock.
        ended: done when the connection can relay no more; true if both sides have ended in order.
    """

    def __init__(
        self,
        *,
        buffer: memoryview,
        most: int,
        stall_timeout_s: float,
        gather_s: float = 0.0,
        connected: "Callable[[Side], None] | None" = None,
    ) -> None:
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._most = most
        self._stall_timeout_s = stall_timeout_s
        self._gather_s = gather_s
        self._held = False  # by the peer, whose kernel takes nothing
        self._gathering: asyncio.TimerHandle | None = None
        self._connected = connected
        self._peer: Side | None = None
        self.finished = False
        self._changed = asyncio.Event()
        self._lost = asyncio.Event()
        self._stall: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.collected = bytearray()
        self.last_s = self._loop.time()
        self.ended: asyncio.Future[bool] = self._loop.create_future()

    async def more(self, than: int) -> bool:
        """Wait until more than so many bytes are collected; false if none will come."""
        while len(self.collected) <= than:
            if self.finished or self._lost.is_set():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def join(self, peer: "Side") -> None:
        """Pass on what was collected and whatever comes, both ways."""
        peer.ended = self.ended
        self.go_on()  # before the writes below, which may find that the other side takes no more
        for side, other in ((self, peer), (peer, self)):
            side.pass_on_to(other)

    def pass_on_to(self, peer: "Side") -> None:
        """Pass on to ``peer`` what was collected and whatever comes."""
        self._peer = peer
        peer.write(bytes(self.collected))
        self.collected.clear()
        if self.finished:
            self._pass_end(peer)
        if self._lost.is_set():
            self._end(in_order=False)

    def hold(self) -> None:
        """Read no further for the time being."""
        self._held = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        self._held = False
        if self._transport is not None and not self._transport.is_closing() and self._gathering is None:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send to this end's peer on the wire, unless it is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """Send the end of file to this end's peer on the wire, unless it is gone."""
        if self._transport is not None and not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    async def flush(self) -> None:
        """Close when everything is sent, and return then."""
        if self._transport is not None:
            self._transport.close()
            await self._lost.wait()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # What follows is called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=COPY_BYTES)
        if self._connected is not None:
            self._connected(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """See :class:`asyncio.BufferedProtocol`."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        before_s, self.last_s = self.last_s, self._loop.time()
        if self._peer is not None:
            self._peer.write(bytes(self._buffer[:nbytes]))
            if self.last_s - before_s < CLOSE_S and self._gather_s and nbytes < len(self._buffer) // 2:
                self._gather()
            return
        self.collected += self._buffer[:nbytes]
        self._changed.set()
        if len(self.collected) >= self._most:
            self.hold()

    def eof_received(self) -> bool:
        """See :class:`asyncio.BufferedProtocol`; the other direction stays open."""
        self.finished = True
        self._changed.set()
        if self._peer is not None:
            self._pass_end(self._peer)
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._lost.set()
        self._changed.set()
        for timer in (self._stall, self._gathering):
            if timer is not None:
                timer.cancel()
        self._end(in_order=False)

    def pause_writing(self) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._stall = self._loop.call_later(self._stall_timeout_s, lambda: self._end(in_order=False))
        if self._peer is not None:
            self._peer.hold()

    def resume_writing(self) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        if self._stall is not None:
            self._stall.cancel()
        if self._peer is not None:
            self._peer.go_on()

    def _gather(self) -> None:
        if self._gathering is None and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._gathering = self._loop.call_later(self._gather_s, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.last_s = self._loop.time()  # what gathered meanwhile came close behind as well
        if not self._held:
            self.go_on()

    def _pass_end(self, peer: "Side") -> None:
        peer.write_eof()
        if peer.finished:
            self._end(in_order=True)

    def _end(self, *, in_order: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(in_order)
