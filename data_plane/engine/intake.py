"""From a request to the answers that the engine's thread works on: prompts cut into tokens, limits, forms, edits.

Tokenising blocks, so it has a thread of its own; compiling a form has others (:mod:`.grammar`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from bulkhead.errors import ContextLengthError, InvalidRequestError, ShuttingDownError
from data_plane.engine.edits import Edit, make_edits
from data_plane.engine.grammar import GrammarCompiler
from data_plane.engine.job import Job
from data_plane.engine.lookup import Lookup
from data_plane.engine.sampling import Sampler
from data_plane.engine.sequence import Sequence as TokenSequence
from data_plane.engine.stream import DeltaStream
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.port import EngineRequest, ModelDescription
from data_plane.inference.sampling_params import MAX_SEED, SamplingParams

__all__ = ["Intake"]

_Result = TypeVar("_Result")


class Intake:
    """Prepares requests for one model.

    Args:
        tokenizer: the model's.
        model: what is served.
        end_tokens: the model's end-of-turn tokens; the tokenizer's own is one as well.
        forms_at_load: as in :class:`data_plane.engine.EngineConfig`.
    """

    def __init__(
        self, *, tokenizer: Tokenizer, model: ModelDescription, end_tokens: frozenset[int], forms_at_load: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        own = tokenizer.end_token
        self._end_tokens = end_tokens = end_tokens if own is None else end_tokens | {own}
        self._turn_end = own if own is not None or len(end_tokens) != 1 else min(end_tokens)
        self._closed = False
        self._text = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-text")
        self._grammars = GrammarCompiler(
            tokenizer_json=tokenizer.definition(), vocabulary=model.vocabulary, ending=end_tokens, at_once=forms_at_load
        )

    def close(self) -> None:
        """Stop the threads; what is being prepared fails."""
        self._closed = True
        self._grammars.close()
        self._text.shutdown(wait=False, cancel_futures=True)

    async def tokenize(self, request: EngineRequest) -> list[int]:
        """Return the tokens of a request's prompt, cut where it asks; raises as :meth:`jobs`."""
        if request.messages:
            tokens = await self._off_loop(lambda: self._tokenizer.encode_chat(request.messages))
        elif request.prompt:
            tokens = await self._off_loop(lambda: self._tokenizer.encode(request.prompt, special=True))
        else:
            tokens = list(request.prompt_token_ids)
            self._check_tokens("a prompt token id", tokens)
        keep = request.sampling.truncate_prompt_tokens
        if keep == -1:
            most, least = request.sampling.max_tokens, request.sampling.min_tokens
            answer = max(1, least) if most is None else most
            keep = max(1, self._model.context_tokens - answer)
        if not tokens:
            raise InvalidRequestError("the prompt has no tokens")
        return tokens if keep is None else tokens[-keep:]

    async def jobs(self, request: EngineRequest, stream: DeltaStream) -> list[Job]:
        """Return the answers that ``request`` asks for, to be fed to ``stream``.

        Raises:
            InvalidRequestError, ContextLengthError: as :meth:`data_plane.inference.port.Engine.generate`.
            ShuttingDownError: closed.
        """
        prompt, params = await self.tokenize(request), request.sampling
        self._check_length(len(prompt), params.max_tokens)
        self._check_tokens("a stop token id", params.stop_token_ids)
        self._check_tokens("a biased token id", [token for token, _ in params.logit_bias])
        edits = await self._edits(params, prompt)
        if params.structure is not None:
            forms = await self._unless_closed(self._grammars.compile(params.structure, answers=params.n))
            edits = [(*before, form) for before, form in zip(edits, forms, strict=True)]
        return [self._job(request, prompt, own, stream, index) for index, own in enumerate(edits)]

    async def prompt_text(self, job: Job) -> str:
        """Return the prompt of an answer that has not begun as text; raises as :meth:`jobs`."""
        special = not job.sampler.params.skip_special_tokens
        return await self._off_loop(lambda: self._tokenizer.decode_long(job.sequence.tokens, special=special))

    async def _edits(self, params: SamplingParams, prompt: list[int]) -> list[tuple[Edit, ...]]:
        """Return the edits of each answer but for its form."""
        ending = self._end_tokens | frozenset(params.stop_token_ids)

        def make() -> list[tuple[Edit, ...]]:
            bad_words = [ids for text in params.bad_words for ids in self._tokenizer.spellings(text)]
            return [make_edits(params, prompt=prompt, bad_words=bad_words, ending=ending) for _ in range(params.n)]

        # All others are made in no time, which waiting for the thread is not.
        return await self._off_loop(make) if params.bad_words or params.repetition_penalty != 1.0 else make()

    def _job(
        self, request: EngineRequest, prompt: list[int], edits: tuple[Edit, ...], stream: DeltaStream, index: int
    ) -> Job:
        params, first, rest = request.sampling, index == 0, self._model.context_tokens - len(prompt)
        if params.seed is not None:
            params = replace(params, seed=(params.seed + index) % (MAX_SEED + 1))
        sampler = Sampler(params, edits)
        sequence = TokenSequence(
            request_id=request.request_id,
            tokens=list(prompt),  # grows by the answer
            prompt_tokens=len(prompt),
            max_tokens=rest if params.max_tokens is None else max(1, params.max_tokens),
            scope=request.scope,
            priority=request.priority,
            prompt_logits=first and params.prompt_logprobs is not None,
            lookup=Lookup() if sampler.greedy else None,
        )
        return Job(
            sequence=sequence,
            sampler=sampler,
            decode=partial(self._tokenizer.decode, special=not params.skip_special_tokens),
            spell=lambda token: self._tokenizer.decode([token], special=True),
            stream=stream,
            end_tokens=self._end_tokens,
            turn_end=self._turn_end,
            index=index,
            profile=request.profile and first,
        )

    def _check_tokens(self, what: str, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._model.vocabulary:
            raise InvalidRequestError(f"{what} is not between 0 and {self._model.vocabulary - 1}")

    def _check_length(self, prompt: int, wanted: int | None) -> None:
        context = self._model.context_tokens
        if prompt + (1 if wanted is None else wanted) > context:
            asked = f" and max_tokens of {wanted}" if wanted else ""
            raise ContextLengthError(
                f"a prompt of {prompt} tokens{asked} does not fit the context of {context} tokens",
                details={
                    "prompt_tokens": str(prompt),
                    "max_tokens": str(wanted or ""),
                    "context_tokens": str(context),
                },
            )

    async def _off_loop(self, call: Callable[[], _Result]) -> _Result:
        if self._closed:
            raise ShuttingDownError("the engine is closed")
        return await self._unless_closed(asyncio.get_running_loop().run_in_executor(self._text, call))

    async def _unless_closed(self, work: Awaitable[_Result]) -> _Result:
        """Return what ``work`` does; that a stopped thread never began it is no cancellation of the caller."""
        try:
            return await work
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ShuttingDownError("the engine is closed") from error
            raise
