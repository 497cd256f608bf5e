"""Asks a witness over HTTP for its cosignature on a checkpoint."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from bulkhead.errors import ConsistencyError, UnavailableError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.note import split_note
from bulkhead.transparency.witnessing import MAX_REQUEST_BYTES, AddCheckpoint, WitnessSize, read_answer

__all__ = ["WitnessClient"]

_TRIES: Final = 3  # unknown size, then a race with another asker


@dataclass(slots=True)
class WitnessClient:
    """One witness.

    Attributes:
        url: its submission prefix, without a trailing slash.
        keys: its pinned keys.
        timeout_s: for one request.
        size: what it cosigned last, as far as is known here.
    """

    url: str
    keys: tuple[Witness, ...]
    timeout_s: float
    size: int = 0

    @property
    def name(self) -> str:
        """The witness's name."""
        return self.keys[0].name

    async def cosign(
        self, http: aiohttp.ClientSession, note: str, consistency: Callable[[int, int], Awaitable[tuple[bytes, ...]]]
    ) -> tuple[str, ...]:
        """Return the witness's cosignature lines on a signed checkpoint, verified.

        Args:
            http: session.
            note: the checkpoint.
            consistency: returns the consistency proof between two sizes.

        Raises:
            ConsistencyError: the witness has cosigned another history, or a larger tree than this checkpoint's.
            CheckpointError: its answer does not hold.
            UnavailableError: it did not answer, or refused for another reason.
        """
        checkpoint = Checkpoint.parse(split_note(note)[0])
        for _ in range(_TRIES):
            if self.size > checkpoint.size:
                raise ConsistencyError(
                    f"{self.name} has cosigned size {self.size} of {checkpoint.origin}, which has {checkpoint.size} "
                    "records here: records are gone",
                    details={"origin": checkpoint.origin, "size": str(checkpoint.size)},
                )
            proof = () if self.size == 0 else await consistency(self.size, checkpoint.size)
            answer = await self._ask(http, AddCheckpoint(self.size, proof, note))
            if not isinstance(answer, WitnessSize):
                self.size = checkpoint.size
                return answer
            self.size = answer.size
        raise UnavailableError(f"{self.name}: others are asking for the same log")

    async def _ask(self, http: aiohttp.ClientSession, request: AddCheckpoint) -> tuple[str, ...] | WitnessSize:
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with http.post(
                f"{self.url}/add-checkpoint", data=request.encode(), timeout=timeout, allow_redirects=False
            ) as reply:
                body = await reply.content.read(MAX_REQUEST_BYTES)
                return read_answer(reply.status, reply.content_type, body, request=request, witnesses=self.keys)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"{self.name} cannot be reached: {type(error).__name__}") from error
