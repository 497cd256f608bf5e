"""Policy bundles: published by one person, activated by another, rolled back in one call.

Publishing checks, tests and builds the sources; the signed bundle is stored as a candidate and serves nothing.
Activating starts an engine for it, which must pass its self-test, before the state names it active; what fails on the
way leaves the bundle before in service. That the activating person is not the publishing one is demanded by policy and
once more here, so that no bundle can abolish it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from audit.records import Action
from bulkhead import ids
from bulkhead.encoding import JsonObject
from bulkhead.errors import BundleError, ConflictError, NotFoundError, PermissionDeniedError
from control_plane.authz.bundle import BundleInfo, VerifiedBundle
from control_plane.authz.input import BundleResource
from control_plane.domain.bundles import BundleStatus, PolicyBundle
from control_plane.services.administration import Administration, Change, Step
from control_plane.services.authorisation import AdminCall, Authorisation, Question
from control_plane.services.paging import page_size
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.policy import Bundles

__all__ = ["BundleBuilder", "PolicyAdmin", "PolicyQuery", "PolicyServer"]

MAX_SAID_CHARACTERS: Final = 1_024  # of a failed check, in the record


class PolicyServer(Protocol):
    """The engine that serves the active bundle; see :class:`control_plane.authz.supervisor.OpaSupervisor`."""

    @property
    def active(self) -> BundleInfo:
        """What the active bundle says of itself."""

    async def switch(self, data: bytes, *, rollback: bool = False) -> BundleInfo:
        """Serve another bundle, or raise and keep serving the one before."""


BundleBuilder = Callable[[Mapping[str, bytes], int, int], VerifiedBundle]
"""Checks, tests, builds and signs sources: (path -> content, number, time in microseconds). Blocks; raises
BundleError."""


class PolicyAdmin:
    """Publishes and activates bundles.

    Args:
        administration: makes the changes.
        database: the state; bundles' bytes are read from it.
        server: serves the active bundle.
        build: see :data:`BundleBuilder`.
        now_us: Unix time in microseconds.
    """

    def __init__(
        self,
        *,
        administration: Administration,
        database: Database,
        server: PolicyServer,
        build: BundleBuilder,
        now_us: Callable[[], int],
    ) -> None:
        self._administration = administration
        self._database = database
        self._server = server
        self._build = build
        self._now_us = now_us

    async def publish(self, call: AdminCall, files: Mapping[str, bytes]) -> PolicyBundle:
        """Check, test, build and sign the sources; store and return the candidate.

        Args:
            call: the administrator's call.
            files: path -> content, untrusted.

        Raises:
            BundleError: they do not pass; recorded as ``policy.refused``.
            BulkheadError: as :meth:`Administration.change`.
        """

        def plan(tx: Transaction) -> Change:
            bundle_id = ids.new_id(ids.BUNDLE)
            number = Bundles.of(tx).highest_number() + 1
            resource = BundleResource(active_number=self._server.active.number)
            question = Question(action="policy.publish", resource=resource, named=("bundle", bundle_id))

            async def prepare() -> Step:
                return await self._prepared(call, question, files, number)

            return Change(question, prepare)

        digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        content: JsonObject = {"method": "PublishBundle", "files": digests}
        return (await self._administration.change(call, content=content, plan=plan, load=_bundle)).value

    async def activate(self, call: AdminCall, bundle_id: str) -> PolicyBundle:
        """Serve a bundle that another person published, and return it.

        Raises:
            NotFoundError: no such bundle.
            ConflictError: it is active.
            PermissionDeniedError: the caller published it.
            PolicyEngineError: its engine did not come up; the bundle before stays.
            BulkheadError: as :meth:`Administration.change`.
        """
        ids.check_id(bundle_id, ids.BUNDLE)

        def plan(tx: Transaction) -> Change:
            bundle = _bundle(tx, bundle_id)
            if bundle.status is BundleStatus.ACTIVE:
                raise ConflictError("this bundle is active")
            return self._activation(call, bundle, action="policy.activate", recorded=Action.POLICY_ACTIVATED)

        content: JsonObject = {"method": "ActivateBundle", "bundle": bundle_id}
        return (await self._administration.change(call, content=content, plan=plan, load=_bundle)).value

    async def roll_back(self, call: AdminCall) -> PolicyBundle:
        """Serve the bundle that was active before the active one, and return it.

        Raises:
            ConflictError: there is none.
            PolicyEngineError: its engine did not come up; the active bundle stays.
            BulkheadError: as :meth:`Administration.change`.
        """

        def plan(tx: Transaction) -> Change:
            bundle = Bundles.of(tx).active_before()
            if bundle is None:
                raise ConflictError("no bundle was active before this one")
            return self._activation(call, bundle, action="policy.rollback", recorded=Action.POLICY_ROLLED_BACK)

        content: JsonObject = {"method": "RollbackBundle"}
        return (await self._administration.change(call, content=content, plan=plan, load=_bundle)).value

    async def _prepared(self, call: AdminCall, question: Question, files: Mapping[str, bytes], number: int) -> Step:
        now_us = self._now_us()
        try:
            built = await asyncio.to_thread(self._build, files, number, now_us)
        except TimeoutError as error:
            raise await self._refused(call, question, BundleError("checking the policies took too long")) from error
        except BundleError as error:
            raise await self._refused(call, question, error) from error
        bundle = PolicyBundle(
            bundle_id=question.named[1],
            digest=built.info.digest,
            number=number,
            status=BundleStatus.CANDIDATE,
            published_by=call.caller.subject_id,
            activated_by="",
            created_us=now_us,
            activated_us=0,
        )
        return Step(
            action=Action.POLICY_UPLOADED,
            details={"number": number, "files": len(built.info.files)},
            result_id=bundle.bundle_id,
            bundle=bundle.digest,
            write=lambda tx: Bundles.of(tx).insert(bundle, built.data),
        )

    async def _refused(self, call: AdminCall, question: Question, error: BundleError) -> BundleError:
        step = Step(
            action=Action.POLICY_REFUSED,
            details={"code": error.code, "message": error.message[:MAX_SAID_CHARACTERS]},
            result_id="",
            write=_write_nothing,
        )
        await self._administration.note(call, question, step, bundle="")
        return error

    def _activation(self, call: AdminCall, bundle: PolicyBundle, *, action: str, recorded: Action) -> Change:
        rollback = recorded is Action.POLICY_ROLLED_BACK
        question = Question(
            action=action,
            resource=BundleResource(
                id=bundle.bundle_id,
                digest=bundle.digest,
                number=bundle.number,
                published_by=bundle.published_by,
                was_active=bundle.activated_us > 0,
                active_number=self._server.active.number,
            ),
            named=("bundle", bundle.bundle_id),
        )

        async def prepare() -> Step:
            if not rollback and bundle.published_by == call.caller.subject_id:
                raise PermissionDeniedError("a bundle is activated by somebody other than its publisher")
            new, old = await self._database.read(lambda tx: (_content(tx, bundle.bundle_id), _active_content(tx)))

            async def switch() -> None:
                await self._server.switch(new, rollback=rollback)

            async def switch_back() -> None:
                if self._server.active.digest == bundle.digest:
                    await self._server.switch(old, rollback=True)

            return Step(
                action=recorded,
                details={"number": bundle.number},
                result_id=bundle.bundle_id,
                bundle=bundle.digest,
                write=lambda tx: Bundles.of(tx).activate(
                    bundle.bundle_id, subject_id=call.caller.subject_id, now_us=self._now_us()
                ),
                effect=switch,
                undo=switch_back,
            )

        return Change(question, prepare)


class PolicyQuery:
    """Reads bundles. Policy is asked about each read; refusals are recorded.

    Args:
        database: the state.
        authorisation: asks policy.
        server: knows the active bundle.
    """

    def __init__(self, *, database: Database, authorisation: Authorisation, server: PolicyServer) -> None:
        self._database = database
        self._authorisation = authorisation
        self._server = server

    async def bundles(self, call: AdminCall, *, after: str, limit: int) -> list[PolicyBundle]:
        """Return a page of bundles in order of publication, beginning behind ``after``."""
        limit = page_size(limit)
        resource = BundleResource(active_number=self._server.active.number)
        question = Question(action="policy.read", resource=resource, named=("bundle", "*"))
        await self._authorisation.authorise(call, question, record_allow=False)
        return await self._database.read(lambda tx: Bundles.of(tx).page(after=after, limit=limit))


def _write_nothing(_tx: Transaction) -> None:
    """Write nothing: a refusal changes nothing."""


def _bundle(tx: Transaction, bundle_id: str) -> PolicyBundle:
    found = Bundles.of(tx).find(bundle_id)
    if found is None:
        raise NotFoundError("no such bundle")
    return found


def _content(tx: Transaction, bundle_id: str) -> bytes:
    found = Bundles.of(tx).content(bundle_id)
    if found is None:
        raise NotFoundError("no such bundle")
    return found


def _active_content(tx: Transaction) -> bytes:
    active = Bundles.of(tx).active()
    if active is None:
        raise ConflictError("no bundle is active")
    return _content(tx, active.bundle_id)
