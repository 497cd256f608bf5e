"""One end of a relayed connection: what passes at once, and what gathers first."""

import asyncio

import pytest

from data_plane.ingress.side import CLOSE_S, Side

GATHER_S = 0.002


class Wire(asyncio.Transport):
    """Takes down what is written, and whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.is_read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take a piece."""
        self.sent.append(bytes(data))

    def pause_reading(self) -> None:
        """Read no further."""
        self.is_read = False

    def resume_reading(self) -> None:
        """Read on."""
        self.is_read = True

    def is_closing(self) -> bool:
        """Never close."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Have no buffer."""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time that it is."""
        return self.now_s


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


class Relay:
    """A worker's side joined to a client's; :meth:`say` is what the worker says."""

    def __init__(self, *, gather_s: float = GATHER_S) -> None:
        self._buffer = memoryview(bytearray(64))
        self.client, self.worker = Wire(), Wire()
        client, self.side = self._side(0.0), self._side(gather_s)
        client.connection_made(self.client)
        self.side.connection_made(self.worker)
        client.join(self.side)
        self.client.sent.clear()

    def _side(self, gather_s: float) -> Side:
        return Side(buffer=self._buffer, most=64, stall_timeout_s=9.0, gather_s=gather_s)

    def say(self, data: bytes) -> None:
        """Say ``data`` to the client."""
        self._buffer[: len(data)] = data
        self.side.buffer_updated(len(data))


def _gathering(clock: Clock, *, gather_s: float = GATHER_S) -> Relay:
    """Return a relay whose worker has just said two things, the second close behind the first."""
    relay = Relay(gather_s=gather_s)
    clock.now_s += 1.0
    relay.say(b"one")
    relay.say(b"two")
    return relay


async def _let_timers_run(clock: Clock) -> None:
    clock.now_s += GATHER_S
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_comes_alone_passes_and_more_is_read_at_once(clock: Clock) -> None:
    """Bytes with a pause before them are passed on at once, and the worker is read on."""
    relay = Relay()
    for piece in (b"one", b"two"):
        clock.now_s += CLOSE_S
        relay.say(piece)
        assert relay.worker.is_read
    assert relay.client.sent == [b"one", b"two"]


async def test_what_comes_close_behind_is_passed_on_and_the_next_gathers(clock: Clock) -> None:
    """After bytes close behind others the worker is not read until the time for gathering is over; none are held."""
    relay = _gathering(clock)
    assert relay.client.sent == [b"one", b"two"]
    assert not relay.worker.is_read
    await _let_timers_run(clock)
    assert relay.worker.is_read


async def test_what_has_gathered_may_be_followed_by_more_of_it(clock: Clock) -> None:
    """Bytes right after the time for gathering count as close behind, so a long burst passes in few pieces."""
    relay = _gathering(clock)
    await _let_timers_run(clock)
    relay.say(b"three")
    assert not relay.worker.is_read


async def test_a_full_buffer_is_no_reason_to_wait(clock: Clock) -> None:
    """A worker with much to say is read on: pieces of half the buffer and more do not gather."""
    relay = Relay()
    clock.now_s += 1.0
    relay.say(b"one")
    relay.say(bytes(32))
    assert relay.worker.is_read


async def test_a_client_that_takes_nothing_holds_the_worker_beyond_the_time_for_gathering(clock: Clock) -> None:
    """When the client's kernel is full, the end of gathering reads on only after the client takes bytes again."""
    relay = _gathering(clock)
    relay.side.hold()
    await _let_timers_run(clock)
    assert not relay.worker.is_read
    relay.side.go_on()
    assert relay.worker.is_read


async def test_a_client_that_takes_bytes_again_does_not_end_gathering(clock: Clock) -> None:
    """Bytes gather for their time, also where the client's kernel was full meanwhile."""
    relay = _gathering(clock)
    relay.side.hold()
    relay.side.go_on()
    assert not relay.worker.is_read
    await _let_timers_run(clock)
    assert relay.worker.is_read


async def test_the_side_of_a_client_does_not_gather(clock: Clock) -> None:
    """Without a time for gathering everything is read at once, as requests are."""
    relay = _gathering(clock, gather_s=0.0)
    assert relay.worker.is_read
