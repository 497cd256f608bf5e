"""The port between a worker and whatever runs the model.

A worker serves one tenant through one :class:`Engine`. Nothing here needs torch, so the rest of the worker may import
this module; the native implementation is opened with :func:`data_plane.engine.open_engine`.

Life of a request: :meth:`Engine.generate` gives an asynchronous generator. Nothing is queued before its first item is
asked for; invalid input is raised there. Every request ends exactly once: with the delta that has its ``usage``, with
an error, or by the caller going away (``aclose`` on the generator, or cancellation of the awaiting task),
upon which the engine frees the memory of the request before its next step.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from bulkhead.errors import InvalidRequestError
from bulkhead.protocol.generate import MAX_MESSAGES, MAX_PRIORITY
from bulkhead.protocol.payloads import TokenLogprob
from data_plane.inference.metrics import EngineMetrics
from data_plane.inference.sampling_params import OPENAI_DEFAULTS, SamplingParams

__all__ = [
    "ChatMessage",
    "EmbedRequest",
    "Embedding",
    "Engine",
    "EngineRequest",
    "EngineState",
    "FinishReason",
    "ModelDescription",
    "TokenDelta",
    "Usage",
]

MAX_PROMPT_CHARS: Final = 1 << 24  # four bytes for each token of the longest context
MAX_SCOPE_BYTES: Final = 64


class FinishReason(StrEnum):
    """Why a request ended; the names are those of OpenAI-compatible servers."""

    STOP = "stop"
    """The model ended its turn, or a stop string was produced."""
    LENGTH = "length"
    """``max_tokens`` or the end of the context was reached."""


class EngineState(StrEnum):
    """What an engine accepts at present."""

    SERVING = "serving"
    DRAINING = "draining"
    """Running requests finish; new ones get :class:`bulkhead.errors.ShuttingDownError`."""
    FAILED = "failed"
    """A step failed; every request gets :class:`bulkhead.errors.InternalError`. The worker should exit."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation (untrusted text)."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if not self.role or len(self.role) > 32 or not self.role.isidentifier():
            raise InvalidRequestError("a message's role is a short word such as system, user or assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One prompt and how to continue it.

    Exactly one of ``messages`` (rendered with the model's chat template), ``prompt`` (text, with the special tokens
    that the tokenizer puts around it) and ``prompt_token_ids`` (taken as they are) is given.

    Attributes:
        request_id: names the request in metrics and errors; unique among the requests in flight of this engine.
        messages: the conversation, oldest turn first.
        prompt: the prompt as text, without a chat template.
        prompt_token_ids: the prompt as the model's own token numbers.
        sampling: how tokens are chosen.
        scope: secret that bounds reuse of cached prompt prefixes: state is shared only between requests of equal
            scope. Empty shares with nobody.
        priority: lower numbers leave the queue first, as in vLLM; from -100 to 100.
        timeout_s: the request ends with DeadlineError so long after it was handed in, in seconds; None never.
        profile: trace the step that chooses the answer's second token (of the first of several answers), or a later one
            if another step has just been traced.

    Raises:
        InvalidRequestError: no or several prompts, too many messages, or a field above its limit.
    """

    request_id: str
    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    prompt_token_ids: tuple[int, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    scope: bytes = field(default=b"", repr=False)
    priority: int = 0
    timeout_s: float | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequestError(f"priority is between -{MAX_PRIORITY} and {MAX_PRIORITY}")
        if self.timeout_s is not None and not 0.0 < self.timeout_s < float("inf"):
            raise InvalidRequestError("timeout_s is a positive number of seconds")
        if sum(map(bool, (self.messages, self.prompt, self.prompt_token_ids))) != 1:
            raise InvalidRequestError("a request has either messages, a prompt or token ids, and not an empty prompt")
        if len(self.prompt) > MAX_PROMPT_CHARS:
            raise InvalidRequestError(f"a prompt has at most {MAX_PROMPT_CHARS} characters")
        if len(self.messages) > MAX_MESSAGES:
            raise InvalidRequestError(f"at most {MAX_MESSAGES} messages in a conversation")
        if len(self.scope) > MAX_SCOPE_BYTES:
            raise InvalidRequestError(f"a cache scope has at most {MAX_SCOPE_BYTES} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request; ``cached_tokens`` of the prompt were not computed again (for the first of its answers)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """What came since the previous delta; tokens that arrived while the caller was busy are joined into one.

    Attributes:
        index: which answer it belongs to, below ``n``.
        text: complete characters only; may be empty while a character or a possible stop string is incomplete.
        token_ids: the tokens produced, whose text may come with a later delta.
        logprobs: of ``token_ids``, if asked for.
        prompt_logprobs: of the prompt's tokens from the second on, if asked for; with the first answer's first delta.
        finish_reason: set on the last delta of each answer and only there.
        stop_reason: with ``stop``, the stop string or token that ended the answer; None for the tokenizer's own end of
            turn.
        usage: of the whole request, set on its very last delta.
        trace: of the step that was to be traced, as a gzipped Chrome trace; with the token of that step. It has names
            and times of operators, no shapes, stacks or data. An answer of one token has none.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    trace: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to turn into vectors; ``scope`` as in :class:`EngineRequest`."""

    request_id: str
    texts: tuple[str, ...]
    scope: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not self.texts:
            raise InvalidRequestError("an embedding request has at least one text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One vector per text, in order, each of the model's hidden size."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What is served.

    Attributes:
        name: the model directory's name.
        architecture: the class named by the model's config.json, e.g. ``LlamaForCausalLM``.
        context_tokens: most tokens of prompt and answer together that this engine holds for one request.
        vocabulary: rows of the output head.
        weight_bytes: of the weights as they are held for computing, the token table included.
        compute: number format of the arithmetic, e.g. ``fp32``.
        weights: number format in which weights are held, e.g. ``fp32`` or ``bf16``.
        defaults: what holds where a request does not say: generation_config.json's values, else those of OpenAI's
            interface.
    """

    name: str
    architecture: str
    context_tokens: int
    vocabulary: int
    weight_bytes: int
    compute: str
    weights: str
    defaults: SamplingParams = OPENAI_DEFAULTS


class Engine(Protocol):
    """Runs one model for one tenant. All methods are called on the event loop that opened the engine."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Stream the continuation of a prompt. Close the generator (``contextlib.aclosing``) to cancel.

        Raises (at the first item):
            ContextLengthError: the prompt alone, or with ``max_tokens``, is longer than the context; both numbers are
                in the message and in ``details`` as ``prompt_tokens``, ``max_tokens`` and ``context_tokens``.
            InvalidRequestError: a token id outside the vocabulary, text that is not Unicode, messages that the model's
                chat template refuses, or a request id that is in flight already.
            QueueFullError: as many requests wait as the engine's configuration allows.
            DeadlineError: the request's time was over before it was done (also in the middle of a stream).
            ShuttingDownError: the engine is draining or closed (also raised in the middle of a stream by ``aclose``).
            InternalError: a step failed (also in the middle of a stream).
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Return one vector per text.

        Raises:
            UnsupportedError: the model served is not an embedding model.
        """
        ...

    async def tokenize(self, request: EngineRequest) -> tuple[int, ...]:
        """Return what :meth:`generate` makes of the request's prompt, in tokens; raises as it does.

        A request with these as its ``prompt_token_ids`` has the same answer and is not cut into tokens again.
        """
        ...

    def describe(self) -> ModelDescription:
        """Return what is served."""
        ...

    def health(self) -> EngineState:
        """Return what is accepted at present."""
        ...

    def metrics(self) -> EngineMetrics:
        """Return what is counted and going on; how much of it may leave the worker is the caller's to decide."""
        ...

    async def drain(self, *, timeout_s: float) -> bool:
        """Take nothing new, wait until running requests have ended; whether they all did within ``timeout_s``."""
        ...

    async def aclose(self) -> None:
        """End every request with ShuttingDownError, stop the engine's thread, overwrite and release weights and caches.

        Idempotent.
        """
        ...
