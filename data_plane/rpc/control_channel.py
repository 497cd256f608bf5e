"""Frames between a node agent and its worker, over an inherited socket pair.

A frame is a u32 big-endian length and one protobuf message of that many bytes. A frame above :data:`MAX_FRAME_BYTES`,
one that does not decode or one that says nothing ends the channel: both ends come from the same build, so that is a
defect or a worker that was taken over.
"""

import asyncio
import socket
import struct
from typing import Any, Final

from google.protobuf.message import DecodeError

from bulkhead.errors import AgentUnavailableError, MalformedRequestError, WorkerLostError
from data_plane.rpc.convert_metrics import metrics_from, metrics_message
from data_plane.session.messages import (
    Drain,
    FromWorker,
    LeaseGrant,
    ModelKey,
    NamedEvidence,
    ReceiptDurable,
    ReceiptReady,
    StartWorker,
    ToWorker,
    WorkerBooted,
    WorkerFailed,
    WorkerLoad,
    WorkerLoading,
    WorkerMetrics,
    WorkerReady,
    WorkerRefused,
)
from service.bulkhead_fleet.v1 import worker_pb2 as pb

__all__ = ["AgentChannel", "WorkerChannel"]

MAX_FRAME_BYTES: Final = 4 << 20  # a lease with every revocation and evidence digest that fits has 3.5 MB
SEND_TIMEOUT_S: Final = 10.0  # a peer that does not read for so long hangs
_LENGTH: Final = struct.Struct(">I")
# Messages of a worker whose fields have the names and types of their form on the channel.
_PLAIN: Final[dict[str, tuple[type[Any], type[Any]]]] = {
    "receipt": (ReceiptReady, pb.WorkerReceipt),
    "status": (WorkerLoad, pb.WorkerStatus),
    "refusal": (WorkerRefused, pb.WorkerRefusal),
    "failed": (WorkerFailed, pb.WorkerFailed),
    "loading": (WorkerLoading, pb.WorkerLoading),
}


class _Frames:
    """Reads and writes whole frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        """Raise OSError or TimeoutError when the peer is gone or does not read."""
        if len(data) > MAX_FRAME_BYTES:
            raise MalformedRequestError(f"a frame has at most {MAX_FRAME_BYTES} bytes")
        async with self._writing, asyncio.timeout(SEND_TIMEOUT_S):
            self._writer.write(_LENGTH.pack(len(data)) + data)
            await self._writer.drain()

    async def read(self) -> bytes | None:
        """Return the next frame, or None at the end of the channel."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise MalformedRequestError("a frame on the worker channel is too long")
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        self._writer.transport.abort()


async def _frames(end: socket.socket) -> _Frames:
    end.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=end, limit=2 * MAX_FRAME_BYTES)
    return _Frames(reader, writer)


class WorkerChannel:
    """The agent's end."""

    def __init__(self, frames: _Frames) -> None:
        self._frames = frames

    @classmethod
    async def open(cls, end: socket.socket) -> "WorkerChannel":
        """Take over ``end`` of the socket pair."""
        return cls(await _frames(end))

    async def send(self, message: ToWorker) -> None:
        """Send one message.

        Raises:
            WorkerLostError: the worker is gone or does not read.
        """
        try:
            await self._frames.write(_encode_to_worker(message).SerializeToString())
        except (OSError, TimeoutError) as error:
            raise WorkerLostError("the worker does not take messages") from error

    async def receive(self) -> FromWorker | None:
        """Return the next message, or None when the worker is gone.

        Raises:
            MalformedRequestError: a frame that is none.
        """
        data = await self._frames.read()
        return None if data is None else _decode_from_worker(data)

    def close(self) -> None:
        """Close this end; the worker sees the end of the channel."""
        self._frames.close()


class AgentChannel:
    """The worker's end; an :class:`~data_plane.session.messages.AgentLink`."""

    def __init__(self, frames: _Frames) -> None:
        self._frames = frames

    @classmethod
    async def open(cls, end: socket.socket) -> "AgentChannel":
        """Take over the inherited end of the socket pair."""
        return cls(await _frames(end))

    async def send(self, message: FromWorker) -> None:
        """Send one message.

        Raises:
            AgentUnavailableError: the agent is gone or does not read.
        """
        try:
            await self._frames.write(_encode_from_worker(message).SerializeToString())
        except (OSError, TimeoutError) as error:
            raise AgentUnavailableError("the node agent does not take messages") from error

    async def receive(self) -> ToWorker | None:
        """Return the next message, or None when the agent is gone.

        Raises:
            MalformedRequestError: a frame that is none.
        """
        data = await self._frames.read()
        return None if data is None else _decode_to_worker(data)

    def close(self) -> None:
        """Close this end."""
        self._frames.close()


