"""What is said inside the seal: RFC 8785 JSON, strictly read and bounded (docs/protocol.md section 6).

A request is one object. A response is a sequence of records, one to a chunk: deltas or embeddings, then one ``end``
or one ``error``; the final chunk holds only the receipt.
"""

import array
import json
import math
import re
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
from bulkhead.protocol.generate import (
    MAX_ANSWERS,
    MAX_LOGPROBS,
    MAX_PAYLOAD_BYTES,
    MAX_TOKENS,
    GenerateRequest,
    Message,
    encode_fields,
    encode_generate_request,
    parse_generate_request,
)
from bulkhead.sealing.padding import MAX_RECORD_BYTES

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "MAX_TRACE_BYTES",
    "Content",
    "Delta",
    "EmbedRequest",
    "EmbedResult",
    "End",
    "Failure",
    "GenerateRequest",
    "Message",
    "Record",
    "TokenLogprob",
    "Trace",
    "Usage",
    "encode_embed_request",
    "encode_generate_request",
    "encode_record",
    "parse_embed_request",
    "parse_generate_request",
    "parse_record",
]

MAX_INPUTS: Final = 256
MAX_ERROR_CHARS: Final = 1_024
MAX_CODE_CHARS: Final = 64
MAX_DIMENSIONS: Final = 8_192
MAX_TOKEN_CHARS: Final = 1_024  # of a token alone as text
MAX_DELTA_LOGPROBS: Final = 64
MAX_TRACE_BYTES: Final = 32_768  # of one record; base64url makes it a third longer
FINISH_REASONS: Final = frozenset({"stop", "length"})
_DELTA_START: Final = b'{"text":'  # of no other record: the names are sorted
# A delta that is canonical by its form alone: no character of its text is ever escaped. Nearly all are such.
_SIMPLE_DELTA: Final = re.compile(rb'\{"text":"([ !#-\[\]-~]*)","tokens":(0|[1-9][0-9]{0,9}),"type":"delta"\}')
_TEXT_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)


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
class TokenLogprob:
    """Natural logarithms of the model's own probabilities at one place of an answer.

    Attributes:
        token_id: the token that stands there.
        text: it alone as text; the name of a special token.
        logprob: of that token.
        rank: 1 for the likeliest.
        top: the likeliest tokens, each (id, text, logarithm), likeliest first.
    """

    token_id: int
    text: str
    logprob: float
    rank: int
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next piece of answer ``index``, the number of tokens behind it, and log probabilities if asked for.

    ``logprobs`` are those of the tokens, ``prompt_logprobs`` the next ones of the prompt's tokens from the second on.
    """

    text: str
    tokens: int
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """The embedding of ``inputs[index]``; travels as little-endian IEEE 754 binary32."""

    index: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The next piece of the profile that was asked for: one gzip stream of a Chrome trace (JSON), cut anywhere."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The answer is whole, or all answers are.

    Attributes:
        finish_reason: ``stop`` or ``length``; of the first answer.
        usage: tokens of all answers.
        stop_reason: the text or token that ended the first answer; None for the end of turn that the tokenizer names.
        cached_tokens: tokens of the prompt that were not computed again.
        others: finish and stop reason of each further answer, in order.
    """

    finish_reason: str
    usage: Usage
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    others: tuple[tuple[str, str | int | None], ...] = ()


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


Content: TypeAlias = Delta | EmbedResult | Trace
"""What a response holds before its end."""

Record: TypeAlias = Content | End | Failure


def encode_embed_request(request: EmbedRequest) -> bytes:
    """Return the payload of method ``embed``.

    Raises:
        InvalidRequestError: a value out of bounds, named.
    """
    encoded = encode_fields({"input": list(request.inputs)})
    parse_embed_request(encoded)
    return encoded


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
        case Trace():
            data = canonical_json({"type": "trace", "data": b64url_encode(record.data)})
        case End():
            data = canonical_json(_end_fields(record))
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
            case "delta":
                return _read_rich_delta(fields)
            case "embedding":
                return EmbedResult(
                    index=fields.integer("index", high=MAX_INPUTS - 1),
                    vector=_unpack(fields.binary("vector", max_bytes=4 * MAX_DIMENSIONS)),
                )
            case "trace":
                return Trace(data=fields.binary("data", max_bytes=MAX_TRACE_BYTES))
            case "end":
                return _read_end(fields)
            case "error":
                return Failure(
                    code=fields.text("code", max_chars=MAX_CODE_CHARS),
                    message=fields.text("message", max_chars=MAX_ERROR_CHARS, empty=True),
                )
            case _:
                raise fields.wrong("type", "delta, embedding, trace, end or error")


