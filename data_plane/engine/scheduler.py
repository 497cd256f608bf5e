"""Which tokens the next step computes. Pure bookkeeping: no torch, no clock, no I/O.

States of a sequence and what moves it::

    WAITING --schedule: memory and a place--> RUNNING --end--> ENDED
       ^-------- schedule: preempted ------------'
    WAITING --end--> ENDED

Each call of :meth:`Scheduler.schedule` plans one step within ``step_tokens`` tokens:

1. Running sequences come first, in order of arrival. Each gets the tokens it still has to compute, one when decoding,
   as many as the step still has room for when its prompt is long (chunked prefill). Every running sequence has at least
   one token's room, because ``step_tokens`` is at least ``max_running``.
2. A sequence that needs a block when none is free takes the memory of the latest arrival, which is preempted: its
   blocks are given back, it waits again in its old rank, and later computes its tokens anew.
3. Waiting sequences join in order of arrival while a place is free and memory holds their tokens so far. None overtakes
   an earlier one.

The earliest sequence is never preempted for another and always fits, since the pool holds a whole context: so it ends,
and every other in turn becomes the earliest. None starves.
"""

import bisect
from dataclasses import dataclass

from bulkhead.errors import InternalError
from data_plane.engine.blocks import BlockPool
from data_plane.engine.sequence import Sequence, SequenceState

__all__ = ["Chunk", "Scheduler"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``start + count`` of one sequence, computed in one step.

    ``samples`` says that they reach the sequence's end, so that the step yields its next token. ``guesses`` are tokens
    that may come after it; they are computed in the same step and kept as far as they prove right.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    guesses: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the step that this chunk takes."""
        return self.count + len(self.guesses)


class Scheduler:
    """Plans steps over the sequences of one engine.

    Args:
        pool: memory for attention state; holds at least one whole context.
        block_tokens: tokens per block.
        max_running: sequences in one step.
        step_tokens: tokens in one step.
    """

    def __init__(self, *, pool: BlockPool, block_tokens: int, max_running: int, step_tokens: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._step_tokens = step_tokens
        self._arrivals = 0
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Sequences that hold memory."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for memory or for a place."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind all others."""
        if sequence.state is not SequenceState.WAITING or sequence.computed or sequence.blocks:
            raise InternalError("only a new sequence can be added")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Plan one step, empty when no sequence is there. The plan's sequences hold the blocks they need."""
        chunks: list[Chunk] = []
        room = self._step_tokens
        position = 0
        while position < len(self._running):
            # The sequences behind keep one token's room each.
            behind = len(self._running) - position - 1
            if (chunk := self._next_chunk(self._running[position], room - behind)) is None:
                continue  # the latest arrival was preempted, maybe this one
            chunks.append(chunk)
            room -= chunk.count
            position += 1
        while self._waiting and room > 0 and len(self._running) < self._max_running and self._fits(self._waiting[0]):
            sequence = self._waiting.pop(0)
            sequence.state = SequenceState.RUNNING
            self._running.append(sequence)  # whatever waits arrived later than whatever runs
            chunk = self._next_chunk(sequence, room)
            if chunk is None:
                raise InternalError("a sequence was admitted without memory for it")
            chunks.append(chunk)
            room -= chunk.count
        return chunks

    def computed(self, chunk: Chunk, token: int | None) -> None:
        """Record that ``chunk`` was computed and, if it samples, which token came next.

        A sequence that ended while the step ran (a caller gone away) is left alone.
        """
        sequence = chunk.sequence
        if (token is not None) is not chunk.samples:
            raise InternalError("a token comes with exactly those chunks that reach their sequence's end")
        if sequence.state is SequenceState.ENDED:
            return
        sequence.computed = chunk.start + chunk.count
        if token is not None:
            sequence.tokens.append(token)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out and give its memory back; ending it again does nothing."""
        if sequence.state is SequenceState.ENDED:
            return
        (self._running if sequence.state is SequenceState.RUNNING else self._waiting).remove(sequence)
        sequence.state = SequenceState.ENDED
        self._give_back(sequence)

    def _next_chunk(self, sequence: Sequence, room: int) -> Chunk | None:
        """Return the sequence's next chunk; None if a sequence had to be preempted first."""
        count = min(sequence.pending, room)
        end = sequence.computed + count
        missing = -(-end // self._block_tokens) - len(sequence.blocks)
        if missing > self._pool.free:
            self._preempt(self._running[-1])
            return None
        if missing > 0:
            sequence.blocks.extend(self._pool.allocate(missing))
        return Chunk(sequence, sequence.computed, count, samples=end == len(sequence.tokens))

    def _fits(self, sequence: Sequence) -> bool:
        # Beyond its own tokens, one block per running sequence stays free: else it would be preempted soon.
        return -(-len(sequence.tokens) // self._block_tokens) + len(self._running) <= self._pool.free

    def _preempt(self, victim: Sequence) -> None:
        if len(self._running) == 1:
            raise InternalError("the pool is smaller than one context")
        self._running.remove(victim)
        victim.state = SequenceState.WAITING
        victim.computed = 0
        victim.preemptions += 1
        self.preemptions += 1
        self._give_back(victim)
        bisect.insort(self._waiting, victim, key=lambda other: other.arrival)

    def _give_back(self, sequence: Sequence) -> None:
        blocks, sequence.blocks = sequence.blocks, []
        self._pool.release(blocks)
