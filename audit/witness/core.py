"""Our witness: cosigns a checkpoint that extends what it has cosigned of that log before. No network here.

It is small on purpose: it knows some logs by their keys, and remembers one checkpoint of each.
"""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from audit.witness.state import Seen, WitnessState
from bulkhead.errors import BulkheadError, CheckpointError, ConsistencyError, MalformedRequestError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.cosignature import Cosigner
from bulkhead.transparency.merkle import EMPTY_ROOT, verify_consistency
from bulkhead.transparency.note import NoteVerifier, split_note
from bulkhead.transparency.witnessing import SIZE_TYPE, AddCheckpoint

__all__ = ["Answer", "WitnessCore"]

_PLAIN: Final = "text/plain"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over HTTP."""

    status: int
    body: str
    content_type: str = _PLAIN


class WitnessCore:
    """Answers add-checkpoint.

    Args:
        vkeys: keys of the logs that are witnessed; a key's name is the log's origin.
        cosigners: this witness's keys: each signs every checkpoint.
        state: what has been cosigned, durable.
        now_s: wall clock, seconds since the epoch.
    """

    def __init__(
        self, *, vkeys: Collection[str], cosigners: Collection[Cosigner], state: WitnessState, now_s: Callable[[], int]
    ) -> None:
        self._vkeys = {NoteVerifier.from_vkey(vkey).name: vkey for vkey in vkeys}
        self._cosigners = tuple(cosigners)
        self._state = state
        self._now_s = now_s
        self._guard = threading.Lock()

    def add_checkpoint(self, body: bytes) -> Answer:
        """Check a checkpoint and cosign it. Blocks while it is made durable; any thread.

        1. The body is well formed (400).
        2. The log is known (404) and its key signed the checkpoint (403).
        3. The old size is not above the checkpoint's (400), and is the size cosigned last (409, with that size).
        4. The checkpoint extends the one cosigned last: the same root at the same size (409), else by proof (422).
        5. It is durable before anything is signed; 3 to 5 happen for one request at a time.

        Raises:
            AuditUnavailableError: the state cannot be read or written: nothing was signed.
        """
        try:
            request = AddCheckpoint.parse(body)  # 1
            checkpoint = Checkpoint.parse(split_note(request.note)[0])
        except (MalformedRequestError, CheckpointError) as error:
            return _refused(400, error)
        return self._unsigned(request, checkpoint) or self._cosign(request, checkpoint)

    def _unsigned(self, request: AddCheckpoint, checkpoint: Checkpoint) -> Answer | None:
        vkey = self._vkeys.get(checkpoint.origin)
        if vkey is None:
            return Answer(404, "the log is not witnessed here\n")
        try:
            open_checkpoint(request.note, vkey=vkey, origin=checkpoint.origin)  # 2
        except CheckpointError as error:
            return _refused(403, error)
        return None

    def _cosign(self, request: AddCheckpoint, checkpoint: Checkpoint) -> Answer:
        if request.old_size > checkpoint.size:
            return Answer(400, "the old size is above the checkpoint's\n")
        with self._guard:
            seen = self._state.last(checkpoint.origin) or Seen(checkpoint.origin, 0, EMPTY_ROOT, "")
            if request.old_size != seen.size:  # 3
                return Answer(409, f"{seen.size}\n", SIZE_TYPE)
            refusal = _extends(seen, checkpoint, request)  # 4
            if refusal is not None:
                return refusal
            self._state.remember(Seen(checkpoint.origin, checkpoint.size, checkpoint.root, request.note))  # 5
        text, now_s = split_note(request.note)[0], self._now_s()
        return Answer(200, "".join(cosigner.cosign(text, now_s) for cosigner in self._cosigners))


def _extends(seen: Seen, checkpoint: Checkpoint, request: AddCheckpoint) -> Answer | None:
    if seen.size == checkpoint.size:
        if seen.root != checkpoint.root:
            return Answer(409, f"{seen.size}\n", SIZE_TYPE)
        return None if not request.proof else Answer(422, "a proof between equal sizes is empty\n")
    if seen.size == 0:
        return None if not request.proof else Answer(422, "a proof from an empty tree is empty\n")
    try:
        verify_consistency(
            old_size=seen.size,
            old_root=seen.root,
            new_size=checkpoint.size,
            new_root=checkpoint.root,
            proof=request.proof,
        )
    except ConsistencyError as error:
        return _refused(422, error)
    return None


def _refused(status: int, error: BulkheadError) -> Answer:
    return Answer(status, f"{error.message}\n")
