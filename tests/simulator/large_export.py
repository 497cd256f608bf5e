"""A large export, written quickly: one decision again and again, each with an id and a time of its own."""

from pathlib import Path

from audit.records import log_opened
from bulkhead.ids import RECORD, new_id
from bulkhead.transparency.export_writer import ExportWriter
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import Frontier, leaf_hash
from tests.simulator.audit_logs import ORIGIN, SIGNER, checkpoint
from tests.simulator.audit_world import TENANT, decision, stamper

_CHUNK = 1_000


def write_large_export(path: Path, records: int) -> int:
    """Write an export of ``records`` records, a checkpoint every 100,000; return its bytes."""
    template = decision(number=1)
    before, _, rest = template.leaf.decode().partition(template.record_id)
    middle, _, after = rest.partition(str(template.fields.ts_us))
    first = log_opened(stamper().stamp(), tenant=TENANT, origin=ORIGIN, epoch=1, slot=0).leaf
    frontier, hashes = Frontier(), []
    with path.open("wb") as file:
        writer = ExportWriter(file)
        writer.begin_log(origin=ORIGIN, tenant=TENANT, vkey=SIGNER.vkey)
        for index in range(records):
            text = f"{before}{new_id(RECORD)}{middle}{template.fields.ts_us + index}{after}"
            leaf = text.encode() if index else first
            digest = leaf_hash(leaf)
            writer.record(index, leaf, digest)
            hashes.append(digest)
            if len(hashes) == _CHUNK:
                frontier, hashes = frontier.extend(hashes), []
                if (index + 1) % 100_000 == 0 and index + 1 < records:
                    writer.checkpoint(checkpoint(frontier))
        writer.end_log(checkpoint(frontier.extend(hashes)))
        writer.end()
        size = file.tell()
    assert parse_leaf(leaf).tenant == TENANT
    return size
