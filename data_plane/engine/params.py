"""How an answer is to be chosen and cut; bounds are those of the sealed request. Pure data, checked at construction.

The names and meanings are those of vLLM's OpenAI-compatible server. The order of application to a row of logits is
fixed: penalties (repetition, then frequency and presence), bias (with bad words and the minimum length, which forbid
tokens), grammar, temperature, min-p, top-k, top-p. Log probabilities are those of the model itself, before any of it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bulkhead.errors import InvalidRequestError
from bulkhead.protocol.generate import (
    MAX_ANSWERS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_CHOICE_CHARS,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_REGEX_CHARS,
    MAX_REPETITION,
    MAX_SCHEMA_CHARS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    MAX_TEMPERATURE,
)

__all__ = ["SamplingDefaults", "SamplingParams", "Structure", "StructureKind"]

MAX_SEED: Final = 2**63 - 1  # what is said inside the seal stays below 2^53
MAX_SCHEMA_BYTES: Final = MAX_SCHEMA_CHARS
MAX_SCHEMA_DEPTH: Final = 32  # nesting of objects and arrays; deeper ones take the compiler exponential time


class StructureKind(StrEnum):
    """What form an answer is held to."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The form of an answer.

    Attributes:
        kind: how ``patterns`` is meant.
        patterns: one JSON schema as text, one regular expression, or the texts to choose one of.

    Raises:
        InvalidRequestError: a count or length outside its range.
    """

    kind: StructureKind
    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind is StructureKind.CHOICE:
            _counted("choices", self.patterns, low=1, high=MAX_CHOICES)
            _sized("a choice", self.patterns, MAX_CHOICE_CHARS)
            return
        if len(self.patterns) != 1:
            raise InvalidRequestError(f"{self.kind} takes exactly one pattern")
        if self.kind is StructureKind.REGEX:
            _sized("a regular expression", self.patterns, MAX_REGEX_CHARS)
        elif not 0 < len(self.patterns[0].encode(errors="replace")) <= MAX_SCHEMA_BYTES:
            raise InvalidRequestError(f"a JSON schema has 1 to {MAX_SCHEMA_BYTES} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when an answer ends.

    Attributes:
        max_tokens: most tokens to produce; None for as many as the context leaves.
        min_tokens: fewest; until then no end-of-turn token, stop token or stop string ends the answer.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: smallest set of most likely tokens whose probability reaches this; in (0, 1].
        top_k: only the k most likely tokens; 0 for all.
        min_p: only tokens at least this likely relative to the most likely one; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 1 for none.
        presence_penalty: subtracted from the logits of tokens in the answer; in [-2, 2].
        frequency_penalty: subtracted once for each time that the answer has the token; in [-2, 2].
        logit_bias: (token id, addend in [-100, 100]) pairs.
        bad_words: texts that the answer must not spell.
        seed: makes sampling repeatable, whatever else runs beside it; None draws a fresh seed. Answer ``i`` of ``n``
            uses ``seed + i``.
        n: answers to the same prompt.
        stop: texts that end the answer.
        stop_token_ids: tokens that end the answer.
        include_stop_str_in_output: leave what ended the answer in its text.
        skip_special_tokens: special tokens have no text.
        ignore_eos: keep going past the model's end-of-turn token (benchmarks).
        logprobs: with each token its log probability and this many likeliest others; None for neither.
        prompt_logprobs: the same for the prompt's tokens.
        echo: the answer's text begins with the prompt's.
        truncate_prompt_tokens: keep only so many last tokens of the prompt; -1 for what the context holds.
        structure: the form of the answer.

    Raises:
        InvalidRequestError: a value outside its range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    truncate_prompt_tokens: int | None = None
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is at least 1, not {self.max_tokens}")
        if self.min_tokens < 0 or self.min_tokens > (self.max_tokens or self.min_tokens):
            raise InvalidRequestError("min_tokens is between 0 and max_tokens")
        _between("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _between("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError("top_p is above 0 and at most 1")
        if not 0.0 < self.repetition_penalty <= MAX_REPETITION:
            raise InvalidRequestError(f"repetition_penalty is above 0 and at most {MAX_REPETITION:g}")
        if self.top_k < 0:
            raise InvalidRequestError("top_k is 0 (all tokens) or a positive count")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError("seed is between 0 and 2^63 - 1")
        _between("n", self.n, 1, MAX_ANSWERS)
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1 != -self.truncate_prompt_tokens:
            raise InvalidRequestError("truncate_prompt_tokens is -1 (the context's length) or a positive count")
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            _between(name, count or 0, 0, MAX_LOGPROBS)
        if self.structure is not None and self.min_tokens:
            raise InvalidRequestError("min_tokens cannot be held where a form of the answer says its end")
        self._check_lists()

    def _check_lists(self) -> None:
        _counted("stop strings", self.stop, high=MAX_STOPS)
        _sized("a stop string", self.stop, MAX_STOP_CHARS)
        _counted("stop tokens", self.stop_token_ids, high=MAX_STOP_TOKENS)
        _counted("bad words", self.bad_words, high=MAX_BAD_WORDS)
        _sized("a bad word", self.bad_words, MAX_STOP_CHARS)
        _counted("biased tokens", self.logit_bias, high=MAX_BIASED_TOKENS)
        for _, bias in self.logit_bias:
            _between("a logit bias", bias, -MAX_BIAS, MAX_BIAS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What holds for a request that does not say: generation_config.json's values, else those of OpenAI's interface."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses what is not a number
        raise InvalidRequestError(f"{name} is between {low:g} and {high:g}")


def _counted(name: str, items: tuple[object, ...], *, low: int = 0, high: int) -> None:
    if not low <= len(items) <= high:
        raise InvalidRequestError(f"{f'{low} to' if low else 'at most'} {high} {name}, not {len(items)}")


def _sized(name: str, texts: tuple[str, ...], most: int) -> None:
    if any(not 0 < len(text) <= most for text in texts):
        raise InvalidRequestError(f"{name} has 1 to {most} characters")
