"""A TOML table that is read strictly: each key once, by its type, and nothing left over.

Errors are :class:`~bulkhead.errors.ConfigError` and name file, table and key.
"""

from collections.abc import Mapping
from typing import Any

from bulkhead.errors import ConfigError

__all__ = ["TomlTable"]


class TomlTable:
    """A TOML table whose keys are taken one by one; :meth:`end` refuses what is left."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._left = dict(values)
        self.where = where

    def wrong(self, key: str, why: str) -> ConfigError:
        """Return (for raising) the error of a key."""
        return ConfigError(f"{self.where}: {key}: {why}")

    def optional_text(self, key: str) -> str | None:
        """Take a non-empty string, None where there is no such key."""
        value = self._left.pop(key, None)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.wrong(key, "expected a non-empty string")
        return value

    def text(self, key: str) -> str:
        """Take a non-empty string."""
        value = self.optional_text(key)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of non-empty strings, empty where there is no such key."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, "expected a list of strings")
        return tuple(value)

    def text_or_texts(self, key: str) -> tuple[str, ...]:
        """Take a string, or a list of strings."""
        if isinstance(self._left.get(key), list):
            return self.texts(key)
        value = self.optional_text(key)
        return () if value is None else (value,)

    def count(self, key: str) -> int:
        """Take a number from 0."""
        value = self._left.pop(key, 0)
        if type(value) is not int or value < 0:
            raise self.wrong(key, "expected a number from 0")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], *, default: str) -> str:
        """Take one of the allowed words."""
        value = self._left.pop(key, default)
        if value not in allowed:
            raise self.wrong(key, f"expected one of {', '.join(item for item in allowed if item)}")
        return str(value)

    def flag(self, key: str) -> bool:
        """Take true or false."""
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "expected true or false")
        return value

    def optional_table(self, key: str) -> "TomlTable | None":
        """Take a table, None where there is no such key."""
        value = self._left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "expected a table")
        return TomlTable(value, f"{self.where}: {key}")

    def tables(self, key: str) -> dict[str, "TomlTable"]:
        """Take a table of tables."""
        value = self._left.pop(key, {})
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            raise self.wrong(key, f"expected tables [{key}.<name>]")
        return {name: TomlTable(item, f"{self.where}: {key}.{name}") for name, item in value.items()}

    def rest(self) -> dict[str, Any]:
        """Take everything that is left."""
        left, self._left = self._left, {}
        return left

    def end(self) -> None:
        """Refuse what is left."""
        if self._left:
            raise ConfigError(f"{self.where}: unknown key {min(self._left)!r}")
