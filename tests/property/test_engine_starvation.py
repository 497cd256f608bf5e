"""Nobody starves while requests never stop to arrive, and memory is for little more than one of them."""

import random
from collections.abc import Callable

import pytest

from data_plane.engine import scheduler as planning
from data_plane.engine.blocks import BlockPool
from data_plane.engine.scheduler import MAX_OVERTAKEN, Scheduler
from data_plane.engine.sequence import Sequence, SequenceState

BLOCK_TOKENS = 4
MAX_CONTEXT = 40  # takes ten blocks
PROMPT_ROWS = 2  # of a chunk whose logits are wanted, which leaves room for others beside it

Arrivals = Callable[["World"], list[Sequence]]


def sequence(prompt: int, answer: int, *, priority: int, prompt_logits: bool = False, scope: bytes = b"") -> Sequence:
    return Sequence(
        request_id="r",
        tokens=[place % 7 for place in range(prompt)],
        prompt_tokens=prompt,
        max_tokens=min(answer, MAX_CONTEXT - prompt),
        priority=priority,
        prompt_logits=prompt_logits,
        scope=scope,
    )


class World:
    """A scheduler with scarce memory, and everything that lives in it."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.max_running = draw.randint(2, 4)
        self.scheduler = Scheduler(
            pool=BlockPool(total=draw.randint(10, 15), scrub=lambda _: None),
            block_tokens=BLOCK_TOKENS,
            max_running=self.max_running,
            step_tokens=self.max_running + draw.randint(PROMPT_ROWS, 8),
            short_prompt=draw.choice([0, 64]),
        )
        self.live: list[Sequence] = []
        self.bounds: dict[int, int] = {}  # by id of a live sequence: the step by which it has to have ended
        self.now = 0
        self.ended = 0
        self.preempted = 0

    def add(self, arrived: Sequence) -> None:
        """Take a sequence in; it may wait for what is there and for those that may overtake it, one after another."""
        before = len(self.live) + MAX_OVERTAKEN + self.max_running
        self.scheduler.add(arrived)
        self.live.append(arrived)
        self.bounds[id(arrived)] = self.now + MAX_CONTEXT * before

    def step(self) -> None:
        """Plan and compute one step, and hold every sequence to its bound."""
        for chunk in self.scheduler.schedule():
            one = chunk.sequence
            self.scheduler.computed(chunk, 7 if chunk.samples else None)
            if chunk.samples and one.completion_tokens == one.max_tokens:
                self.scheduler.end(one)
                self.live.remove(one)
                self.ended += 1
                self.preempted += one.preemptions > 0
        self.now += 1
        for one in self.live:
            assert self.now <= self.bounds[id(one)], f"starved: {one.preemptions} times preempted, {one.overtaken} late"


def any_time(world: World) -> list[Sequence]:
    """Return arrivals of every size and priority, so many that some always wait."""
    draw = world.draw
    return [
        sequence(
            draw.randint(1, MAX_CONTEXT - 1),
            draw.randint(1, MAX_CONTEXT),
            priority=draw.choice((-1, 0, 0, 1)),
            prompt_logits=draw.random() < 0.3,
            scope=draw.choice((b"", b"a")),
        )
        for _ in range(draw.randint(0, 10) - len(world.live))
    ]


def at_the_worst_time(world: World) -> list[Sequence]:
    """Return an arrival that goes first whenever one of a higher number has just begun, to take its memory away."""
    low = [one for one in world.live if one.priority == 1]
    if not low:
        return [sequence(world.draw.randint(16, 24), 16, priority=1, prompt_logits=world.draw.random() < 0.5)]
    if low[0].state is SequenceState.RUNNING and world.scheduler.running == 1 and not world.scheduler.waiting:
        return [sequence(4, 36, priority=0)]
    return []


@pytest.mark.parametrize("arrivals", [any_time, at_the_worst_time])
def test_every_request_ends_within_a_bound_of_what_was_before_it(
    monkeypatch: pytest.MonkeyPatch, arrivals: Arrivals
) -> None:
    """However many arrive later, of whatever priority: a preempted request is overtaken only so often."""
    monkeypatch.setattr(planning, "MAX_PROMPT_ROWS", PROMPT_ROWS)
    preempted = 0
    for seed in range(8):
        world = World(random.Random(seed))
        while world.now < 2_000:
            for arrived in arrivals(world):
                world.add(arrived)
            world.step()
        assert world.ended > 30
        preempted += world.preempted
    assert preempted > 30  # memory was scarce


def test_one_whose_memory_later_arrivals_take_comes_first_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower numbers may take a running request's memory before it has a token, but not for ever."""
    monkeypatch.setattr(planning, "MAX_PROMPT_ROWS", 1)
    pool = BlockPool(total=10, scrub=lambda _: None)
    scheduler = Scheduler(pool=pool, block_tokens=BLOCK_TOKENS, max_running=2, step_tokens=8)
    low = sequence(20, 20, priority=1, prompt_logits=True)
    scheduler.add(low)
    for _ in range(2 * MAX_OVERTAKEN * MAX_CONTEXT):
        if low.state is SequenceState.RUNNING and scheduler.running == 1:
            scheduler.add(sequence(4, 36, priority=0))
        for chunk in scheduler.schedule():
            scheduler.computed(chunk, 7 if chunk.samples else None)
            if chunk.samples and chunk.sequence.completion_tokens == chunk.sequence.max_tokens:
                scheduler.end(chunk.sequence)
        if low.state is SequenceState.ENDED:
            break
    assert low.state is SequenceState.ENDED
    assert low.preemptions == MAX_OVERTAKEN
