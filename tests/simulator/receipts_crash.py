"""A process that records receipts and kills itself: `python -m tests.simulator.receipts_crash DIR STEP COUNT`.

It claims receipts 1 to COUNT of a session, writes their record and marks it, in the state database and audit log under
DIR, and kills itself with SIGKILL at STEP (`claimed`, `recorded`); with `none` it comes to its end.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from audit.log import AuditLog
from bulkhead.transparency import LeafFields, parse_leaf
from control_plane.domain.fleet import ReceiptReported, SpooledEvent
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.domain.tiers import Tier
from control_plane.placement.place import Placement
from control_plane.services.journal import Journal
from control_plane.services.receipt_batches import Batches, Told
from control_plane.storage.engine import Database
from control_plane.storage.migrate import migrate
from tests.simulator.audit_world import config

TENANT = "tenant_01h455vb4pex5vsknk084sn02a"
SESSION = "sess_01h455vb4pex5vsknk084sn02b"
PARTITION = "part_01h455vb4pex5vsknk084sn02c"


def partition() -> Partition:
    """Return the partition that the receipts were made on."""
    return Partition(
        partition_id=PARTITION,
        tenant_id=TENANT,
        model="tiny",
        model_digest=bytes(32),
        placement=Placement(
            agent_id="rack1-tray01",
            tier=Tier.PROCESS,
            gpu_uuids=(),
            mig_profile_id=0,
            memory_slice_start=0,
            memory_slices=0,
        ),
        region="eu-central",
        simulated=True,
        share_key="k",
        exclusive=False,
        memory_mib=1,
        max_output_tokens=0,
        state=PartitionState.READY,
        version=1,
        created_us=1,
        changed_us=1,
    )


def event(number: int, digest: bytes | None = None) -> SpooledEvent:
    """Return the event of one receipt."""
    return SpooledEvent(
        spool_id="spool_1",
        seq=number,
        partition_id=PARTITION,
        ts_us=1,
        event=ReceiptReported(
            session_id=SESSION,
            session_number=number,
            tenant_id=TENANT,
            request_id=f"req_{number}",
            receipt_digest=digest or number.to_bytes(32, "big"),
            prompt_tokens=10,
            completion_tokens=number,
            status="ok",
        ),
    )


async def record(directory: Path, events: list[SpooledEvent], *, step: str = "none") -> tuple[SpooledEvent, ...]:
    """Claim, write and mark as the control plane does; return what contradicts."""

    def failpoint(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    database = Database(url=f"sqlite:///{directory / 'state.db'}")
    await migrate(database)
    log = await AuditLog.open(config(directory))
    try:
        batches = Batches(database=database, journal=Journal(audit=log), failpoint=failpoint)
        await batches.record()
        contradicting = await batches.claim([Told(partition=partition(), session=None, events=events)])
        await batches.record()
        (await database.write(batches.mark))()
        return contradicting
    finally:
        await log.close()
        await database.close()


async def records(directory: Path) -> list[LeafFields]:
    """Return the `receipts` records in the tenant's log, in order."""
    log = await AuditLog.open(config(directory))
    try:
        info = await log.ensure_log(TENANT)
        leaves = [parse_leaf((await log.receipt(info.log_id, index)).leaf) for index in range(log.size(info.log_id))]
        return [leaf for leaf in leaves if leaf.action == "receipts"]
    finally:
        await log.close()


if __name__ == "__main__":
    numbers = range(1, int(sys.argv[3]) + 1)
    asyncio.run(record(Path(sys.argv[1]), [event(number) for number in numbers], step=sys.argv[2]))
