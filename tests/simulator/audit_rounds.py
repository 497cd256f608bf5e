"""Histories of many logs and the rounds over them, made as several processes in turn make them."""

import random
from dataclasses import dataclass, field, replace

from audit.keys import LogKeys
from audit.log.rounds import PastRound, RoundMaker
from audit.model import Appended, LogInfo
from audit.store import AuditStore, NewLeaf
from bulkhead import ids
from bulkhead.ids import new_id
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.rounds import round_leaf
from tests.simulator.audit_world import decision, event, new_leaf, opening, stamper

PLATFORM = LogInfo(log_id=1, origin="audit.test/platform/1", tenant=None, epoch=1, slot=None)
_STAMPER = stamper()


@dataclass(frozen=True)
class Made:
    """A round as its maker made it, and what must stand in its slots.

    Attributes:
        past: the round and its record.
        texts: checkpoint text of each slot, from the heads that the store had.
        hashes: leaf hash of each of them.
    """

    past: PastRound
    texts: tuple[str, ...]
    hashes: tuple[bytes, ...]


@dataclass
class Rounds:
    """A store whose logs grow and whose rounds are made.

    Attributes:
        store: the store.
        keys: for the salts.
        logs: every log by id.
        platform: the platform's log of the newest epoch.
        made: every round that was made, by number.
    """

    store: AuditStore
    keys: LogKeys = field(default_factory=lambda: LogKeys(bytes(range(32))))
    logs: dict[int, LogInfo] = field(default_factory=dict)
    platform: LogInfo = PLATFORM
    made: dict[int, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.maker = self.other = RoundMaker(keys=self.keys, next_round=1)
        self.commit(opening(PLATFORM))
        self.logs[PLATFORM.log_id] = PLATFORM

    def commit(self, *leaves: NewLeaf) -> int:
        """Commit leaves; return the place of the last."""
        return self.store.commit(leaves, self.store.last_commit()).places[-1].index

    def open(self) -> LogInfo:
        """Open the next tenant's log."""
        slots = {log.slot for log in self.logs.values()} - {None}
        log_id = max(self.logs) + 1
        log = LogInfo(
            log_id=log_id,
            origin=f"audit.test/t/{log_id}/1",
            tenant=new_id(ids.TENANT),
            epoch=1,
            slot=len(slots),
        )
        self.commit(opening(log))
        self.logs[log_id] = log
        return log

    def newest(self) -> tuple[LogInfo, ...]:
        """Return the newest log of the platform and of every tenant."""
        found = {log.tenant: log for log in sorted(self.logs.values(), key=lambda log: log.epoch)}
        return tuple(found.values())

    def grow(self, log: LogInfo, count: int) -> None:
        """Append records to a log."""
        if count:
            records = (event() if log.tenant is None else decision(tenant=log.tenant, number=n) for n in range(count))
            self.commit(*(new_leaf(log.log_id, record) for record in records))

    def round(self, *, between: int = 0) -> Made:
        """Make a round, with some records of the platform's log between its preparation and its commit."""
        self.maker.begin_at((self.store.last_round() or 0) + 1)
        heads = {head.log_id: head for head in self.store.heads()}
        made = self.maker.prepare(_STAMPER.stamp, heads, self.newest())
        number, record = made.round.number, made.record
        self.grow(self.platform, between)
        leaf = NewLeaf(
            self.platform.log_id, record.record_id, record.leaf, leaf_hash(record.leaf), round_heads=made.changed
        )
        index = self.commit(leaf)
        self.maker.committed(made)
        past = PastRound(made.round, Appended(leaf.log_id, index, leaf.leaf_hash, leaf.record_id, leaf.leaf))
        slots = {log.slot: log for log in self.newest() if log.slot is not None}
        texts = tuple(
            Checkpoint(slots[slot].origin, head.size, head.frontier.root()).text()
            for slot in range(len(slots))
            if (head := heads[slots[slot].log_id])
        )
        hashes = tuple(
            leaf_hash(
                round_leaf(round_number=number, slot=slot, salt=self.keys.salt(number, slot), checkpoint_text=text)
            )
            for slot, text in enumerate(texts)
        )
        self.made[number] = Made(past, texts, hashes)
        return self.made[number]

    def next_epoch(self) -> None:
        """Open a new epoch of every log, as a declared break does."""
        for old in self.newest():
            log_id = max(self.logs) + 1
            new = replace(old, log_id=log_id, origin=f"{old.origin[:-2]}/{old.epoch + 1}", epoch=old.epoch + 1)
            self.commit(opening(new))
            self.logs[log_id] = new
            self.platform = new if new.tenant is None else self.platform
        self.restart()

    def restart(self) -> None:
        """Go on as another process would."""
        self.maker = RoundMaker(keys=self.keys, next_round=(self.store.last_round() or 0) + 1)

    def step(self, chance: random.Random) -> None:
        """Do something at random."""
        match chance.randrange(8):
            case 0:
                self.open()
            case 1 | 2 | 3:
                self.grow(chance.choice(list(self.newest())), chance.choice((1, 2, 5, 40)))
            case 4:
                self.maker, self.other = self.other, self.maker
            case 5 if chance.random() < 0.3:
                self.restart()
            case _:
                self.round(between=chance.choice((0, 0, 1, 20)))
