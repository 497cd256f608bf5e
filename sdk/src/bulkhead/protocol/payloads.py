"""What is said inside the seal: RFC 8785 JSON, strictly read and bounded (docs/protocol.md section 6).

A request is one object. A response is a sequence of records, one to a chunk: deltas or embeddings, then one ``end``
or one ``error``; the final chunk holds only the receipt.
"""

import array
import json
import math
import sys
from dataclasses import dataclass
from typing import Final, TypeAlias

from bulkhead.encoding import Json, b64url_encode, canonical_json
from bulkhead.errors import (
    BulkheadError,
    InvalidRequestError,
    MalformedRequestError,
    MessageTooLargeError,
    SealError,
    error_from_code,
)
from bulkhead.fields import Fields
from bulkhead.sealing.padding import MAX_RECORD_BYTES

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Delta",
    "EmbedRequest",
    "EmbedResult",
    "End",
    "Failure",
    "GenerateRequest",
    "Message",
    "Record",
    "Usage",
    "encode_embed_request",
    "encode_generate_request",
    "encode_record",
    "parse_embed_request",
    "parse_generate_request",
    "parse_record",
]

MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024  # four bytes for each token of the longest contexts, below gRPC's 4 MiB
MAX_MESSAGES: Final = 1_024
MAX_INPUTS: Final = 256
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_TOKENS: Final = 2**31 - 1
MAX_TEMPERATURE: Final = 100.0
MAX_SEED: Final = 2**53 - 1  # RFC 8785 section 3.2.2.3
MAX_ERROR_CHARS: Final = 1_024
MAX_CODE_CHARS: Final = 64
MAX_DIMENSIONS: Final = 8_192
ROLES: Final = frozenset({"system", "user", "assistant"})
FINISH_REASONS: Final = frozenset({"stop", "length"})
_DELTA_START: Final = b'{"text":'  # of no other record: the names are sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A prompt and how to continue it.

    Attributes:
        messages: the conversation, 1 to 1,024 turns.
        max_tokens: most completion tokens; None for as many as ticket and context allow.
        temperature: 0 (greedy) to 100.
        top_p: above 0, at most 1.
        top_k: 0 for all tokens.
        seed: 0 to 2^53 - 1, or None for a fresh one.
        stop: up to 16 texts of 1 to 256 characters that end the answer.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """1 to 256 non-empty texts to embed."""

    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next piece of an answer and the number of tokens behind it."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """The embedding of ``inputs[index]``; travels as little-endian IEEE 754 binary32."""

    index: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The answer is whole; ``finish_reason`` is ``stop`` or ``length``."""

    finish_reason: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The request failed: stable code and sentence of a :class:`~bulkhead.errors.BulkheadError`."""

    code: str
    message: str

    @classmethod
    def of(cls, error: BulkheadError) -> "Failure":
        """Return the record of an error; its details stay behind."""
        return cls(code=error.code, message=error.message[:MAX_ERROR_CHARS])

    def error(self) -> BulkheadError:
        """Return (for raising) the error in the peer's tree."""
        return error_from_code(self.code, self.message)


Record: TypeAlias = Delta | EmbedResult | End | Failure


def encode_generate_request(request: GenerateRequest) -> bytes:
    """Return the payload of method ``generate``.

    Raises:
        InvalidRequestError: a value out of bounds, named; the worker would say the same.
    """
    payload: dict[str, Json] = {
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": list(request.stop),
    }
    payload.update(
        {
            name: value
            for name, value in (("max_tokens", request.max_tokens), ("seed", request.seed))
            if value is not None
        }
    )
    encoded = _encoded(payload)
    parse_generate_request(encoded)  # the bounds stand in one place, and the caller hears of them before sealing
    return encoded


def _encoded(payload: dict[str, Json]) -> bytes:
    try:
        return canonical_json(payload)
    except MalformedRequestError:
        for name, value in payload.items():  # once more, to say which one it is
            try:
                canonical_json(value)
            except MalformedRequestError as error:
                raise InvalidRequestError(f"request: {name} is not finite, or no Unicode text") from error
        raise


def encode_embed_request(request: EmbedRequest) -> bytes:
    """Return the payload of method ``embed``.

    Raises:
        InvalidRequestError: a value out of bounds, named.
    """
    encoded = _encoded({"input": list(request.inputs)})
    parse_embed_request(encoded)
    return encoded


def parse_generate_request(payload: bytes) -> GenerateRequest:
    """Return the request in an opened payload (untrusted by the worker).

    ``messages`` is required; everything else has a default.

    Raises:
        InvalidRequestError: not canonical JSON or UTF-8, a field unknown, missing, of a wrong type or out of bounds.
    """
    with Fields.parse(payload, max_bytes=MAX_PAYLOAD_BYTES, what="request", error=InvalidRequestError) as fields:
        messages = tuple(_read_message(item) for item in fields.array("messages", min_items=1, max_items=MAX_MESSAGES))
        default = GenerateRequest(messages=messages)
        top_p = fields.number("top_p", low=0, high=1) if "top_p" in fields else default.top_p
        if top_p <= 0:
            raise fields.wrong("top_p", "a number above 0 and at most 1")
        return GenerateRequest(
            messages=messages,
            max_tokens=fields.integer("max_tokens", low=1, high=MAX_TOKENS) if "max_tokens" in fields else None,
            temperature=(
                fields.number("temperature", low=0, high=MAX_TEMPERATURE)
                if "temperature" in fields
                else default.temperature
            ),
            top_p=top_p,
            top_k=fields.integer("top_k", high=MAX_TOKENS) if "top_k" in fields else default.top_k,
            seed=fields.integer("seed", high=MAX_SEED) if "seed" in fields else None,
            stop=(
                fields.texts("stop", max_items=MAX_STOPS, max_chars=MAX_STOP_CHARS)
                if "stop" in fields
                else default.stop
            ),
        )


