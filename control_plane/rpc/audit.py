"""AuditService. Admission has authenticated the caller and checked the scope."""

from collections.abc import AsyncIterator
from typing import Any

from audit.log import MAX_ROUNDS, RoundsAsked
from audit.model import Order, Page, RecordFilter
from bulkhead.encoding import MAX_SAFE_INTEGER
from bulkhead.errors import InvalidRequestError
from bulkhead.ids import PARTITION, SESSION, check_id
from bulkhead.v1 import audit_pb2 as pb
from bulkhead.v1 import audit_pb2_grpc
from control_plane.rpc.caller import current_caller
from control_plane.rpc.session_convert import receipt_message
from control_plane.services.audit_reads import PLATFORM, AuditReads, NamedReceipt
from control_plane.services.authorisation import AdminCall
from control_plane.services.paging import page_size
from service.interceptors import current_request_id

__all__ = ["AuditServicer"]

MAX_FILTER_CHARS = 64  # the longest action and identifier
MAX_TOKEN_CHARS = 128
DIGEST_BYTES = 32  # SHA-256


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Reads audit logs."""

    def __init__(self, *, reads: AuditReads) -> None:
        self._reads = reads

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Any) -> pb.ListRecordsResponse:  # noqa: N802, ARG002  gRPC's names
        """List records in the order asked for."""
        page = Page(
            limit=page_size(request.page.size),
            after=_bounded(request.page.token, MAX_TOKEN_CHARS),
            order=Order.OLDEST_FIRST if request.oldest_first else Order.NEWEST_FIRST,
        )
        found = await self._reads.records(_call(), request.filter.tenant_id, _filter(request.filter), page)
        return pb.ListRecordsResponse(
            records=[
                pb.Record(origin=self._reads.origin(record.log_id), index=record.index, leaf=record.leaf)
                for record in found.records
            ],
            next_page_token=found.next,
            indexed_size=found.indexed,
            size=found.size,
        )

    async def GetRecord(self, request: pb.GetRecordRequest, context: Any) -> pb.GetRecordResponse:  # noqa: N802, ARG002  gRPC's names
        """Return one record with its inclusion proof."""
        key = request.WhichOneof("key")
        if key is None:
            raise InvalidRequestError("a record is named by its index or its id")
        receipt = await self._reads.receipt(
            _call(),
            request.tenant_id,
            index=request.index if key == "index" else None,
            record_id=request.record_id,
            size=request.size,
        )
        return pb.GetRecordResponse(receipt=receipt_message(receipt, _origin_of(receipt.checkpoint)))

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> pb.GetCheckpointResponse:  # noqa: N802, ARG002  gRPC's names
        """Return a log's checkpoint."""
        checkpoint = await self._reads.checkpoint(_call(), request.tenant_id)
        return pb.GetCheckpointResponse(checkpoint=checkpoint.note, vkey=checkpoint.vkey)

    async def GetConsistencyProof(  # noqa: N802  gRPC's name
        self,
        request: pb.GetConsistencyProofRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.GetConsistencyProofResponse:
        """Return a consistency proof, and the checkpoint that it leads to."""
        proof, note = await self._reads.extension(_call(), request.tenant_id, request.old_size, request.new_size)
        return pb.GetConsistencyProofResponse(proof=proof, checkpoint=note)

    async def GetRoundPath(self, request: pb.GetRoundPathRequest, context: Any) -> pb.GetRoundPathResponse:  # noqa: N802, ARG002  gRPC's names
        """Return the path of a tenant's head into a round of the platform's log."""
        path = await self._reads.round_path(_call(), request.tenant_id)
        return pb.GetRoundPathResponse(
            round=receipt_message(path.receipt, _origin_of(path.receipt.checkpoint)),
            slot=path.slot,
            salt=path.salt,
            path=path.path,
            checkpoint=path.checkpoint_text,
        )

    async def ListRoundPaths(  # noqa: N802  gRPC's name
        self,
        request: pb.ListRoundPathsRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.ListRoundPathsResponse:
        """Return the paths of a tenant's heads into successive past rounds."""
        if max(request.after_round, request.size, request.platform_size) > MAX_SAFE_INTEGER:
            raise InvalidRequestError("rounds and sizes are at most 2^53 - 1")
        asked = RoundsAsked(
            request.after_round, request.limit or MAX_ROUNDS, size=request.size, platform_size=request.platform_size
        )
        page = await self._reads.round_paths(_call(), request.tenant_id, asked)
        rounds = [
            pb.PastRound(
                index=path.receipt.index,
                leaf=path.receipt.leaf,
                proof=path.receipt.proof,
                slot=path.slot,
                salt=path.salt,
                path=path.path,
                checkpoint=path.checkpoint_text,
                consistency=consistency,
            )
            for path, consistency in zip(page.paths, page.heads, strict=True)
        ]
        return pb.ListRoundPathsResponse(checkpoint=page.checkpoint, extension=page.extension, rounds=rounds)

    async def GetReceiptProof(  # noqa: N802  gRPC's name
        self,
        request: pb.GetReceiptProofRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.GetReceiptProofResponse:
        """Return where the log holds the digest of a usage receipt."""
        if not 0 < request.number <= MAX_SAFE_INTEGER or len(request.receipt_digest) != DIGEST_BYTES:
            raise InvalidRequestError("a receipt is named by session, partition, number and 32-byte digest")
        named = NamedReceipt(
            session_id=check_id(request.session_id, SESSION),
            partition_id=check_id(request.partition_id, PARTITION),
            number=request.number,
            digest=request.receipt_digest,
        )
        proof = await self._reads.receipt_proof(_call(), request.tenant_id, named)
        record = receipt_message(proof.record, _origin_of(proof.record.checkpoint))
        return pb.GetReceiptProofResponse(record=record, path=proof.path)

    async def ExportLog(self, request: pb.ExportLogRequest, context: Any) -> AsyncIterator[pb.ExportLogChunk]:  # noqa: N802, ARG002  gRPC's names
        """Stream an export of one log."""
        async for chunk in self._reads.export(_call(), request.tenant_id, first=request.first):
            yield pb.ExportLogChunk(data=chunk)


def _call() -> AdminCall:
    return AdminCall(current_caller(), current_request_id())


def _filter(message: pb.RecordFilter) -> RecordFilter:
    if not all(0 <= time_us <= MAX_SAFE_INTEGER for time_us in (message.from_us, message.until_us)):
        raise InvalidRequestError("filter: times are microseconds since 1970, up to the year 2255")
    if message.tenant_id and message.tenant_id != PLATFORM:
        _bounded(message.tenant_id, MAX_FILTER_CHARS)
    return RecordFilter(
        action=_bounded(message.action, MAX_FILTER_CHARS),
        decision=_bounded(message.decision, MAX_FILTER_CHARS),
        session=_bounded(message.session_id, MAX_FILTER_CHARS),
        subject=_bounded(message.subject, MAX_FILTER_CHARS),
        since_us=message.from_us or None,
        until_us=message.until_us or None,
    )


def _bounded(value: str, limit: int) -> str:
    if len(value) > limit:
        raise InvalidRequestError(f"filter and page token: at most {limit} characters")
    return value


def _origin_of(checkpoint: str) -> str:
    """Return the log's name: the first line of its checkpoint (C2SP tlog-checkpoint)."""
    return checkpoint.partition("\n")[0]
