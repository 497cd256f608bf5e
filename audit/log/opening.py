"""Opens database, lock store and keys together, and checks that they belong together.

1. No other process writes to a SQLite database; a PostgreSQL server keeps its promises (:mod:`audit.sql.postgres`).
2. The lock store's commit is in this database: it is not an older copy, nor another one. A database ahead of the lock
   store is what a crash leaves between commit and move: it is kept, and the lock store follows.
3. A database with commits whose lock store is missing is refused.
4. The key file is the one that signed what the database keeps; it is made for an empty database only. Another one would
   sign what nobody who pinned the logs' keys believes.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from audit.chain import GENESIS, LockState
from audit.config import AuditConfig
from audit.keys import LogKeys
from audit.lockstore import FileLockStore
from audit.model import Failpoint, Head, LogInfo, no_failpoint
from audit.sql import SqlLockStore, on_one_server, open_store
from audit.store import AuditStore, LockStore
from bulkhead.errors import CheckpointError, ConfigError, LogForkError
from bulkhead.transparency.checkpoint import open_checkpoint

__all__ = ["Opened", "lock_store", "open_parts", "platform_log", "tenant_log"]

_OPAQUE_BYTES: Final = 15  # 24 characters of base32, 120 bits: unguessable and unrelated to the tenant
PLATFORM_LOG_ID: Final = 1
_RECENT: Final = 256  # records before a log's head among which a kept checkpoint is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What :class:`~audit.log.AuditLog` works with."""

    store: AuditStore
    lock: LockStore
    locked: LockState
    keys: LogKeys
    logs: tuple[LogInfo, ...]
    heads: tuple[Head, ...]
    next_round: int


def open_parts(config: AuditConfig, *, random_bytes: Callable[[int], bytes], failpoint: Failpoint) -> Opened:
    """Open everything; blocking.

    Raises:
        AuditUnavailableError: 1 fails, or a file cannot be opened.
        LogForkError: 2 or 3 fails; nothing may be written.
        ConfigError: the key file is missing, not private, malformed or another's (4), a URL is malformed, or the server
            would lose records.
    """
    lock = lock_store(config, failpoint=failpoint)
    store = open_store(  # 1
        config.database,
        busy_timeout_s=config.busy_timeout_s,
        high_availability=config.high_availability,
        failpoint=failpoint,
    )
    try:
        last = store.last_commit()
        keys = _keys(config, store, random_bytes=random_bytes)  # 4
        lock.open(create=last == GENESIS)  # 3
        locked = lock.read()
        _check_locked(store, locked)  # 2
        while locked.seq < last.seq:  # another process may be starting, too
            locked = lock.move(locked, last)
            _check_locked(store, locked)
        last_round = store.last_round()
        return Opened(
            store=store,
            lock=lock,
            locked=locked,
            keys=keys,
            logs=store.logs(),
            heads=store.heads(),
            next_round=1 if last_round is None else last_round + 1,
        )
    except BaseException:
        lock.close()
        store.close()
        raise


def lock_store(config: AuditConfig, *, failpoint: Failpoint = no_failpoint) -> LockStore:
    """Return the lock store, not opened yet; blocking.

    Raises:
        ConfigError: its URL is malformed, or names the audit database's own server.
    """
    if isinstance(config.lock, Path):
        return FileLockStore(config.lock, failpoint=failpoint)
    if isinstance(config.database, str) and on_one_server(config.database, config.lock):
        raise ConfigError("audit lock: it is on the audit database's server: what restores one would restore both")
    return SqlLockStore(
        config.lock,
        name=config.domain,
        limit_s=config.busy_timeout_s,
        high_availability=config.high_availability,
        failpoint=failpoint,
    )


def platform_log(domain: str) -> LogInfo:
    """Return the platform's log as it is first opened."""
    return LogInfo(log_id=PLATFORM_LOG_ID, origin=f"audit.{domain}/platform/1", tenant=None, epoch=1, slot=None)


def tenant_log(domain: str, *, tenant: str, log_id: int, slot: int, random_bytes: Callable[[int], bytes]) -> LogInfo:
    """Return a tenant's log as it is first opened; its name says nothing about the tenant."""
    opaque = base64.b32encode(random_bytes(_OPAQUE_BYTES)).decode("ascii").lower()
    return LogInfo(log_id=log_id, origin=f"audit.{domain}/t/{opaque}/1", tenant=tenant, epoch=1, slot=slot)


def _keys(config: AuditConfig, store: AuditStore, *, random_bytes: Callable[[int], bytes]) -> LogKeys:
    if store.last_commit() == GENESIS:
        return LogKeys.load_or_create(config.keys_dir, random_bytes=random_bytes)
    keys = LogKeys.load(config.keys_dir)
    heads = {head.log_id: head.size for head in store.heads()}
    for info in store.logs():  # one secret makes every log's key, so that one checkpoint tells
        size = heads.get(info.log_id, 0)
        kept = store.checkpoints(info.log_id, max(size - _RECENT, 0), size + 1)
        if kept:
            _check_key(config, keys, info.origin, *kept[-1])
            break
    return keys


def _check_key(config: AuditConfig, keys: LogKeys, origin: str, size: int, note: str) -> None:
    try:
        open_checkpoint(note, vkey=keys.signer(origin).vkey, origin=origin)
    except CheckpointError as error:
        raise ConfigError(
            f"the key in {config.keys_dir} did not sign the kept checkpoint of {origin} at {size} records: it is "
            "another platform's, or the checkpoint was edited; the log is not opened with it"
        ) from error


def _check_locked(store: AuditStore, locked: LockState) -> None:
    if store.chain_at(locked.seq) != locked.chain:
        raise LogForkError(
            f"the lock store holds commit {locked.seq}, which is not in the audit database: the database was restored "
            "from a backup, replaced or edited, or is a standby's that lost commits; writing is refused. Put the right "
            "database back, or have two persons declare a break (docs/audit.md section 11)"
        )
