"""The event loop's end of one request's output."""

import asyncio
from dataclasses import replace

from bulkhead.errors import BulkheadError
from data_plane.inference.port import TokenDelta

__all__ = ["DeltaStream"]


class DeltaStream:
    """Deltas in the order produced, joined while nobody takes them; used on one event loop only.

    It grows with what one request may produce at most, so it needs no bound of its own.
    """

    def __init__(self) -> None:
        self._deltas: list[TokenDelta] = []
        self._error: BulkheadError | None = None
        self._changed = asyncio.Event()

    def put(self, item: TokenDelta | BulkheadError) -> None:
        """Append a delta, or end the stream with an error; what comes after an error is dropped."""
        if self._error is not None:
            return
        if isinstance(item, TokenDelta):
            self._deltas.append(item)
        else:
            self._error = item
        self._changed.set()

    async def take(self) -> TokenDelta:
        """Return what came for one answer since it was last taken, waiting if nothing came for any.

        Raises:
            BulkheadError: the one that ended the stream, after the deltas before it were taken.
        """
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        if len(self._deltas) == 1:  # whoever keeps up with the engine gets here
            return self._deltas.pop()
        index = self._deltas[0].index
        deltas = [delta for delta in self._deltas if delta.index == index]
        self._deltas = [delta for delta in self._deltas if delta.index != index]
        return replace(
            deltas[-1],
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            prompt_logprobs=deltas[0].prompt_logprobs,
            trace=b"".join(delta.trace for delta in deltas),
            logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        )
