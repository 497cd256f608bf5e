"""The reading half of the log: checkpoints, receipts, exports. Blocking; called on reading threads."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final

from audit.export import check_leaf, export_log
from audit.keys import LogKeys
from audit.log.prover import Prover
from audit.model import Appended, Head, LogInfo, Progress
from audit.store import AuditReader
from bulkhead.errors import ConsistencyError, InclusionError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.export import ExportWriter
from bulkhead.transparency.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from bulkhead.transparency.receipt import AuditReceipt
from bulkhead.transparency.rounds import RoundPath

__all__ = ["Serving"]

_MAX_NOTES: Final = 4_096  # signed checkpoints kept in memory, a few hundred bytes each


class Serving:
    """Answers from the store about heads that the caller knows to be acknowledged."""

    def __init__(
        self, *, store: AuditReader, keys: LogKeys, prover: Prover, keep: Callable[[int, int, str], None]
    ) -> None:
        """Take the parts.

        Args:
            store: its reading side.
            keys: the log keys.
            prover: reads tree nodes.
            keep: stores a checkpoint (log id, size, note) some time soon.
        """
        self._store = store
        self._keys = keys
        self._prover = prover
        self._keep = keep
        self._notes: OrderedDict[tuple[int, int], str] = OrderedDict()

    def note(self, info: LogInfo, frontier: Frontier) -> str:
        """Return the signed checkpoint of an acknowledged size; signed once, kept in memory and database."""
        key = (info.log_id, frontier.size)
        note = self._notes.get(key)
        if note is None:
            checkpoint = Checkpoint(info.origin, frontier.size, frontier.root())
            note = self._notes[key] = sign_checkpoint(checkpoint, self._keys.signer(info.origin))
            self._keep(info.log_id, frontier.size, note)
            while len(self._notes) > _MAX_NOTES:
                self._notes.popitem(last=False)
        return note

    def receipt(self, info: LogInfo, frontier: Frontier, index: int) -> AuditReceipt:
        """Return a record with its inclusion proof, verified.

        Raises:
            RecordError: the stored record is not the one in the tree.
            AuditUnavailableError: the database cannot be read.
        """
        found = self._store.leaves(info.log_id, index, index + 1)
        if not found:
            raise RecordError(f"{info.origin}: record {index} is missing from the database")
        check_leaf(info.origin, index, found[0])
        return self._proved(info, frontier, index, found[0].leaf, found[0].leaf_hash)

    def prove(self, info: LogInfo, frontier: Frontier, appended: Appended) -> AuditReceipt:
        """Return the receipt of a record whose acknowledged bytes the caller has; its proof is verified.

        Raises:
            RecordError: the tree does not hold the record.
            AuditUnavailableError: the database cannot be read.
        """
        return self._proved(info, frontier, appended.index, appended.leaf, appended.leaf_hash)

    def _proved(self, info: LogInfo, frontier: Frontier, index: int, leaf: bytes, digest: bytes) -> AuditReceipt:
        proof = inclusion_proof(index, frontier.size, self._prover.nodes(info.log_id))
        try:
            verify_inclusion(index=index, size=frontier.size, leaf=digest, proof=proof, root=frontier.root())
        except InclusionError as error:
            raise RecordError(f"{info.origin}: record {index} in the database is not the one in the tree") from error
        return AuditReceipt(leaf, index, proof, self.note(info, frontier))

    def extension(
        self, info: LogInfo, frontier: Frontier, old_size: int, new_size: int
    ) -> tuple[tuple[bytes, ...], str]:
        """Return the consistency proof between two sizes up to an acknowledged one, and the later's checkpoint.

        Raises:
            RecordError: the stored tree is not the acknowledged one.
            AuditUnavailableError: the database cannot be read.
        """
        later = self.earlier(info, frontier, new_size)
        return self.consistency(info, old_size, new_size), self.note(info, later)

    def consistency(self, info: LogInfo, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """Return the consistency proof between two sizes up to an acknowledged one, as stored.

        Raises:
            AuditUnavailableError: the database cannot be read.
        """
        return consistency_proof(old_size, new_size, self._prover.nodes(info.log_id))

    def earlier(self, info: LogInfo, frontier: Frontier, size: int) -> Frontier:
        """Return the frontier of an earlier size, proven to be that of the acknowledged log: it may be signed.

        Raises:
            RecordError: the stored tree is not the acknowledged one.
            AuditUnavailableError: the database cannot be read.
        """
        if size == frontier.size:
            return frontier
        found = self._prover.frontier(info.log_id, size)
        try:
            if size:
                verify_consistency(
                    old_size=size,
                    old_root=found.root(),
                    new_size=frontier.size,
                    new_root=frontier.root(),
                    proof=consistency_proof(size, frontier.size, self._prover.nodes(info.log_id)),
                )
        except ConsistencyError as error:
            raise RecordError(f"{info.origin}: the stored tree of size {size} is not that of the log") from error
        return found

    def export(
        self,
        parts: Sequence[tuple[LogInfo, Head, RoundPath | None]],
        stream: BinaryIO,
        progress: Progress | None,
        *,
        first: int = 0,
    ) -> int:
        """Write logs from leaf ``first`` up to the given heads as one export; return how many records it holds.

        With each goes its path into a round of the platform's log, where there is one.

        Raises:
            RecordError: a stored record does not hold; names it.
            AuditUnavailableError: the database cannot be read.
        """
        writer = ExportWriter(stream)
        total = sum(head.size for _, head, _ in parts)
        done = written = 0
        for info, head, path in parts:
            written += export_log(
                self._store,
                writer,
                info=info,
                vkey=self._keys.signer(info.origin).vkey,
                size=head.size,
                note=self.note(info, head.frontier),
                path=path,
                before=self.earlier(info, head.frontier, min(first, head.size)),
                progress=None if progress is None else _shifted(progress, done, total),
            )
            done += head.size
        writer.end()
        return written


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
