"""Reads an audit log over gRPC: records, proofs, checkpoints, exports. Needs role officer (a developer: own proofs).

What is listed is a server's word. :meth:`AuditLog.prove` verifies a record against a log key that the caller pins;
an export is verified offline, by :mod:`bulkhead.transparency`.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from bulkhead.client import convert
from bulkhead.client.paging import pages
from bulkhead.client.transport import Channel
from bulkhead.errors import NotFoundError, RecordError, UnavailableError
from bulkhead.ids import RECORD, check_id
from bulkhead.protocol.receipts import Receipt
from bulkhead.protocol.saved import LoggedReceipt
from bulkhead.transparency import (
    AuditReceipt,
    LeafFields,
    RoundPage,
    RoundPath,
    VerifiedLeaf,
    parse_leaf,
    verify_receipt,
)
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.tlog_proof import write_record_proof
from bulkhead.v1 import audit_pb2, audit_pb2_grpc, common_pb2

__all__ = ["AuditLog", "AuditRecord", "RecordFilter"]

EXPORT_DEADLINE_S: Final = 3_600.0  # a log of millions of records at tens of thousands a second
EXPORT_IDLE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records; empty fields match everything that the caller may see.

    Attributes:
        tenant_id: whose log; `platform` for the platform log; empty for the caller's own.
        action: e.g. `decision`, or `session.closed`; one that ends in `.` is every action of that group.
        decision: `allow`, `deny` or `error`.
        session_id: a session.
        subject: a subject id (pseudonym).
        from_us: not before, microseconds since the epoch.
        until_us: before.
    """

    tenant_id: str = ""
    action: str = ""
    decision: str = ""
    session_id: str = ""
    subject: str = ""
    from_us: int = 0
    until_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A record as listed: parsed, not proven.

    Attributes:
        origin: name of the log.
        index: place in the log, from 0.
        leaf: the exact stored bytes.
        fields: what they say.
    """

    origin: str
    index: int
    leaf: bytes = field(repr=False)
    fields: LeafFields


def _ignore(indexed: int, size: int) -> None:
    """Let it be."""


class AuditLog:
    """The audit log as the caller's role may read it.

    Args:
        channel: to the control plane.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stub = audit_pb2_grpc.AuditServiceStub(channel.raw)

    def records(
        self,
        wanted: RecordFilter | None = None,
        *,
        oldest_first: bool = False,
        after: int | None = None,
        on_page: Callable[[int, int], None] = _ignore,
    ) -> AsyncGenerator[AuditRecord, None]:
        """Yield matching records in the server's order, page by page; pages are stable while the log grows.

        Args:
            wanted: which records.
            oldest_first: otherwise newest first.
            after: index of a record of the one log that is read: only those behind it, in that order.
            on_page: told for each page how many records are indexed, and how many there are: the others were not
                looked at.

        Raises:
            RecordError: the server sent something that is not a record.
            BulkheadError: see :meth:`Channel.unary`.
        """
        chosen = wanted if wanted is not None else RecordFilter()
        message = audit_pb2.RecordFilter(
            tenant_id=chosen.tenant_id,
            action=chosen.action,
            decision=chosen.decision,
            session_id=chosen.session_id,
            subject=chosen.subject,
            from_us=chosen.from_us,
            until_us=chosen.until_us,
        )
        first = "" if after is None else f"i{after}"

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[AuditRecord], str]:
            page.token = page.token or first
            request = audit_pb2.ListRecordsRequest(filter=message, page=page, oldest_first=oldest_first)
            reply = await self._channel.unary(self._stub.ListRecords, request, idempotent=True)
            on_page(reply.indexed_size, reply.size)
            return [_record(item) for item in reply.records], reply.next_page_token

        return pages(fetch)

    async def receipt(self, record: str | int, *, tenant_id: str = "", size: int = 0) -> AuditReceipt:
        """Return a record by id or index with its inclusion proof in the tree of ``size`` (0: of now), unverified.

        Raises:
            NotFoundError: no such record, or not the caller's.
            InvalidRequestError: not a record id.
        """
        request = audit_pb2.GetRecordRequest(tenant_id=tenant_id, size=size)
        if isinstance(record, int):
            request.index = record
        else:
            request.record_id = check_id(record, RECORD)
        reply = await self._channel.unary(self._stub.GetRecord, request, idempotent=True)
        return convert.audit_receipt(reply.receipt)

    async def prove(self, record: str | int, *, vkey: str, tenant_id: str = "") -> VerifiedLeaf:
        """Return a record that the log with the pinned key has committed to.

        1. The receipt verifies under ``vkey``, whose name is the log's origin.
        2. The record is the one that was asked for.

        Raises:
            ProofError: the receipt does not verify, or it is another record's.
            BulkheadError: as :meth:`receipt`.
        """
        receipt = await self.receipt(record, tenant_id=tenant_id)
        proven = verify_receipt(receipt, vkey=vkey, origin=NoteVerifier.from_vkey(vkey).name)  # 1
        if record not in (proven.index, proven.fields.record_id):  # 2
            raise RecordError("the server proved another record than the one asked for")
        return proven

    async def receipt_proof(self, receipt: Receipt, digest: bytes) -> LoggedReceipt:
        """Return where the own tenant's log holds a usage receipt, for ``verify_logged`` to check.

        A round of the platform's log comes with it once one covers the record (:meth:`proof_file`).

        Args:
            receipt: what it says.
            digest: of the receipt as signed, 32 bytes.

        Raises:
            NotFoundError: no record covers it; a new receipt is recorded within some ten seconds.
        """
        request = audit_pb2.GetReceiptProofRequest(
            session_id=receipt.session,
            partition_id=receipt.partition,
            number=receipt.number,
            receipt_digest=digest,
        )
        reply = await self._channel.unary(self._stub.GetReceiptProof, request, idempotent=True)
        proof, _ = await self.proof_file(reply.record.index)
        return LoggedReceipt(proof=proof, path=tuple(reply.path))

    async def checkpoint(self, *, tenant_id: str = "") -> tuple[str, str]:
        """Return the log's current checkpoint (a signed note) and its verifier key, neither verified."""
        request = audit_pb2.GetCheckpointRequest(tenant_id=tenant_id)
        reply = await self._channel.unary(self._stub.GetCheckpoint, request, idempotent=True)
        return reply.checkpoint, reply.vkey

    async def consistency(
        self, old_size: int, new_size: int = 0, *, tenant_id: str = ""
    ) -> tuple[tuple[bytes, ...], str]:
        """Return a consistency proof to ``new_size`` (0: of now), and that size's checkpoint, neither verified."""
        request = audit_pb2.GetConsistencyProofRequest(tenant_id=tenant_id, old_size=old_size, new_size=new_size)
        reply = await self._channel.unary(self._stub.GetConsistencyProof, request, idempotent=True)
        return tuple(reply.proof), reply.checkpoint

    async def round_path(self, *, tenant_id: str = "") -> RoundPath:
        """Return what ties the tenant's log to a round of the platform's, unverified.

        Raises:
            UnavailableError: no (published) round holds the log yet.
        """
        request = audit_pb2.GetRoundPathRequest(tenant_id=tenant_id)
        reply = await self._channel.unary(self._stub.GetRoundPath, request, idempotent=True)
        receipt = convert.audit_receipt(reply.round)
        return RoundPath(reply.slot, reply.salt, reply.checkpoint, tuple(reply.path), receipt)

    async def round_paths(
        self, after: int, *, limit: int, size: int = 0, platform_size: int = 0, tenant_id: str = ""
    ) -> RoundPage:
        """Return what ties the tenant's log to the rounds behind ``after``, a page of them, unverified.

        Args:
            after: number of the round before the first.
            limit: at most so many; the server gives fewer at once.
            size: of the log as far as the caller has it: heads come with proofs that they are of its history.
            platform_size: of the platform's log that was seen before: the page's checkpoint is proven to extend it.
            tenant_id: whose log; empty for the caller's own.

        Raises:
            UnavailableError: the rounds are not published (yet).
            NotFoundError: the server says that a round does not hold the log.
        """
        request = audit_pb2.ListRoundPathsRequest(
            tenant_id=tenant_id, after_round=after, limit=limit, size=size, platform_size=platform_size
        )
        reply = await self._channel.unary(self._stub.ListRoundPaths, request, idempotent=True)
        return convert.round_page(reply)

    async def proof_file(self, record: str | int, *, tenant_id: str = "") -> tuple[str, bool]:
        """Return a record's tlog-proof file, unverified, and whether it reaches a round of the platform's log.

        It does not yet if no round holds the record: a few seconds later it does.
        """
        try:
            path = await self.round_path(tenant_id=tenant_id)
            size = Checkpoint.parse(path.checkpoint_text).size
        except UnavailableError:
            return write_record_proof(await self.receipt(record, tenant_id=tenant_id)), False
        try:
            receipt = await self.receipt(record, tenant_id=tenant_id, size=size)
        except NotFoundError:  # the record is younger than the round, if there is one at all
            return write_record_proof(await self.receipt(record, tenant_id=tenant_id)), False
        return write_record_proof(receipt, path), True

    async def export(self, *, tenant_id: str = "", first: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a self-contained export from record ``first`` on, in order, at most 64 KiB each.

        Raises:
            BulkheadError: the transfer failed; what was yielded so far is no export.
        """
        stream = self._channel.stream(
            self._stub.ExportLog,
            audit_pb2.ExportLogRequest(tenant_id=tenant_id, first=first),
            deadline_s=EXPORT_DEADLINE_S,
            idle_s=EXPORT_IDLE_S,
        )
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk.data


def _record(message: audit_pb2.Record) -> AuditRecord:
    return AuditRecord(origin=message.origin, index=message.index, leaf=message.leaf, fields=parse_leaf(message.leaf))