def _encode_to_worker(message: ToWorker) -> pb.WorkerCommand:
    if isinstance(message, StartWorker):
        fields = {name: getattr(message, name) for name in StartWorker.__slots__}
        return pb.WorkerCommand(start=pb.WorkerStart(**fields))
    if isinstance(message, LeaseGrant):
        return pb.WorkerCommand(
            lease=pb.WorkerLease(
                valid_until_unix_ms=message.valid_until_ms,
                revoked_sessions=sorted(message.revoked_sessions),
                unacknowledged_receipts=message.unacknowledged_receipts,
                ticket_issuers=message.ticket_issuers,
                evidence=[
                    pb.WorkerEvidence(digest=item.digest, not_after_unix_s=item.not_after_s)
                    for item in message.evidence
                ],
            )
        )
    if isinstance(message, ModelKey):
        fields = {name: getattr(message, name) for name in ModelKey.__slots__}
        return pb.WorkerCommand(model_key=pb.WorkerModelKey(**fields))
    if isinstance(message, Drain):
        return pb.WorkerCommand(drain=pb.WorkerDrain(until_unix_ms=message.until_ms))
    return pb.WorkerCommand(
        receipt_spooled=pb.ReceiptSpooled(receipt_number=message.receipt_number, durable=message.durable)
    )


def _decode_to_worker(data: bytes) -> ToWorker:
    message = pb.WorkerCommand()
    _parse(message, data)
    match message.WhichOneof("command"):
        case "start":
            start = message.start
            fields = {name: getattr(start, name) for name in StartWorker.__slots__ if name != "ticket_issuers"}
            return StartWorker(ticket_issuers=tuple(start.ticket_issuers), **fields)
        case "lease":
            return LeaseGrant(
                valid_until_ms=message.lease.valid_until_unix_ms,
                revoked_sessions=frozenset(message.lease.revoked_sessions),
                unacknowledged_receipts=message.lease.unacknowledged_receipts,
                ticket_issuers=tuple(message.lease.ticket_issuers),
                evidence=tuple(
                    NamedEvidence(digest=item.digest, not_after_s=item.not_after_unix_s)
                    for item in message.lease.evidence
                ),
            )
        case "model_key":
            return ModelKey(**{name: getattr(message.model_key, name) for name in ModelKey.__slots__})
        case "drain":
            return Drain(until_ms=message.drain.until_unix_ms)
        case "receipt_spooled":
            spooled = message.receipt_spooled
            return ReceiptDurable(receipt_number=spooled.receipt_number, durable=spooled.durable)
        case _:
            raise MalformedRequestError("a frame on the worker channel says nothing")


def _encode_from_worker(message: FromWorker) -> pb.WorkerMessage:
    if isinstance(message, WorkerBooted | WorkerReady):
        return _encode_keys(message)
    if isinstance(message, WorkerMetrics):
        return pb.WorkerMessage(metrics=metrics_message(message.metrics))
    name, plain = next((name, made) for name, (kind, made) in _PLAIN.items() if isinstance(message, kind))
    fields = {name: getattr(message, name) for name in type(message).__slots__}
    return pb.WorkerMessage(**{name: plain(**fields)})


def _decode_from_worker(data: bytes) -> FromWorker:
    message = pb.WorkerMessage()
    _parse(message, data)
    name = message.WhichOneof("message")
    if name in {"ready", "booted"}:
        return _decode_keys(message)
    if name == "metrics":
        return WorkerMetrics(metrics=metrics_from(message.metrics))
    if name is None:
        raise MalformedRequestError("a frame on the worker channel says nothing")
    kind, _ = _PLAIN[name]
    plain = getattr(message, name)
    said: FromWorker = kind(**{field: getattr(plain, field) for field in kind.__slots__})
    return said


def _encode_keys(message: WorkerBooted | WorkerReady) -> pb.WorkerMessage:
    fields = {name: getattr(message, name) for name in type(message).__slots__}
    if isinstance(message, WorkerReady):
        return pb.WorkerMessage(ready=pb.WorkerReady(**fields))
    return pb.WorkerMessage(booted=pb.WorkerBooted(**fields))


def _decode_keys(message: pb.WorkerMessage) -> WorkerBooted | WorkerReady:
    ready, booted = message.ready, message.booted
    if message.HasField("ready"):
        return WorkerReady(
            keyset=ready.keyset,
            certificate=ready.certificate,
            model_digest=ready.model_digest,
            context_length=ready.context_length,
            sandbox=tuple(ready.sandbox),
        )
    return WorkerBooted(
        keyset=booted.keyset,
        certificate=booted.certificate,
        model_digest=booted.model_digest,
        sandbox=tuple(booted.sandbox),
    )


def _parse(message: pb.WorkerCommand | pb.WorkerMessage, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MalformedRequestError("a frame on the worker channel does not decode") from error
