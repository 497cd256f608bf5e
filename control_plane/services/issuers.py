"""Ticket issuers in service: who signs, whose tickets workers take, and how an administrator changes that.

A change of issuers is three commands with time between them (docs/sdk.md): *add* a key, which workers take within
seconds and tenants pin beside the old one; *activate* it; *retire* the old one when its last ticket has expired.
Private keys are made here and stay in files of the keys directory.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, Protocol

from audit.records import Action
from bulkhead.encoding import JsonObject
from bulkhead.errors import ConfigError, ConflictError, EvidenceBindingError, NotFoundError
from bulkhead.protocol.tickets import MAX_TICKET_LIFE_S, TicketIssuer
from control_plane.authz.input import AdminResource
from control_plane.domain.issuers import (
    ACCEPTED,
    MAX_ACCEPTED,
    IssuerStatus,
    TicketIssuerEntry,
    check_issuer_step,
)
from control_plane.services.administration import Administration, Change, Step
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.issuers import TicketIssuers

__all__ = ["IssuerAdmin", "IssuerKeys", "Issuers"]

US_PER_S: Final = 1_000_000
_ORDER: Final = (IssuerStatus.ACTIVE, IssuerStatus.NEXT, IssuerStatus.PREVIOUS)


class IssuerKeys(Protocol):
    """Private keys of ticket issuers: files, and in tests memory."""

    def first(self) -> TicketIssuer:
        """Return the key of a platform's first issuer, made at need."""
        ...

    def create(self) -> TicketIssuer:
        """Make, keep and return a further key."""
        ...

    def load(self, fingerprint: str) -> TicketIssuer:
        """Return a kept key.

        Raises:
            ConfigError: this process does not have it.
        """
        ...


