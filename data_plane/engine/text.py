"""Turns tokens into text as they come: whole characters only, and never past a stop string."""

from collections.abc import Callable, Sequence

__all__ = ["Detokeniser", "StopFinder", "TextStream"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the bytes of an incomplete character


class Detokeniser:
    """Decodes a growing list of tokens step by step.

    A tokenizer may decode a token differently after another one (leading spaces, bytes of one character), so each step
    decodes the new tokens together with the last ones whose text is out already, and takes the difference.

    Args:
        decode: from token ids to text.
        before: the last tokens in front of the first one, whose text is not the list's; as many as are whole characters
            are decoded with it, so that a first word keeps its space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, before: Sequence[int] = ()) -> None:
        self._decode = decode
        starts = (list(before[at:]) for at in range(len(before)))
        # Tokens whose text is out.
        self._context: list[int] = next((start for start in starts if REPLACEMENT not in decode(start)), [])
        self._pending: list[int] = []  # tokens whose text is not

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; empty while its last character may still grow."""
        self._pending.append(token)
        text = self._decode([*self._context, *self._pending])
        if text.endswith(REPLACEMENT):
            return ""
        return self._release(text)

    def flush(self) -> str:
        """Return the text of what is left, with replacement characters for bytes that never became whole."""
        return self._release(self._decode([*self._context, *self._pending])) if self._pending else ""

    def _release(self, text: str) -> str:
        known = len(self._decode(self._context)) if self._context else 0
        self._context, self._pending = self._pending, []
        return text[known:]


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
