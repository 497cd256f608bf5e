import os

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bulkhead.errors import InternalError
from data_plane.engine.blocks import BlockPool
from data_plane.engine.scheduler import Scheduler
from data_plane.engine.sequence import Sequence, SequenceState

BLOCK_TOKENS = 4
MAX_CONTEXT = 40
TOTAL_BLOCKS = 14  # one context takes 10
MAX_RUNNING = 5
STEP_TOKENS = 12


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, cancellations and steps in any order, with memory for little more than one context."""

    def __init__(self) -> None:
        super().__init__()
        self.scrubbed: list[int] = []
        self.pool = BlockPool(total=TOTAL_BLOCKS, scrub=self.scrubbed.extend)
        self.scheduler = Scheduler(
            pool=self.pool, block_tokens=BLOCK_TOKENS, max_running=MAX_RUNNING, step_tokens=STEP_TOKENS
        )
        self.live: list[Sequence] = []
        self.produced: dict[int, list[int]] = {}

    @rule(prompt=st.integers(1, MAX_CONTEXT - 1), answer=st.integers(1, MAX_CONTEXT))
    def arrive(self, prompt: int, answer: int) -> None:
        """Add a sequence that fits the context."""
        tokens = list(range(prompt))
        most = min(answer, MAX_CONTEXT - prompt)
        sequence = Sequence(request_id="r", tokens=tokens, prompt_tokens=prompt, max_tokens=most)
        self.scheduler.add(sequence)
        self.live.append(sequence)
        self.produced[id(sequence)] = []

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """End any sequence, waiting or running."""
        sequence = data.draw(st.sampled_from(self.live))
        self.end(sequence)

    @rule()
    def step(self) -> None:
        """Plan and compute one step: within budget, in order, with memory for what is planned."""
        chunks = self.scheduler.schedule()
        assert bool(chunks) == bool(self.live)  # never idle while there is work
        assert sum(chunk.count for chunk in chunks) <= STEP_TOKENS
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks) <= MAX_RUNNING
        arrivals = [chunk.sequence.arrival for chunk in chunks]
        waiting = [sequence.arrival for sequence in self.live if sequence.state is SequenceState.WAITING]
        assert arrivals == sorted(arrivals)
        assert not arrivals or not waiting or max(arrivals) < min(waiting)  # nobody is overtaken
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.count
            assert chunk.count >= 1
            assert chunk.start == sequence.computed
            assert len(sequence.blocks) * BLOCK_TOKENS >= end
            assert chunk.samples is (end == len(sequence.tokens))
        for chunk in chunks:
            token = len(chunk.sequence.tokens) if chunk.samples else None
            self.scheduler.computed(chunk, token)
            if token is not None:
                self.produced[id(chunk.sequence)].append(token)
                if chunk.sequence.completion_tokens == chunk.sequence.max_tokens:
                    self.end(chunk.sequence)

    def end(self, sequence: Sequence) -> None:
        """End a sequence: its blocks are scrubbed, its tokens are those produced."""
        held = list(sequence.blocks)
        self.scrubbed.clear()
        self.scheduler.end(sequence)
        self.scheduler.end(sequence)  # a second time does nothing
        assert self.scrubbed == held
        assert sequence.tokens[sequence.prompt_tokens :] == self.produced[id(sequence)]
        self.live.remove(sequence)

    @invariant()
    def no_block_is_shared_or_lost(self) -> None:
        """Each block belongs to one sequence or is free."""
        held = [block for sequence in self.live for block in sequence.blocks]
        assert len(held) == len(set(held)) == self.pool.used
        assert self.pool.used + self.pool.free == TOTAL_BLOCKS
        assert all(not s.blocks and not s.computed for s in self.live if s.state is SequenceState.WAITING)

    @invariant()
    def every_sequence_is_somewhere(self) -> None:
        """The scheduler counts all that have not ended."""
        assert self.scheduler.running + self.scheduler.waiting == len(self.live)

    def teardown(self) -> None:
        """Whatever happened, all that is left ends in bounded time: none starves."""
        bound = 10 * sum(len(s.tokens) + s.max_tokens for s in self.live) + 1
        for _ in range(bound):
            if not self.live:
                return
            self.step()
        assert not self.live


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize="CI" in os.environ
)


def make(total: int = 10) -> Scheduler:
    pool = BlockPool(total=total, scrub=lambda _: None)
    return Scheduler(pool=pool, block_tokens=4, max_running=4, step_tokens=8)


def sequence(tokens: int) -> Sequence:
    return Sequence(request_id="r", tokens=[0] * tokens, prompt_tokens=tokens, max_tokens=8)


def test_a_long_prompt_is_cut_into_chunks_beside_decoding_ones() -> None:
    """Decoding goes on while a long prompt takes what is left of each step."""
    scheduler = make()
    short, long = sequence(3), sequence(20)
    scheduler.add(short)
    for chunk in scheduler.schedule():
        scheduler.computed(chunk, 1)
    scheduler.add(long)
    spans = []
    for _ in range(4):
        chunks = scheduler.schedule()
        spans.append([(chunk.start, chunk.count, chunk.samples) for chunk in chunks])
        for chunk in chunks:
            scheduler.computed(chunk, 1 if chunk.samples else None)
    assert spans == [
        [(3, 1, True), (0, 7, False)],
        [(4, 1, True), (7, 7, False)],
        [(5, 1, True), (14, 6, True)],
        [(6, 1, True), (20, 1, True)],
    ]


def test_out_of_memory_the_latest_arrival_gives_way_and_starts_again() -> None:
    """The earlier sequence takes the later one's blocks; the later one keeps its tokens and computes them anew."""
    scheduler = make(total=4)
    first, second = sequence(4), sequence(4)
    first.max_tokens = second.max_tokens = 12
    scheduler.add(first)
    scheduler.add(second)
    while not second.preemptions:
        for chunk in scheduler.schedule():
            scheduler.computed(chunk, 9 if chunk.samples else None)
    assert first.preemptions == 0
    assert second.state is SequenceState.WAITING
    kept = list(second.tokens)
    scheduler.end(first)
    (chunk,) = scheduler.schedule()
    assert chunk.sequence is second
    assert chunk.start == 0
    assert second.tokens == kept


def test_a_token_for_a_chunk_that_does_not_sample_is_a_defect() -> None:
    """A token may come only with the chunk that reaches a sequence's end."""
    scheduler = make()
    scheduler.add(sequence(20))
    (chunk,) = scheduler.schedule()
    assert not chunk.samples
    with pytest.raises(InternalError):
        scheduler.computed(chunk, 5)
