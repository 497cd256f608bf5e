"""A stopped platform's audit log, and the administrator who rewrites it: with every right over either database."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, create_engine, make_url, text

from audit.chain import GENESIS, LockState, next_chain
from audit.keys import LogKeys
from audit.lockstore import FileLockStore
from audit.sql import open_reader
from audit.sql.verify import DatabaseReport, verify_database
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import Frontier, leaf_hash
from tests.simulator.audit_world import OTHER, TENANT, config, decision, opened

RECORDS = 300  # of the first tenant: one full tile and a part


@dataclass(frozen=True, kw_only=True)
class StoppedPlatform:
    """A stopped platform's audit files, and what a tenant keeps of them.

    Attributes:
        directory: lock store and keys.
        database: file, or URL.
        vkeys: public keys by origin.
        locked: what the lock store holds.
        kept: a checkpoint of its log that the tenant holds.
        origin: of the tenant's log.
    """

    directory: Path
    database: Path | str
    vkeys: dict[str, str]
    locked: LockState
    kept: str
    origin: str


def stopped_platform(directory: Path, database: Path | str) -> StoppedPlatform:
    """Make the history: 300 records of one tenant with checkpoints, five of another, a round."""

    async def make() -> tuple[dict[str, str], str, str]:
        log = await opened(directory, database=database, round_interval_s=0.05)
        mine, other = await log.ensure_log(TENANT), await log.ensure_log(OTHER)
        for _ in range(200):  # one round, of two logs that hold their first record only
            if log.size(log.platform_log.log_id) > 1:
                break
            await asyncio.sleep(0.05)
        await log.close()
        log = await opened(directory, database=database)
        for start in range(0, RECORDS, 30):
            await asyncio.gather(*(log.append(mine.log_id, decision(number=start + n)) for n in range(30)))
            await log.checkpoint(mine.log_id)
        for n in range(5):
            await log.append(other.log_id, decision(tenant=OTHER, number=n))
        kept = await log.checkpoint(mine.log_id)
        vkeys = {info.origin: log.vkey(info.log_id) for info in log.logs()}
        await log.close()
        return vkeys, kept, mine.origin

    vkeys, kept, origin = asyncio.run(make())
    return StoppedPlatform(
        directory=directory, database=database, vkeys=vkeys, locked=lock_of(directory), kept=kept, origin=origin
    )


def lock_of(directory: Path) -> LockState:
    """Return what the lock store of a stopped platform holds."""
    lock = FileLockStore(config(directory).lock)
    lock.open(create=False)
    try:
        return lock.read()
    finally:
        lock.close()


def verify(platform: StoppedPlatform, database: Path | str, *, lock: bool = True) -> DatabaseReport:
    """Verify a copy of the database with the platform's keys, and beside its lock store unless told otherwise."""
    reader = open_reader(database)
    try:
        return verify_database(reader, vkeys=platform.vkeys, locked=platform.locked if lock else None)
    finally:
        reader.close()


def edit(database: Path | str, *statements: str) -> None:
    """Run statements as the administrator; each changes something."""
    engine = _engine(database)
    with engine.begin() as connection:
        for statement in statements:
            assert connection.exec_driver_sql(statement).rowcount, statement
    engine.dispose()


def rewrite(database: Path | str, keys: LogKeys | None, change: Callable[[int, int, bytes], bytes]) -> LockState:
    """Rewrite the whole tree over changed leaves; with ``keys``, sign it anew. Return the lock state that fits it."""
    engine = _engine(database)
    with engine.begin() as connection:
        state = _rewrite(connection, keys, change)
    engine.dispose()
    return state


def _rewrite(connection: Connection, keys: LogKeys | None, change: Callable[[int, int, bytes], bytes]) -> LockState:
    def run(statement: str, **values: object) -> None:
        connection.execute(text(statement), values)

    origins = {row.log_id: row.origin for row in connection.execute(text("SELECT log_id, origin FROM audit_log"))}
    ends = {row.pos: row.seq for row in connection.execute(text("SELECT pos, seq FROM audit_commit"))}
    kept = {(row.log_id, row.size) for row in connection.execute(text("SELECT log_id, size FROM audit_checkpoint"))}
    rows = connection.execute(text("SELECT pos, log_id, idx, leaf FROM audit_leaf ORDER BY pos")).all()
    frontiers = dict.fromkeys(origins, Frontier())
    hashes: dict[int, list[bytes]] = {log_id: [] for log_id in origins}
    chain, grown = GENESIS.chain, set()
    for row in rows:
        leaf = change(row.log_id, row.idx, bytes(row.leaf))
        digest, fields = leaf_hash(leaf), parse_leaf(leaf)
        run(
            "UPDATE audit_leaf SET leaf = :leaf, leaf_hash = :hash WHERE pos = :pos",
            leaf=leaf,
            hash=digest,
            pos=row.pos,
        )
        run("UPDATE audit_index SET decision = :decision WHERE pos = :pos", decision=fields.decision, pos=row.pos)
        hashes[row.log_id].append(digest)
        frontiers[row.log_id] = frontiers[row.log_id].append(digest)
        grown.add(row.log_id)
        size = row.idx + 1
        if keys is not None and (row.log_id, size) in kept:
            made = Checkpoint(origins[row.log_id], size, frontiers[row.log_id].root())
            run(
                "UPDATE audit_checkpoint SET note = :note WHERE log_id = :log AND size = :size",
                note=sign_checkpoint(made, keys.signer(made.origin)), log=row.log_id, size=size,
            )  # fmt: skip
        if row.pos in ends:
            chain = next_chain(chain, ((origins[each], frontiers[each]) for each in grown))
            run("UPDATE audit_commit SET chain = :chain WHERE seq = :seq", chain=chain, seq=ends[row.pos])
            grown.clear()
    for log_id, frontier in frontiers.items():
        run("UPDATE audit_head SET frontier = :nodes WHERE log_id = :log", nodes=frontier.encode(), log=log_id)
        tile = b"".join(hashes[log_id][:256])
        run("UPDATE audit_tile SET hashes = :hashes WHERE log_id = :log AND n = 0", hashes=tile, log=log_id)
    return LockState(max(ends.values()), chain)


def forge(log_id: int, index: int, leaf: bytes) -> bytes:
    """Turn one decision of the first tenant around, keeping the leaf's length and form."""
    return leaf.replace(b'"decision":"allow"', b'"decision":"error"') if (log_id, index) == (2, 77) else leaf


def _engine(database: Path | str):
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    return create_engine(make_url(url).set(drivername="sqlite" if isinstance(database, Path) else "postgresql+psycopg"))
