"""What lies between the engine and a reader: a bounded buffer of response records, and how the response ends.

Deltas that arrive while the reader is busy are joined, so a slow network costs messages, not tokens. A full buffer
makes the engine's side wait; the engine then joins tokens itself, up to the answer's own limit.
"""

import asyncio
from collections import deque
from typing import Final, TypeAlias

from bulkhead.errors import BulkheadError
from bulkhead.protocol.payloads import Delta, EmbedResult, End

__all__ = ["AnswerBuffer", "Outcome"]

MAX_BUFFERED_CHARACTERS: Final = 65_536  # one request's share of the worker's memory for a reader who is slow
MAX_DELTA_CHARACTERS: Final = 8_192  # six bytes of JSON each at worst: fits a chunk

Outcome: TypeAlias = End | BulkheadError


class AnswerBuffer:
    """One response on its way. The first outcome stands."""

    def __init__(self) -> None:
        self._records: deque[Delta | EmbedResult] = deque()
        self._size = 0
        self._outcome: Outcome | None = None
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    async def put(self, record: Delta | EmbedResult) -> None:
        """Add a record once there is room; after the outcome it is dropped."""
        while self._size >= MAX_BUFFERED_CHARACTERS and self._outcome is None:
            self._emptied.clear()
            await self._emptied.wait()
        if self._outcome is not None:
            return
        for piece in _pieces(record):
            last = self._records[-1] if self._records else None
            if isinstance(piece, Delta) and isinstance(last, Delta) and _joinable(last, piece):
                self._records[-1] = Delta(text=last.text + piece.text, tokens=last.tokens + piece.tokens)
            else:
                self._records.append(piece)
            self._size += _size(piece)
        self._filled.set()

    def close(self, outcome: Outcome) -> None:
        """End the response after what is buffered."""
        if self._outcome is None:
            self._outcome = outcome
            self._filled.set()
            self._emptied.set()

    def abort(self, error: BulkheadError) -> None:
        """End the response at once: what the reader has not taken is dropped."""
        if self._outcome is None:
            self._records.clear()
            self._size = 0
            self.close(error)

    @property
    def is_closed(self) -> bool:
        """Whether the response has its outcome."""
        return self._outcome is not None

    async def take(self) -> tuple[list[Delta | EmbedResult], Outcome | None]:
        """Return everything buffered as soon as there is something, and the outcome if it is known."""
        await self._filled.wait()
        records = list(self._records)
        self._records.clear()
        self._size = 0
        self._emptied.set()
        if self._outcome is None:
            self._filled.clear()
        return records, self._outcome


def _pieces(record: Delta | EmbedResult) -> list[Delta | EmbedResult]:
    """Cut a delta whose text is too long for one chunk; its tokens are counted with the first piece."""
    if isinstance(record, EmbedResult) or len(record.text) <= MAX_DELTA_CHARACTERS:
        return [record]
    texts = [
        record.text[start : start + MAX_DELTA_CHARACTERS] for start in range(0, len(record.text), MAX_DELTA_CHARACTERS)
    ]
    return [Delta(text=text, tokens=0 if index else record.tokens) for index, text in enumerate(texts)]


def _joinable(last: Delta, piece: Delta) -> bool:
    return len(last.text) + len(piece.text) <= MAX_DELTA_CHARACTERS


def _size(record: Delta | EmbedResult) -> int:
    return len(record.text) if isinstance(record, Delta) else 4 * len(record.vector)
