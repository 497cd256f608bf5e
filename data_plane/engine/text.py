"""Turns tokens into text as they come: whole characters only, and never past a stop string."""

from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Detokeniser", "StopFinder", "TextStream"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the bytes of an incomplete character
MAX_OPEN: Final = 3  # bytes of an incomplete character (RFC 3629), each of which may be a token and be shown as one
# Tokens that are decoded together where none ends a character: so many bytes show the last MAX_OPEN replacement
# characters alike, wherever in a character they begin.
MAX_WINDOW: Final = 16


class Detokeniser:
    """Decodes a growing list of tokens step by step, in time that does not grow with the list.

    A tokenizer may decode a token differently after another one (leading spaces, bytes of one character), so each step
    decodes the new tokens together with the last ones whose text is out already, and takes the difference. Bytes that
    may still become a character are held back; of a list that never comes to the end of one, no more than those.

    Args:
        decode: from token ids to text.
        before: the last tokens in front of the first one, whose text is not the list's; as many as are whole characters
            are decoded with it, so that a first word keeps its space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, before: Sequence[int] = ()) -> None:
        self._decode = decode
        starts = (list(before[at:]) for at in range(len(before)))
        self._window: list[int] = next((start for start in starts if REPLACEMENT not in decode(start)), [])
        self._out = decode(self._window) if self._window else ""  # what is out of the window's text: its beginning
        self._held = 0  # last tokens of the window whose text is not

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; empty while its last character may still grow."""
        self._window.append(token)
        self._held += 1
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._release(text)
        return self._spill(text) if len(self._window) > MAX_WINDOW else ""

    def flush(self) -> str:
        """Return the text of what is left, with replacement characters for bytes that never became whole."""
        return self._release(self._decode(self._window)) if self._held else ""

    def _release(self, text: str) -> str:
        fresh = self._fresh(text)
        if text.startswith(self._out):
            self._window = self._window[-self._held :]
            text = self._decode(self._window)
        self._out, self._held = text, 0
        return fresh

    def _spill(self, text: str) -> str:
        """Return what no further token changes of a text that ends inside a character, and shorten the window."""
        fresh = self._fresh(text)
        whole = max(len(fresh.rstrip(REPLACEMENT)), len(fresh) - MAX_OPEN)
        still_open = fresh[whole:]
        self._window = self._window[-MAX_WINDOW:]
        self._out, self._held = self._decode(self._window), min(self._held, MAX_OPEN)
        if not self._out.endswith(still_open):  # the bytes lie behind many tokens without text: they are given up
            self._held = 0
            return fresh
        self._out = self._out[: len(self._out) - len(still_open)]
        return fresh[:whole]

    def _fresh(self, text: str) -> str:
        """Return the part of the window's text that is not out, of a tokenizer's that a byte changed altogether too."""
        return text[len(self._out) :] if text.startswith(self._out) else self._decode(self._window[-self._held :])


class StopFinder:
    """Finds the first stop string in a text that comes in pieces, holding back what may be the start of one.

    Args:
        stops: what ends the text; of two that begin at the same place the first in this order counts.
        keep: the stop string that was found is part of the text.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self._stops = tuple(stops)
        self._keep = keep
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that is certain to lie before any stop string, and which one was found."""
        if not self._stops:
            return text, None
        self._held += text
        found = [(place, order) for order, stop in enumerate(self._stops) if (place := self._held.find(stop)) >= 0]
        if found:
            place, order = min(found)
            stop = self._stops[order]
            safe, self._held = self._held[: place + len(stop) * self._keep], ""
            return safe, stop
        keep = max(self._overlap(stop) for stop in self._stops)
        safe, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return safe, None

    def flush(self) -> str:
        """Return what was held back."""
        safe, self._held = self._held, ""
        return safe

    def _overlap(self, stop: str) -> int:
        """Return how long an end of the held text is a beginning of ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


class TextStream:
    """The text of one answer: detokenised, cut at stop strings."""

    def __init__(
        self,
        *,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        keep_stop: bool = False,
        before: Sequence[int] = (),
    ) -> None:
        self._detokeniser = Detokeniser(decode, before=before)
        self._finder = StopFinder(stops, keep=keep_stop)

    def push(self, token: int, *, look: bool = True) -> tuple[str, str | None]:
        """Return the text that ``token`` sets free and the stop string that it completes.

        Without ``look`` the token's text ends nothing, and no stop string begins in it.
        """
        text = self._detokeniser.push(token)
        return self._finder.push(text) if look else (self._finder.flush() + text, None)

    def flush(self) -> tuple[str, str | None]:
        """Return the rest of the text and the stop string that it completes; after the last token."""
        text, stopped = self._finder.push(self._detokeniser.flush())
        return (text, stopped) if stopped is not None else (text + self._finder.flush(), None)
