"""What verification sees in each leaf by itself: hash, form, id, and what the index must say of it.

It is most of verification's work and needs no other leaf, so that it may go on in several processes. Where a leaf
stands, and everything that follows from that, is checked by the caller, in order.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, NamedTuple, Self

from audit.export import read_leaf
from audit.model import StoredLeaf
from bulkhead.encoding import JsonObject
from bulkhead.errors import AuditUnavailableError, RecordError

__all__ = ["LeafFacts", "LeafReader"]

_AHEAD: Final = 3  # chunks for each process: one that is read, one that waits, one whose answer waits


class LeafFacts(NamedTuple):
    """What a leaf says that is compared with something else.

    Attributes:
        problem: what is wrong with it; nothing else is set then.
        tenant: the record's.
        action: the record's.
        indexed: time, action, decision, subject, session and pair id, as :class:`~audit.model.IndexRow` orders them.
        data: of records about logs (``log.*``) only.
    """

    problem: str
    tenant: str | None = None
    action: str = ""
    indexed: tuple[int, str, str, str, str, str] = (0, "", "", "", "", "")
    data: JsonObject = {}  # noqa: RUF012 - shared, and nobody writes to it


class LeafReader:
    """Reads leaves, in this process or in others that end with it."""

    def __init__(self, processes: int) -> None:
        # Not forked: the caller has threads and open databases.
        self._pool = (
            None
            if processes == 1
            else ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin)
        )
        self.ahead: Final = 1 if processes == 1 else _AHEAD * processes
        """How many calls of :meth:`read` should be made before the first answer is fetched."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, leaves: Sequence[StoredLeaf]) -> Callable[[], Sequence[LeafFacts]]:
        """Begin to read leaves; what is returned gives the answer, one for each in order.

        Raises:
            AuditUnavailableError: later, or at once: a reading process ended before its time.
        """
        rows = [(stored.leaf, stored.leaf_hash, stored.record_id) for stored in leaves]
        if self._pool is None:
            return functools.partial(_read, rows)
        try:
            return functools.partial(_answer, self._pool.submit(_read, rows))
        except BrokenProcessPool as error:
            raise _ended() from error


def _answer(future: Future[list[LeafFacts]]) -> list[LeafFacts]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _ended() from error


def _ended() -> AuditUnavailableError:
    return AuditUnavailableError("a process that reads leaves ended before its time; nothing more was verified")


def _begin() -> None:
    """Leave an interrupt to the process that asked, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read(rows: Sequence[tuple[bytes, bytes, str]]) -> list[LeafFacts]:
    return [_facts(*row) for row in rows]


def _facts(leaf: bytes, leaf_hash: bytes, record_id: str) -> LeafFacts:
    try:
        fields = read_leaf(leaf, leaf_hash=leaf_hash, record_id=record_id)
    except RecordError as error:
        return LeafFacts(error.message)
    indexed = (fields.ts_us, fields.action, fields.decision, fields.subject, fields.session, fields.pair_id)
    data = dict(fields.data) if fields.action.startswith("log.") else {}
    return LeafFacts("", fields.tenant, fields.action, indexed, data)
