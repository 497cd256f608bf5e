import pytest

from bulkhead.errors import EvidenceError, TicketError
from bulkhead.fields import Fields


def fields(**values):
    return Fields(values, what="thing", error=TicketError)


def test_unknown_field_is_refused():
    """Leaving the block with an unread field raises the chosen error."""
    with pytest.raises(TicketError, match="unknown field"), fields(a=1, b=2) as reader:
        reader.integer("a")


def test_missing_field_is_refused():
    """A field that is not there is named."""
    with pytest.raises(TicketError, match="a is missing"):
        fields().text("a")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11])
def test_integer_takes_only_integers_within_bounds(value):
    """Booleans, floats, text, null and numbers out of bounds are no integers."""
    with pytest.raises(TicketError, match="integer from 0 to 10"):
        fields(a=value).integer("a", high=10)


@pytest.mark.parametrize("value", [7, True, "", "-1", "07", "1_0", " 7", "\u0667", "7\n", str(1 << 64), "9" * 5_000])
def test_decimal_has_one_spelling_within_bounds(value):
    """A number as text has ASCII digits alone, no sign and no leading zero, and 64 bits."""
    with pytest.raises(TicketError, match="text that is an integer"):
        fields(a=value).decimal("a")
    assert fields(a=str((1 << 64) - 1)).decimal("a") == (1 << 64) - 1


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), 3.5])
def test_number_takes_only_numbers_within_bounds(value):
    """NaN compares with nothing and so is out of bounds."""
    with pytest.raises(TicketError, match="number from 0 to 2"):
        fields(a=value).number("a", low=0, high=2)


@pytest.mark.parametrize("value", ["ab" * 31, "AB" * 32, "zz" * 32, 5, "ab" * 33])
def test_digest_has_one_spelling(value):
    """A digest is 64 lower-case hexadecimal digits."""
    with pytest.raises(TicketError, match="hexadecimal"):
        fields(a=value).digest("a")


@pytest.mark.parametrize("value", ["AA==", "A", "+/", 7, "AAAA", "AB"])
def test_binary_has_one_spelling_and_size(value):
    """Padding, the other alphabet, loose trailing bits and another size are refused."""
    with pytest.raises(TicketError):
        fields(a=value).binary("a", max_bytes=1, size=1)


def test_texts_refuse_an_item_of_another_type():
    """One wrong item spoils the array."""
    with pytest.raises(TicketError):
        fields(a=["x", 1]).texts("a", max_items=3)
    with pytest.raises(TicketError):
        fields(a=["x"] * 4).texts("a", max_items=3)


def test_parse_raises_the_chosen_error_for_other_encodings():
    """JSON that is not in RFC 8785 form is refused with the caller's error class."""
    with pytest.raises(EvidenceError, match="canonical"):
        Fields.parse(b'{"a": 1}', max_bytes=99, what="thing", error=EvidenceError)


def test_null_is_told_from_absence():
    """``is_null`` takes a null and leaves everything else."""
    reader = fields(a=None, b=1)
    assert reader.is_null("a")
    assert not reader.is_null("a")
    assert not reader.is_null("b")
    assert reader.integer("b") == 1
