"""Reading the audit log: who may read which log, and the record of each read, made before the answer.

An officer reads the own tenant's log, a platform officer every log; policy is asked too. A tenant's developers fetch
records of the own log with their proofs, and checkpoints: what their SDK verifies. Administrators read nothing.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from audit.log import RoundsAsked
from audit.model import LogInfo, Page, RecordFilter, RecordPage
from audit.records import audit_exported, audit_read
from bulkhead import ids
from bulkhead.encoding import Json
from bulkhead.errors import (
    AuditUnavailableError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from bulkhead.transparency import AuditReceipt, RoundPage, RoundPath, receipt_path
from control_plane.authz.input import LogResource
from control_plane.domain.roles import Caller, Role
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.journal import Journal
from control_plane.services.refusals import cause_of, subject_of
from control_plane.storage.engine import Database
from control_plane.storage.receipts import ReceiptBatches

__all__ = ["PLATFORM", "AuditReads", "Checkpoint", "NamedReceipt", "ReceiptProof"]

PLATFORM: Final = "platform"
CHUNK_BYTES: Final = 64 * 1024  # of an export, below any message limit


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's signed checkpoint and its verifier key."""

    note: str
    vkey: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedReceipt:
    """A usage receipt, named by what it says of itself."""

    session_id: str
    partition_id: str
    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ReceiptProof:
    """The record that covers a receipt, and the path from the receipt's digest to the record's root."""

    record: AuditReceipt
    path: tuple[bytes, ...]


