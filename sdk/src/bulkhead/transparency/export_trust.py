"""What the reader of an export trusts: pinned log keys, and the witnesses who must have cosigned."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from bulkhead.encoding import Json
from bulkhead.errors import CheckpointError, ProofError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.cosignature import CosignedCheckpoint, Witness, open_cosigned
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.rounds import verify_round_path
from bulkhead.transparency.tlog_proof import read_round_member

__all__ = ["ExportTrust"]


@dataclass(frozen=True, slots=True)
class ExportTrust:
    """Pins.

    Attributes:
        keys: vkey by origin; the platform's is needed where tenants' logs must be witnessed.
        witnesses: who may cosign the platform's log.
        quorum: how many of them must, for a record to count as witnessed; 0: nothing is required of witnesses.
    """

    keys: dict[str, str]
    witnesses: tuple[Witness, ...] = field(default=())
    quorum: int = 0

    @classmethod
    def of(cls, vkeys: Collection[str], witnesses: Collection[Witness] = (), quorum: int = 0) -> Self:
        """Return pins from keys as text.

        Raises:
            CheckpointError: a key is none.
        """
        return cls({NoteVerifier.from_vkey(vkey).name: vkey for vkey in vkeys}, tuple(witnesses), quorum)

    def key(self, origin: str, of: str = "the log") -> str:
        """Return the pinned key of a log.

        Raises:
            CheckpointError: none is pinned.
        """
        if origin not in self.keys:
            pinned = ", ".join(self.keys) or "nothing"
            raise CheckpointError(f"no key is pinned for {of} {origin!r} (only for {pinned})")
        return self.keys[origin]

    def open(self, note: str, origin: str) -> Checkpoint:
        """Return a log's checkpoint, its signature verified.

        Raises:
            CheckpointError: it does not hold.
        """
        return open_checkpoint(note, vkey=self.key(origin), origin=origin)

    def cosigned(self, note: str, origin: str) -> bool:
        """Return whether a quorum of witnesses cosigned a checkpoint that :meth:`open` took.

        Raises:
            CheckpointError: a pinned witness's line does not hold.
        """
        return self.quorum > 0 and len(self._witnessed(note, origin).witnesses) >= self.quorum

    def cosigned_round(self, member: Json, checkpoint: Checkpoint, slot: int | None) -> bool:
        """Return whether a cosigned round of the platform's log commits to a tenant's tree.

        Without a quorum, or without a key for the platform's log, the round is not looked at.

        Raises:
            ProofError: the round does not hold.
        """
        path = read_round_member(member, checkpoint.text())
        platform = path.receipt.checkpoint.partition("\n")[0]
        if not self.quorum:
            return False
        if slot is not None and path.slot != slot:
            raise ProofError("the round's path is of another log's slot")
        vkey = self.key(platform, "the platform's log")
        verify_round_path(path, slot=path.slot, origin=checkpoint.origin, platform_vkey=vkey, platform_origin=platform)
        return self.cosigned(path.receipt.checkpoint, platform)

    def _witnessed(self, note: str, origin: str) -> CosignedCheckpoint:
        return open_cosigned(note, vkey=self.key(origin), origin=origin, witnesses=self.witnesses, quorum=0)
