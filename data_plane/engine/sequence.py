"""One request inside the engine: its tokens, its blocks and how far they are computed."""

from dataclasses import dataclass, field
from enum import Enum, auto

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
        arrival: rank of arrival; earlier ones go first.
        blocks: block table: block ``i`` holds the state of tokens ``i * block_tokens`` and following.
        computed: how many of ``tokens`` have their state in ``blocks``.
        preemptions: how often the state was given up for an earlier request.
    """

    request_id: str
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    scope: bytes = field(default=b"", repr=False)
    arrival: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
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
