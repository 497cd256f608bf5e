"""A tenant's log of any size in a database of its own, with signed checkpoints at the sizes that a test asks for."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from audit.model import LogInfo
from audit.records import Record
from audit.sql import open_sqlite
from audit.store import NewLeaf
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.note import NoteSigner
from tests.simulator.audit_world import TENANT, decision, new_leaf, opening

ORIGIN = "audit.bulkhead.test/t/abcdefghijklmnopqrstuvwx/1"
INFO = LogInfo(log_id=2, origin=ORIGIN, tenant=TENANT, epoch=1, slot=0)
PLATFORM = LogInfo(log_id=1, origin="audit.bulkhead.test/platform/1", tenant=None, epoch=1, slot=None)
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(range(32)))
_BATCH = 2_000


def records(count: int) -> Iterable[Record]:
    """Return decisions."""
    return (decision(number=number, allow=number % 7 > 0) for number in range(count))


def checkpoint(frontier: Frontier, signer: NoteSigner = SIGNER) -> str:
    """Return the signed checkpoint of a tree."""
    return sign_checkpoint(Checkpoint(signer.verifier.name, frontier.size, frontier.root()), signer)


def write_log(path: Path, size: int, sizes: Sequence[int] = (), *, signer: NoteSigner = SIGNER) -> dict[int, str]:
    """Write a database whose tenant's log has ``size`` records; return, and keep there, checkpoints at ``sizes``."""
    store = open_sqlite(path, busy_timeout_s=1.0)
    notes: dict[int, str] = {}
    frontier = Frontier()
    try:
        store.commit([opening(PLATFORM)], store.last_commit())
        leaves = itertools.chain([opening(INFO)], (new_leaf(INFO.log_id, record) for record in records(size - 1)))
        stops = sorted({*sizes, size, *range(_BATCH, size, _BATCH)})
        for stop in stops:
            batch: list[NewLeaf] = list(itertools.islice(leaves, stop - frontier.size))
            store.commit(batch, store.last_commit())
            frontier = frontier.extend(leaf.leaf_hash for leaf in batch)
            if stop in sizes or stop == size:
                notes[stop] = checkpoint(frontier, signer)
        store.put_checkpoints({(INFO.log_id, at): note for at, note in notes.items()})
        while store.project(_BATCH):
            pass
    finally:
        store.close()
    return notes
