"""The agent's durable spool of events that the audit log has not acknowledged yet.

Rules:

1. :meth:`Spool.append` returns after fsync. Appends that arrive while one fsync runs share the next (group commit
   without a timer).
2. Only durable events are handed out for sending, in order of their numbers, without gaps from 1.
3. An acknowledged event is forgotten; the file is rewritten once enough of it is. An acknowledgement that a crash
   forgets only makes an event be sent twice: the receiver knows its number.
4. After a failed write or fsync the file's content beyond the last success is unknown (a later fsync may succeed on
   pages that were lost), so it is rewritten as a whole before anything else; until that works nothing is taken.
5. A file that ends in the middle of a record lost only what was never acknowledged to anybody; the rest is kept.

The bound that workers see, :data:`MAX_UNACKNOWLEDGED_RECEIPTS`, stops new requests. Receipts of running requests are
taken up to :data:`MAX_RECEIPTS`, because those requests may finish.

File: 8 bytes magic, then records ``u32 length | u32 CRC-32 of the rest | u64 sequence | u8 kind | payload``, all
big-endian; length counts sequence, kind and payload. The first record is the header: kind 0, its sequence the last
acknowledged one, its payload the spool's id.
"""

import asyncio
import contextlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bulkhead.errors import AuditLeaseError, ExhaustedError, MalformedRequestError, StateUnavailableError
from bulkhead.files import sync_directory
from data_plane.session.events import MAX_EVENT_BYTES, Event, EventKind, decode_event, encode_event, kind_of

__all__ = ["MAX_UNACKNOWLEDGED_RECEIPTS", "Spool", "SpooledEvent"]

_log = structlog.get_logger(__name__)

MAX_UNACKNOWLEDGED_RECEIPTS: Final = 1_024  # docs/protocol.md, "Audit lease"
MAX_RECEIPTS: Final = 8_192  # what streams that run when the bound is reached may still add
MAX_REFUSALS: Final = 1_024  # anybody can cause them; more are counted in the log, not spooled
MAX_EVENTS: Final = 16_384
COMPACT_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 256 << 20  # far above MAX_EVENTS of the largest size: read at start

_MAGIC: Final = b"BHSPOOL1"
_HEADER: Final = struct.Struct(">II")
_FIXED: Final = struct.Struct(">QB")
_HEADER_KIND: Final = 0


@dataclass(frozen=True, slots=True)
class SpooledEvent:
    """One durable event and its number."""

    seq: int
    event: Event


@dataclass(frozen=True, slots=True)
class _Entry:
    seq: int
    kind: EventKind
    payload: bytes


@dataclass(slots=True)
class _Waiting:
    kind: EventKind
    payload: bytes
    done: asyncio.Future[int]


