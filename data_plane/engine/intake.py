"""From a request to the answers that the engine's thread works on: prompts cut into tokens, limits, forms, edits.

Tokenising blocks, so it has a thread of its own; compiling a form has others (:mod:`.grammar`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from bulkhead.errors import ContextLengthError, InvalidRequestError, ShuttingDownError
from data_plane.engine.edits import Edit, make_edits
from data_plane.engine.grammar import GrammarCompiler
from data_plane.engine.job import Job
from data_plane.engine.lookup import Lookup
from data_plane.engine.params import MAX_SEED, SamplingParams
from data_plane.engine.port import ChatMessage, EngineRequest, ModelDescription
from data_plane.engine.sampling import Sampler
from data_plane.engine.sequence import Sequence as TokenSequence
from data_plane.engine.stream import DeltaStream
from data_plane.engine.tokenizer import Tokenizer

__all__ = ["Intake"]

MAX_COUNTED: Final = 64  # prompts counted and not yet generated from; a burst of requests is prepared one by one

_Result = TypeVar("_Result")


class Intake:
    """Prepares requests for one model.

    Args:
        tokenizer: the model's.
        model: what is served.
        end_tokens: the model's end-of-turn tokens.
    """

    def __init__(self, *, tokenizer: Tokenizer, model: ModelDescription, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._end_tokens = end_tokens
        self._closed = False
        self._counted: OrderedDict[str, tuple[EngineRequest, list[int]]] = OrderedDict()
        self._text = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-text")
        self._grammars = GrammarCompiler(
            tokenizer_json=tokenizer.definition(), vocabulary=model.vocabulary, ending=end_tokens
        )

    def close(self) -> None:
        """Stop the threads; what is being prepared fails."""
        self._closed = True
        self._counted.clear()
        self._grammars.close()
        self._text.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; raises as :meth:`Tokenizer.encode`."""
        return await self._off_loop(lambda: self._tokenizer.encode(text))

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of a conversation; raises as :meth:`Tokenizer.encode_chat`."""
        return await self._off_loop(lambda: self._tokenizer.encode_chat(messages))

    async def jobs(self, request: EngineRequest, stream: DeltaStream) -> list[Job]:
        """Return the answers that ``request`` asks for, to be fed to ``stream``.

        Raises:
            InvalidRequestError, ContextLengthError: as :meth:`data_plane.engine.port.Engine.generate`.
            ShuttingDownError: closed.
        """
        prompt = await self.prompt(request)
        bad_words = await self._bad_words(request.sampling)
        return [await self._job(request, prompt, bad_words, stream, index) for index in range(request.sampling.n)]

    async def prompt(self, request: EngineRequest) -> list[int]:
        """Return the tokens of a request's prompt, cut where it asks; raises as :meth:`jobs`."""
        self._check_tokens("a prompt token id", request.prompt_token_ids)
        counted, tokens = self._counted.pop(request.request_id, (None, []))
        if counted is None or not _same_prompt(counted, request):
            tokens = await self._encoded(request)
        return self._cut(request, tokens)

    def _cut(self, request: EngineRequest, tokens: list[int]) -> list[int]:
        keep = request.sampling.truncate_prompt_tokens
        if keep is None:
            return tokens
        room = self._model.context_tokens - (request.sampling.max_tokens or 1)
        return tokens[-max(1, room if keep == -1 else keep) :]

    async def count(self, request: EngineRequest) -> int:
        """Return how many tokens :meth:`prompt` gives; :meth:`jobs` of the same request need not cut them again."""
        self._check_tokens("a prompt token id", request.prompt_token_ids)
        tokens = await self._encoded(request)
        self._counted[request.request_id] = request, tokens
        if len(self._counted) > MAX_COUNTED:
            self._counted.popitem(last=False)
        return len(self._cut(request, tokens))

    async def _encoded(self, request: EngineRequest) -> list[int]:
        if request.messages:
            return await self.encode_chat(request.messages)
        if request.prompt:
            return await self._off_loop(lambda: self._tokenizer.encode(request.prompt, special=True))
        return list(request.prompt_token_ids)

    async def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        if not params.bad_words:
            return []
        spellings = self._tokenizer.spellings
        return await self._off_loop(lambda: [ids for text in params.bad_words for ids in spellings(text)])

    async def _job(
        self, request: EngineRequest, prompt: list[int], bad_words: list[list[int]], stream: DeltaStream, index: int
    ) -> Job:
        params = request.sampling
        if params.seed is not None and index:
            params = replace(params, seed=(params.seed + index) % (MAX_SEED + 1))
        self._check_tokens("a stop token id", params.stop_token_ids)
        self._check_tokens("a biased token id", (token for token, _ in params.logit_bias))
        ending = self._end_tokens | frozenset(params.stop_token_ids)
        edits: tuple[Edit, ...] = make_edits(params, prompt=prompt, bad_words=bad_words, ending=ending)
        if params.structure is not None:
            edits = (*edits, await self._grammars.compile(params.structure))
        sampler = Sampler(params, edits)
        return Job(
            sequence=self._sequence(request, prompt, guessable=sampler.greedy, first=index == 0),
            sampler=sampler,
            decode=partial(self._tokenizer.decode, special=not params.skip_special_tokens),
            stream=stream,
            end_tokens=self._end_tokens,
            index=index,
            profile=request.profile and index == 0,
        )

    def _check_tokens(self, what: str, tokens: Iterable[int]) -> None:
        if not all(0 <= token < self._model.vocabulary for token in tokens):
            raise InvalidRequestError(f"{what} is not between 0 and {self._model.vocabulary - 1}")

    def _sequence(self, request: EngineRequest, prompt: list[int], *, guessable: bool, first: bool) -> TokenSequence:
        context, wanted = self._model.context_tokens, request.sampling.max_tokens
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens")
        if len(prompt) + (wanted or 1) > context:
            asked = f" and max_tokens of {wanted}" if wanted else ""
            raise ContextLengthError(
                f"a prompt of {len(prompt)} tokens{asked} does not fit the context of {context} tokens",
                details={
                    "prompt_tokens": str(len(prompt)),
                    "max_tokens": str(wanted or ""),
                    "context_tokens": str(context),
                },
            )
        return TokenSequence(
            request_id=request.request_id,
            tokens=list(prompt),  # grows by the answer
            prompt_tokens=len(prompt),
            max_tokens=wanted or context - len(prompt),
            scope=request.scope,
            priority=request.priority,
            prompt_logits=first and request.sampling.prompt_logprobs is not None,
            lookup=Lookup() if guessable else None,
        )

    async def _off_loop(self, call: Callable[[], _Result]) -> _Result:
        if self._closed:
            raise ShuttingDownError("the engine is closed")
        return await asyncio.get_running_loop().run_in_executor(self._text, call)


def _same_prompt(one: EngineRequest, other: EngineRequest) -> bool:
    """Return whether the prompts are the same objects, as they are in a request with other limits."""
    return (
        one.messages is other.messages and one.prompt is other.prompt and one.prompt_token_ids is other.prompt_token_ids
    )
