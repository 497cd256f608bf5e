"""Holds an answer to a JSON schema, a regular expression or a choice, with llguidance.

Reading the vocabulary takes some 0.3 s and 31 MiB with 49,000 tokens, and llguidance holds Python's lock meanwhile: a
worker does it before it serves, for it would hold up every stream; else the first request in a form does it. A
grammar's mask for the next token is filled on a thread of its own while the model computes; the engine's thread waits
for it only if the model was faster. Schemas are untrusted: their size and depth are bounded before llguidance sees
them, its own limits bound memory and work of lexer and parser, references to elsewhere are not fetched, and a
compilation that takes too long is given up. ``llguidance.torch`` is not used: it compiles its kernel at run time.
"""

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Final

import llguidance
import numpy as np
import torch

from bulkhead.encoding import Json
from bulkhead.errors import InternalError, InvalidRequestError
from data_plane.engine.tokenizer import sound
from data_plane.inference.sampling_params import MAX_SCHEMA_DEPTH, Structure, StructureKind

__all__ = ["Grammar", "GrammarCompiler"]

COMPILE_TIMEOUT_S: Final = 5.0
MASK_TIMEOUT_S: Final = 5.0  # a mask takes microseconds, milliseconds at worst
COMPILERS: Final = 2  # one stays free while another compiles
MAX_MULTIPLE: Final = 20_000  # a lexer counts remainders, one state each: 10^6 take 8 s, 10^7 minutes and gigabytes
# A tenth of llguidance's own lexer bounds: schemas in use stay far below, and the worst one costs about a second.
INITIAL_LEXER_FUEL: Final = 200_000
STEP_LEXER_FUEL: Final = 50_000
MAX_LEXER_STATES: Final = 50_000
MAX_GRAMMAR_SIZE: Final = 200_000