def _end_fields(end: End) -> dict[str, Json]:
    fields: dict[str, Json] = {
        "type": "end",
        "finish_reason": end.finish_reason,
        "usage": {"prompt_tokens": end.usage.prompt_tokens, "completion_tokens": end.usage.completion_tokens},
    }
    if end.stop_reason is not None:
        fields["stop_reason"] = end.stop_reason
    if end.cached_tokens:
        fields["cached_tokens"] = end.cached_tokens
    if end.others:
        fields["others"] = [[finish, stop] for finish, stop in end.others]
    return fields


def _encode_delta(delta: Delta) -> bytes:
    """Return a delta's RFC 8785 bytes; json's escapes are the RFC's, and this is the hot path of a stream."""
    if delta.index or delta.logprobs or delta.prompt_logprobs:
        return _encode_rich_delta(delta)
    text = _TEXT_ENCODER.encode(delta.text)
    try:
        return f'{{"text":{text},"tokens":{delta.tokens:d},"type":"delta"}}'.encode()
    except UnicodeEncodeError as error:
        raise MalformedRequestError("a delta's text holds a lone surrogate") from error


def _encode_rich_delta(delta: Delta) -> bytes:
    fields: dict[str, Json] = {"type": "delta", "text": delta.text, "tokens": delta.tokens, "index": delta.index}
    for name, entries in (("logprobs", delta.logprobs), ("prompt_logprobs", delta.prompt_logprobs)):
        if entries:
            fields[name] = [
                [entry.token_id, entry.text, entry.logprob, entry.rank, [list(likely) for likely in entry.top]]
                for entry in entries
            ]
    return canonical_json(fields)


def _read_rich_delta(fields: Fields) -> Delta:
    entries = {
        name: fields.array(name, min_items=1, max_items=MAX_DELTA_LOGPROBS) if name in fields else []
        for name in ("logprobs", "prompt_logprobs")
    }
    return Delta(
        text=fields.text("text", max_chars=MAX_RECORD_BYTES, empty=True),
        tokens=fields.integer("tokens", high=MAX_TOKENS),
        index=fields.integer("index", high=MAX_ANSWERS - 1),
        logprobs=tuple(map(_read_logprob, entries["logprobs"])),
        prompt_logprobs=tuple(map(_read_logprob, entries["prompt_logprobs"])),
    )


def _read_logprob(value: Json) -> TokenLogprob:
    match value:
        case [int(token), str(text), int() | float() as logprob, int(rank), [*top]] if len(top) <= MAX_LOGPROBS:
            likely = tuple(_read_likely(item) for item in top)
            checked = _read_likely([token, text, logprob])
            return TokenLogprob(token_id=token, text=text, logprob=checked[2], rank=rank, top=likely)
    raise SealError("response record: a log probability is malformed")


def _read_likely(value: Json) -> tuple[int, str, float]:
    match value:
        case [int(token), str(text), int() | float() as logprob]:
            if not isinstance(token, bool) and len(text) <= MAX_TOKEN_CHARS and logprob <= 0:
                return token, text, float(logprob)
    raise SealError("response record: a log probability is malformed")


def _parse_delta(data: bytes) -> Delta:
    """Return the delta whose one encoding ``data`` is: equality with it checks every field and the form at once."""
    simple = _SIMPLE_DELTA.fullmatch(data)
    if simple is not None and (tokens := int(simple[2])) <= MAX_TOKENS:
        return Delta(text=simple[1].decode("ascii"), tokens=tokens)
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
    others = fields.array("others", min_items=1, max_items=MAX_ANSWERS - 1) if "others" in fields else []
    with fields.nested("usage") as usage:
        return End(
            finish_reason=finish_reason,
            stop_reason=_stop_reason(fields.value("stop_reason")) if "stop_reason" in fields else None,
            cached_tokens=fields.integer("cached_tokens", low=1, high=MAX_TOKENS) if "cached_tokens" in fields else 0,
            others=tuple(_read_finish(item) for item in others),
            usage=Usage(
                prompt_tokens=usage.integer("prompt_tokens", high=MAX_TOKENS),
                completion_tokens=usage.integer("completion_tokens", high=MAX_TOKENS),
            ),
        )


def _read_finish(value: Json) -> tuple[str, str | int | None]:
    match value:
        case [str(finish), stop] if finish in FINISH_REASONS:
            return finish, None if stop is None else _stop_reason(stop)
    raise SealError("response record: a finish reason is malformed")


def _stop_reason(value: Json) -> str | int:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    raise SealError("response record: a stop reason is malformed")


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
