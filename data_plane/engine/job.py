"""One answer inside the engine: from the tokens chosen for it to the deltas that its caller gets.

An answer ends at the first of these, looked at after each token: a token that ends it (the model's end of turn, or one
that the request names), a stop string, its most tokens. Until it has its least tokens, the first two do not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from bulkhead.errors import BulkheadError
from bulkhead.protocol.payloads import TokenLogprob
from data_plane.engine.sampling import Choice, Sampler
from data_plane.engine.sequence import Sequence as TokenSequence
from data_plane.engine.stream import DeltaStream
from data_plane.engine.text import TextStream
from data_plane.inference.metrics import Timing
from data_plane.inference.port import FinishReason, TokenDelta, Usage

__all__ = ["Job"]

_NONE: Final[frozenset[int]] = frozenset()
PROMPT_CONTEXT: Final = 5  # last tokens of the prompt that the first one is decoded after, as in vLLM


class Job:
    """One answer.

    Args:
        sequence: prompt and answer as tokens.
        sampler: chooses the answer's tokens.
        decode: from token ids to text.
        spell: from one token to its text, a special one's too.
        stream: where deltas go.
        end_tokens: the model's end-of-turn tokens.
        turn_end: the one of them that is the tokenizer's own; any other that ends the answer is its stop reason, as in
            vLLM.
        index: which of a request's answers this is.
        profile: whether the step of the second token is to be traced; its trace is then put into ``trace``.
    """

    def __init__(
        self,
        *,
        sequence: TokenSequence,
        sampler: Sampler,
        decode: Callable[[Sequence[int]], str],
        spell: Callable[[int], str],
        stream: DeltaStream,
        end_tokens: frozenset[int],
        turn_end: int | None = None,
        index: int = 0,
        profile: bool = False,
    ) -> None:
        params = sampler.params
        self.sequence = sequence
        self.sampler = sampler
        self.stream = stream
        self.index = index
        self.profile = profile
        self.trace = b""
        self.timing = Timing()
        self._spell = spell
        self._eos = _NONE if params.ignore_eos else end_tokens
        self._turn_end = None if params.ignore_eos else turn_end
        self._stop_tokens = frozenset(params.stop_token_ids)
        self._text = TextStream(
            decode=decode,
            stops=params.stop,
            keep_stop=params.include_stop_str_in_output,
            before=sequence.tokens[-PROMPT_CONTEXT:],
        )

    def take(self, choice: Choice) -> TokenDelta | BulkheadError:
        """Return the delta that ``choice``, whose token was just appended to the sequence, gives rise to."""
        if choice.error is not None:
            return choice.error
        params, sequence, token = self.sampler.params, self.sequence, choice.token
        if params.max_tokens == 0:  # the step that told what the prompt tells chose a token as well
            return TokenDelta(
                text="",
                token_ids=(),
                index=self.index,
                prompt_logprobs=self._prompt_logprobs(),
                finish_reason=FinishReason.LENGTH,
                usage=self._usage(0),
            )
        late = sequence.completion_tokens >= params.min_tokens
        ended = late and (token in self._eos or token in self._stop_tokens)
        full = sequence.completion_tokens >= sequence.max_tokens
        stopped: str | None = None
        text = ""
        if not ended or params.include_stop_str_in_output:
            text, stopped = self._text.push(token, look=late)
        if (ended or full) and stopped is None:
            rest, stopped = self._text.flush()
            text += rest
        trace, self.trace = self.trace, b""
        delta = TokenDelta(
            text=text,
            token_ids=(token,),
            index=self.index,
            logprobs=() if choice.logprobs is None else self._named([choice.logprobs]),
            prompt_logprobs=self._prompt_logprobs(),
            trace=trace,
        )
        if not (ended or full or stopped is not None):
            return delta
        return replace(
            delta,
            finish_reason=FinishReason.STOP if ended or stopped is not None else FinishReason.LENGTH,
            stop_reason=token if stopped is None and ended and token != self._turn_end else stopped,
            usage=self._usage(sequence.completion_tokens),
        )

    def _usage(self, completion: int) -> Usage:
        sequence = self.sequence
        return Usage(prompt_tokens=sequence.prompt_tokens, completion_tokens=completion, cached_tokens=sequence.cached)

    def _prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        if not self.sampler.prompt or self.sequence.completion_tokens > 1:
            return ()
        return self._named(self.sampler.prompt)

    def _named(self, entries: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """Return ``entries`` with the texts of their tokens, each made once: a prompt's have thousands."""
        spell = cache(self._spell)
        return tuple(
            replace(
                entry,
                text=spell(entry.token_id),
                top=tuple((token, spell(token), value) for token, _, value in entry.top),
            )
            for entry in entries
        )
