"""What a `generate` request says: a prompt and how to continue it (docs/protocol.md section 6).

Names and meanings are those of vLLM's OpenAI-compatible server. A field that is absent has its default, which for
temperature, top-p, top-k, min-p and repetition penalty is the model's own. The bounds stand here once: the client is
told of them before anything is sealed, and the worker holds to them whatever it opens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final, TypedDict

from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import InvalidRequestError, MalformedRequestError
from bulkhead.fields import Fields

__all__ = [
    "MAX_ANSWERS",
    "MAX_LOGPROBS",
    "MAX_PAYLOAD_BYTES",
    "MAX_TOKENS",
    "GenerateOptions",
    "GenerateRequest",
    "Message",
    "encode_generate_request",
    "parse_generate_request",
]

MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024  # four bytes for each token of the longest contexts, below gRPC's 4 MiB
MAX_MESSAGES: Final = 1_024
MAX_STOPS: Final = 16  # each is searched after each token
MAX_STOP_CHARS: Final = 256  # text is held back up to this length, so it bounds the added latency
MAX_STOP_TOKENS: Final = 128
MAX_BAD_WORDS: Final = 128  # each is looked for at each token
MAX_BIASED_TOKENS: Final = 1_024
MAX_BIAS: Final = 100.0  # OpenAI's bound; beyond it a token is as good as forced
MAX_TOKENS: Final = 2**31 - 1
MAX_TEMPERATURE: Final = 100.0  # beyond it the distribution is uniform within fp32
MAX_REPETITION: Final = 10.0
MAX_PENALTY: Final = 2.0  # OpenAI's bound of presence and frequency penalty
MAX_SEED: Final = 2**53 - 1  # RFC 8785 section 3.2.2.3
MAX_ANSWERS: Final = 16  # of one prompt; each is a request of its own to the scheduler
MAX_LOGPROBS: Final = 20  # OpenAI's bound
MAX_SCHEMA_CHARS: Final = 65_536
MAX_REGEX_CHARS: Final = 4_096
MAX_CHOICES: Final = 256
MAX_CHOICE_CHARS: Final = 1_024
MAX_SALT_CHARS: Final = 256
MAX_PRIORITY: Final = 100  # vLLM sets no bound; a hundred steps each way rank any tenant's uses
MAX_TIMEOUT_S: Final = 86_400.0  # no ticket lives longer than the worker's keys
ROLES: Final = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A prompt and how to continue it.

    Attributes:
        messages: the conversation, 1 to 1,024 turns; empty with ``prompt``.
        prompt: text that is continued without a chat template, instead of ``messages``.
        max_tokens: most completion tokens; None for as many as ticket and context allow; 0, with ``echo`` or
            ``prompt_logprobs``, for nothing beyond the prompt's.
        min_tokens: fewest completion tokens.
        temperature: 0 (greedy) to 100; None for the model's own default.
        top_p: above 0, at most 1; None likewise.
        top_k: 0 or -1 for all tokens; None likewise.
        min_p: least likelihood relative to the likeliest token, 0 to 1; None likewise.
        repetition_penalty: above 0, at most 10, 1 for none; None likewise.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        logit_bias: token id to addend, -100 to 100.
        bad_words: up to 128 texts that the answer must not spell.
        seed: 0 to 2^53 - 1, or None for a fresh one.
        n: answers, 1 to 16.
        stop: up to 16 texts of 1 to 256 characters that end the answer.
        stop_token_ids: up to 128 tokens that end the answer.
        include_stop_str_in_output: leave what ended the answer in it.
        skip_special_tokens: special tokens have no text.
        ignore_eos: go on past the model's end of turn.
        logprobs: log probabilities with each token, and of so many likeliest (0 to 20); None for none.
        prompt_logprobs: the same of the prompt's tokens from the second on; None for none, or with ``echo`` as
            ``logprobs`` says.
        echo: the answer begins with the prompt.
        truncate_prompt_tokens: keep so many last tokens of the prompt; -1 for what the context holds.
        json_schema: JSON schema, as text, that the answer is held to.
        regex: regular expression that the answer is held to.
        choice: texts that the answer is one of.
        cache_salt: state of prompts is reused between the tenant's requests of equal salt, whatever their session;
            empty shares within the session only.
        priority: -100 to 100; of the tenant's requests that wait on the worker, lower numbers begin first.
        timeout_s: above 0, at most 86,400: the request ends with DeadlineError so long after the worker took it in;
            None for no bound but the ticket's.
        profile: trace one step of the answer (:class:`bulkhead.protocol.payloads.Trace`).
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
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
    json_schema: str = ""
    regex: str = ""
    choice: tuple[str, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    profile: bool = False


class GenerateOptions(TypedDict, total=False):
    """The less common fields of :class:`GenerateRequest`, for the signatures of clients."""

    min_tokens: int
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    bad_words: tuple[str, ...]
    n: int
    stop_token_ids: tuple[int, ...]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool
    truncate_prompt_tokens: int | None
    json_schema: str
    regex: str
    choice: tuple[str, ...]
    cache_salt: str
    priority: int
    timeout_s: float | None
    profile: bool


_DEFAULTS: Final = GenerateRequest()


def encode_generate_request(request: GenerateRequest) -> bytes:
    """Return the payload of method ``generate``; fields that have their default are left out.

    Raises:
        InvalidRequestError: a value out of bounds, named; the worker would say the same.
    """
    payload: dict[str, Json] = {
        item.name: value
        for item in fields(request)
        if (value := getattr(request, item.name)) != getattr(_DEFAULTS, item.name)
    }
    for name in ("bad_words", "stop", "stop_token_ids", "choice"):
        if name in payload:
            payload[name] = list(getattr(request, name))
    if request.messages:
        payload["messages"] = [{"role": item.role, "content": item.content} for item in request.messages]
    if request.logit_bias:
        payload["logit_bias"] = {str(token): float(bias) for token, bias in request.logit_bias.items()}
    encoded = encode_fields(payload)
    parse_generate_request(encoded)  # the bounds stand in one place, and the caller hears of them before sealing
    return encoded


def encode_fields(payload: dict[str, Json]) -> bytes:
    """Return a payload's RFC 8785 bytes.

    Raises:
        InvalidRequestError: a value that has none, named.
    """
    try:
        return canonical_json(payload)
    except MalformedRequestError:
        for name, value in payload.items():  # once more, to say which one it is
            try:
                canonical_json(value)
            except MalformedRequestError as error:
                raise InvalidRequestError(f"request: {name} is not finite, or no Unicode text") from error
        raise


def parse_generate_request(payload: bytes) -> GenerateRequest:
    """Return the request in an opened payload (untrusted by the worker).

    ``messages`` or ``prompt`` is required; everything else has a default.

    Raises:
        InvalidRequestError: not canonical JSON or UTF-8, a field unknown, missing, of a wrong type or out of bounds.
    """
    with Fields.parse(payload, max_bytes=MAX_PAYLOAD_BYTES, what="request", error=InvalidRequestError) as given:
        read = _Reader(given)
        prompt = read.text("prompt", max_chars=MAX_PAYLOAD_BYTES)
        messages: tuple[Message, ...] = ()
        if "messages" in given or not prompt:
            items = given.array("messages", min_items=1, max_items=MAX_MESSAGES)
            messages = tuple(_read_message(item) for item in items)
        request = GenerateRequest(
            messages=messages,
            prompt=prompt,
            max_tokens=read.integer("max_tokens", high=MAX_TOKENS),
            min_tokens=read.integer("min_tokens", high=MAX_TOKENS) or 0,
            temperature=read.number("temperature", low=0, high=MAX_TEMPERATURE),
            top_p=read.positive("top_p", high=1),
            top_k=read.integer("top_k", low=-1, high=MAX_TOKENS),
            min_p=read.number("min_p", low=0, high=1),
            repetition_penalty=read.positive("repetition_penalty", high=MAX_REPETITION),
            presence_penalty=read.number("presence_penalty", low=-MAX_PENALTY, high=MAX_PENALTY) or 0.0,
            frequency_penalty=read.number("frequency_penalty", low=-MAX_PENALTY, high=MAX_PENALTY) or 0.0,
            logit_bias=_read_bias(given),
            bad_words=read.texts("bad_words", max_items=MAX_BAD_WORDS, max_chars=MAX_STOP_CHARS),
            seed=read.integer("seed", high=MAX_SEED),
            n=read.integer("n", low=1, high=MAX_ANSWERS) or 1,
            stop=read.texts("stop", max_items=MAX_STOPS, max_chars=MAX_STOP_CHARS),
            stop_token_ids=_read_tokens(given),
            include_stop_str_in_output=read.flag("include_stop_str_in_output"),
            skip_special_tokens=read.flag("skip_special_tokens"),
            ignore_eos=read.flag("ignore_eos"),
            logprobs=read.integer("logprobs", high=MAX_LOGPROBS),
            prompt_logprobs=read.integer("prompt_logprobs", high=MAX_LOGPROBS),
            echo=read.flag("echo"),
            truncate_prompt_tokens=read.integer("truncate_prompt_tokens", low=-1, high=MAX_TOKENS),
            json_schema=read.text("json_schema", max_chars=MAX_SCHEMA_CHARS),
            regex=read.text("regex", max_chars=MAX_REGEX_CHARS),
            choice=read.texts("choice", max_items=MAX_CHOICES, max_chars=MAX_CHOICE_CHARS),
            cache_salt=read.text("cache_salt", max_chars=MAX_SALT_CHARS),
            priority=read.integer("priority", low=-MAX_PRIORITY, high=MAX_PRIORITY) or 0,
            timeout_s=read.positive("timeout_s", high=MAX_TIMEOUT_S),
            profile=read.flag("profile"),
        )
        _check_together(given, request)
        return request


class _Reader:
    """Reads fields that may be absent; a field that is not there has the request's default."""

    def __init__(self, given: Fields) -> None:
        self._given = given

    def integer(self, name: str, *, low: int = 0, high: int) -> int | None:
        return self._given.integer(name, low=low, high=high) if name in self._given else None

    def number(self, name: str, *, low: float, high: float) -> float | None:
        return self._given.number(name, low=low, high=high) if name in self._given else None

    def positive(self, name: str, *, high: float) -> float | None:
        value = self.number(name, low=0, high=high)
        if value == 0:
            raise self._given.wrong(name, f"a number above 0 and at most {high:g}")
        return value

    def flag(self, name: str) -> bool:
        default: bool = getattr(_DEFAULTS, name)
        return self._given.boolean(name) if name in self._given else default

    def text(self, name: str, *, max_chars: int) -> str:
        return self._given.text(name, max_chars=max_chars) if name in self._given else ""

    def texts(self, name: str, *, max_items: int, max_chars: int) -> tuple[str, ...]:
        return self._given.texts(name, max_items=max_items, max_chars=max_chars) if name in self._given else ()


