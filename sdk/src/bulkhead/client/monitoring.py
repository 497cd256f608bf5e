"""Follows a tenant's own log over the network; what counts as wrong: :mod:`bulkhead.transparency.monitor`.

One check: the journals are read; the log's checkpoint is compared with what was remembered; new records are fetched as
an export, every one of them verified, and held against the journals; the log's paths into all rounds of the platform
since the last check are verified (:mod:`bulkhead.client.monitor_rounds`); receipts and proofs that somebody kept, and
checkpoints that other monitors left, must be of the same history. Only then is what was learnt written down; of rounds,
after each page.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from bulkhead.client.gossip import Gossip
from bulkhead.client.journal import JournalReader
from bulkhead.client.monitor_rounds import RoundFollower, RoundSource
from bulkhead.client.monitor_state import MonitorState, read_state, write_state
from bulkhead.client.own_witness import OwnWitness
from bulkhead.errors import (
    ConfigError,
    ConsistencyError,
    InvalidRequestError,
    NotFoundError,
    ProofError,
    ReceiptError,
    UnavailableError,
)
from bulkhead.protocol.receipts import Receipt, read_receipt
from bulkhead.protocol.saved import LoggedReceipt, PublicPins, SavedReceipt, verify_logged
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.export import VerifiedLog, verify_export
from bulkhead.transparency.merkle import verify_consistency
from bulkhead.transparency.monitor import Alarm, JournalEntries, Records, alarm_of
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.receipt import AuditReceipt, verify_receipt
from bulkhead.transparency.tlog_proof import verify_record_proof
from bulkhead.transparency.witnessing import AddCheckpoint, WitnessSize

__all__ = ["Check", "LogSource", "Monitor", "MonitorOptions"]

_US_PER_S: Final = 1_000_000
_WITNESS_TRIES: Final = 3  # its size, the proof, and a race with another monitor


class LogSource(RoundSource, Protocol):
    """The log as a server shows it; :class:`bulkhead.client.audit.AuditLog` is one. Nothing it returns is trusted."""

    async def checkpoint(self) -> tuple[str, str]:
        """Return checkpoint and vkey of now."""
        ...

    async def consistency(self, old_size: int, new_size: int) -> tuple[tuple[bytes, ...], str]:
        """Return a consistency proof and the later size's checkpoint."""
        ...

    def export(self, *, first: int) -> AsyncGenerator[bytes, None]:
        """Yield an export from a record on."""
        ...

    async def receipt_proof(self, receipt: Receipt, digest: bytes) -> LoggedReceipt:
        """Return where the log holds a usage receipt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorOptions:
    """What a monitor trusts and is given.

    Attributes:
        vkey: pinned key of the tenant's log.
        state: file in which the monitor remembers.
        pins: platform key and witnesses; without a platform key rounds are not looked at.
        journals: request journals of all of the tenant's clients; without one, records are not held against requests.
        kept: saved receipts and tlog-proof files.
        gossip: directory shared with other monitors of the same log, or None.
        own_witness: asked to cosign the tenant's log itself, or None.
        grace_s: how long a journal or receipt of another machine may take to get here and into the log.
        max_round_age_s: a newest round that is older is a gap: the platform makes one every ten minutes at least.
        first_round: the round to begin with, if none was followed before; None: the newest.
    """

    vkey: str
    state: Path
    pins: PublicPins = field(default_factory=PublicPins)
    journals: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    gossip: Path | None = None
    own_witness: OwnWitness | None = None
    grace_s: int = 60
    max_round_age_s: int = 900
    first_round: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found.

    Attributes:
        size: records verified so far.
        new: how many of them in this check.
        round: number of the newest round that was verified, 0 for none.
        first_round: number of the first; each round from there on was verified. 0 for none.
        rounds: how many of them in this check.
        witnesses: who cosigned the platform's checkpoint over it.
        alarms: everything that was raised and not acknowledged.
        notes: what could not be checked now, and why.
    """

    size: int
    new: int
    round: int
    first_round: int
    rounds: int
    witnesses: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    notes: tuple[str, ...]


