"""How an answer is to be chosen and cut; bounds are those of the sealed request. Pure data, checked at construction.

The names and meanings are those of vLLM's OpenAI-compatible server. The order of application to a row of logits is
fixed: penalties (repetition, then frequency and presence), bias (with bad words and the minimum length, which forbid
tokens), grammar, temperature, min-p, top-k, top-p. Log probabilities are those of the model itself, before any of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import Final

from bulkhead.errors import InvalidRequestError
from bulkhead.protocol import generate as sealed

__all__ = ["OPENAI_DEFAULTS", "SamplingParams", "Structure", "StructureKind"]

MAX_SEED: Final = 2**63 - 1  # what is said inside the seal stays below 2^53
MAX_SCHEMA_DEPTH: Final = 32  # nesting of objects and arrays; deeper ones take the compiler exponential time


class StructureKind(StrEnum):
    """What form an answer is held to."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"


# How many patterns a form has at most, and how long each is: a schema in bytes, the others in characters.
_PATTERNS: Final[Mapping[StructureKind, tuple[int, int]]] = MappingProxyType(
    {
        StructureKind.JSON_SCHEMA: (1, sealed.MAX_SCHEMA_CHARS),
        StructureKind.REGEX: (1, sealed.MAX_REGEX_CHARS),
        StructureKind.CHOICE: (sealed.MAX_CHOICES, sealed.MAX_CHOICE_CHARS),
    }
)

# Lowest and highest value; None, where a field allows it, is not looked at.
_RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "max_tokens": (0, inf),
        "min_tokens": (0, inf),
        "temperature": (0, sealed.MAX_TEMPERATURE),
        "top_p": (0, 1),
        "top_k": (-1, inf),
        "min_p": (0, 1),
        "repetition_penalty": (0, sealed.MAX_REPETITION),
        "presence_penalty": (-sealed.MAX_PENALTY, sealed.MAX_PENALTY),
        "frequency_penalty": (-sealed.MAX_PENALTY, sealed.MAX_PENALTY),
        "seed": (0, MAX_SEED),
        "n": (1, sealed.MAX_ANSWERS),
        "logprobs": (0, sealed.MAX_LOGPROBS),
        "prompt_logprobs": (0, sealed.MAX_LOGPROBS),
        "truncate_prompt_tokens": (-1, inf),
    }
)
_NOT_ZERO: Final = ("top_p", "repetition_penalty", "truncate_prompt_tokens")

# Most items.
_COUNTS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "stop": sealed.MAX_STOPS,
        "stop_token_ids": sealed.MAX_STOP_TOKENS,
        "bad_words": sealed.MAX_BAD_WORDS,
        "logit_bias": sealed.MAX_BIASED_TOKENS,
    }
)


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
        count, size = _PATTERNS[self.kind]
        in_bytes = self.kind is StructureKind.JSON_SCHEMA
        _between(f"the number of patterns of a {self.kind}", len(self.patterns), 1, count)
        for pattern in self.patterns:
            length = len(pattern.encode(errors="replace")) if in_bytes else len(pattern)
            _between(f"the length of a {self.kind}", length, 1, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when an answer ends.

    Attributes:
        max_tokens: most tokens to produce; None for as many as the context leaves; 0, with ``echo`` or
            ``prompt_logprobs``, for none.
        min_tokens: fewest; until then no end-of-turn token, stop token or stop string ends the answer.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: smallest set of most likely tokens whose probability reaches this; in (0, 1].
        top_k: only the k most likely tokens; 0 or -1 for all.
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
        for name, (low, high) in _RANGES.items():
            _between(name, getattr(self, name), low, high)
        for name in _NOT_ZERO:
            if getattr(self, name) == 0:
                raise InvalidRequestError(f"{name} is not 0")
        for name, most in _COUNTS.items():
            _between(f"the number of {name}", len(getattr(self, name)), 0, most)
        for text in (*self.stop, *self.bad_words):
            _between("the length of a stop string or bad word", len(text), 1, sealed.MAX_STOP_CHARS)
        for _, bias in self.logit_bias:
            _between("a logit bias", bias, -sealed.MAX_BIAS, sealed.MAX_BIAS)
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise InvalidRequestError("max_tokens is at least 1 without echo and prompt_logprobs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError("min_tokens is at most max_tokens")
        if self.structure is not None and self.min_tokens:
            raise InvalidRequestError("min_tokens cannot be held where a form of the answer says its end")


def _between(what: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # also refuses what is not a number
        raise InvalidRequestError(f"{what} is {f'between {low:g} and {high:g}' if high < inf else f'at least {low:g}'}")


OPENAI_DEFAULTS: Final = SamplingParams(temperature=1.0)
"""What holds where neither request nor model say."""
