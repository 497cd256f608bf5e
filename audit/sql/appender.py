"""One commit's work inside an open write transaction.

Under the writer lock: the lock store's state is found in this database; each leaf gets the next index of its log;
leaves, full tiles, heads and the chain are written.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Dialect

from audit.chain import GENESIS, LockState, across_break, next_chain
from audit.model import Failpoint, Head, LogInfo
from audit.sql.driver import Driver
from audit.sql.queries import as_bytes, as_int, as_text
from audit.sql.statements import CommitStatements
from audit.store import Committed, NewLeaf, Placed
from audit.tiles import TILE_WIDTH, completed_tiles, join_tile, split_tile
from bulkhead.errors import BulkheadError, ConflictError, InternalError, LogForkError, NotFoundError
from bulkhead.transparency.merkle import Frontier, tree_root

__all__ = ["Appender"]

_MAX_ROOTS: Final = 1 << 16  # tile roots kept for the next level: 256 of them are one tile of the level above


@dataclass(slots=True)
class _Growth:
    """A log in this commit: where it stood and what it gains."""

    origin: str
    base: Frontier
    opened: bool = False
    hashes: list[bytes] = field(default_factory=list)


class Appender:
    """Does commits on connections that the store hands in.

    Between commits it keeps the frontiers that it wrote, valid as long as no other writer commits, and tile roots.
    """

    def __init__(self, *, dialect: Dialect, failpoint: Failpoint) -> None:
        self._failpoint = failpoint
        self._sql = CommitStatements(dialect)
        self._roots: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._seq = -1  # the commit after which `_fronts` was true
        self._fronts: dict[int, tuple[str, Frontier]] = {}

    def forget(self) -> None:
        """Drop what was kept; call it when a transaction was not committed."""
        self._roots.clear()
        self._fronts.clear()
        self._seq = -1

    def append(
        self,
        driver: Driver,
        batch: Sequence[NewLeaf],
        locked: LockState | None,
        *,
        look_up: bool,
        broken: LockState | None = None,
    ) -> Committed:
        """Do one commit's work; the caller commits the transaction.

        Args:
            driver: in a transaction; no other writer can share it.
            batch: leaves in order.
            locked: the lock store's state.
            look_up: look for the record ids first. Without it a record that is there already is an IntegrityError,
                and so is a log that is taken.
            broken: for a declared break: the database's last commit that it names, in place of the check of
                ``locked``, which may be lost (None) then.

        Raises:
            LogForkError: ``locked`` is not in this database.
        """
        last, pos = self.sequence(driver, locked if broken is None else broken)
        if broken is not None:
            if last != broken:
                raise ConflictError("the audit database has moved on since the break was declared")
            last = across_break(broken, locked)
        self._failpoint("commit.begun")
        growing = self._heads(driver, {leaf.log_id for leaf in batch}, last)
        known = self._places(driver, batch) if look_up else {}
        places, taken = self._assign(driver, batch, growing, known, look_up=look_up)
        if not taken:
            return Committed(last, places, _result_heads(growing), wrote=False)
        new, heads = self._write(driver, taken, growing, last, pos)
        return Committed(new, places, heads, wrote=True)

    def sequence(self, driver: Driver, locked: LockState | None) -> tuple[LockState, int]:
        """Become the only writer for the rest of the transaction; return the last commit and its last position.

        Raises:
            LogForkError: ``locked`` is not in this database.
        """
        if self._sql.lock is not None:
            self._sql.lock.run(driver)
        row = self._sql.last.run(driver).fetchone()
        last, pos = (GENESIS, 0) if row is None else (LockState(as_int(row[0]), as_bytes(row[1])), as_int(row[2]))
        if locked is None:
            raise LogForkError("the lock store is lost")
        self._check_locked(driver, last, locked)
        return last, pos

    def _check_locked(self, driver: Driver, last: LockState, locked: LockState) -> None:
        if last == locked:
            return
        if locked.seq < last.seq:
            chain = GENESIS.chain if locked.seq == 0 else _value(self._sql.chain.run(driver, at=locked.seq).fetchone())
            if chain == locked.chain:
                return  # commits that were never acknowledged: an ordinary crash
        raise LogForkError(
            f"the audit database does not hold commit {locked.seq} of the lock store: it was restored from a backup, "
            "replaced or edited; writing has stopped"
        )

    def _assign(
        self,
        driver: Driver,
        batch: Sequence[NewLeaf],
        growing: dict[int, _Growth],
        known: dict[str, tuple[int, int, bytes]],
        *,
        look_up: bool,
    ) -> tuple[tuple[Placed | BulkheadError, ...], list[tuple[NewLeaf, int]]]:
        """Give each leaf its index; return the places in order, and the leaves that are new."""
        places: list[Placed | BulkheadError] = []
        taken: list[tuple[NewLeaf, int]] = []
        for leaf in batch:
            if (there := known.get(leaf.record_id)) is not None:
                places.append(_again(leaf, there))
                continue
            growth = growing.get(leaf.log_id)
            if leaf.opens is not None:
                if growth is not None or (look_up and self._is_taken(driver, leaf.opens)):
                    places.append(ConflictError(f"the log {leaf.opens.origin}, or its slot, is taken"))
                    continue
                growth = growing[leaf.log_id] = _Growth(leaf.opens.origin, Frontier(), opened=True)
                self._open(driver, leaf.opens)
            if growth is None:
                places.append(NotFoundError(f"there is no log {leaf.log_id}"))
                continue
            if leaf.round_heads and _value(self._sql.round.run(driver, at=leaf.round_heads[0].round).fetchone()):
                places.append(ConflictError(f"round {leaf.round_heads[0].round} is made already"))
                continue
            index = growth.base.size + len(growth.hashes)
            growth.hashes.append(leaf.leaf_hash)
            known[leaf.record_id] = (leaf.log_id, index, leaf.leaf_hash)
            places.append(Placed(leaf.log_id, index))
            taken.append((leaf, index))
        return tuple(places), taken

    def _write(
        self,
        driver: Driver,
        taken: list[tuple[NewLeaf, int]],
        growing: dict[int, _Growth],
        last: LockState,
        pos: int,
    ) -> tuple[LockState, tuple[Head, ...]]:
        self._sql.add_leaves.run(
            driver,
            [
                (place, leaf.log_id, index, leaf.record_id, leaf.leaf, leaf.leaf_hash)
                for place, (leaf, index) in enumerate(taken, start=pos + 1)
            ],
        )
        self._failpoint("commit.leaves")
        rounds = [(head.round, head.log_id, head.size) for leaf, _ in taken for head in leaf.round_heads]
        if rounds:
            self._sql.add_rounds.run(driver, rounds)
        grown = {log_id: growth for log_id, growth in growing.items() if growth.hashes}
        frontiers = {log_id: growth.base.extend(growth.hashes) for log_id, growth in grown.items()}
        self._write_tiles(driver, grown)
        self._failpoint("commit.tiles")
        self._write_heads(driver, grown, frontiers)
        self._failpoint("commit.heads")
        chain = next_chain(last.chain, ((grown[log_id].origin, frontiers[log_id]) for log_id in grown))
        new = LockState(last.seq + 1, chain)
        self._sql.add_commit.run(driver, seq=new.seq, pos=pos + len(taken), chain=chain)
        self._failpoint("commit.chained")
        heads = {log_id: frontiers.get(log_id, growth.base) for log_id, growth in growing.items()}
        self._seq = new.seq
        self._fronts.update((log_id, (growing[log_id].origin, frontier)) for log_id, frontier in heads.items())
        return new, tuple(Head(log_id, frontier) for log_id, frontier in heads.items())

    def _heads(self, driver: Driver, ids: Collection[int], last: LockState) -> dict[int, _Growth]:
        if last.seq != self._seq:  # another writer was here, or the outcome of the last commit was not known
            self._fronts.clear()
        growing = {log_id: _Growth(*self._fronts[log_id]) for log_id in ids if log_id in self._fronts}
        unknown = sorted(log_id for log_id in ids if log_id not in growing)
        found = [(log_id, self._sql.head.run(driver, log=log_id)) for log_id in unknown]  # at once, in a pipeline
        for log_id, cursor in found:
            if (row := cursor.fetchone()) is not None:
                growing[log_id] = _Growth(as_text(row[0]), Frontier.decode(as_int(row[1]), as_bytes(row[2])))
        return growing

    def _write_heads(self, driver: Driver, grown: Mapping[int, _Growth], frontiers: Mapping[int, Frontier]) -> None:
        opened: list[tuple[int, int, bytes]] = []
        moved: list[tuple[int, int, bytes]] = []
        for log_id, growth in grown.items():
            row = (log_id, frontiers[log_id].size, frontiers[log_id].encode())
            (opened if growth.opened else moved).append(row)
        if opened:
            self._sql.add_heads.run(driver, opened)
        if moved:
            self._sql.set_heads.run(driver, moved)

    def _write_tiles(self, driver: Driver, grown: Mapping[int, _Growth]) -> None:
        tiles: list[tuple[int, int, int, bytes]] = []
        for log_id, growth in grown.items():
            old_size = growth.base.size
            for level, number in completed_tiles(old_size, old_size + len(growth.hashes)):
                if level == 0:
                    hashes = self._leaf_tile(driver, log_id, number, growth)
                else:
                    below = range(number * TILE_WIDTH, (number + 1) * TILE_WIDTH)
                    hashes = [self._root(driver, log_id, level - 1, child) for child in below]
                tiles.append((log_id, level, number, join_tile(hashes)))
                self._remember((log_id, level, number), tree_root(hashes))
        if tiles:
            self._sql.add_tiles.run(driver, tiles)

    def _leaf_tile(self, driver: Driver, log_id: int, number: int, growth: _Growth) -> list[bytes]:
        low, high, old_size = number * TILE_WIDTH, (number + 1) * TILE_WIDTH, growth.base.size
        hashes: list[bytes] = []
        if low < old_size:  # the tile's first leaves are from earlier commits
            found = self._sql.hashes.run(driver, log=log_id, low=low, high=old_size).fetchall()
            hashes = [as_bytes(value) for (value,) in found]
        return hashes + growth.hashes[max(low - old_size, 0) : high - old_size]

    def _root(self, driver: Driver, log_id: int, level: int, number: int) -> bytes:
        root = self._roots.get((log_id, level, number))
        if root is None:
            data = _value(self._sql.tile.run(driver, log=log_id, lev=level, num=number).fetchone())
            if data is None:
                raise InternalError(f"log {log_id} has no tile {level}/{number}")
            root = tree_root(split_tile(as_bytes(data)))
            self._remember((log_id, level, number), root)
        return root

    def _places(self, driver: Driver, batch: Sequence[NewLeaf]) -> dict[str, tuple[int, int, bytes]]:
        """Return where records that are there already stand."""
        found = [(leaf.record_id, self._sql.place.run(driver, record=leaf.record_id)) for leaf in batch]
        rows = ((record_id, cursor.fetchone()) for record_id, cursor in found)
        return {
            record_id: (as_int(row[0]), as_int(row[1]), as_bytes(row[2])) for record_id, row in rows if row is not None
        }

    def _is_taken(self, driver: Driver, opens: LogInfo) -> bool:
        found = self._sql.taken.run(
            driver, log=opens.log_id, origin=opens.origin, slot=opens.slot, tenant=opens.tenant, epoch=opens.epoch
        )
        return bool(_value(found.fetchone()))

    def _open(self, driver: Driver, opens: LogInfo) -> None:
        self._sql.add_log.run(
            driver,
            log_id=opens.log_id,
            origin=opens.origin,
            tenant=opens.tenant,
            epoch=opens.epoch,
            slot=opens.slot,
        )

    def _remember(self, key: tuple[int, int, int], root: bytes) -> None:
        # A root of a transaction that is rolled back is overwritten when the tile is made again.
        self._roots[key] = root
        if len(self._roots) > _MAX_ROOTS:
            self._roots.popitem(last=False)


def _value(row: Sequence[Any] | None) -> Any:
    return None if row is None else row[0]


def _again(leaf: NewLeaf, there: tuple[int, int, bytes]) -> Placed | BulkheadError:
    log_id, index, digest = there
    if (log_id, digest) != (leaf.log_id, leaf.leaf_hash):
        return ConflictError(f"record {leaf.record_id} is there already with other content")
    return Placed(log_id, index)


def _result_heads(growing: Mapping[int, _Growth]) -> tuple[Head, ...]:
    return tuple(Head(log_id, growth.base) for log_id, growth in growing.items())