class Monitor:
    """Checks one log again and again.

    Args:
        source: the log as the server shows it.
        options: see :class:`MonitorOptions`.
        now_us: wall clock, microseconds since the epoch.
        progress: told after each page of rounds which round was reached, and which is the newest.

    Raises:
        ConfigError: the state file is damaged or of another log.
    """

    def __init__(
        self,
        source: LogSource,
        options: MonitorOptions,
        *,
        now_us: Callable[[], int],
        progress: Callable[[int, int], None] = lambda _reached, _newest: None,
    ) -> None:
        self._source = source
        self._options = options
        self._now_us = now_us
        self._origin = NoteVerifier.from_vkey(options.vkey).name
        self._state = read_state(options.state, self._origin)
        self._journals = JournalReader(options.journals, self._state.offsets, begun=self._state.followed.size > 0)
        self._gossip = (
            None if options.gossip is None else Gossip(options.gossip, vkey=options.vkey, left=self._state.left)
        )
        self._notes: list[str] = []
        self._rounds = RoundFollower(
            source,
            options.pins,
            origin=self._origin,
            agree=self._agree,
            now_us=now_us,
            save=self._save,
            progress=progress,
        )

    @property
    def state(self) -> MonitorState:
        """What is remembered."""
        return self._state

    def acknowledge(self) -> None:
        """Forget the alarms that were raised; what still holds is raised again."""
        self._state.followed.alarms.clear()
        self._save()

    def _save(self) -> None:
        write_state(self._options.state, self._origin, self._state)

    async def check(self) -> Check:
        """Check once.

        Raises:
            ConfigError: a journal or the state file cannot be used.
            BulkheadError: the server cannot be asked.
        """
        self._notes[:] = self._left_out()
        followed = self._state.followed
        before = followed.size
        followed.since_us = followed.since_us or self._now_us()
        entries = self._journals.read()  # first: what is answered by now has its record in any later checkpoint
        self._notes += [
            f"the request journal {path} is new to this state: only later requests are looked for in the log"
            for path in self._journals.unasked
        ]
        self._journals.unasked.clear()
        newest = await self._rounds.newest(followed)
        try:
            await self._follow(entries)
        except (ConsistencyError, ProofError) as error:
            followed.alarm(alarm_of(error, "the log"))
        else:
            await self._rounds.follow(
                followed, newest, first=self._options.first_round, max_age_s=self._options.max_round_age_s
            )
            self._notes += [self._rounds.note] if self._rounds.note else []
            await self._check_kept()
            await self._check_gossip()
            await self._ask_witness()
            if self._options.journals:
                grace_us = self._options.grace_s * _US_PER_S
                followed.overdue(entries, now_us=self._now_us(), grace_us=grace_us)
            self._state.offsets = dict(self._journals.offsets)
        self._save()
        return Check(
            size=followed.size,
            new=followed.size - before,
            round=followed.round,
            first_round=followed.first_round,
            rounds=self._rounds.checked,
            witnesses=self._rounds.witnesses,
            alarms=tuple(followed.alarms.values()),
            notes=tuple(self._notes),
        )

    def _left_out(self) -> list[str]:
        """Say what is not looked at for want of a journal or a key."""
        left = []
        if not self._options.journals:
            left.append("no request journal is given: records are not held against requests")
        left += [
            f"the request journal {path} is not there: it counts as empty"
            for path in self._options.journals
            if not path.exists()
        ]
        if self._options.pins.platform_vkey is None:
            left.append("no platform key is pinned: the platform's rounds are not looked at")
        return left

    async def _follow(self, entries: JournalEntries) -> None:
        """Compare the checkpoint of now, and take over new records."""
        followed = self._state.followed
        note, _ = await self._source.checkpoint()
        if not followed.check_head(open_checkpoint(note, vkey=self._options.vkey, origin=self._origin)):
            return
        records = Records(next_index=followed.size)
        with tempfile.TemporaryFile() as file:
            async for chunk in self._source.export(first=followed.size):
                file.write(chunk)
            file.seek(0)
            log = self._verified(cast("BinaryIO", file), note, records)
        followed.extend(log, records)
        if self._options.journals:
            followed.take(records, entries, now_us=self._now_us())

    def _verified(self, file: BinaryIO, note: str, records: Records) -> VerifiedLog:
        logs = verify_export(file, vkeys=[self._options.vkey], seen=[note], on_record=records.add).logs
        if len(logs) != 1:
            raise ProofError("the export does not hold exactly the own log")
        return logs[0]

    async def _agree(self, other: Checkpoint, what: str) -> None:
        """Check that a verified checkpoint is of the history that was followed.

        Raises:
            ConsistencyError: it is not.
        """
        followed = self._state.followed
        mine = (followed.size, followed.frontier.root())
        (old_size, old_root), (new_size, new_root) = sorted(((other.size, other.root), mine), key=lambda item: item[0])
        if old_size == 0:
            return
        try:
            proof = () if old_size == new_size else (await self._source.consistency(old_size, new_size))[0]
        except (InvalidRequestError, NotFoundError) as error:
            raise ConsistencyError(
                f"{what} is of size {other.size}, which the log denies having had (it shows {followed.size} records)"
            ) from error
        try:
            verify_consistency(old_size=old_size, old_root=old_root, new_size=new_size, new_root=new_root, proof=proof)
        except ConsistencyError as error:
            raise ConsistencyError(f"{what} is of another history of the log: {error.message}") from error

    async def _check_kept(self) -> None:
        """Hold the log against receipts and proofs that somebody kept."""
        for path, data, kept_us in _read_all(self._options.kept):
            digest = hashlib.sha256(data).hexdigest()[:32]
            if digest in self._state.settled:
                continue
            try:
                settled = await self._check_one(path, data, kept_us)
            except (ConsistencyError, ProofError, ReceiptError) as error:
                self._state.followed.alarm(alarm_of(error, path.name))
                settled = False
            if settled:
                self._state.settled.add(digest)

    async def _check_one(self, path: Path, data: bytes, kept_us: int) -> bool:
        """Check a kept file; return whether it need not be looked at again."""
        vkey = self._options.vkey
        if data.startswith(b"c2sp.org/tlog-proof"):
            leaf = verify_record_proof(data.decode("utf-8", "replace"), vkey=vkey).leaf
            await self._agree(Checkpoint(self._origin, leaf.size, leaf.root), f"{path.name}: the proof's tree")
            return True
        saved = SavedReceipt.parse(data)
        await self._agree_receipt(saved.offer.decision, f"{path.name}: the decision's tree")
        receipt = read_receipt(saved.signed.receipt)
        try:
            logged = saved.logged or await self._source.receipt_proof(receipt, saved.signed.digest)
        except NotFoundError:
            # A receipt from the future is no younger than its file.
            age_us = self._now_us() - min(receipt.ts_us, kept_us)
            if age_us > self._options.grace_s * _US_PER_S:
                message = f"{path.name}: the log does not hold the receipt {receipt.number} of {receipt.session}"
                self._state.followed.alarm(Alarm("gap", message, path.name))
            return False
        proven = verify_logged(logged, receipt, saved.signed.digest, log_vkey=vkey)
        await self._agree(
            Checkpoint(self._origin, proven.leaf.size, proven.leaf.root), f"{path.name}: the receipt's tree"
        )
        return True

    async def _agree_receipt(self, receipt: AuditReceipt, what: str) -> None:
        leaf = verify_receipt(receipt, vkey=self._options.vkey, origin=self._origin)
        await self._agree(Checkpoint(self._origin, leaf.size, leaf.root), what)

    async def _check_gossip(self) -> None:
        """Leave the checkpoint for other monitors, and hold theirs against what was followed."""
        gossip = self._gossip
        if gossip is None or not self._state.followed.size:
            return
        for name, other in gossip.others(self._state.followed.note):
            try:
                await self._agree(other, f"the checkpoint of {name}")
            except ConsistencyError as error:
                self._state.followed.alarm(alarm_of(error, f"{name} {other.size} {other.root.hex()}"))
        gossip.leave(self._state.followed.note)
        self._state.left = gossip.left

    async def _ask_witness(self) -> None:
        """Have the own witness cosign what was followed: it refuses another history than the one it has seen."""
        witness, followed = self._options.own_witness, self._state.followed
        if witness is None or not followed.size:
            return
        request = AddCheckpoint(0, (), followed.note)
        try:
            for _ in range(_WITNESS_TRIES):
                answer = await asyncio.to_thread(witness.ask, request)
                if not isinstance(answer, WitnessSize):
                    return
                if answer.size > followed.size:  # another monitor is ahead: the next check gets there
                    self._notes.append(f"the own witness is ahead, at size {answer.size}")
                    return
                proof = (await self._source.consistency(answer.size, followed.size))[0]
                request = AddCheckpoint(answer.size, proof, followed.note)
        except UnavailableError as error:
            self._notes.append(error.message)
        except (ConsistencyError, ProofError) as error:
            followed.alarm(alarm_of(error, "the own witness"))


def _read_all(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes, int]]:
    """Yield files, those of directories included, with their bytes and when they were last written (µs).

    Raises:
        ConfigError: one cannot be read.
    """
    for path in paths:
        try:
            for file in sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]:
                yield file, file.read_bytes(), file.stat().st_mtime_ns // 1_000
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
