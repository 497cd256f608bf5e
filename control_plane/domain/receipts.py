"""Batches of receipts as the control plane keeps them: which receipts went under which record of the audit log."""

from dataclasses import dataclass

from bulkhead.transparency import receipts_root

__all__ = ["StoredBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A range of one session's receipts on one partition, claimed by one record.

    Attributes:
        tenant_id: whose.
        session_id: session.
        partition_id: where they were made.
        first: number of the first one.
        digests: 32 bytes each, by number from ``first``.
        record_id: of the `receipts` record, made with the claim.
        leaf: the record's bytes until it is known to be in the log, then empty.
        log_id: of the log that holds it; None until then.
        log_index: its place there; None until then.
    """

    tenant_id: str
    session_id: str
    partition_id: str
    first: int
    digests: tuple[bytes, ...]
    record_id: str
    leaf: bytes = b""
    log_id: int | None = None
    log_index: int | None = None

    @property
    def numbers(self) -> range:
        """Which receipts of the session."""
        return range(self.first, self.first + len(self.digests))

    @property
    def root(self) -> bytes:
        """The root that the record holds."""
        return receipts_root(self.digests)

    def digest_of(self, number: int) -> bytes | None:
        """Return the digest of a receipt, or None if the batch does not cover it."""
        return self.digests[number - self.first] if number in self.numbers else None
