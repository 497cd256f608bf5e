import json
import math

import pytest

from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import InternalError, InvalidRequestError, MessageTooLargeError, QueueFullError, SealError
from bulkhead.protocol.payloads import (
    MAX_PAYLOAD_BYTES,
    MAX_TRACE_BYTES,
    Delta,
    EmbedRequest,
    EmbedResult,
    End,
    Failure,
    GenerateRequest,
    Message,
    TokenLogprob,
    Trace,
    Usage,
    encode_embed_request,
    encode_generate_request,
    encode_record,
    parse_embed_request,
    parse_generate_request,
    parse_record,
)

HELLO = (Message(role="user", content="Hello"),)


def raw(**changes):
    value = {"messages": [{"role": "user", "content": "Hello"}]} | changes
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(messages=HELLO),
        GenerateRequest(
            messages=(Message(role="system", content=""), *HELLO, Message(role="assistant", content='é\n"😀\\')),
            max_tokens=1,
            temperature=0.7,
            top_p=0.5,
            top_k=40,
            seed=2**53 - 1,
            stop=("\n\n", "END"),
        ),
        GenerateRequest(
            prompt="once upon",
            max_tokens=9,
            min_tokens=3,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=-1.5,
            frequency_penalty=0.5,
            logit_bias={5: -100.0, 17: 2.5},
            bad_words=("no",),
            n=3,
            stop_token_ids=(2, 0),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            ignore_eos=True,
            logprobs=0,
            echo=True,
            truncate_prompt_tokens=-1,
            json_schema='{"type":"object"}',
        ),
        GenerateRequest(messages=HELLO, choice=("yes", "no"), temperature=0.0, top_p=1.0, top_k=0),
        GenerateRequest(messages=HELLO, max_tokens=0, echo=True, top_k=-1),
        GenerateRequest(messages=HELLO, max_tokens=0, prompt_logprobs=0),
        GenerateRequest(messages=HELLO, regex="[a-z]+", cache_salt="team"),
        GenerateRequest(messages=HELLO, priority=-100, timeout_s=0.25, profile=True),
        GenerateRequest(messages=HELLO, priority=100, timeout_s=86_400.0),
    ],
)
def test_generate_request_survives(request_):
    """A request comes back as it was."""
    assert parse_generate_request(encode_generate_request(request_)) == request_


