"""An audit service over real gRPC for SDK tests: real records, proofs, checkpoints and exports of a log in memory."""

import io
from collections.abc import AsyncIterator

import grpc.aio

from audit.records import Decision, Reason, Stamp
from audit.records.operations import log_opened
from bulkhead.errors import NotFoundError
from bulkhead.ids import RECORD
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.export import ExportWriter
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import inclusion_proof, leaf_hash, tree_root
from bulkhead.v1 import audit_pb2, audit_pb2_grpc
from service.errors_rpc import abort_with
from tests.simulator.sealed_world import ORIGIN, World

__all__ = ["FakeAudit"]

CHUNK_BYTES = 700  # an export arrives in several pieces


class FakeAudit(audit_pb2_grpc.AuditServiceServicer):
    """The world's log: opened, one allow, one deny.

    Attributes:
        leaves: the records.
        served: index -> leaf handed out instead of the true one.
        instead: index asked for -> index handed out, with an honest proof.
        export_limit: bytes after which an export breaks off, or None.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        stamp = Stamp(world.ids(RECORD), world.now_s * 10**6, 0, "writer-1")
        self.leaves = [
            log_opened(stamp, tenant=world.tenant, origin=ORIGIN, epoch=0, slot=1).leaf,
            world.decision_leaf(),
            world.decision_leaf(
                decision=Decision.DENY,
                reasons=[Reason("PURPOSE_MISSING", "hipaa", "The HIPAA pack demands a purpose of use.")],
                policy_input={},
            ),
        ]
        self.served: dict[int, bytes] = {}
        self.instead: dict[int, int] = {}
        self.export_limit: int | None = None
        self.unindexed = 0

    @property
    def checkpoint(self) -> str:
        """The signed checkpoint of all records."""
        hashes = [leaf_hash(leaf) for leaf in self.leaves]
        return sign_checkpoint(Checkpoint(ORIGIN, len(hashes), tree_root(hashes)), self._world.log)

    def export(self) -> bytes:
        """Return the export of the whole log."""
        stream = io.BytesIO()
        writer = ExportWriter(stream)
        writer.begin_log(origin=ORIGIN, tenant=self._world.tenant, vkey=self._world.log.vkey)
        for index, leaf in enumerate(self.leaves):
            writer.record(index, leaf, leaf_hash(leaf))
        writer.end_log(self.checkpoint)
        writer.end()
        return stream.getvalue()

    async def ListRecords(
        self, request: audit_pb2.ListRecordsRequest, context: grpc.aio.ServicerContext
    ) -> audit_pb2.ListRecordsResponse:
        """One record to a page."""
        wanted = request.filter.decision
        start = int(request.page.token or 0)
        records = [
            audit_pb2.Record(origin=ORIGIN, index=index, leaf=leaf)
            for index, leaf in enumerate(self.leaves)
            if index >= start and (not wanted or parse_leaf(leaf).decision == wanted)
        ]
        following = f"{records[0].index + 1}" if len(records) > 1 else ""
        return audit_pb2.ListRecordsResponse(
            records=records[:1],
            next_page_token=following,
            indexed_size=len(self.leaves),
            size=len(self.leaves) + self.unindexed,
        )

    async def GetRecord(
        self, request: audit_pb2.GetRecordRequest, context: grpc.aio.ServicerContext
    ) -> audit_pb2.GetRecordResponse:
        """A record with its proof."""
        for index, leaf in enumerate(self.leaves):
            by_id = request.WhichOneof("key") == "record_id"
            if request.record_id == parse_leaf(leaf).record_id if by_id else request.index == index:
                return audit_pb2.GetRecordResponse(receipt=self._receipt(self.instead.get(index, index)))
        return await abort_with(context, NotFoundError("no such record"))

    async def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> audit_pb2.GetCheckpointResponse:
        """The present checkpoint."""
        return audit_pb2.GetCheckpointResponse(checkpoint=self.checkpoint, vkey=self._world.log.vkey)

    async def ExportLog(
        self, request: audit_pb2.ExportLogRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[audit_pb2.ExportLogChunk]:
        """The export in small pieces."""
        data = self.export()
        limit = len(data) if self.export_limit is None else self.export_limit
        for start in range(0, limit, CHUNK_BYTES):
            yield audit_pb2.ExportLogChunk(data=data[start : start + CHUNK_BYTES])
        if self.export_limit is not None:
            await abort_with(context, NotFoundError("the log went away"))

    def _receipt(self, index: int) -> audit_pb2.AuditReceipt:
        hashes = [leaf_hash(leaf) for leaf in self.leaves]
        proof = inclusion_proof(
            index, len(hashes), lambda level, at: tree_root(hashes[at << level : (at + 1) << level])
        )
        leaf = self.served.get(index, self.leaves[index])
        return audit_pb2.AuditReceipt(origin=ORIGIN, index=index, leaf=leaf, proof=proof, checkpoint=self.checkpoint)
