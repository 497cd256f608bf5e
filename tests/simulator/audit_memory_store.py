"""The audit store as a model: lists and the definitions of RFC 6962. The oracle of the contract suite."""

# ruff: noqa: D102 - the port documents the methods

from collections.abc import Mapping, Sequence

from audit.chain import GENESIS, LockState, next_chain
from audit.model import MAX_PAGE, Head, IndexRow, LogInfo, Order, Page, RecordFilter, RoundHead, StoredLeaf
from audit.store import Committed, IndexedLeaf, IndexedLeaves, NewLeaf, Placed, Survey
from bulkhead.errors import BulkheadError, ConflictError, InvalidRequestError, LogForkError, NotFoundError
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import Frontier, tree_root


class MemoryAuditStore:
    """A store in memory; every answer is computed from the list of leaves."""

    shared = False

    def __init__(self) -> None:
        self._commits: list[LockState] = [GENESIS]
        self._logs: dict[int, LogInfo] = {}
        self._leaves: list[StoredLeaf] = []
        self._notes: dict[tuple[int, int], str] = {}
        self._cosigs: dict[tuple[int, int], str] = {}
        self._rounds: dict[int, dict[int, int]] = {}
        self._indexed = 0

    def commit(self, batch: Sequence[NewLeaf], locked: LockState) -> Committed:
        if locked not in self._commits:
            raise LogForkError("the lock store's commit is not here")
        grown: set[int] = set()
        places = [self._place(leaf, grown) for leaf in batch]
        if grown:
            chain = next_chain(
                self._commits[-1].chain, ((self._logs[log_id].origin, self._frontier(log_id)) for log_id in grown)
            )
            self._commits.append(LockState(self._commits[-1].seq + 1, chain))
        named = {leaf.log_id for leaf in batch} & self._logs.keys()
        heads = tuple(Head(log_id, self._frontier(log_id)) for log_id in named)
        return Committed(self._commits[-1], tuple(places), heads, wrote=bool(grown))

    def _place(self, leaf: NewLeaf, grown: set[int]) -> Placed | BulkheadError:
        for stored in self._leaves:
            if stored.record_id == leaf.record_id:
                if (stored.log_id, stored.leaf) != (leaf.log_id, leaf.leaf):
                    return ConflictError("taken")
                return Placed(stored.log_id, stored.index)
        if leaf.opens is not None:
            if any(_clash(log, leaf.opens) for log in self._logs.values()):
                return ConflictError("taken")
            self._logs[leaf.log_id] = leaf.opens
        if leaf.log_id not in self._logs:
            return NotFoundError("no such log")
        if any(head.round in self._rounds for head in leaf.round_heads):
            return ConflictError("taken")
        index = len(self._of(leaf.log_id))
        self._leaves.append(
            StoredLeaf(len(self._leaves) + 1, leaf.log_id, index, leaf.record_id, leaf.leaf, leaf.leaf_hash)
        )
        for head in leaf.round_heads:
            self._rounds.setdefault(head.round, {})[head.log_id] = head.size
        grown.add(leaf.log_id)
        return Placed(leaf.log_id, index)

    def _of(self, log_id: int) -> list[StoredLeaf]:
        return [stored for stored in self._leaves if stored.log_id == log_id]

    def _frontier(self, log_id: int) -> Frontier:
        return Frontier().extend(stored.leaf_hash for stored in self._of(log_id))

    def survey(self, locked: LockState, *, known: int) -> Survey:
        return Survey(self.commit([], locked).last, self.logs(), self.heads(), self.last_round())

    def put_checkpoints(self, notes: Mapping[tuple[int, int], str]) -> None:
        self._notes = {**notes, **self._notes}

    def put_cosignatures(self, lines: Mapping[tuple[int, int], str]) -> None:
        self._cosigs.update({place: text for place, text in lines.items() if place in self._notes})

    def project(self, limit: int) -> int | None:
        done = min(limit, len(self._leaves) - self._indexed)
        self._indexed += done
        return done

    def maintain(self, *, idle: bool) -> None:
        return

    def close(self) -> None:
        return

    def last_commit(self) -> LockState:
        return self._commits[-1]

    def chain_at(self, seq: int) -> bytes | None:
        return self._commits[seq].chain if seq < len(self._commits) else None

    def logs(self) -> tuple[LogInfo, ...]:
        return tuple(self._logs[log_id] for log_id in sorted(self._logs))

    def heads(self) -> tuple[Head, ...]:
        return tuple(Head(log_id, self._frontier(log_id)) for log_id in self._logs)

    def leaves(self, log_id: int, start: int, stop: int) -> tuple[StoredLeaf, ...]:
        return tuple(self._of(log_id)[start:stop])

    def leaf_hashes(self, log_id: int, start: int, stop: int) -> tuple[bytes, ...]:
        return tuple(stored.leaf_hash for stored in self.leaves(log_id, start, stop))

    def tile(self, log_id: int, level: int, number: int) -> bytes | None:
        span = 256**level
        hashes = [stored.leaf_hash for stored in self._of(log_id)]
        nodes = [tree_root(hashes[at : at + span]) for at in range(0, len(hashes) - span + 1, span)]
        tile = nodes[number * 256 : (number + 1) * 256]
        return b"".join(tile) if len(tile) == 256 else None

    def checkpoints(self, log_id: int, start: int, stop: int) -> tuple[tuple[int, str], ...]:
        return tuple(
            (size, note + self._cosigs.get((log, size), ""))
            for (log, size), note in sorted(self._notes.items())
            if log == log_id and start <= size < stop
        )

    def last_round(self) -> int | None:
        return max(self._rounds, default=None)

    def newest_round(self, log_id: int, size: int) -> int | None:
        return max((at for at, sizes in self._rounds.items() if sizes.get(log_id, size) < size), default=None)

    def sizes_in_round(self, number: int) -> Mapping[int, int]:
        return {log: size for at in sorted(self._rounds) if at <= number for log, size in self._rounds[at].items()}

    def round_heads(self, start: int, stop: int) -> tuple[RoundHead, ...]:
        return tuple(
            RoundHead(number, log_id, self._rounds[number][log_id])
            for number in sorted(self._rounds)
            for log_id in sorted(self._rounds[number])
            if start <= number < stop
        )

    def unindexed(self) -> int:
        return len(self._leaves) - self._indexed

    def query(self, query: RecordFilter, page: Page) -> IndexedLeaves:
        if not 1 <= page.limit <= MAX_PAGE:
            raise InvalidRequestError("limit")
        kind = "p" if query.log_id is None else "i"
        rows = [
            IndexedLeaf(IndexRow.of(stored.pos, stored.log_id, stored.index, parse_leaf(stored.leaf)), stored)
            for stored in self._leaves[: self._indexed]
        ]
        rows = [item for item in rows if _matches(query, item.row)]
        newest = page.order is Order.NEWEST_FIRST
        rows.sort(key=lambda item: item.row.pos, reverse=newest)
        if page.after:
            if page.after[0] != kind or not page.after[1:].isdigit():
                raise InvalidRequestError("token")
            after = int(page.after[1:])
            rows = [item for item in rows if (_key(kind, item) < after if newest else _key(kind, item) > after)]
        token = f"{kind}{_key(kind, rows[page.limit - 1])}" if len(rows) > page.limit else ""
        indexed = [stored for stored in self._leaves[: self._indexed] if query.log_id in (None, stored.log_id)]
        size = len(self._leaves) if query.log_id is None else len(self._of(query.log_id))
        return IndexedLeaves(tuple(rows[: page.limit]), token, len(indexed), size)

    def open_pairs(self, log_id: int, start: int, stop: int) -> IndexedLeaves:
        sizes = self.query(RecordFilter(log_id=log_id), Page(limit=1))
        every = [
            IndexedLeaf(IndexRow.of(stored.pos, stored.log_id, stored.index, parse_leaf(stored.leaf)), stored)
            for stored in reversed(self._leaves[: self._indexed])
            if stored.log_id == log_id
        ]
        closed = {item.row.pair_id for item in every if item.row.action in {"outcome", "session.renewed"}}
        rows = tuple(
            item
            for item in every
            if start <= item.row.index < stop
            and (item.row.action, item.row.decision) == ("decision", "allow")
            and item.row.session
            and item.row.pair_id not in closed
        )
        return IndexedLeaves(rows, "", sizes.indexed, sizes.size)


def _clash(log: LogInfo, new: LogInfo) -> bool:
    same_epoch = log.epoch == new.epoch
    return (
        log.log_id == new.log_id
        or log.origin == new.origin
        or (same_epoch and log.slot is not None and log.slot == new.slot)
        or (same_epoch and log.tenant is not None and log.tenant == new.tenant)
    )


def _key(kind: str, item: IndexedLeaf) -> int:
    return item.row.pos if kind == "p" else item.row.index


def _matches(query: RecordFilter, row: IndexRow) -> bool:
    action = row.action.startswith(query.action) if query.action.endswith(".") else query.action in ("", row.action)
    return (
        query.log_id in (None, row.log_id)
        and action
        and query.decision in ("", row.decision)
        and query.subject in ("", row.subject)
        and query.session in ("", row.session)
        and query.pair_id in ("", row.pair_id)
        and (query.since_us is None or row.ts_us >= query.since_us)
        and (query.until_us is None or row.ts_us < query.until_us)
    )