def test_messages_alone_make_a_request():
    """Everything else has the dataclass's defaults."""
    assert parse_generate_request(raw()) == GenerateRequest(messages=HELLO)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b'{"messages": []}',
        raw(messages=[]),
        raw(messages="Hello"),
        raw(messages=[{"role": "user"}]),
        raw(messages=[{"role": "tool", "content": "x"}]),
        raw(messages=[{"role": "user", "content": 5}]),
        raw(messages=[{"role": "user", "content": "x", "name": "y"}]),
        raw(messages=["Hello"]),
        raw(messages=[{"role": "user", "content": "x"}] * 1_025),
        raw(max_tokens=0),
        raw(max_tokens=-5),
        raw(max_tokens=1.5),
        raw(max_tokens=True),
        raw(max_tokens=2**31),
        raw(temperature=-0.1),
        raw(temperature=101),
        raw(temperature="hot"),
        raw(top_p=0),
        raw(top_p=1.1),
        raw(top_k=-2),
        raw(max_tokens=0, logprobs=1),
        raw(max_tokens=0, echo=True, min_tokens=1),
        raw(seed=-1),
        raw(seed=2**53),
        raw(stop="END"),
        raw(stop=[""]),
        raw(stop=["x"] * 17),
        raw(stop=["x" * 257]),
        raw(unknown=1),
        raw(best_of=2),
        raw(prompt="both"),
        raw(prompt=""),
        raw(n=0),
        raw(n=17),
        raw(min_p=1.5),
        raw(repetition_penalty=0),
        raw(presence_penalty=3),
        raw(logprobs=21),
        raw(echo=1),
        raw(truncate_prompt_tokens=0),
        raw(truncate_prompt_tokens=-2),
        raw(min_tokens=5, max_tokens=4),
        raw(logit_bias=[[1, 2]]),
        raw(logit_bias={"-1": 2}),
        raw(logit_bias={"01": 2}),
        raw(logit_bias={"1": 101}),
        raw(logit_bias={"1": True}),
        raw(logit_bias={"9" * 5_000: 1}),
        raw(logit_bias={str(token): 1 for token in range(1_025)}),
        raw(stop_token_ids=[-1]),
        raw(stop_token_ids=[True]),
        raw(regex="a", choice=["b"]),
        raw(priority=101),
        raw(priority=-101),
        raw(priority=0.5),
        raw(priority="high"),
        raw(timeout_s=0),
        raw(timeout_s=-1),
        raw(timeout_s=86_401),
        raw(timeout_s="soon"),
        raw(timeout_s=True),
        raw(profile=1),
        raw(choice=[""]),
        raw().replace(b"Hello", b"\\ud800"),
        raw().replace(b"Hello", b"\xc3\x28"),
        b'{"messages":[{"content":"a","content":"b","role":"user"}]}',
        b'{"messages":' + b"[" * 100_000,
        b'{"temperature":1e999}',
        b'{"temperature":NaN}',
        b'{"seed":' + b"9" * 5_000 + b"}",
        raw() + b"x" * MAX_PAYLOAD_BYTES,
    ],
)
def test_bad_generate_request_is_invalid(payload):
    """Whatever is wrong with a payload, the error is InvalidRequestError and quotes nothing of it."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_generate_request(payload)
    assert "Hello" not in caught.value.message


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(messages=()),
        GenerateRequest(messages=HELLO, max_tokens=0),
        GenerateRequest(messages=HELLO, temperature=math.nan),
        GenerateRequest(messages=HELLO, timeout_s=math.inf),
        GenerateRequest(messages=HELLO, priority=1_000),
        GenerateRequest(messages=(Message(role="user", content="\ud800"),)),
        GenerateRequest(messages=(Message(role="user", content="x" * MAX_PAYLOAD_BYTES),)),
    ],
)
def test_caller_hears_before_sealing(request_):
    """The same bounds hold when a request is encoded."""
    with pytest.raises(InvalidRequestError):
        encode_generate_request(request_)


def test_embed_request_survives_and_is_bounded():
    """1 to 256 non-empty texts."""
    request = EmbedRequest(inputs=("one", "zwei ü"))
    assert parse_embed_request(encode_embed_request(request)) == request
    for inputs in ((), ("",), ("x",) * 257):
        with pytest.raises(InvalidRequestError):
            encode_embed_request(EmbedRequest(inputs=inputs))


RECORDS = [
    Delta(text="", tokens=0),
    Delta(text='é\n\t\b\x00\x1f\x7f"\\/\u2028😀', tokens=8),
    EmbedResult(index=3, vector=(0.5, -1.25, 3.0)),
    End(finish_reason="length", usage=Usage(prompt_tokens=3, completion_tokens=9)),
    End(
        finish_reason="stop",
        usage=Usage(prompt_tokens=3, completion_tokens=9),
        stop_reason=7,
        cached_tokens=2,
        others=(("stop", "END"), ("length", None)),
    ),
    Delta(text="", tokens=0, index=15),
    Delta(
        text="a",
        tokens=1,
        logprobs=(TokenLogprob(token_id=5, text="a", logprob=-0.5, rank=1, top=((5, "a", -0.5), (6, "b", -1.0))),),
    ),
    Trace(data=b"\x1f\x8b"),
    Trace(data=bytes(MAX_TRACE_BYTES)),
    Failure(code="QUEUE_FULL", message="The worker's queue is full."),
]


@pytest.mark.parametrize("record", RECORDS)
def test_record_survives_in_canonical_form(record):
    """A record comes back as it was, and its bytes are RFC 8785."""
    encoded = encode_record(record)
    assert parse_record(encoded) == record
    assert canonical_json(json.loads(encoded)) == encoded


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        b'{"type":"delta"}',
        b'{"text":"a","tokens":1}',
        b'{"text":"a","tokens":-1,"type":"delta"}',
        b'{"text":"a","tokens":true,"type":"delta"}',
        b'{"text":"a","tokens":1.0,"type":"delta"}',
        b'{"text":5,"tokens":1,"type":"delta"}',
        b'{"text":"a","tokens":1,"type":"delta","x":1}',
        b'{"text":"a","tokens":1,"type":"end"}',
        b'{"text":"a","text":"a","tokens":1,"type":"delta"}',
        b'{"text":"\\u0041","tokens":1,"type":"delta"}',
        b'{"text":"\\ud800","tokens":1,"type":"delta"}',
        b'{"text":' + b"[" * 60_000,
        b'{"finish_reason":"bored","type":"end","usage":{"completion_tokens":0,"prompt_tokens":0}}',
        b'{"finish_reason":"stop","type":"end","usage":{"completion_tokens":0}}',
        b'{"code":"","message":"","type":"error"}',
        b'{"index":0,"type":"embedding","vector":""}',
        b'{"index":0,"type":"embedding","vector":"' + b64url_encode(b"12345").encode() + b'"}',
        b'{"data":"' + b64url_encode(bytes(MAX_TRACE_BYTES + 1)).encode() + b'","type":"trace"}',
        b'{"data":5,"type":"trace"}',
        b'{"type":"tool_call"}',
    ],
)
def test_bad_record_is_a_seal_error(data):
    """A record of another shape is refused, though it was authentic."""
    with pytest.raises(SealError):
        parse_record(data)


def test_record_must_fit_a_chunk():
    """A record above 65,532 bytes is refused when encoded."""
    with pytest.raises(MessageTooLargeError):
        encode_record(Delta(text="x" * 65_536, tokens=1))


@pytest.mark.parametrize("record", [Delta(text="\ud800", tokens=1), EmbedResult(index=0, vector=(math.inf,))])
def test_unrepresentable_record_is_invalid(record):
    """A lone surrogate and an infinite number have no encoding."""
    with pytest.raises(InvalidRequestError):
        encode_record(record)


def test_failure_restores_the_class():
    """The client raises the class that the worker named; an unknown code is InternalError."""
    error = Failure.of(QueueFullError("full")).error()
    assert type(error) is QueueFullError
    assert error.message == "full"
    assert type(Failure(code="FROM_THE_FUTURE", message="x").error()) is InternalError
    assert len(Failure.of(InternalError("x" * 5_000)).message) == 1_024