def parse_embed_request(payload: bytes) -> EmbedRequest:
    """Return the request in an opened payload (untrusted by the worker).

    Raises:
        InvalidRequestError: as :func:`parse_generate_request`.
    """
    with Fields.parse(payload, max_bytes=MAX_PAYLOAD_BYTES, what="request", error=InvalidRequestError) as fields:
        return EmbedRequest(
            inputs=fields.texts("input", min_items=1, max_items=MAX_INPUTS, max_chars=MAX_PAYLOAD_BYTES)
        )


def encode_record(record: Record) -> bytes:
    """Return the bytes of a response record, before padding.

    Raises:
        InvalidRequestError: not representable (a lone surrogate, a number that is not finite), or too long for a chunk.
    """
    match record:
        case Delta():
            data = _encode_delta(record)
        case EmbedResult():
            data = canonical_json(
                {"type": "embedding", "index": record.index, "vector": b64url_encode(_pack(record.vector))}
            )
        case End():
            usage = record.usage
            data = canonical_json(
                {
                    "type": "end",
                    "finish_reason": record.finish_reason,
                    "usage": {
                        "prompt_tokens": usage.prompt_tokens,
                        "completion_tokens": usage.completion_tokens,
                    },
                }
            )
        case Failure():
            data = canonical_json({"type": "error", "code": record.code, "message": record.message})
    if len(data) > MAX_RECORD_BYTES:
        raise MessageTooLargeError(f"a response record has at most {MAX_RECORD_BYTES} bytes")
    return data


def parse_record(data: bytes) -> Record:
    """Return the response record in an opened chunk.

    Raises:
        SealError: not a canonical record of a known type.
    """
    if data.startswith(_DELTA_START):
        return _parse_delta(data)
    with Fields.parse(data, max_bytes=MAX_RECORD_BYTES, what="response record", error=SealError) as fields:
        match fields.text("type"):
            case "embedding":
                return EmbedResult(
                    index=fields.integer("index", high=MAX_INPUTS - 1),
                    vector=_unpack(fields.binary("vector", max_bytes=4 * MAX_DIMENSIONS)),
                )
            case "end":
                return _read_end(fields)
            case "error":
                return Failure(
                    code=fields.text("code", max_chars=MAX_CODE_CHARS),
                    message=fields.text("message", max_chars=MAX_ERROR_CHARS, empty=True),
                )
            case _:
                raise fields.wrong("type", "embedding, end or error")


def _encode_delta(delta: Delta) -> bytes:
    """Return a delta's RFC 8785 bytes; json's escapes are the RFC's, and this is the hot path of a stream."""
    text = json.dumps(delta.text, ensure_ascii=False)
    try:
        return f'{{"text":{text},"tokens":{delta.tokens:d},"type":"delta"}}'.encode()
    except UnicodeEncodeError as error:
        raise MalformedRequestError("a delta's text holds a lone surrogate") from error


def _parse_delta(data: bytes) -> Delta:
    """Return the delta whose one encoding ``data`` is: equality with it checks every field and the form at once."""
    try:
        value = json.loads(data)
        delta = Delta(text=value["text"], tokens=value["tokens"])
        typed = isinstance(delta.text, str) and type(delta.tokens) is int and 0 <= delta.tokens <= MAX_TOKENS
        if typed and _encode_delta(delta) == data:
            return delta
    except (ValueError, KeyError, RecursionError, MalformedRequestError) as error:
        raise SealError("response record: not a delta") from error
    raise SealError("response record: not a delta in canonical form")


def _read_end(fields: Fields) -> End:
    finish_reason = fields.text("finish_reason")
    if finish_reason not in FINISH_REASONS:
        raise fields.wrong("finish_reason", "stop or length")
    with fields.nested("usage") as usage:
        return End(
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=usage.integer("prompt_tokens", high=MAX_TOKENS),
                completion_tokens=usage.integer("completion_tokens", high=MAX_TOKENS),
            ),
        )


def _read_message(value: Json) -> Message:
    with Fields(value, what="message", error=InvalidRequestError) as fields:
        role = fields.text("role")
        if role not in ROLES:
            raise fields.wrong("role", "system, user or assistant")
        return Message(role=role, content=fields.text("content", max_chars=MAX_PAYLOAD_BYTES, empty=True))


def _pack(vector: tuple[float, ...]) -> bytes:
    if not 0 < len(vector) <= MAX_DIMENSIONS or not all(math.isfinite(value) for value in vector):
        raise InvalidRequestError(f"an embedding has 1 to {MAX_DIMENSIONS} finite numbers")
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> tuple[float, ...]:
    vector = array.array("f")
    if not data or len(data) % vector.itemsize:
        raise SealError("an embedding is not a whole number of values")
    vector.frombytes(data)
    if sys.byteorder == "big":
        vector.byteswap()
    return tuple(vector)
