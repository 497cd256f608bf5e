"""Administrative changes: decided, recorded, and only then made; once per request id.

Order of one change, under a lock that makes the changes of this process one at a time:

1. A request id that the principal used before: the same content gets the same answer, other content is refused.
2. What the change needs is read, and refused here if it does not fit (a taken name, a tenant that does not exist).
3. Policy decides, and its decision is recorded (:mod:`control_plane.services.authorisation`).
4. The change is recorded. If it cannot be, the caller gets UNAVAILABLE and nothing has changed.
5. It is written, in one transaction with its request id. Should that fail, a second record says so, with ``undone``.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

import structlog

from audit.records import Action, administered
from bulkhead.encoding import Json, JsonObject, canonical_json
from bulkhead.errors import AlreadyExistsError, BulkheadError
from bulkhead.ids import REQUEST, check_id
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.journal import Journal
from control_plane.services.refusals import cause_of, subject_of
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.policy import Requests, UsedRequest

__all__ = ["Administration", "Change", "Made", "Step"]

T = TypeVar("T")

UNDONE: Final = "undone"

log = structlog.get_logger(__name__)


async def _nothing() -> None:
    """Do nothing: the change has no effect outside the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an allowed change does.

    Attributes:
        action: of the change's record.
        details: of the change's record: what changes, without secrets and names of people.
        result_id: identifier under which the result is found again.
        write: makes the change in a transaction.
        tenant_id: tenant whose log takes the change's record; empty for the platform's.
        bundle: hexadecimal digest of the policy bundle that the change is about, if it is about one.
        effect: takes effect outside the database, between record and ``write``.
        undo: takes ``effect`` back when it or ``write`` failed.
    """

    action: Action
    details: JsonObject
    result_id: str
    write: Callable[[Transaction], None]
    tenant_id: str = ""
    bundle: str = ""
    effect: Callable[[], Awaitable[None]] = field(default=_nothing)
    undo: Callable[[], Awaitable[None]] = field(default=_nothing)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that fits what was read.

    Attributes:
        question: asked of policy.
        prepare: runs once policy allowed it; returns what is to be done, or raises.
    """

    question: Question
    prepare: Callable[[], Awaitable[Step]]

    @classmethod
    def of(cls, question: Question, step: Step) -> "Change":
        """Return a change that needs no preparation."""

        async def prepared() -> Step:
            return step

        return cls(question, prepared)


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """The result of a change, and whether an earlier call with this request id had made it."""

    value: T
    again: bool


class Administration:
    """Makes administrative changes.

    Args:
        database: the state.
        journal: the audit log.
        authorisation: asks policy and records its answers.
        now_us: Unix time in microseconds.
    """

    def __init__(
        self, *, database: Database, journal: Journal, authorisation: Authorisation, now_us: Callable[[], int]
    ) -> None:
        self._database = database
        self._journal = journal
        self._authorisation = authorisation
        self._now_us = now_us
        self._lock = asyncio.Lock()

    async def change(
        self,
        call: AdminCall,
        *,
        content: JsonObject,
        plan: Callable[[Transaction], Change],
        load: Callable[[Transaction, str], T],
    ) -> Made[T]:
        """Make a change and return its result.

        Args:
            call: admitted; its scope was checked. The request id was made by the client.
            content: method and fields: what must be equal when the id is repeated.
            plan: reads what the change needs; raises a BulkheadError where it does not fit.
            load: reads the result by its identifier.

        Raises:
            InvalidRequestError: the request id is malformed.
            AlreadyExistsError: the request id was used for something else.
            PolicyDeniedError, UnknownObligationError: policy does not allow it.
            PolicyEngineError, AuditUnavailableError, StateUnavailableError: nothing changed.
        """
        check_id(call.request_id, REQUEST)
        digest = hashlib.sha256(canonical_json(content)).digest()
        async with self._lock:
            used = await self._used(call, digest)
            if used is not None:
                result_id = used.result_id
                return Made(await self._database.read(lambda tx: load(tx, result_id)), again=True)
            change = await self._database.read(plan)
            bundle = await self._authorisation.authorise(call, change.question)
            step = await change.prepare()
            await self.note(call, change.question, step, bundle=step.bundle or bundle)
            try:
                await step.effect()
                value = await self._database.write(lambda tx: self._write(tx, call, digest, step, load))
            except BulkheadError as error:
                await self._undo(call, change.question, step, error)
                raise
            return Made(value, again=False)

    async def note(self, call: AdminCall, question: Question, step: Step, *, bundle: str) -> None:
        """Record a step that is about to be made, or one that was refused.

        Raises:
            AuditUnavailableError: it could not be recorded, so it must not be made.
        """
        await self._journal.write(
            administered(
                self._journal.stamp(),
                action=step.action,
                tenant=step.tenant_id or None,
                subject=subject_of(call.caller),
                cause=cause_of(call.caller, call.request_id),
                resource=question.named,
                bundle=bundle,
                details=step.details,
            )
        )

    async def _used(self, call: AdminCall, digest: bytes) -> UsedRequest | None:
        used = await self._database.read(lambda tx: Requests.of(tx).find(call.caller.principal_id, call.request_id))
        if used is not None and used.content_sha256 != digest:
            raise AlreadyExistsError("this request id was used for another request: make a new one")
        return used

    def _write(
        self, tx: Transaction, call: AdminCall, digest: bytes, step: Step, load: Callable[[Transaction, str], T]
    ) -> T:
        used = UsedRequest(digest, step.result_id)
        Requests.of(tx).insert(call.caller.principal_id, call.request_id, used, now_us=self._now_us())
        step.write(tx)
        return load(tx, step.result_id)

    async def _undo(self, call: AdminCall, question: Question, step: Step, because: BulkheadError) -> None:
        details: dict[str, Json] = {**step.details, UNDONE: because.code}
        try:
            await step.undo()
            await self.note(call, question, replace(step, details=details), bundle=step.bundle)
        except BulkheadError as failure:
            log.warning("change.undone_unrecorded", action=step.action.value, because=failure.code)
