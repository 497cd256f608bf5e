"""The way out when lock store and database disagree: two persons declare a break, every log starts a new epoch.

A statement names the two histories: the last commit that the database holds, and what the lock store holds. Two
officers with keys of their own sign it (a C2SP signed note). Declaring it opens, in one commit, a new epoch of every
log; leaf 0 of each cites the statement with its signatures, both histories and the old epoch's head. Nothing is added
to the old epochs, and their heads are cited unsigned: the old keys must not sign a tree that may contradict what they
signed before. The commit's chain value binds both histories (:func:`audit.chain.across_break`), so that verification
goes on across the break and shows who declared it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from audit.chain import LockState, parse_state, show_state
from audit.config import AuditConfig
from audit.log.known import KnownLogs
from audit.log.opening import lock_store
from audit.model import Failpoint, LogInfo, no_failpoint
from audit.records import Stamp, log_opened
from audit.sql import SqlAuditStore, open_store
from audit.store import LockStore, NewLeaf
from bulkhead.errors import CheckpointError, ConflictError, LogForkError, PermissionDeniedError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.note import NoteVerifier, open_note

__all__ = ["OFFICERS", "BreakStatement", "Declared", "declare_break", "find_break"]

OFFICERS: Final = 2  # persons who must sign
_HEADER: Final = "bulkhead audit break v1"
_MAX_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class BreakStatement:
    """What the officers sign.

    Attributes:
        domain: the platform's.
        database: the last commit of the database.
        lock: what the lock store holds; None if it is lost.
        reason: one line in the officers' words.
    """

    domain: str
    database: LockState
    lock: LockState | None
    reason: str

    def text(self) -> str:
        """Return the text that is signed."""
        lock = "lost" if self.lock is None else show_state(self.lock)
        return f"{_HEADER}\n{self.domain}\ndatabase {show_state(self.database)}\nlock {lock}\nreason {self.reason}\n"

    @classmethod
    def parse(cls, text: str) -> "BreakStatement":
        """Read the text of a statement.

        Raises:
            CheckpointError: it is not one.
        """
        lines = text.split("\n")
        if len(lines) != 6 or lines[0] != _HEADER or lines[5]:
            raise CheckpointError("this is not a statement of a break")
        database, lock, reason = (
            line.removeprefix(f"{name} ") if line.startswith(f"{name} ") else ""
            for name, line in zip(("database", "lock", "reason"), lines[2:5], strict=True)
        )
        found = cls(lines[1], parse_state(database), None if lock == "lost" else parse_state(lock), reason)
        if not 1 <= len(reason) <= _MAX_REASON or found.text() != text:
            raise CheckpointError("this is not a statement of a break")
        return found


@dataclass(frozen=True, slots=True)
class Declared:
    """A break that was declared.

    Attributes:
        statement: what was signed.
        officers: names of the keys that signed.
        logs: the logs' new epochs.
        state: the first commit after the break.
    """

    statement: BreakStatement
    officers: tuple[str, ...]
    logs: tuple[LogInfo, ...]
    state: LockState


def find_break(config: AuditConfig, reason: str) -> BreakStatement:
    """Return the statement that would have to be signed now; the platform must be stopped. Blocks.

    Raises:
        ConflictError: database and lock store agree: there is no break.
        AuditUnavailableError: one of them cannot be opened.
        CheckpointError: the reason is not one line of 1 to 500 characters.
    """
    store = open_store(config.database, busy_timeout_s=config.busy_timeout_s)
    lock = lock_store(config)
    try:
        statement = _found(config, store, lock, reason)
        return BreakStatement.parse(statement.text())
    finally:
        lock.close()
        store.close()


def declare_break(
    config: AuditConfig,
    note: str,
    officers: Sequence[str],
    *,
    stamp: Callable[[], Stamp],
    failpoint: Failpoint = no_failpoint,
) -> Declared:
    """Declare a break; the platform must be stopped. Blocks. A declaration that a crash cut short is taken up again.

    1. The statement is signed by two different pinned keys.
    2. It names exactly the histories that database and lock store hold now.

    That the pinned keys are those of two persons stays with the caller.

    Args:
        config: where database and lock store are.
        note: the signed statement.
        officers: pinned vkeys of those who may declare.
        stamp: gives records identity and time.
        failpoint: called at each step.

    Raises:
        PermissionDeniedError: 1 fails.
        CheckpointError: the note is malformed, or a signature does not hold.
        ConflictError: 2 fails, or there is no break.
        AuditUnavailableError: database or lock store cannot be written; declare it again.
    """
    pinned = [NoteVerifier.from_vkey(vkey) for vkey in officers]
    opened = open_note(note, pinned)  # 1
    if len({verifier.public_key for verifier in pinned if verifier in opened.verified}) < OFFICERS:
        raise PermissionDeniedError("a break is declared by two persons: the statement needs two pinned signatures")
    statement = BreakStatement.parse(opened.text)
    names = tuple(verifier.name for verifier in opened.verified)
    store = open_store(config.database, busy_timeout_s=config.busy_timeout_s, failpoint=failpoint)
    lock = lock_store(config, failpoint=failpoint)
    try:
        logs, state = _unfinished(store, note)
        if state is None:
            if _found(config, store, lock, statement.reason) != statement:  # 2
                raise ConflictError("the statement names other histories than database and lock store hold now")
            logs, state = _commit(store, statement, note, stamp)
        lock.open(create=statement.lock is None)
        _move(lock, statement, state)
        return Declared(statement, names, logs, state)
    finally:
        lock.close()
        store.close()


def _found(config: AuditConfig, store: SqlAuditStore, lock: LockStore, reason: str) -> BreakStatement:
    database = store.last_commit()
    try:
        lock.open(create=False)
        locked: LockState | None = lock.read()
    except LogForkError:  # missing, or nothing in it is readable
        locked = None
    if locked is not None and store.chain_at(locked.seq) == locked.chain:
        raise ConflictError("database and lock store agree: there is no break to declare")
    return BreakStatement(config.domain, database, locked, reason)


def _commit(
    store: SqlAuditStore, statement: BreakStatement, note: str, stamp: Callable[[], Stamp]
) -> tuple[tuple[LogInfo, ...], LockState]:
    known = KnownLogs(store.logs(), store.heads())
    log_id = max(info.log_id for info in known.every())
    logs, leaves = [], []
    for old in sorted(known.newest(), key=lambda info: info.log_id):
        log_id += 1
        origin = f"{old.origin.rpartition('/')[0]}/{old.epoch + 1}"
        new = replace(old, log_id=log_id, origin=origin, epoch=old.epoch + 1)
        head = known.head(old.log_id)
        record = log_opened(
            stamp(),
            tenant=new.tenant,
            origin=new.origin,
            epoch=new.epoch,
            slot=new.slot,
            predecessor=Checkpoint(old.origin, head.size, head.frontier.root()).text(),
            declared={
                "database": show_state(statement.database),
                "lock": None if statement.lock is None else show_state(statement.lock),
                "statement": note,
            },
        )
        logs.append(new)
        leaves.append(NewLeaf(log_id, record.record_id, record.leaf, leaf_hash(record.leaf), opens=new))
    return tuple(logs), store.commit_break(leaves, statement.database, statement.lock).last


def _unfinished(store: SqlAuditStore, note: str) -> tuple[tuple[LogInfo, ...], LockState | None]:
    """Return what an earlier try with this statement committed, if it is the database's last commit."""
    last = store.last_commit()
    known = KnownLogs(store.logs(), store.heads())
    logs = tuple(sorted(known.newest(), key=lambda info: info.log_id))
    for info in logs:
        first = store.leaves(info.log_id, 0, 1)
        if known.head(info.log_id).size != 1 or not first:
            return (), None
        try:
            declared = parse_leaf(first[0].leaf).data.get("break")
        except RecordError:
            return (), None
        if not isinstance(declared, dict) or declared.get("statement") != note:
            return (), None
    return logs, last


def _move(lock: LockStore, statement: BreakStatement, state: LockState) -> None:
    held = lock.read()
    if held == state:
        return
    if statement.lock is not None and held != statement.lock:
        raise ConflictError("the lock store has moved since the break was declared")
    if lock.move(held, state) != state:
        raise ConflictError("another process moved the lock store: stop the platform first")