def _check_together(given: Fields, request: GenerateRequest) -> None:
    if request.messages and request.prompt:
        raise given.wrong("prompt", "absent beside messages")
    if request.truncate_prompt_tokens == 0:
        raise given.wrong("truncate_prompt_tokens", "-1 or a positive count")
    if request.max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
        raise given.wrong("max_tokens", "at least 1 without echo and prompt_logprobs")
    if request.min_tokens > (MAX_TOKENS if request.max_tokens is None else request.max_tokens):
        raise given.wrong("min_tokens", "at most max_tokens")
    if sum(map(bool, (request.json_schema, request.regex, request.choice))) > 1:
        raise given.wrong("json_schema", "the only one of json_schema, regex and choice")


def _read_bias(given: Fields) -> Mapping[int, float]:
    if "logit_bias" not in given:
        return {}
    value = given.value("logit_bias")
    expected = f"an object of at most {MAX_BIASED_TOKENS} token ids, each with a number from -100 to 100"
    if not isinstance(value, dict) or len(value) > MAX_BIASED_TOKENS:
        raise given.wrong("logit_bias", expected)
    bias: dict[int, float] = {}
    for name, addend in value.items():
        small = name.isascii() and name.isdigit() and len(name) <= len(str(MAX_TOKENS)) and str(int(name)) == name
        number = isinstance(addend, int | float) and not isinstance(addend, bool) and -MAX_BIAS <= addend <= MAX_BIAS
        if not small or not number:
            raise given.wrong("logit_bias", expected)
        bias[int(name)] = float(addend)  # a number, as just checked
    return bias


def _read_tokens(given: Fields) -> tuple[int, ...]:
    if "stop_token_ids" not in given:
        return ()
    items = given.array("stop_token_ids", max_items=MAX_STOP_TOKENS)
    tokens = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))
    if len(tokens) != len(items) or not all(0 <= token <= MAX_TOKENS for token in tokens):
        raise given.wrong("stop_token_ids", "an array of token ids")
    return tokens


def _read_message(value: Json) -> Message:
    with Fields(value, what="message", error=InvalidRequestError) as given:
        role = given.text("role")
        if role not in ROLES:
            raise given.wrong("role", "system, user or assistant")
        return Message(role=role, content=given.text("content", max_chars=MAX_PAYLOAD_BYTES, empty=True))
