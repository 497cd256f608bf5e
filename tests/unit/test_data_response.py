"""Pacing of responses: what leaves when, under each padding mode."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pytest

from bulkhead.errors import AuditLeaseError, QueueFullError, TicketRevokedError
from bulkhead.protocol.client import ClientEvent, ClientRequest, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import Delta, EmbedResult, End, Failure, Usage
from bulkhead.protocol.receipts import ReceiptStatus
from bulkhead.sealing import PaddingMode
from data_plane.session import response as response_module
from data_plane.session.answer import AnswerBuffer, DeltaLimits, Outcome
from data_plane.session.response import MIN_TICKS, Response, SealedPart
from tests.simulator.sealed_world import NOW_S, World

TICK_S = 0.004
STRICT_WIRE_BYTES = 1_536 + 17


class Desk:
    """Makes receipts durable once its gate is open, or not."""

    def __init__(self) -> None:
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.statuses: list[ReceiptStatus] = []

    async def record(self, _signed: Any, *, status: ReceiptStatus, **_: Any) -> None:
        """Take a receipt."""
        await self.gate.wait()
        self.statuses.append(status)
        if self.fails:
            raise AuditLeaseError("no")


@dataclass
class Wire:
    """One response, what an observer saw of it and what the client read."""

    response: Response
    request: ClientRequest
    desk: Desk
    sizes: list[list[int]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    events: list[ClientEvent] = field(default_factory=list)

    async def read(self, parts: AsyncIterator[SealedPart] | None = None) -> None:
        """Read to the end."""
        async for part in parts or self.response.parts():
            self.take(part)

    def take(self, part: SealedPart) -> None:
        """Read one message."""
        if part.worker_random:
            self.request.accept(part.worker_random)
        self.sizes.append([len(chunk) for chunk in part.chunks])
        self.times_s.append(asyncio.get_running_loop().time())
        opened = (self.request.receive(chunk) for chunk in part.chunks)
        self.events.extend(event for event in opened if event is not None)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def wire(padding: PaddingMode) -> Wire:
    world, desk = World(padding=padding), Desk()
    request = world.client().begin(Method.GENERATE, b"{}", now_s=NOW_S)
    served = world.server.open(request.envelope, now_s=NOW_S)
    for chunk in request.chunks:
        served.receive(chunk)
    response = Response(request=served, desk=desk, wall_s=lambda: NOW_S, background=asyncio.create_task)  # type: ignore[arg-type]
    return Wire(response, request, desk)


async def say(to: Wire, *steps: str | float | Outcome | EmbedResult) -> None:
    """Speak for the engine: texts of one token, pauses in seconds, the outcome."""
    for step in steps:
        if isinstance(step, str):
            to.response.completion_tokens += 1
            await to.response.buffer.put(Delta(text=step, tokens=1))
        elif isinstance(step, EmbedResult):
            await to.response.buffer.put(step)
        elif isinstance(step, float):
            await asyncio.sleep(step)
        else:
            to.response.buffer.close(replace(step, usage=to.response.usage) if isinstance(step, End) else step)


END = End(finish_reason="stop", usage=Usage())


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_module, "TICK_S", TICK_S)


@pytest.mark.parametrize(
    "steps",
    [("a", END), ("x" * 5_000, END), (0.02, "a", 0.02, "b", END), (END,), (QueueFullError("full"),)],
    ids=["short", "long", "slow", "empty", "error"],
)
async def test_strict_responses_look_alike(steps: tuple[Any, ...]) -> None:
    """Short, long within the same doubling, slow, empty and failed: one chunk of one size to each of 16 or 32 ticks."""
    made = wire(PaddingMode.STRICT)
    begun_s = asyncio.get_running_loop().time()
    await asyncio.gather(made.read(), say(made, *steps))
    expected = 32 if any(isinstance(step, str) and len(step) > 240 * 14 for step in steps) else MIN_TICKS
    assert made.sizes == [[STRICT_WIRE_BYTES]] * expected
    assert made.request.complete
    assert made.text == "".join(step for step in steps if isinstance(step, str))
    assert made.times_s[-1] - begun_s >= (expected - 1.5) * TICK_S  # the first may come late, none comes early


async def test_strict_responses_end_at_a_power_of_two() -> None:
    """A receipt that becomes durable after the sixteenth tick is released at the thirty-second."""
    made = wire(PaddingMode.STRICT)
    made.desk.gate.clear()
    await say(made, "a", END)
    async for part in made.response.parts():
        made.take(part)
        if len(made.sizes) == 18:
            made.desk.gate.set()
    assert len(made.sizes) == 32
    assert made.desk.statuses == [ReceiptStatus.OK]


async def test_strict_padding_sends_at_once_and_before_the_first_token() -> None:
    """The first message leaves when the request is whole, so that its time tells nothing of the prompt."""
    made = wire(PaddingMode.STRICT)
    parts = made.response.parts()
    made.take(await asyncio.wait_for(anext(parts), 1))
    assert made.events == []
    await say(made, "late", END)
    await made.read(parts)
    assert made.text == "late"


async def test_a_slow_reader_of_ticks_gets_no_burst() -> None:
    """Ticks that a reader missed are not made up for."""
    made = wire(PaddingMode.STRICT)
    parts = made.response.parts()
    made.take(await anext(parts))
    await asyncio.sleep(10 * TICK_S)
    made.take(await anext(parts))
    began = asyncio.get_running_loop().time()
    made.take(await anext(parts))
    made.take(await anext(parts))
    assert asyncio.get_running_loop().time() - began >= TICK_S
    await parts.aclose()


async def test_an_abort_ends_the_filling() -> None:
    """A revoked session's answer is not filled to its doubling."""
    made = wire(PaddingMode.STRICT)
    parts = made.response.parts()
    made.take(await anext(parts))
    made.response.abort(TicketRevokedError("revoked"))
    await made.read(parts)
    assert len(made.sizes) < MIN_TICKS
    assert isinstance(made.events[-1], Complete)
    assert isinstance(made.events[-2], Failure)


