"""Guesses the next tokens of a sequence: those that came after its last tokens when they stood together before.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): answers often repeat what
the prompt says. A guess costs a row of a step that reads all weights anyway, and is kept only if it proves right.
"""

from collections.abc import Sequence
from typing import Final

__all__ = ["Lookup"]

WIDTH: Final = 3  # tokens that have to stand together again; two repeat too often by chance


class Lookup:
    """Where each ``WIDTH`` tokens of one growing sequence stood last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def guess(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """Return up to ``most`` tokens that may come after ``tokens``, which only grows between calls."""
        for end in range(max(self._seen, WIDTH), len(tokens)):
            self._ends[tuple(tokens[end - WIDTH : end])] = end
        self._seen = max(self._seen, len(tokens))
        found = self._ends.get(tuple(tokens[-WIDTH:]))
        return () if found is None else tuple(tokens[found : found + most])
