"""What lies between the engine and a reader: a bounded buffer of response records, and how the response ends.

Deltas that arrive while the reader is busy are joined within limits, so a slow network costs messages, not tokens. A
full buffer makes the engine's side wait; the engine then joins tokens itself, up to the answer's own limit.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from bulkhead.errors import BulkheadError
from bulkhead.protocol.payloads import Content, Delta, EmbedResult, End

__all__ = ["AnswerBuffer", "DeltaLimits", "Outcome"]

MAX_BUFFERED_CHARACTERS: Final = 65_536  # one request's share of the worker's memory for a reader who is slow

Outcome: TypeAlias = End | BulkheadError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaLimits:
    """Deltas are joined up to both limits; a longer text is cut, while tokens that came together stay together."""

    characters: int
    tokens: int


class AnswerBuffer:
    """One response on its way. The first outcome stands.

    Args:
        limits: of one delta.
    """

    def __init__(self, limits: DeltaLimits) -> None:
        self._limits = limits
        self._records: deque[Content] = deque()
        self._size = 0
        self._outcome: Outcome | None = None
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._closed = asyncio.Event()

    async def put(self, record: Content) -> None:
        """Add a record once there is room; after the outcome it is dropped."""
        while self._size >= MAX_BUFFERED_CHARACTERS and self._outcome is None:
            self._emptied.clear()
            await self._emptied.wait()
        if self._outcome is not None:
            return
        if not self._records and type(record) is Delta and len(record.text) <= self._limits.characters:
            self._records.append(record)  # the reader keeps up: nothing to join, nothing to cut
            self._size += len(record.text) + 1
            self._filled.set()
            return
        for piece in self._pieces(record):
            last = self._records[-1] if self._records else None
            if isinstance(piece, Delta) and isinstance(last, Delta) and self._joinable(last, piece):
                self._records[-1] = _joined(last, piece)
                self._size += len(piece.text)
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
            self._closed.set()

    def abort(self, error: BulkheadError) -> None:
        """End the response at once: what the reader has not taken is dropped."""
        if self._outcome is None:
            self._records.clear()
            self._size = 0
            self.close(error)

    async def take(self, *, not_before_s: float = 0.0) -> tuple[list[Content], Outcome | None]:
        """Return everything buffered as soon as there is something, and the outcome if it is known.

        Args:
            not_before_s: on the event loop's clock; until then more may gather, unless the outcome is known.
        """
        await self._filled.wait()
        rest_s = not_before_s - asyncio.get_running_loop().time() if not_before_s else 0.0
        if rest_s > 0 and self._outcome is None:
            await self._gather(rest_s)
        records = list(self._records)
        self._records.clear()
        self._size = 0
        self._emptied.set()
        if self._outcome is None:
            self._filled.clear()
        return records, self._outcome

    def take_one(self) -> tuple[Content | None, Outcome | None]:
        """Return the next record, or None and the outcome if that is known; waits for nothing."""
        if not self._records:
            return None, self._outcome
        record = self._records.popleft()
        self._size -= _size(record)
        self._emptied.set()
        return record, None

    async def _gather(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._closed.wait()

    def _pieces(self, record: Content) -> list[Content]:
        """Cut a delta whose text is too long; its tokens are counted with the first piece."""
        most = self._limits.characters
        if not isinstance(record, Delta) or len(record.text) <= most:
            return [record]
        texts = [record.text[start : start + most] for start in range(0, len(record.text), most)]
        rest = [replace(record, text=text, tokens=0, logprobs=(), prompt_logprobs=()) for text in texts[1:]]
        return [replace(record, text=texts[0]), *rest]

    def _joinable(self, last: Delta, piece: Delta) -> bool:
        limits = self._limits
        return (
            last.index == piece.index
            and not piece.prompt_logprobs
            and len(last.text) + len(piece.text) <= limits.characters
            and last.tokens + piece.tokens <= limits.tokens
        )


def _joined(last: Delta, piece: Delta) -> Delta:
    return Delta(  # every token of a busy stream comes by here, and `replace` takes three times as long
        text=last.text + piece.text,
        tokens=last.tokens + piece.tokens,
        index=last.index,
        logprobs=last.logprobs + piece.logprobs,
        prompt_logprobs=last.prompt_logprobs,
    )


def _size(record: Content) -> int:
    if isinstance(record, Delta):
        return len(record.text) + 1
    return 4 * len(record.vector) if isinstance(record, EmbedResult) else len(record.data)
