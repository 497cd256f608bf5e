import json

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.encoding import MAX_SAFE_INTEGER, canonical_json, parse_canonical
from bulkhead.errors import MalformedRequestError

TEXT = st.text(st.characters(codec="utf-8")) | st.text(st.characters(min_codepoint=0, max_codepoint=0x7F))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(MAX_SAFE_INTEGER + 2), MAX_SAFE_INTEGER + 2)
    | st.floats(allow_nan=False)
    | TEXT
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(TEXT, inner))


@given(VALUES)
def test_every_value_encodes_as_the_reference_does(value) -> None:
    """The fast path and the reference implementation of RFC 8785 agree on bytes and on refusals."""
    try:
        expected = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError:
        expected = None
    try:
        found = canonical_json(value)
    except MalformedRequestError:
        found = None
    assert found == expected


@given(st.dictionaries(st.text(st.sampled_from("aZ\ue000\U0001f600\ufb33")), st.integers(0, 9)))
def test_names_beyond_ascii_are_sorted_by_utf16(value) -> None:
    """RFC 8785 section 3.2.3: surrogate pairs sort below U+E000, unlike code points."""
    assert canonical_json(value) == rfc8785.dumps(value)


@given(st.dictionaries(TEXT, VALUES), st.booleans(), st.booleans(), st.booleans())
def test_exactly_the_reference_s_bytes_parse(value, ascii_only, spaced, ordered) -> None:
    """Of all texts that mean a value, the parser takes the one that the reference implementation writes."""
    separators = (", ", ": ") if spaced else (",", ":")
    data = json.dumps(value, ensure_ascii=ascii_only, separators=separators, sort_keys=ordered).encode()
    try:
        expected = rfc8785.dumps(json.loads(data)) == data
    except rfc8785.CanonicalizationError:
        expected = False
    try:
        parse_canonical(data, max_bytes=1 << 30, what="value")
        found = True
    except MalformedRequestError:
        found = False
    assert found == expected