class Issuers:
    """The issuers as this process uses them.

    Args:
        database: the state.
        keys: private halves.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(self, *, database: Database, keys: IssuerKeys, now_us: Callable[[], int]) -> None:
        self._database = database
        self._keys = keys
        self._now_us = now_us
        self._entries: tuple[TicketIssuerEntry, ...] = ()
        self._signers: dict[str, TicketIssuer] = {}

    async def load(self) -> None:
        """Read the issuers, naming the first one if there are none.

        Raises:
            ConfigError: this process lacks a private key that may have to sign.
            StateUnavailableError: the state is out of reach.
        """
        first, now_us = self._keys.first(), self._now_us()

        def work(tx: Transaction) -> tuple[TicketIssuerEntry, ...]:
            issuers = TicketIssuers(tx.connection)
            if not issuers.all():
                issuers.add(
                    TicketIssuerEntry(
                        public_key=first.public_key,
                        status=IssuerStatus.ACTIVE,
                        created_us=now_us,
                        activated_us=now_us,
                    )
                )
            return issuers.all()

        self.take(await self._database.write(work))

    def take(self, entries: Collection[TicketIssuerEntry]) -> None:
        """Go on with these issuers; what leases and grants say changes at once.

        Raises:
            ConfigError: the private key of the active issuer is not here; the issuers stay as they were.
        """
        signers: dict[str, TicketIssuer] = {}
        for entry in entries:
            if entry.status in ACCEPTED:
                try:
                    signers[entry.fingerprint] = self._keys.load(entry.fingerprint)
                except ConfigError:  # of another replica; it may not sign here
                    if entry.status is IssuerStatus.ACTIVE:
                        raise
        if not any(entry.status is IssuerStatus.ACTIVE for entry in entries):
            raise ConfigError("no ticket issuer is active: the state database was changed by hand")
        self._entries, self._signers = tuple(entries), signers

    async def refresh(self) -> None:
        """Take over what another replica changed.

        Raises:
            ConfigError, StateUnavailableError: nothing changes here.
        """
        found = await self._database.read(lambda tx: TicketIssuers(tx.connection).all())
        if found != self._entries:
            self.take(found)

    def create(self) -> TicketIssuer:
        """Make a further key."""
        return self._keys.create()

    @property
    def active(self) -> TicketIssuer:
        """Who signs."""
        return self._signers[self._accepted()[0].fingerprint]

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """Public keys whose tickets workers take, the signing one first."""
        return tuple(entry.public_key for entry in self._accepted())

    def signer_for(self, known: Collection[bytes]) -> TicketIssuer:
        """Return who signs for a worker that takes tickets of the issuers with these fingerprints (32 bytes).

        That is the active issuer, but for a worker that has not heard of it yet one that it knows.

        Raises:
            EvidenceBindingError: the worker takes no ticket of this control plane.
        """
        for entry in self._accepted():
            signer = self._signers.get(entry.fingerprint)
            if signer is not None and signer.fingerprint in known:
                return signer
        raise EvidenceBindingError("the worker does not take this control plane's tickets")

    def _accepted(self) -> list[TicketIssuerEntry]:
        found = [entry for entry in self._entries if entry.status in ACCEPTED]
        return sorted(found, key=lambda entry: _ORDER.index(entry.status))


class IssuerAdmin:
    """Changes and lists ticket issuers.

    Args:
        administration: makes the changes.
        authorisation: asks policy about reads.
        database: the state.
        issuers: told of each change.
        ticket_s: longest life of a ticket, which a replaced issuer outlives.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        administration: Administration,
        authorisation: Authorisation,
        database: Database,
        issuers: Issuers,
        ticket_s: int = MAX_TICKET_LIFE_S,
        now_us: Callable[[], int],
    ) -> None:
        self._administration = administration
        self._authorisation = authorisation
        self._database = database
        self._issuers = issuers
        self._ticket_s = ticket_s
        self._now_us = now_us

    async def all(self, call: AdminCall) -> tuple[TicketIssuerEntry, ...]:
        """Return every issuer, the oldest first.

        Raises:
            PolicyDeniedError, PolicyEngineError: policy does not allow it.
        """
        question = Question(action="issuer.read", resource=AdminResource(type="issuer"), named=("issuer", "*"))
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(lambda tx: TicketIssuers(tx.connection).all())

    async def add(self, call: AdminCall) -> TicketIssuerEntry:
        """Make a further issuer, which workers take tickets of from now on, and return it.

        Raises:
            ConflictError: four are accepted already: retire one first.
            BulkheadError: as :meth:`Administration.change`.
        """

        def plan(tx: Transaction) -> Change:
            accepted = [entry for entry in TicketIssuers(tx.connection).all() if entry.status in ACCEPTED]
            if len(accepted) >= MAX_ACCEPTED:
                raise ConflictError(f"{MAX_ACCEPTED} ticket issuers are accepted already: retire one first")
            question = Question(action="issuer.add", resource=AdminResource(type="issuer"), named=("issuer", "*"))
            return Change(question, prepare)

        async def prepare() -> Step:
            made = TicketIssuerEntry(
                public_key=self._issuers.create().public_key, status=IssuerStatus.NEXT, created_us=self._now_us()
            )
            return Step(
                action=Action.ISSUER_ADDED,
                details={"fingerprint": made.fingerprint},
                result_id=made.issuer_id,
                write=lambda tx: TicketIssuers(tx.connection).add(made),
            )

        return await self._change(call, {"method": "AddTicketIssuer"}, plan)

    async def activate(self, call: AdminCall, issuer_id: str) -> TicketIssuerEntry:
        """Have an accepted issuer sign from now on, and return it; the one before stays accepted.

        Raises:
            NotFoundError: no such issuer.
            ConflictError: it is active, or retired.
            BulkheadError: as :meth:`Administration.change`.
        """

        def plan(tx: Transaction) -> Change:
            entry = _found(tx, issuer_id)
            check_issuer_step(entry, IssuerStatus.ACTIVE)
            return Change.of(_question("issuer.activate", entry), step(entry))

        def step(entry: TicketIssuerEntry) -> Step:
            return Step(
                action=Action.ISSUER_ACTIVATED,
                details={"fingerprint": entry.fingerprint},
                result_id=entry.issuer_id,
                write=write,
            )

        def write(tx: Transaction) -> None:
            issuers, now_us = TicketIssuers(tx.connection), self._now_us()
            for entry in issuers.all():
                if entry.status is IssuerStatus.ACTIVE:
                    issuers.put(replace(entry, status=IssuerStatus.PREVIOUS, replaced_us=now_us))
            issuers.put(replace(_found(tx, issuer_id), status=IssuerStatus.ACTIVE, activated_us=now_us))

        return await self._change(call, {"method": "ActivateTicketIssuer", "issuer": issuer_id}, plan)

    async def retire(self, call: AdminCall, issuer_id: str, *, at_once: bool) -> TicketIssuerEntry:
        """Have nobody take an issuer's tickets any more, and return it.

        Args:
            call: the administrator's call.
            issuer_id: of a replaced issuer, or of one that never signed.
            at_once: also while tickets that it signed have not expired: their sessions renew at their next request.

        Raises:
            NotFoundError: no such issuer.
            ConflictError: it signs, is retired, or was replaced too recently.
            BulkheadError: as :meth:`Administration.change`.
        """

        def plan(tx: Transaction) -> Change:
            entry = _found(tx, issuer_id)
            check_issuer_step(entry, IssuerStatus.RETIRED)
            rest_s = (entry.replaced_us - self._now_us()) / US_PER_S + self._ticket_s
            if entry.replaced_us and rest_s > 0 and not at_once:
                raise ConflictError(
                    f"tickets of this issuer may be valid for {rest_s:.0f} s more: wait, or say at once"
                )
            step = Step(
                action=Action.ISSUER_RETIRED,
                details={"fingerprint": entry.fingerprint, "at_once": at_once},
                result_id=entry.issuer_id,
                write=lambda tx: TicketIssuers(tx.connection).put(
                    replace(_found(tx, issuer_id), status=IssuerStatus.RETIRED, retired_us=self._now_us())
                ),
            )
            return Change.of(_question("issuer.retire", entry), step)

        content: JsonObject = {"method": "RetireTicketIssuer", "issuer": issuer_id, "at_once": at_once}
        return await self._change(call, content, plan)

    async def _change(
        self, call: AdminCall, content: JsonObject, plan: Callable[[Transaction], Change]
    ) -> TicketIssuerEntry:
        made = await self._administration.change(call, content=content, plan=plan, load=_found)
        self._issuers.take(await self._database.read(lambda tx: TicketIssuers(tx.connection).all()))
        return made.value


def _question(action: str, entry: TicketIssuerEntry) -> Question:
    resource = AdminResource(type="issuer", id=entry.issuer_id)
    return Question(action=action, resource=resource, named=("issuer", entry.issuer_id))


def _found(tx: Transaction, issuer_id: str) -> TicketIssuerEntry:
    entry = TicketIssuers(tx.connection).find(issuer_id)
    if entry is None:
        raise NotFoundError("no such ticket issuer")
    return entry
