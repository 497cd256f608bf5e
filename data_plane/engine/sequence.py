"""One request inside the engine: its tokens, its blocks and how far they are computed."""

from dataclasses import dataclass, field
from enum import Enum, auto

from data_plane.engine.lookup import Lookup

__all__ = ["Sequence", "SequenceState"]


class SequenceState(Enum):
    """Where a sequence stands; see :mod:`.scheduler` for the transitions."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Tokens of one request and the state of their computation. Changed by the scheduler only.

    Attributes:
        request_id: the request's name.
        tokens: prompt, then what was produced.
        prompt_tokens: how many of ``tokens`` are the prompt.
        max_tokens: most tokens to produce; prompt and answer fit the context (checked before).
        scope: whose cached state may be used; empty for nobody's.
        priority: lower numbers go first among those that wait.
        arrival: rank of arrival; of equal priority, earlier ones go first.
        overtaken: how many later arrivals went first, or ran on when this one gave way.
        prompt_logits: the logits of the prompt's own tokens are wanted, so none of its state is taken over.
        lookup: guesses the answer's next tokens; None if they are not to be guessed.
        blocks: block table: block ``i`` holds the state of tokens ``i * block_tokens`` and following.
        computed: how many of ``tokens`` have their state in ``blocks``.
        names: of the first whole blocks of ``tokens``, as far as they were needed.
        named: how many of ``blocks`` are known by name.
        cached: tokens of the prompt whose state was there already.
        preemptions: how often the state was given up for an earlier request.
    """

    request_id: str
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    scope: bytes = field(default=b"", repr=False)
    priority: int = 0
    arrival: int = 0
    overtaken: int = 0
    prompt_logits: bool = False
    lookup: Lookup | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    names: list[bytes] = field(default_factory=list, repr=False)
    named: int = 0
    cached: int = 0
    preemptions: int = 0
    state: SequenceState = SequenceState.WAITING

    @property
    def pending(self) -> int:
        """Tokens whose state is still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def completion_tokens(self) -> int:
        """Tokens produced so far."""
        return len(self.tokens) - self.prompt_tokens
