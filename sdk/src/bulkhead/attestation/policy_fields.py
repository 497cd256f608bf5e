"""Reading the tables of a trust policy: every key optional, an unknown one an error, byte strings in hexadecimal.

A list that may stay open is opened in words only: ``["any"]``. Leaving a key out never opens anything that the default
keeps shut.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

from bulkhead.fields import Fields

__all__ = [
    "ANY",
    "read_binaries",
    "read_flag",
    "read_integer",
    "read_named",
    "read_open_binaries",
    "read_open_texts",
    "read_optional_integer",
    "read_texts",
]

ANY: Final = "any"
MAX_LIST: Final = 256  # measurements of a fleet during a rollout, chips of some racks
_Named = TypeVar("_Named")


def read_named(fields: Fields, name: str, known: Mapping[str, _Named], default: frozenset[_Named]) -> frozenset[_Named]:
    """Return the values that an array of names stands for.

    Raises:
        BulkheadError: of the fields' class: a name that is not in ``known``.
    """
    if name not in fields:
        return default
    texts = fields.texts(name, max_items=len(known))
    if not set(texts) <= set(known):
        raise fields.wrong(name, f"an array of {', '.join(known)}")
    return frozenset(known[text] for text in texts)


def read_binaries(
    fields: Fields, name: str, size: int, default: frozenset[bytes], *, max_items: int = MAX_LIST
) -> frozenset[bytes]:
    """Return byte strings of ``size`` bytes each, given in hexadecimal; there is no word for any of them.

    Raises:
        BulkheadError: of the fields' class: not hexadecimal, another size, or the word ``any``.
    """
    if name not in fields:
        return default
    texts = fields.texts(name, max_items=max_items)
    if ANY in texts:
        raise fields.wrong(name, "a list of known values: there is no wildcard, as any other value would do, too")
    return _binaries(fields, name, size, texts)


def read_open_binaries(
    fields: Fields, name: str, size: int, default: frozenset[bytes] | None
) -> frozenset[bytes] | None:
    """Return byte strings as :func:`read_binaries`, or None where the list is ``["any"]``."""
    if name not in fields:
        return default
    texts = fields.texts(name, max_items=MAX_LIST)
    return None if texts == (ANY,) else _binaries(fields, name, size, texts)


def read_texts(fields: Fields, name: str, default: frozenset[str]) -> frozenset[str]:
    """Return the texts of an array."""
    return frozenset(fields.texts(name, max_items=MAX_LIST)) if name in fields else default


def read_open_texts(fields: Fields, name: str, default: frozenset[str] | None) -> frozenset[str] | None:
    """Return the texts of an array, or None where it is ``["any"]``."""
    if name not in fields:
        return default
    texts = fields.texts(name, max_items=MAX_LIST)
    return None if texts == (ANY,) else frozenset(texts)


def read_flag(fields: Fields, name: str, default: bool) -> bool:  # noqa: FBT001  # the default of a key, not a switch
    """Return ``true`` or ``false``."""
    return fields.boolean(name) if name in fields else default


def read_integer(fields: Fields, name: str, default: int, high: int, *, low: int = 0) -> int:
    """Return an integer from ``low`` to ``high``."""
    return fields.integer(name, low=low, high=high) if name in fields else default


def read_optional_integer(fields: Fields, name: str, default: int | None, high: int) -> int | None:
    """Return an integer from 1 to ``high``, or None where the key is missing and the default is none."""
    return fields.integer(name, low=1, high=high) if name in fields else default


def _binaries(fields: Fields, name: str, size: int, texts: tuple[str, ...]) -> frozenset[bytes]:
    try:
        values = frozenset(bytes.fromhex(text) for text in texts)
    except ValueError as error:
        raise fields.wrong(name, "hexadecimal") from error
    if any(len(value) != size for value in values):
        raise fields.wrong(name, f"of {size} bytes each")
    return values