class AuditReads:
    """Reads audit logs on behalf of callers.

    Args:
        journal: the audit log.
        database: the state: which receipts went under which record.
        authorisation: asks policy about officers' reads.
    """

    def __init__(self, *, journal: Journal, database: Database, authorisation: Authorisation) -> None:
        self._database = database
        self._journal = journal
        self._audit = journal.audit
        self._authorisation = authorisation

    def origin(self, log_id: int) -> str:
        """Return the name of a log."""
        return next(info.origin for info in self._audit.logs() if info.log_id == log_id)

    async def records(self, call: AdminCall, tenant: str, query: RecordFilter, page: Page) -> RecordPage:
        """Return a page of records.

        Args:
            call: an officer's.
            tenant: tenant id, ``platform``, or empty: the own log, or every log for a platform officer.
            query: what must match; its log is set here.
            page: which part.

        Raises:
            NotFoundError: no such log, or not the caller's to read.
            PolicyDeniedError, PolicyEngineError: policy does not allow it.
            InvalidRequestError: a bad page.
            RecordError: the log was tampered with; names the record.
            AuditUnavailableError: the read could not be recorded, so nothing is returned.
        """
        info = None if not tenant and not call.caller.tenant_id else self._log(call.caller, tenant)
        _require_officer(call.caller)
        await self._authorise(call, "audit.read", info)
        found = await self._audit.records(replace(query, log_id=None if info is None else info.log_id), page)
        filters: dict[str, Json] = {
            name: value
            for name in ("action", "decision", "subject", "session", "since_us", "until_us")
            if (value := getattr(query, name))
        }
        await self._note(call, info, "ListRecords", filters, returned=len(found.records), size=found.size)
        return found

    async def receipt(
        self, call: AdminCall, tenant: str, *, index: int | None, record_id: str, size: int = 0
    ) -> AuditReceipt:
        """Return one record, by index or id, with its inclusion proof in the tree of ``size`` (0: of now).

        Raises:
            NotFoundError: no such record or log, or not the caller's to read.
            InvalidRequestError: the id is none.
            AuditUnavailableError: the read could not be recorded.
        """
        info = self._log(call.caller, tenant)
        if index is None:
            index = await self._audit.index_of(info.log_id, ids.check_id(record_id, ids.RECORD))
        receipt = await self._audit.receipt(info.log_id, index, size=size or None)
        await self._note(call, info, "GetRecord", {"index": index}, returned=1)
        return receipt

    async def receipt_proof(self, call: AdminCall, tenant: str, named: NamedReceipt) -> ReceiptProof:
        """Return the record that covers a usage receipt, with its inclusion proof and the path to its root.

        Raises:
            NotFoundError: no such log or not the caller's, or no record covers the receipt (yet).
            AuditUnavailableError: the read could not be recorded.
        """
        info = self._log(call.caller, tenant)
        found = await self._database.read(
            lambda tx: ReceiptBatches(tx.connection).overlapping(
                named.session_id, named.partition_id, low=named.number, high=named.number
            )
        )
        batch = next((item for item in found if item.digest_of(named.number) == named.digest), None)
        known = batch is not None and batch.tenant_id == info.tenant
        if batch is None or not known or batch.log_id is None or batch.log_index is None:
            raise NotFoundError(
                "no record is known to cover this receipt: a new one is recorded within some ten seconds,"
                " and its digest is kept for a while after the end of its session"
            )
        record = await self._audit.receipt(batch.log_id, batch.log_index)
        query: dict[str, Json] = {"session": named.session_id, "number": named.number}
        await self._note(call, info, "GetReceiptProof", query, returned=1)
        return ReceiptProof(record, receipt_path(batch.digests, named.number - batch.first))

    async def checkpoint(self, call: AdminCall, tenant: str) -> Checkpoint:
        """Return a log's checkpoint of now. Not recorded: it says nothing of any record.

        Raises:
            NotFoundError: no such log, or not the caller's to read.
        """
        info = self._log(call.caller, tenant)
        return Checkpoint(await self._audit.checkpoint(info.log_id), self._audit.vkey(info.log_id))

    async def extension(
        self, call: AdminCall, tenant: str, old_size: int, new_size: int
    ) -> tuple[tuple[bytes, ...], str]:
        """Return the proof that the log of ``new_size`` (0: of now) extends that of ``old_size``, and its checkpoint.

        Raises:
            NotFoundError: no such log, or not the caller's to read.
            InvalidRequestError: not sizes of this log.
        """
        info = self._log(call.caller, tenant)
        return await self._audit.extension(info.log_id, old_size, new_size or None)

    async def round_path(self, call: AdminCall, tenant: str) -> RoundPath:
        """Return what ties a tenant's log to the platform's newest round.

        Raises:
            NotFoundError: no such log, or not the caller's to read.
            UnavailableError: no round holds the log yet; ask again in a second.
        """
        info = self._log(call.caller, tenant)
        path = await self._audit.round_path(info.log_id)
        if path is None:
            raise UnavailableError("no round of the platform's log holds this log yet: try again in a second")
        return path

    async def round_paths(self, call: AdminCall, tenant: str, asked: RoundsAsked) -> RoundPage:
        """Return what ties a tenant's log to successive past rounds. Not recorded: it says nothing of any record.

        Raises:
            NotFoundError: no such log, or not the caller's to read; a round that does not hold it.
            InvalidRequestError: the log has no tree of the size that is asked about.
            UnavailableError: the rounds are not published (yet), or too many ask for rounds.
            RecordError: the database was tampered with; names the round.
        """
        return await self._audit.round_paths(self._log(call.caller, tenant).log_id, asked)

    async def export(self, call: AdminCall, tenant: str, *, first: int = 0) -> AsyncIterator[bytes]:
        """Yield a self-contained export of one log from record ``first`` on, 64 KiB at a time; recorded before that.

        Raises:
            NotFoundError: no such log, or not the caller's to read.
            InvalidRequestError: the log has fewer records.
            PolicyDeniedError, PolicyEngineError: policy does not allow it.
            RecordError: a stored record does not hold; names it.
            AuditUnavailableError: the export could not be recorded.
        """
        _require_officer(call.caller)
        info = self._log(call.caller, tenant)
        await self._authorise(call, "audit.export", info)
        if first > self._audit.size(info.log_id):
            raise InvalidRequestError(f"the log has no record {first} yet")
        await self._journal.write(
            audit_exported(
                self._journal.stamp(),
                tenant=info.tenant,
                subject=subject_of(call.caller),
                cause=cause_of(call.caller, call.request_id),
                first=first,
                size=self._audit.size(info.log_id),
            )
        )
        # Whole before it is sent: an export that ends half way must be an error, not a shorter log.
        with tempfile.TemporaryFile() as file:
            await self._audit.export([info.log_id], file, first=first)
            file.seek(0)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk

    def _log(self, caller: Caller, tenant: str) -> LogInfo:
        """Return the newest epoch of a log that the caller may read; others do not exist for the caller."""
        own = caller.tenant_id
        wanted = tenant or own or PLATFORM
        if caller.role is Role.ADMIN or (own and wanted != own):
            raise NotFoundError("no such log")
        if wanted == PLATFORM:
            return self._audit.platform_log
        found = [info for info in self._audit.logs() if info.tenant == wanted]
        if not found:
            raise NotFoundError("no such log")
        return max(found, key=lambda info: info.epoch)

    async def _authorise(self, call: AdminCall, action: str, info: LogInfo | None) -> None:
        tenant = None if info is None else info.tenant
        question = Question(
            action=action,
            resource=LogResource(tenant=tenant),
            named=("log", tenant or PLATFORM),
            tenant_id=tenant or "",
        )
        await self._authorisation.authorise(call, question, record_allow=False)

    async def _note(
        self,
        call: AdminCall,
        info: LogInfo | None,
        method: str,
        query: dict[str, Json],
        *,
        returned: int,
        size: int | None = None,
    ) -> None:
        """Record a read in the log that was read (the platform's, for a read over all logs)."""
        log = self._audit.platform_log if info is None else info
        try:
            await self._journal.write(
                audit_read(
                    self._journal.stamp(),
                    tenant=log.tenant,
                    subject=subject_of(call.caller),
                    cause=cause_of(call.caller, call.request_id),
                    method=f"/bulkhead.v1.AuditService/{method}",
                    query=query,
                    returned=returned,
                    size=self._audit.size(log.log_id) if size is None else size,
                )
            )
        except AuditUnavailableError as error:
            raise AuditUnavailableError("the read could not be recorded, so it was not answered") from error


def _require_officer(caller: Caller) -> None:
    if caller.role is not Role.OFFICER:
        raise PermissionDeniedError("only compliance officers list and export audit logs")
