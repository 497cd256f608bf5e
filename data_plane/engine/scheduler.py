"""Which tokens the next step computes. Pure bookkeeping: no torch, no clock, no I/O.

States of a sequence and what moves it::

    WAITING --schedule: memory and a place--> RUNNING --end--> ENDED
       ^-------- schedule: preempted ------------'
    WAITING --end--> ENDED

Each call of :meth:`Scheduler.schedule` plans one step within ``step_tokens`` rows:

1. Running sequences come first, by rank: lower priority number, then earlier arrival. Each gets the tokens it still has
   to compute, one when decoding, as many as the step still has room for when its prompt is long (chunked prefill).
   Every running sequence has at least one row's room, because ``step_tokens`` is at least ``max_running``.
2. A sequence that needs a block when none is free takes the memory of the lowest in rank, which is preempted: its
   blocks are given back, it waits again in its old rank, and later computes its tokens anew.
3. Waiting sequences join by rank while a place is free and memory holds their tokens so far, but not in a step that
   preempts. None overtakes a higher one, and one that ``MAX_OVERTAKEN`` later arrivals overtook, by joining first or by
   running on in its memory, comes before all priorities. Whole blocks at the start of its tokens that its scope can
   name are taken over instead of computed; its last token is always computed. A long prompt does not begin in a step
   that ends another: it would keep the other's first token back by all its rows, and be done hardly sooner itself.
4. While few sequences run, one that decodes may get rows for guessed tokens, from the room and the memory that is left.

The highest in rank is never preempted for another and always fits, since the pool holds a whole context: so it ends,
and every other in turn becomes the highest. None starves.
"""

import bisect
from dataclasses import dataclass
from typing import Final

from bulkhead.errors import InternalError
from data_plane.engine.blocks import BlockPool
from data_plane.engine.prefix import PrefixNames
from data_plane.engine.sequence import Sequence, SequenceState

__all__ = ["MAX_OVERTAKEN", "Chunk", "Scheduler"]

MAX_PROMPT_ROWS: Final = 64  # of one chunk whose logits are all wanted: a vocabulary of 2^18 takes 64 MiB for them
SHORT_PROMPT: Final = 64  # tokens; a step of so many rows computes each about as fast as one of more
MAX_OVERTAKEN: Final = 32  # what waits behind lower numbers waits at most for so many of them


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

    @property
    def begins_answer(self) -> bool:
        """Whether it yields the answer's first token."""
        return self.samples and not self.sequence.completion_tokens

    @property
    def prompt_rows(self) -> int:
        """How many of the first rows tell how likely the prompt's next token was, where that is wanted."""
        wanted = self.sequence.prompt_tokens - 1 - self.start if self.sequence.prompt_logits else 0
        return max(0, min(self.count, wanted))