class Grammar:
    """One answer's form: which tokens may come next.

    Args:
        matcher: in its first state.
        vocabulary: entries of a row of logits.
        ending: tokens that end an answer; allowed exactly where the form is complete.
        pool: where masks are filled.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, *, vocabulary: int, ending: frozenset[int], pool: ThreadPoolExecutor
    ) -> None:
        self._matcher = matcher
        self._ending = torch.tensor(sorted(ending), dtype=torch.int64)
        self._vocabulary = vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._pool = pool
        self._mask: Future[torch.Tensor] = pool.submit(self._fill)

    def apply(self, row: torch.Tensor) -> None:
        """Forbid, in place, what the form does not allow next.

        Raises:
            InvalidRequestError: the form became too complex to follow.
            InternalError: the mask did not come.
        """
        try:
            row.masked_fill_(self._mask.result(MASK_TIMEOUT_S), float("-inf"))
        except TimeoutError as error:
            raise InternalError("the mask of a grammar took too long") from error

    def accept(self, token: int) -> None:
        """Go on by a token that was chosen, and begin to fill the next mask."""
        self._mask = self._pool.submit(self._advance, token)

    def _advance(self, token: int) -> torch.Tensor:
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise InvalidRequestError(f"the answer cannot go on in the form asked for: {self._reason()}")
        return self._fill()

    def _fill(self) -> torch.Tensor:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise InvalidRequestError(f"the form asked for is too complex: {self._reason()}")
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        forbidden = torch.from_numpy(allowed == 0)
        forbidden[self._ending] = not (self._matcher.is_accepting() or self._matcher.is_stopped())
        return forbidden

    def _reason(self) -> str:
        return self._matcher.get_error().partition("\n")[0][:200]


class GrammarCompiler:
    """Turns structures into grammars over one model's vocabulary.

    Args:
        tokenizer_json: the model's tokenizer.json.
        vocabulary: entries of a row of logits.
        ending: tokens that end an answer.
        at_once: read the vocabulary here; a model whose tokenizer llguidance cannot work with answers in no form.
    """

    def __init__(self, *, tokenizer_json: str, vocabulary: int, ending: frozenset[int], at_once: bool = False) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocabulary = vocabulary
        self._ending = ending
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._making = threading.Lock()
        if at_once and ending:
            with contextlib.suppress(InvalidRequestError):  # raised again for whoever asks for a form
                self._vocabulary_once()
        self._compilers = ThreadPoolExecutor(max_workers=COMPILERS, thread_name_prefix="engine-form")
        # Another one for masks: answers in a form wait for nobody's compilation.
        self._masks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-mask")

    async def compile(self, structure: Structure, *, answers: int) -> list[Grammar]:
        """Return the grammar of a structure (untrusted), compiled once, for each of several answers.

        Raises:
            InvalidRequestError: not a schema or pattern, one that nothing satisfies, or too large; says which.
        """
        if not self._ending:
            raise InvalidRequestError("the model names no end-of-turn token, so no form of an answer can be held")
        work = asyncio.get_running_loop().run_in_executor(self._compilers, self._matchers, structure, answers)
        try:
            matchers = await asyncio.wait_for(work, COMPILE_TIMEOUT_S)
        except TimeoutError as error:
            raise InvalidRequestError(f"the form asked for took over {COMPILE_TIMEOUT_S:g} s to compile") from error
        return [
            Grammar(matcher, vocabulary=self._vocabulary, ending=self._ending, pool=self._masks) for matcher in matchers
        ]

    def close(self) -> None:
        """Stop the threads; grammars that are in use fail."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._masks.shutdown(wait=False, cancel_futures=True)

    def _matchers(self, structure: Structure, answers: int) -> list[llguidance.LLMatcher]:
        grammar = _grammar_text(structure)
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=INITIAL_LEXER_FUEL,
            step_lexer_fuel=STEP_LEXER_FUEL,
            max_lexer_states=MAX_LEXER_STATES,
            max_grammar_size=MAX_GRAMMAR_SIZE,
        )
        matcher = llguidance.LLMatcher(self._vocabulary_once(), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what no text satisfies shows there
        if matcher.is_error():
            reason = " ".join(matcher.get_error().partition("<state>")[0].split())[:300]
            raise InvalidRequestError(f"no answer can be held to this {structure.kind}: {reason}")
        return [matcher, *(matcher.deep_copy() for _ in range(answers - 1))]

    def _vocabulary_once(self) -> llguidance.LLTokenizer:
        with self._making:
            if self._tokenizer is None:
                try:
                    self._tokenizer = sound(
                        lambda: llguidance.LLTokenizer(
                            self._tokenizer_json, n_vocab=self._vocabulary, eos_token=sorted(self._ending)
                        )
                    )
                except InvalidRequestError as error:
                    raise InvalidRequestError("the model's tokenizer cannot hold an answer to a form") from error
            return self._tokenizer


def _grammar_text(structure: Structure) -> str:
    first = structure.patterns[0]
    if not all(text.isascii() or _is_unicode(text) for text in structure.patterns):
        raise InvalidRequestError("the form asked for is not Unicode text: it has a lone surrogate")
    match structure.kind:
        case StructureKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(_checked_schema(first))
        case StructureKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(first)
        case StructureKind.CHOICE:
            texts = (json.dumps(text, ensure_ascii=False) for text in structure.patterns)
            return llguidance.LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")


def _checked_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the JSON schema is not JSON") from error
    if not isinstance(schema, dict):
        raise InvalidRequestError("the JSON schema is not an object")
    level: list[Json] = [schema]
    divisors: list[Json] = []
    for _ in range(MAX_SCHEMA_DEPTH):
        divisors += [value["multipleOf"] for value in level if isinstance(value, dict) and "multipleOf" in value]
        level = [item for value in level for item in _inside(value)]
        if not level:
            _check_divisors(divisors)
            return text
    raise InvalidRequestError(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep")


def _check_divisors(values: list[Json]) -> None:
    """Refuse what takes a lexer of endless size: any of them may meet in one number, which is a multiple of all."""
    stated = [Decimal(str(value)) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    numbers = [number for number in stated if number.is_finite()]
    if not numbers:
        return
    exponents = [int(number.as_tuple().exponent) for number in numbers]
    digits = max(number.adjusted() for number in numbers) - min(0, *exponents)
    if digits < len(str(MAX_MULTIPLE)):
        scale = Decimal(10) ** -min(0, *exponents)
        if math.lcm(*(int(number * scale) for number in numbers)) <= MAX_MULTIPLE:
            return
    raise InvalidRequestError(f"the JSON schema's multipleOf is above {MAX_MULTIPLE} steps, or several are together")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _inside(value: Json) -> Iterable[Json]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
