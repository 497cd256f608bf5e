"""Lists records: found through the index, compared with the leaf before they are returned."""

from audit.model import IndexRow, ListedRecord, Page, RecordFilter, RecordPage
from audit.store import AuditReader, IndexedLeaf
from bulkhead.errors import RecordError
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import leaf_hash

__all__ = ["list_open_pairs", "list_records"]


def list_records(store: AuditReader, query: RecordFilter, page: Page) -> RecordPage:
    """Return a page of records.

    1. The leaf that the index points to exists and has its stored hash.
    2. The leaf is a well-formed record whose id is the stored one.
    3. Every column of the index is what the leaf says.

    That nothing is missing from the index is checked by ``bulkhead-audit verify``, that a leaf is in the log by its
    inclusion proof.

    Raises:
        RecordError: one of these fails; names the record.
        InvalidRequestError: a bad page.
        AuditUnavailableError: the database cannot be read.
    """
    found = store.query(query, page)
    return RecordPage(tuple(_compared(item) for item in found.rows), found.next, found.indexed, found.size)


def list_open_pairs(store: AuditReader, log_id: int, start: int, stop: int) -> RecordPage:
    """List a log's open pairs among some places, each compared as in :func:`list_records`; raise as that does."""
    found = store.open_pairs(log_id, start, stop)
    return RecordPage(tuple(_compared(item) for item in found.rows), "", found.indexed, found.size)


def _compared(item: IndexedLeaf) -> ListedRecord:
    row, stored = item.row, item.stored
    if stored is None:
        raise _bad(row, "", "the index names a record that is not there")
    if leaf_hash(stored.leaf) != stored.leaf_hash:  # 1
        raise _bad(row, stored.record_id, "the record's bytes do not have the stored hash")
    try:
        fields = parse_leaf(stored.leaf)  # 2
    except RecordError as error:
        raise _bad(row, stored.record_id, error.message) from error
    if fields.record_id != stored.record_id:
        raise _bad(row, stored.record_id, f"the record's own id is {fields.record_id}")
    if IndexRow.of(stored.pos, stored.log_id, stored.index, fields) != row:  # 3
        raise _bad(row, stored.record_id, "the index says something else than the record")
    return ListedRecord(stored.log_id, stored.index, stored.leaf, stored.leaf_hash, fields)


def _bad(row: IndexRow, record_id: str, problem: str) -> RecordError:
    return RecordError(
        f"log {row.log_id}, record {row.index} {record_id}: {problem}",
        details={"log_id": str(row.log_id), "index": str(row.index), "record": record_id},
    )
