import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bulkhead.errors import InternalError
from data_plane.engine.blocks import BlockPool
from data_plane.engine.lookup import Lookup
from data_plane.engine.scheduler import MAX_OVERTAKEN, Chunk, Scheduler
from data_plane.engine.sequence import Sequence, SequenceState

BLOCK_TOKENS = 4
MAX_CONTEXT = 40  # takes ten blocks


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, cancellations and steps in any order, with memory for one context up to some.

    Prompts are beginnings of one of two texts, in one of three scopes, so blocks are shared where they may be. What
    each block holds is followed: whose tokens, until it is scrubbed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # scope and tokens of each block that is not clear
        self.live: list[Sequence] = []
        self.produced: dict[int, list[int]] = {}
        self.ended = 0
        self.arrived = 0

    @initialize(
        total=st.integers(10, 40),
        max_running=st.integers(1, 6),
        more=st.integers(0, 40),
        guess_tokens=st.integers(0, 4),
        guess_running=st.integers(1, 6),
        short_prompt=st.integers(0, MAX_CONTEXT),
    )
    def begin(
        self, *, total: int, max_running: int, more: int, guess_tokens: int, guess_running: int, short_prompt: int
    ) -> None:
        """Choose the size of the memory, of the batch and of a step."""
        self.total, self.max_running, self.step_tokens = total, max_running, max_running + more
        self.guess_running = guess_running
        self.pool = BlockPool(total=total, scrub=self.scrub)
        self.scheduler = Scheduler(
            pool=self.pool,
            block_tokens=BLOCK_TOKENS,
            max_running=max_running,
            step_tokens=self.step_tokens,
            guess_tokens=guess_tokens,
            guess_running=guess_running,
            short_prompt=short_prompt,
        )

    def scrub(self, blocks: list[int]) -> None:
        """Follow what is cleared."""
        for block in blocks:
            self.held.pop(block, None)

    @rule(
        prompt=st.integers(1, MAX_CONTEXT - 1),
        answer=st.integers(1, MAX_CONTEXT),
        text=st.integers(0, 1),
        scope=st.sampled_from([b"", b"a", b"b"]),
        priority=st.integers(-1, 1),
        guessable=st.booleans(),
        logits=st.booleans(),
    )
    def arrive(
        self, *, prompt: int, answer: int, text: int, scope: bytes, priority: int, guessable: bool, logits: bool
    ) -> None:
        """Add a sequence that fits the context; its text repeats itself, so there is something to guess."""
        sequence = Sequence(
            request_id="r",
            tokens=[100 * text + place % 7 for place in range(prompt)],
            prompt_tokens=prompt,
            max_tokens=min(answer, MAX_CONTEXT - prompt),
            scope=scope,
            priority=priority,
            lookup=Lookup() if guessable else None,
            prompt_logits=logits,
        )
        self.scheduler.add(sequence)
        self.live.append(sequence)
        self.produced[id(sequence)] = []
        self.arrived += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """End any sequence, waiting or running."""
        self.end(data.draw(st.sampled_from(self.live)))

    @rule(right=st.integers(0, 3))
    def step(self, right: int = 0) -> None:
        """Plan and compute one step, in which up to ``right`` guesses prove right."""
        before = {id(sequence): len(sequence.blocks) for sequence in self.live}
        running = {id(sequence) for sequence in self.live if sequence.state is SequenceState.RUNNING}
        chunks = self.scheduler.schedule()
        assert bool(chunks) == bool(self.live)  # never idle while there is work
        assert sum(chunk.rows for chunk in chunks) <= self.step_tokens
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks) <= self.max_running
        if any(chunk.guesses for chunk in chunks):  # off while more run
            assert sum(id(chunk.sequence) in running for chunk in chunks) <= self.guess_running
        waiting = [sequence for sequence in self.live if sequence.state is SequenceState.WAITING]
        assert all(other.overtaken <= MAX_OVERTAKEN + self.max_running for other in waiting)
        for chunk in chunks:
            self.check_memory(chunk, before[id(chunk.sequence)])
        for chunk in chunks:
            self.compute(chunk, right)

    def check_memory(self, chunk: Chunk, known: int) -> None:
        """Blocks taken over hold the sequence's own tokens in its own scope; new ones are clear."""
        sequence, end = chunk.sequence, chunk.start + chunk.rows
        assert chunk.count >= 1
        assert not (sequence.prompt_logits and sequence.cached)  # each of its prompt's rows is computed
        assert chunk.start == sequence.computed
        assert len(sequence.blocks) * BLOCK_TOKENS >= end
        assert chunk.samples is (chunk.start + chunk.count == len(sequence.tokens))
        whole = sequence.computed // BLOCK_TOKENS
        for index, block in enumerate(sequence.blocks):
            if index < whole:
                own = tuple(sequence.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
                assert self.held[block] == (sequence.scope, own)
            elif index >= known and index * BLOCK_TOKENS >= sequence.computed:
                assert block not in self.held

    def compute(self, chunk: Chunk, right: int) -> None:
        """Write state and take tokens, as the engine does."""
        sequence = chunk.sequence
        tokens = [*sequence.tokens[: chunk.start + chunk.count], *chunk.guesses]
        for index in range(chunk.start // BLOCK_TOKENS, -(-len(tokens) // BLOCK_TOKENS)):
            own = tuple(tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
            self.held[sequence.blocks[index]] = (sequence.scope, own)
        self.take(chunk, (chunk.guesses or (7,))[0] if chunk.samples else None, first=True)
        for guess in range(min(right, len(chunk.guesses))):
            if sequence.state is SequenceState.ENDED:
                return
            self.take(chunk, chunk.guesses[guess + 1] if guess + 1 < len(chunk.guesses) else 8, first=False)

    def take(self, chunk: Chunk, token: int | None, *, first: bool) -> None:
        """Record one token, and end what has all it may have."""
        sequence = chunk.sequence
        if first:
            self.scheduler.computed(chunk, token)
        elif token is not None:
            self.scheduler.confirmed(chunk, token)
        if token is None:
            return
        self.produced[id(sequence)].append(token)
        if sequence.completion_tokens == sequence.max_tokens:
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """End a sequence, once: its tokens are those produced, and what no name keeps is scrubbed."""
        held = list(sequence.blocks)
        self.scheduler.end(sequence)
        self.scheduler.end(sequence)  # a second time does nothing
        assert not sequence.scope or sequence.tokens[sequence.prompt_tokens :] == self.produced[id(sequence)]
        assert sequence.completion_tokens <= sequence.max_tokens
        self.live.remove(sequence)
        self.ended += 1
        if not sequence.scope:
            assert not self.held.keys() & set(held)

    @invariant()
    def no_block_is_lost_or_shared_across_scopes(self) -> None:
        """Each block is free or held by sequences of one scope that agree on its place and tokens."""
        holders: dict[int, list[tuple[int, Sequence]]] = {}
        for sequence in self.live:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            for index, block in enumerate(sequence.blocks):
                holders.setdefault(block, []).append((index, sequence))
        assert len(holders) == self.pool.used
        assert self.pool.used + self.pool.free == self.total
        for owners in holders.values():
            if len(owners) > 1:
                ((index, scope),) = {(index, sequence.scope) for index, sequence in owners}
                assert scope
                span = slice(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
                assert len({tuple(sequence.tokens[span]) for _, sequence in owners}) == 1
        assert all(not s.blocks and not s.computed for s in self.live if s.state is SequenceState.WAITING)

    @invariant()
    def every_sequence_is_somewhere(self) -> None:
        """The scheduler counts all that have not ended, and each ends once."""
        assert self.scheduler.running + self.scheduler.waiting == len(self.live)
        assert self.arrived == self.ended + len(self.live)

    def teardown(self) -> None:
        """Whatever happened, all that is left ends in bounded time: none starves."""
        bound = 10 * sum(len(s.tokens) + s.max_tokens for s in self.live) + 1
        for _ in range(bound):
            if not self.live:
                break
            self.step()
        assert not self.live
        self.pool.forget()
        assert not self.held  # nothing of anybody is left


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.long
def test_two_thousand_histories_hold_the_same() -> None:
    """The full count: longer histories of arrivals, cancellations and steps, none of which breaks a property."""
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=2000, stateful_step_count=60, deadline=None)
    )


def make(total: int = 10, short_prompt: int = 64) -> Scheduler:
    pool = BlockPool(total=total, scrub=lambda _: None)
    return Scheduler(pool=pool, block_tokens=4, max_running=4, step_tokens=8, short_prompt=short_prompt)


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


def test_a_long_prompt_does_not_begin_in_a_step_that_ends_another() -> None:
    """The other's first token would come later by all its rows; a short prompt costs little, so it joins."""
    scheduler = make(short_prompt=4)
    for tokens in (9, 5, 4):
        scheduler.add(sequence(tokens))
    plans = []
    for _ in range(4):
        chunks = scheduler.schedule()
        plans.append([(chunk.sequence.prompt_tokens, chunk.start, chunk.count) for chunk in chunks])
        for chunk in chunks:
            scheduler.computed(chunk, 1 if chunk.samples else None)
    assert plans == [
        [(9, 0, 8)],
        [(9, 8, 1)],
        [(9, 9, 1), (5, 0, 5), (4, 0, 2)],
        [(9, 10, 1), (5, 5, 1), (4, 2, 2)],
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


def test_a_sequence_joins_only_when_memory_holds_all_its_tokens() -> None:
    """Admission is by blocks: else it waits with nothing taken, and the smaller ones wait behind it."""
    pool = BlockPool(total=10, scrub=lambda _: None)
    scheduler = Scheduler(pool=pool, block_tokens=4, max_running=4, step_tokens=64)
    first, large, small = sequence(20), sequence(20), sequence(1)
    for item in (first, large, small):
        scheduler.add(item)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [first]
    assert (scheduler.running, scheduler.waiting, pool.used) == (1, 2, 5)
    assert (large.blocks, small.blocks) == ([], [])
    scheduler.end(first)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [large, small]


def test_planning_needs_no_torch() -> None:
    """The scheduler and what it stands on are plain Python."""
    code = "import sys, data_plane.engine.scheduler; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_a_token_for_a_chunk_that_does_not_sample_is_a_defect() -> None:
    """A token may come only with the chunk that reaches a sequence's end."""
    scheduler = make()
    scheduler.add(sequence(20))
    (chunk,) = scheduler.schedule()
    assert not chunk.samples
    with pytest.raises(InternalError):
        scheduler.computed(chunk, 5)


def test_lower_numbers_go_first_but_not_for_ever() -> None:
    """Of what waits, lower priority numbers join first, until later arrivals have overtaken one so often."""
    scheduler = Scheduler(pool=BlockPool(total=10, scrub=lambda _: None), block_tokens=4, max_running=1, step_tokens=8)
    low = sequence(3)
    low.priority = 1
    scheduler.add(low)
    served = 0
    for _ in range(MAX_OVERTAKEN + 5):
        scheduler.add(sequence(3))
        (chunk,) = scheduler.schedule()
        if chunk.sequence is low:
            break
        served += 1
        scheduler.end(chunk.sequence)
    assert served == MAX_OVERTAKEN


def test_a_prefix_is_computed_once_within_a_scope_and_never_shared_beyond() -> None:
    """A second sequence of the scope takes over whole blocks; another scope, and none, compute everything."""
    scheduler = make()
    first = scoped(b"a", 11)
    scheduler.add(first)
    run(scheduler)
    for scope, start in ((b"a", 8), (b"b", 0), (b"", 0)):
        again = scoped(scope, 11)
        scheduler.add(again)
        chunk = next(item for item in scheduler.schedule() if item.sequence is again)
        assert (chunk.start, again.cached) == (start, start)
        assert (set(again.blocks) & set(first.blocks) != set()) is (start > 0)
        scheduler.end(again)


def test_the_last_token_is_computed_even_when_all_its_blocks_are_there() -> None:
    """A prompt of whole blocks that is cached entirely still needs its last token's logits."""
    scheduler = make()
    first, again = scoped(b"a", 8), scoped(b"a", 8)
    scheduler.add(first)
    run(scheduler)
    scheduler.end(first)
    scheduler.add(again)
    (chunk,) = scheduler.schedule()
    assert (chunk.start, chunk.count, chunk.samples) == (4, 4, True)


def test_kept_blocks_give_way_to_new_work_oldest_first_and_clear() -> None:
    """What is only kept is scrubbed and handed out when nothing else is free, a prefix's end before its beginning."""
    scrubbed: list[int] = []
    pool = BlockPool(total=4, scrub=scrubbed.extend)
    scheduler = Scheduler(pool=pool, block_tokens=4, max_running=4, step_tokens=16)
    first = scoped(b"a", 12)
    scheduler.add(first)
    run(scheduler)
    blocks = list(first.blocks)
    scheduler.end(first)
    assert (pool.kept, pool.free) == (3, 4)
    scrubbed.clear()
    other = scoped(b"b", 7)
    scheduler.add(other)
    scheduler.schedule()
    assert scrubbed == [blocks[2]]
    again = scoped(b"a", 9)
    scheduler.end(other)
    scheduler.add(again)
    scheduler.schedule()
    assert again.cached == 8


def scoped(scope: bytes, tokens: int) -> Sequence:
    return Sequence(request_id="r", tokens=[*range(tokens)], prompt_tokens=tokens, max_tokens=8, scope=scope)


def run(scheduler: Scheduler) -> None:
    """Compute until every sequence has its first token."""
    for _ in range(4):
        chunks = scheduler.schedule()
        for chunk in chunks:
            scheduler.computed(chunk, 1 if chunk.samples else None)
        if all(chunk.samples for chunk in chunks):
            return