class Scheduler:
    """Plans steps over the sequences of one engine.

    Args:
        pool: memory for attention state; holds at least one whole context.
        block_tokens: tokens per block.
        max_running: sequences in one step.
        step_tokens: rows of one step.
        guess_tokens: most guesses for one sequence in one step; 0 for none.
        guess_running: most sequences that run while any is guessed for.
        short_prompt: prompts of at most so many tokens share steps as they come.
    """

    def __init__(
        self,
        *,
        pool: BlockPool,
        block_tokens: int,
        max_running: int,
        step_tokens: int,
        guess_tokens: int = 0,
        guess_running: int = 1,
        short_prompt: int = SHORT_PROMPT,
    ) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._step_tokens = step_tokens
        self._guess_tokens = guess_tokens
        self._guess_running = guess_running
        self._short_prompt = short_prompt
        self._names = PrefixNames(block_tokens=block_tokens)
        self._arrivals = 0
        self._waiting: list[Sequence] = []  # by rank, as the next
        self._running: list[Sequence] = []
        self.preemptions = 0
        self.queried_tokens = 0
        self.cached_tokens = 0

    @property
    def running(self) -> int:
        """Sequences that hold memory."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for memory or for a place."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind all others of its priority."""
        if sequence.state is not SequenceState.WAITING or sequence.computed or sequence.blocks:
            raise InternalError("only a new sequence can be added")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        bisect.insort(self._waiting, sequence, key=_rank)

    def schedule(self) -> list[Chunk]:
        """Plan one step, empty when no sequence is there. The plan's sequences hold the blocks they need."""
        chunks: list[Chunk] = []
        room = self._step_tokens
        position = 0
        preempted = False
        while position < len(self._running):
            # The sequences behind keep one row's room each.
            behind = len(self._running) - position - 1
            if (chunk := self._next_chunk(self._running[position], room - behind)) is None:
                preempted = True  # the lowest, maybe this one
                continue
            chunks.append(chunk)
            room -= chunk.rows
            position += 1
        # Where memory has just run out nobody joins, least of all who gave way.
        while (
            not preempted
            and self._waiting
            and room > 0
            and len(self._running) < self._max_running
            and not (self._waiting[0].pending > self._short_prompt and any(chunk.begins_answer for chunk in chunks))
            and self._admit(self._waiting[0])
        ):
            sequence = self._waiting.pop(0)
            self._count_overtaken(sequence)
            sequence.state = SequenceState.RUNNING
            bisect.insort(self._running, sequence, key=_rank)
            chunk = self._next_chunk(sequence, room)
            if chunk is None:
                raise InternalError("a sequence was admitted without memory for it")
            chunks.append(chunk)
            room -= chunk.rows
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
        self._name_blocks(sequence)
        if token is not None:
            sequence.tokens.append(token)

    def confirmed(self, chunk: Chunk, token: int) -> None:
        """Record that the last token was guessed in ``chunk``, so that its state is there, and which came next."""
        sequence = chunk.sequence
        if sequence.state is SequenceState.ENDED:
            return
        at = sequence.computed - chunk.start - chunk.count
        if at >= len(chunk.guesses) or sequence.tokens[-1] != chunk.guesses[at]:
            raise InternalError("a token was confirmed that was not guessed")
        sequence.computed += 1
        self._name_blocks(sequence)
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
        if sequence.prompt_logits and sequence.computed < sequence.prompt_tokens - 1:
            count = min(count, MAX_PROMPT_ROWS)
        end = sequence.computed + count
        missing = self._blocks_of(end) - len(sequence.blocks)
        if missing > self._pool.free:
            self._preempt(self._running[-1])
            return None
        if missing > 0:
            sequence.blocks.extend(self._pool.allocate(missing))
        guesses = self._guesses(sequence, room - count)
        return Chunk(sequence, sequence.computed, count, samples=end == len(sequence.tokens), guesses=guesses)

    def _guesses(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        if sequence.lookup is None or sequence.pending != 1 or len(self._running) > self._guess_running:
            return ()
        most = min(self._guess_tokens, room, sequence.max_tokens - sequence.completion_tokens - 1)
        if most <= 0 or not (guesses := sequence.lookup.guess(sequence.tokens, most)):
            return ()
        missing = self._blocks_of(len(sequence.tokens) + len(guesses)) - len(sequence.blocks)
        if missing > self._pool.free:
            return guesses[: len(sequence.blocks) * self._block_tokens - len(sequence.tokens)]
        if missing > 0:
            sequence.blocks.extend(self._pool.allocate(missing))
        return guesses

    def _admit(self, sequence: Sequence) -> bool:
        """Take over what is there of the sequence's tokens; whether memory holds the rest, else nothing is taken."""
        shares = sequence.scope and not sequence.prompt_logits
        reusable = (len(sequence.tokens) - 1) // self._block_tokens if shares else 0
        self._names.extend(sequence.names, sequence.tokens, scope=sequence.scope, count=reusable)
        for name in sequence.names[:reusable]:
            if (block := self._pool.share(name)) is None:
                break
            sequence.blocks.append(block)
        missing = self._blocks_of(len(sequence.tokens)) - len(sequence.blocks)
        # Beyond its own tokens, one block per running sequence stays free: else it would be preempted soon.
        if missing + len(self._running) > self._pool.free:
            self._give_back(sequence)
            return False
        sequence.named = len(sequence.blocks)
        sequence.computed = sequence.named * self._block_tokens
        if not sequence.preemptions:
            sequence.cached = min(sequence.computed, sequence.prompt_tokens)
            self.queried_tokens += sequence.prompt_tokens
            self.cached_tokens += sequence.cached
        return True

    def _count_overtaken(self, first: Sequence) -> None:
        late = [other for other in self._waiting if other.arrival < first.arrival]
        for other in late:
            other.overtaken += 1
        if any(other.overtaken == MAX_OVERTAKEN for other in late):
            self._waiting.sort(key=_rank)

    def _name_blocks(self, sequence: Sequence) -> None:
        whole = sequence.computed // self._block_tokens
        if not sequence.scope or whole <= sequence.named:
            return
        self._names.extend(sequence.names, sequence.tokens, scope=sequence.scope, count=whole)
        for index in range(sequence.named, whole):
            self._pool.name(sequence.blocks[index], sequence.names[index])
        sequence.named = whole

    def _preempt(self, victim: Sequence) -> None:
        if len(self._running) == 1:
            raise InternalError("the pool is smaller than one context")
        self._running.remove(victim)
        victim.state = SequenceState.WAITING
        victim.preemptions += 1
        self.preemptions += 1
        self._give_back(victim)
        victim.overtaken += sum(other.arrival > victim.arrival for other in self._running)
        bisect.insort(self._waiting, victim, key=_rank)

    def _give_back(self, sequence: Sequence) -> None:
        blocks, sequence.blocks = sequence.blocks, []
        sequence.computed = sequence.named = 0
        self._pool.release(blocks)

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)


def _rank(sequence: Sequence) -> tuple[bool, int, int]:
    late = sequence.overtaken >= MAX_OVERTAKEN
    return not late, 0 if late else sequence.priority, sequence.arrival
