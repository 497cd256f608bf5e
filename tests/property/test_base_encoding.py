"""Encodings are injective and strict: one value, one byte string, and nothing else parses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.encoding import (
    MAX_SAFE_INTEGER,
    b64decode,
    b64encode,
    b64url_decode,
    b64url_encode,
    canonical_json,
    lp_join,
    parse_canonical,
)
from bulkhead.errors import MalformedRequestError

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.lists(st.binary(max_size=8), max_size=5), st.lists(st.binary(max_size=8), max_size=5))
def test_length_prefixes_are_injective(left: list[bytes], right: list[bytes]) -> None:
    """Two different field lists never share bytes, so nothing can be moved between signed fields."""
    assert (lp_join(*left) == lp_join(*right)) == (left == right)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), _JSON, max_size=5))
def test_canonical_json_round_trips(value: dict[str, object]) -> None:
    """What is encoded parses back to the same value."""
    assert parse_canonical(canonical_json(value), max_bytes=1 << 20, what="value") == value


@given(st.binary(max_size=64))
def test_parser_is_total(data: bytes) -> None:
    """Any byte string gives an object or our own error."""
    try:
        value = parse_canonical(data, max_bytes=64, what="value")
    except MalformedRequestError:
        return
    assert canonical_json(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{ "a":1}',
        b'{"b":1,"a":2}',
        b'{"a":1.0}',
        b"[]",
        b"null",
        b'{"a":NaN}',
        b'{"a":9007199254740992}',
        b"\xff",
        b'{"a":"\\u0041"}',
        b"[" * 100_000,
        b'{"a":"\\ud800"}',
        b'{"a":1}\n',
    ],
)
def test_parser_refuses_other_encodings(data: bytes) -> None:
    """A second encoding of a value, duplicate keys and deep nesting are refused, not repaired."""
    with pytest.raises(MalformedRequestError):
        parse_canonical(data, max_bytes=1 << 20, what="value")


def test_parser_bounds_length_first() -> None:
    """The bound is checked before the bytes are read as JSON."""
    with pytest.raises(MalformedRequestError, match="longer than 4 bytes"):
        parse_canonical(json.dumps({"a": 1}).encode(), max_bytes=4, what="value")


@given(st.binary(max_size=64))
def test_base64_round_trips(data: bytes) -> None:
    """Both alphabets give back what went in."""
    assert b64decode(b64encode(data), what="x") == data
    assert b64url_decode(b64url_encode(data), what="x") == data


@pytest.mark.parametrize("text", ["QQ", "QR==", "QQ==\n", "Q-==", "=", "é"])
def test_base64_accepts_one_text_per_value(text: str) -> None:
    """Missing padding, stray trailing bits, white space and another alphabet are refused."""
    with pytest.raises(MalformedRequestError):
        b64decode(text, what="x")
