"""Identifiers sort by time, say what they name, and are checked before use."""

import uuid

import pytest

from bulkhead.errors import InvalidRequestError
from bulkhead.ids import SESSION, TENANT, check_id, check_name, new_id, new_uuid7


def test_typeid_matches_the_published_example() -> None:
    """The suffix is the specification's base32 of a UUIDv7 (TypeID's own valid vector)."""
    value = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    ms = value.int >> 80
    rand = (value.int >> 64 & 0xFFF) << 68 | value.int & ((1 << 62) - 1)
    made = new_id("prefix", now_ms=lambda: ms, random_bytes=lambda n: rand.to_bytes(n, "big"))
    assert made == "prefix_01h455vb4pex5vsknk084sn02q"


def test_uuid7_has_version_variant_and_time() -> None:
    """RFC 9562 section 5.7's fixed bits and the millisecond clock are in their places."""
    value = new_uuid7(now_ms=lambda: 1_700_000_000_123)
    assert value.version == 7
    assert value.variant == uuid.RFC_4122
    assert value.int >> 80 == 1_700_000_000_123


def test_ids_sort_by_creation_time() -> None:
    """Later identifiers sort behind earlier ones as text."""
    made = [new_id(SESSION, now_ms=lambda ms=ms: ms) for ms in (1, 1_000, 1_700_000_000_000)]
    assert made == sorted(made)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sess_",
        "sess",
        "tenant_01h455vb4pex5vsknk084sn02q",
        "sess_81h455vb4pex5vsknk084sn02q",
        "sess_01H455VB4PEX5VSKNK084SN02Q",
        "sess_01h455vb4pex5vsknk084sn02qq",
        "sess_01h455vb4pex5vsknk084sn02i",
        "a_sess_01h455vb4pex5vsknk084sn02q",
        "sess_" + "0" * 1000,
    ],
)
def test_check_id_refuses_anything_else(value: str) -> None:
    """Another prefix, alphabet, length or case is refused, and the value is not echoed."""
    with pytest.raises(InvalidRequestError) as caught:
        check_id(value, SESSION)
    assert value == "" or value not in caught.value.message or len(value) < 6


def test_check_id_accepts_its_own() -> None:
    """What new_id makes, check_id takes."""
    made = new_id(TENANT)
    assert check_id(made, TENANT) == made


@pytest.mark.parametrize("value", ["", "-a", "a-", "A", "a b", "a/b", "ä", "a" * 64, "a\n", "../a"])
def test_check_name_refuses(value: str) -> None:
    """A name cannot hold spaces, path parts, upper case, or be too long."""
    with pytest.raises(InvalidRequestError, match="model"):
        check_name(value, "model")