async def test_strict_response_without_a_durable_receipt_has_no_final_chunk() -> None:
    """A receipt that cannot be recorded cuts the stream, under filling too."""
    made = wire(PaddingMode.STRICT)
    made.desk.fails = True
    with pytest.raises(AuditLeaseError):
        await asyncio.gather(made.read(), say(made, "a", END))
    assert not made.request.complete


async def test_strict_embeddings_take_a_tick_each() -> None:
    """A vector that does not fit the smallest chunk takes the next size, which only the model decides."""
    made = wire(PaddingMode.STRICT)
    vectors = [EmbedResult(index=index, vector=(0.5,) * 600) for index in range(3)]
    await asyncio.gather(made.read(), say(made, *vectors, END))
    assert {size for (size,) in made.sizes} == {STRICT_WIRE_BYTES, 4_096 + 17}
    assert [event for event in made.events if isinstance(event, EmbedResult)] == vectors


async def test_default_padding_lets_tokens_gather() -> None:
    """The first token leaves at once, those of the next 25 ms in one message, eight to a chunk; the end is not held."""
    made = wire(PaddingMode.DEFAULT)
    await asyncio.gather(made.read(), say(made, "a", 0.005, *"bcdefghijkl", 0.005, END))
    assert made.sizes == [[256 + 17], [256 + 17] * 2, [256 + 17, 1_536 + 17]]
    assert [event.tokens for event in made.events if isinstance(event, Delta)] == [1, 8, 3]
    assert made.times_s[-1] - made.times_s[0] < 10 * response_module.GATHER_S


async def test_an_error_looks_like_a_short_success() -> None:
    """Under default padding an error record takes the chunk that an end record takes, and the receipt one more."""
    failed, ended = wire(PaddingMode.DEFAULT), wire(PaddingMode.DEFAULT)
    await asyncio.gather(failed.read(), say(failed, QueueFullError("the worker has 64 requests in flight")))
    await asyncio.gather(ended.read(), say(ended, END))
    assert sorted(chain(*failed.sizes)) == sorted(chain(*ended.sizes))


async def test_no_padding_sends_each_token_as_it_comes() -> None:
    """Mode off waits for nothing."""
    made = wire(PaddingMode.OFF)
    await asyncio.gather(made.read(), say(made, "a", 0.005, "bc", 0.005, "def", 0.005, END))
    assert len(made.sizes) == 4
    assert [event.text for event in made.events if isinstance(event, Delta)] == ["a", "bc", "def"]


@pytest.mark.parametrize("one_by_one", [True, False])
async def test_a_buffer_that_was_emptied_has_all_its_room_again(*, one_by_one: bool) -> None:
    """However many tokens went through, joined and cut, what is left behind is nothing."""
    buffer = AnswerBuffer(DeltaLimits(characters=10, tokens=8))
    texts = ["", "a", "bc", "x" * 25, "y" * 10]
    for turn in range(2_000):
        await asyncio.wait_for(buffer.put(Delta(text=texts[turn % 5], tokens=1)), 1)
        if turn % 7 == 6:
            if not one_by_one:
                await buffer.take()
            while one_by_one and buffer.take_one()[0] is not None:
                pass
            assert buffer._size == 0


async def test_joining_and_cutting_lose_nothing() -> None:
    """The records taken hold all texts in order, all tokens once, and each is within the limits."""
    buffer = AnswerBuffer(DeltaLimits(characters=10, tokens=3))
    texts = ["", "a", "bc", "x" * 25, "y" * 10, "z" * 11, "end"]
    for text in texts:
        await buffer.put(Delta(text=text, tokens=1))
    records, _ = await buffer.take()
    assert "".join(record.text for record in records) == "".join(texts)
    assert sum(record.tokens for record in records) == len(texts)
    assert all(len(record.text) <= 10 and record.tokens <= 3 for record in records)