class Spool:
    """See the module docstring. All methods run on one event loop; file operations run in its thread pool.

    Args:
        path: the file; its directory exists and is private to the agent.
        new_id: makes the id of a spool that does not exist yet.

    Attributes:
        spool_id: changes when the file was lost: numbers of another spool mean nothing.
        last_seq: number of the last durable event.
        acknowledged_seq: number up to which events are in the audit log.
    """

    def __init__(self, *, path: Path, new_id: Callable[[], str]) -> None:
        self._path = path
        self._new_id = new_id
        self._entries: deque[_Entry] = deque()
        self._waiting: list[_Waiting] = []
        self._counts = dict.fromkeys(EventKind, 0)
        self._descriptor = -1
        self._size = 0
        self._sound = False
        self._flusher: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self.spool_id = ""
        self.last_seq = 0
        self.acknowledged_seq = 0

    async def open(self) -> None:
        """Read what an earlier process left, and make the file sound.

        Raises:
            StateUnavailableError: the file cannot be read or written, or is not a spool.
        """
        try:
            await asyncio.to_thread(self._load)
            await asyncio.to_thread(self._rewrite, list(self._entries))
        except OSError as error:
            raise StateUnavailableError(f"spool {self._path}: {error.strerror}") from error

    @property
    def sound(self) -> bool:
        """False after a failed write, until :meth:`repair` or an append succeeds."""
        return self._sound

    @property
    def unacknowledged_receipts(self) -> int:
        """Receipts that are durable or being written and not in the audit log yet."""
        return self._counts[EventKind.RECEIPT]

    async def append(self, event: Event) -> int:
        """Make ``event`` durable and return its number.

        Raises:
            AuditLeaseError: too many receipts are unacknowledged.
            ExhaustedError: too many refusals or events in all are.
            StateUnavailableError: the disk does not take it; nothing was recorded.
        """
        kind, payload = kind_of(event), encode_event(event)
        if len(payload) > MAX_EVENT_BYTES:
            raise ExhaustedError(f"an event has at most {MAX_EVENT_BYTES} bytes")
        if kind is EventKind.RECEIPT and self._counts[kind] >= MAX_RECEIPTS:
            raise AuditLeaseError("the spool of receipts is full")
        if kind is EventKind.REFUSAL and self._counts[kind] >= MAX_REFUSALS:
            raise ExhaustedError("the spool of refusals is full")
        if sum(self._counts.values()) >= MAX_EVENTS:
            raise ExhaustedError("the spool is full")
        waiting = _Waiting(kind, payload, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._counts[kind] += 1
        self._start_flusher()
        return await asyncio.shield(waiting.done)

    def pending_after(self, seq: int, *, limit: int) -> list[SpooledEvent]:
        """Return up to ``limit`` durable, unacknowledged events with numbers above ``seq``, in order."""
        skip = max(0, seq - self.acknowledged_seq)
        entries = [self._entries[index] for index in range(skip, min(len(self._entries), skip + limit))]
        return [SpooledEvent(entry.seq, decode_event(entry.kind, entry.payload)) for entry in entries]

    async def wait_beyond(self, seq: int) -> None:
        """Return once an event with a number above ``seq`` is durable."""
        while self.last_seq <= seq:
            await self._arrived.wait()

    def acknowledge(self, seq: int) -> None:
        """Forget events up to and including ``seq``, which the audit log has committed.

        Raises:
            MalformedRequestError: a number that was never given out; nothing changes.
        """
        if seq > self.last_seq:
            raise MalformedRequestError("acknowledgement of an event that does not exist")
        while self._entries and self._entries[0].seq <= seq:
            entry = self._entries.popleft()
            self._counts[entry.kind] -= 1
            self.acknowledged_seq = entry.seq
        self._acknowledged.set()
        self._acknowledged = asyncio.Event()
        if self._wasteful():
            self._start_flusher()

    async def wait_acknowledged(self, seq: int) -> None:
        """Return once events up to ``seq`` are acknowledged."""
        while self.acknowledged_seq < seq:
            await self._acknowledged.wait()

    async def skip_to(self, seq: int) -> None:
        """Go on after ``seq``, which the audit log has committed: this file lost events that were sent before.

        What it still holds has lower numbers and is committed too. Numbers must not be given out twice.
        """
        while self._flusher is not None:
            await asyncio.shield(self._flusher)
        if seq <= self.last_seq:
            self.acknowledge(seq)
            return
        _log.error("spool.lost_events", last_seq=self.last_seq, committed_seq=seq)
        self._entries.clear()
        self._counts = dict.fromkeys(EventKind, 0)
        self.last_seq = self.acknowledged_seq = seq
        self._sound = False
        await self.repair()

    async def repair(self) -> None:
        """Try to make an unsound file sound; a failure leaves it as it was."""
        if not self._sound and self._flusher is None:
            self._start_flusher()
        if self._flusher is not None:
            await asyncio.shield(self._flusher)

    async def aclose(self) -> None:
        """Finish what is being written and close the file."""
        if self._flusher is not None:
            await self._flusher
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._sound = False

    def _wasteful(self) -> bool:
        return self._size > COMPACT_BYTES and self._size > 4 * sum(len(entry.payload) for entry in self._entries)

    def _start_flusher(self) -> None:
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        """Write whatever waits, batch after batch; repair or compact the file first where that is due."""
        try:
            while True:
                batch, self._waiting = self._waiting, []
                await self._flush_batch(batch)
                if not self._waiting:
                    return
        finally:
            self._flusher = None

    async def _flush_batch(self, batch: list[_Waiting]) -> None:
        entries = [_Entry(self.last_seq + 1 + index, item.kind, item.payload) for index, item in enumerate(batch)]
        try:
            if not self._sound or self._wasteful():
                await asyncio.to_thread(self._rewrite, list(self._entries))
            if entries:
                await asyncio.to_thread(self._write, b"".join(_record(e.seq, e.kind, e.payload) for e in entries))
        except OSError as error:
            self._sound = False
            _log.error("spool.write_failed", error=error.strerror)
            for item in batch:
                self._counts[item.kind] -= 1
                _fail(item.done, StateUnavailableError(f"the spool cannot be written: {error.strerror}"))
            return
        self._entries.extend(entries)
        self.last_seq += len(entries)
        if entries:
            self._arrived.set()
            self._arrived = asyncio.Event()
        for item, entry in zip(batch, entries, strict=True):
            if not item.done.cancelled():
                item.done.set_result(entry.seq)

    def _write(self, data: bytes) -> None:
        _write_all(self._descriptor, data, self._size)
        os.fdatasync(self._descriptor)
        self._size += len(data)

    def _rewrite(self, entries: list[_Entry]) -> None:
        """Replace the file by header and ``entries``; sound afterwards, unchanged if it raises."""
        temporary = self._path.with_name(f".{self._path.name}.new")
        base = entries[0].seq - 1 if entries else self.last_seq
        data = b"".join(
            (
                _MAGIC,
                _record(base, _HEADER_KIND, self.spool_id.encode()),
                *(_record(entry.seq, entry.kind, entry.payload) for entry in entries),
            )
        )
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, data, 0)
            os.fsync(descriptor)
            temporary.replace(self._path)
            sync_directory(self._path.parent)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._size, self._sound = descriptor, len(data), True

    def _load(self) -> None:
        try:
            data = self._path.read_bytes() if self._path.stat().st_size <= MAX_FILE_BYTES else b""
        except FileNotFoundError:
            data = None
        if not data:
            if data is not None:
                raise StateUnavailableError(f"{self._path} is empty or too large to be a spool: move it away")
            self.spool_id = self._new_id()
            return
        if not data.startswith(_MAGIC):
            raise StateUnavailableError(f"{self._path} is not a spool: move it away")
        records, rest = _parse(data[len(_MAGIC) :])
        if not records or records[0][1] != _HEADER_KIND:
            raise StateUnavailableError(f"{self._path}: the header is damaged: move the file away")
        if rest:
            _log.warning("spool.truncated_tail", dropped_bytes=rest)
        self.spool_id = records[0][2].decode("ascii", "replace")
        self.last_seq = self.acknowledged_seq = records[0][0]
        for seq, kind, payload in records[1:]:
            entry = _Entry(seq, EventKind(kind), payload)
            self._entries.append(entry)
            self._counts[entry.kind] += 1
            self.last_seq = seq


def _record(seq: int, kind: int, payload: bytes) -> bytes:
    body = _FIXED.pack(seq, kind) + payload
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


def _parse(data: bytes) -> tuple[list[tuple[int, int, bytes]], int]:
    """Return the whole records at the front of ``data`` and how many bytes follow them.

    A record counts if its CRC holds and its number follows the one before.
    """
    records: list[tuple[int, int, bytes]] = []
    position = 0
    while len(data) - position >= _HEADER.size + _FIXED.size:
        length, crc = _HEADER.unpack_from(data, position)
        body = data[position + _HEADER.size : position + _HEADER.size + length]
        if not _FIXED.size <= length <= _FIXED.size + MAX_EVENT_BYTES or len(body) < length or zlib.crc32(body) != crc:
            break
        seq, kind = _FIXED.unpack_from(body)
        if records and (seq != records[-1][0] + 1 or kind not in set(EventKind)):
            break
        records.append((seq, kind, body[_FIXED.size :]))
        position += _HEADER.size + length
    return records, len(data) - position


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _fail(future: asyncio.Future[int], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # the waiter may have gone away
