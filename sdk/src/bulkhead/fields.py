"""Strict reading of JSON objects from outside: every field typed and bounded, no unknown names.

Use as a context manager, so that leaving it refuses whatever was not read::

    with Fields.parse(data, max_bytes=MAX_KEYSET_BYTES, what="keyset", error=EvidenceError) as fields:
        version = fields.integer("version", low=1, high=1)

Digests are 64 lower-case hexadecimal digits; keys, signatures and other binary fields are unpadded base64url.
"""

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from bulkhead.encoding import MAX_SAFE_INTEGER, Json, b64url_decode, parse_canonical
from bulkhead.errors import BulkheadError, ConfigError, MalformedRequestError

__all__ = ["DIGEST_BYTES", "MAX_TEXT_CHARS", "Fields"]

DIGEST_BYTES: Final = 32  # SHA-256
MAX_TEXT_CHARS: Final = 256  # names, identifiers and versions; longer text says so where it is read
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,19}")


class Fields:
    """One JSON object being read; each method takes a field out of it.

    Args:
        value: a parsed JSON value (untrusted).
        what: names the object in errors.
        error: class of every error raised, so that a bad keyset is an evidence error and a bad prompt is not.
    """

    def __init__(self, value: Json, *, what: str, error: type[BulkheadError]) -> None:
        if not isinstance(value, Mapping):
            raise error(f"{what}: not a JSON object")
        self._left: dict[str, Json] = dict(value)
        self._what = what
        self._error = error

    @classmethod
    def parse(cls, data: bytes, *, max_bytes: int, what: str, error: type[BulkheadError]) -> Self:
        """Return the fields of an RFC 8785 object of at most ``max_bytes`` bytes."""
        try:
            return cls(parse_canonical(data, max_bytes=max_bytes, what=what), what=what, error=error)
        except MalformedRequestError as cause:
            raise error(cause.message) from cause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None and self._left:
            # A name is a peer's text but in a file of one's own, where a typing error must be found.
            which = f" {min(self._left)!r}" if self._error is ConfigError else ""
            raise self._error(f"{self._what}: unknown field{which}")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def is_null(self, name: str) -> bool:
        """Take a field if it is ``null`` and say so; any other value is left to be read."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return True
        return False

    def wrong(self, name: str, expected: str) -> BulkheadError:
        """Return (for raising) the error of a field that is not as expected; the value stays out of the text."""
        return self._error(f"{self._what}: {name} must be {expected}")

    def value(self, name: str) -> Json:
        """Take a field of any type."""
        if name not in self._left:
            raise self._error(f"{self._what}: {name} is missing")
        return self._left.pop(name)

    def text(self, name: str, *, max_chars: int = MAX_TEXT_CHARS, empty: bool = False) -> str:
        """Take a string of 1 (0 with ``empty``) to ``max_chars`` characters."""
        value = self.value(name)
        if not isinstance(value, str) or len(value) > max_chars or not (value or empty):
            raise self.wrong(name, f"text of {0 if empty else 1} to {max_chars} characters")
        return value

    def integer(self, name: str, *, low: int = 0, high: int = MAX_SAFE_INTEGER) -> int:
        """Take an integer in [low, high]; a boolean is not one."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def decimal(self, name: str) -> int:
        """Take an integer of 64 bits without a sign that is written as text, since JSON's own end at 2^53."""
        value = self.value(name)
        if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or int(value) >= 1 << 64:
            raise self.wrong(name, "text that is an integer from 0 to 2^64 - 1")
        return int(value)

    def number(self, name: str, *, low: float, high: float) -> float:
        """Take a number in [low, high]; a boolean is not one."""
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low} to {high}")
        return float(value)

    def boolean(self, name: str) -> bool:
        """Take ``true`` or ``false``."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def digest(self, name: str) -> bytes:
        """Take a SHA-256 digest: 32 bytes as 64 lower-case hexadecimal digits."""
        value = self.value(name)
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            raise self.wrong(name, "64 lower-case hexadecimal digits")
        return bytes.fromhex(value)

    def binary(self, name: str, *, max_bytes: int, size: int | None = None) -> bytes:
        """Take base64url bytes: at most ``max_bytes``, and exactly ``size`` where that is given."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.wrong(name, "base64url text")
        if len(value) > max_bytes * 4 // 3 + 4:
            raise self.wrong(name, f"at most {max_bytes} bytes")
        try:
            data = b64url_decode(value, what=f"{self._what}: {name}")
        except MalformedRequestError as cause:
            raise self._error(cause.message) from cause
        if len(data) > max_bytes or (size is not None and len(data) != size):
            raise self.wrong(name, f"{size if size is not None else f'at most {max_bytes}'} bytes")
        return data

    def array(self, name: str, *, max_items: int, min_items: int = 0) -> list[Json]:
        """Take an array of ``min_items`` to ``max_items`` items of any type."""
        value = self.value(name)
        if not isinstance(value, list) or not min_items <= len(value) <= max_items:
            raise self.wrong(name, f"an array of {min_items} to {max_items} items")
        return value

    def texts(
        self, name: str, *, max_items: int, min_items: int = 0, max_chars: int = MAX_TEXT_CHARS
    ) -> tuple[str, ...]:
        """Take an array of non-empty strings."""
        items = self.array(name, max_items=max_items, min_items=min_items)
        texts = tuple(item for item in items if isinstance(item, str) and 0 < len(item) <= max_chars)
        if len(texts) != len(items):
            raise self.wrong(name, f"an array of texts of 1 to {max_chars} characters")
        return texts

    def digests(self, name: str, *, max_items: int, min_items: int = 0) -> tuple[bytes, ...]:
        """Take an array of SHA-256 digests."""
        texts = self.texts(name, max_items=max_items, min_items=min_items, max_chars=2 * DIGEST_BYTES)
        if not all(_DIGEST.fullmatch(text) for text in texts):
            raise self.wrong(name, "an array of 64 lower-case hexadecimal digits each")
        return tuple(bytes.fromhex(text) for text in texts)

    def nested(self, name: str) -> "Fields":
        """Take an object, to be read in its own ``with`` block."""
        return Fields(self.value(name), what=f"{self._what}: {name}", error=self._error)
