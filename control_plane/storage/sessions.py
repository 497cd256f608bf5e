"""Sessions in SQL: the atomic reservation with its facts, the activation that re-checks them, lists and sweeps."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, select, update

from bulkhead.errors import AlreadyExistsError, NotFoundError, SessionClosedError, UnknownModelError
from control_plane.domain.sessions import HOLDING, TRANSITIONS, OpenRequest, Session, SessionState, check_step
from control_plane.domain.tiers import Tier, tier_from_label
from control_plane.storage.schema import credentials, sessions, tenants
from control_plane.storage.session_statements import (
    ACTIVATE,
    ACTIVATION,
    BY_ID,
    BY_REQUEST,
    INSERT,
    MODEL,
    SETTLE,
    SNAPSHOT,
)

__all__ = ["Activation", "Admission", "Found", "ModelFacts", "Sessions", "TenantSnapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an open needs of a registered model."""

    name: str
    digest: bytes
    path: str
    status: str
    context_length: int
    memory_mib: int
    custody: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """A tenant's row, its open sessions and the active policy bundle, from one transaction.

    ``sessions_open`` counts without the session that the snapshot was taken for.
    """

    tenant_id: str
    status: str
    regions: tuple[str, ...]
    packs: tuple[str, ...]
    models: tuple[str, ...]
    minimum_tier: Tier
    session_limit: int
    sessions_open: int
    max_output_tokens: int
    revision: int
    active_bundle: str
    tenant_root: bytes


class Found(Enum):
    """What a request id was found to be."""

    NEW = "new"
    AGAIN = "again"  # denied or lost before: tried again under the same session id
    OPEN = "open"  # open already: fresh evidence for the same session
    RUNNING = "running"  # another call is opening it


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The outcome of a reservation: facts of one snapshot, and whether a slot is held for the session.

    ``reserved`` is false where the tenant's limit is reached; the session then has no row (or keeps its old one), and
    policy is asked all the same, since it is policy that denies. ``before`` is the state that an abandoned attempt
    returns to; None deletes the row.
    """

    found: Found
    session: Session
    facts: TenantSnapshot
    model: ModelFacts
    reserved: bool
    before: SessionState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What a decided, placed and appraised session becomes."""

    session_id: str
    pair_id: str
    partition_id: str
    partition_fence: int
    tier: Tier
    tier_floor: Tier
    simulated: bool
    obligations: tuple[str, ...]
    policy_digest: str
    decision_record_id: str
    tenant_revision: int
    active_bundle: str
    expires_us: int


class Sessions:
    """Repository of sessions on one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, session_id: str, *, tenant_id: str = "") -> Session:
        """Return the session; with ``tenant_id``, only that tenant's.

        Raises:
            NotFoundError: there is none, or it is another tenant's: a caller cannot tell which.
        """
        row = self._connection.execute(BY_ID, {"session_id": session_id}).mappings().first()
        if row is None or (tenant_id and row["tenant_id"] != tenant_id):
            raise NotFoundError("no such session")
        return _session(row)

    def admit(self, request: OpenRequest, fresh: Session) -> Admission:
        """Take a slot for a request, or find what its request id already stands for; read the facts with it.

        Args:
            request: in bounds.
            fresh: the row to insert for a new request id: ``opening``, with its identifiers made; model digest and
                tenant revision are filled in here.

        Raises:
            AlreadyExistsError: the request id was used for another request.
            SessionClosedError: the request id's session is closed.
            UnknownModelError: no model is registered under that name.
            NotFoundError: the tenant does not exist.
        """
        known = self._by_request(fresh.tenant_id, fresh.request_id)
        if known is not None and known.request_sha256 != fresh.request_sha256:
            raise AlreadyExistsError("the request id was used for another request: make a new one")
        if known is not None and known.state is SessionState.CLOSED:
            raise SessionClosedError("the session of this request id is closed: open a new one")
        model = self.model(request.model)
        facts = self.snapshot(fresh.tenant_id, without=known.session_id if known else "")
        if known is not None and known.state in HOLDING:
            found = Found.OPEN if known.state is SessionState.OPEN else Found.RUNNING
            return Admission(found=found, session=known, facts=facts, model=model, reserved=False, before=known.state)
        reserved = facts.sessions_open < facts.session_limit
        if known is None:
            session = replace(fresh, model_digest=model.digest, tenant_revision=facts.revision)
            if reserved:
                self._connection.execute(INSERT, _columns(session))
            return Admission(found=Found.NEW, session=session, facts=facts, model=model, reserved=reserved, before=None)
        check_step(known.state, SessionState.OPENING)
        session = replace(
            known,
            state=SessionState.OPENING,
            model_digest=model.digest,
            tenant_revision=facts.revision,
            pair_id=fresh.pair_id,
            credential_id=fresh.credential_id,
            principal_id=fresh.principal_id,
            subject_id=fresh.subject_id,
            partition_id="",
        )
        if reserved:
            self._store(session)
        return Admission(
            found=Found.AGAIN, session=session, facts=facts, model=model, reserved=reserved, before=known.state
        )

    def model(self, name: str) -> ModelFacts:
        """Return a registered model, retired ones included (policy judges).

        Raises:
            UnknownModelError: there is none of that name.
        """
        row = self._connection.execute(MODEL, {"name": name}).mappings().first()
        if row is None:
            raise UnknownModelError("no model of that name is registered")
        return ModelFacts(**{name: row[name] for name in ModelFacts.__slots__})

    def snapshot(self, tenant_id: str, *, without: str = "") -> TenantSnapshot:
        """Return the tenant's facts as of this transaction, not counting the session ``without``.

        Raises:
            NotFoundError: no such tenant.
        """
        parameters = {"tenant_id": tenant_id, "without": without}
        row = self._connection.execute(SNAPSHOT, parameters).mappings().first()
        if row is None:
            raise NotFoundError("no such tenant")
        return TenantSnapshot(
            tenant_id=tenant_id,
            status=row["status"],
            regions=tuple(row["regions"]),
            packs=tuple(row["packs"]),
            models=tuple(row["models"]),
            minimum_tier=tier_from_label(row["minimum_tier"]),
            session_limit=row["session_limit"],
            sessions_open=row["held"],
            max_output_tokens=row["max_output_tokens"],
            revision=row["revision"],
            active_bundle=row["bundle"] or "",
            tenant_root=row["tenant_root"] or b"",
        )

    def activate(self, change: Activation, *, expected: SessionState) -> Session | None:
        """Make the session ``open``, or renew it; return None if what was decided on has changed meanwhile.

        What must be unchanged: the session's state and pair, the tenant's revision, the active bundle, and the
        partition's fence. Nothing is written otherwise.

        Raises:
            NotFoundError: the session is gone (its open was abandoned).
        """
        parameters = {"session_id": change.session_id, "partition_id": change.partition_id}
        row = self._connection.execute(ACTIVATION, parameters).mappings().first()
        if row is None:
            raise NotFoundError("the session was ended while it was being opened")
        session = _session(row)
        unchanged = (
            session.state is expected
            and session.pair_id == change.pair_id
            and row["current_revision"] == change.tenant_revision
            and row["current_fence"] == change.partition_fence
            and (row["current_bundle"] or "") == change.active_bundle
        )
        if not unchanged:
            return None
        after = replace(
            session,
            state=SessionState.OPEN,
            partition_id=change.partition_id,
            tier=change.tier,
            tier_floor=change.tier_floor,
            simulated=change.simulated,
            obligations=change.obligations,
            policy_digest=change.policy_digest,
            decision_record_id=change.decision_record_id,
            tenant_revision=change.tenant_revision,
            expires_us=max(session.expires_us, change.expires_us),
            reason="",
        )
        columns = {f"new_{name}": value for name, value in _columns(after).items()}
        self._connection.execute(ACTIVATE, {"key": change.session_id} | columns)
        return after

    def for_renewal(self, session_id: str, *, tenant_id: str) -> Admission:
        """Return a session with the facts that its renewal is decided on; ``reserved``, since it holds its slot.

        Raises:
            NotFoundError: the tenant has no such session.
            UnknownModelError: its model is gone.
        """
        session = self.get(session_id, tenant_id=tenant_id)
        return Admission(
            found=Found.OPEN,
            session=session,
            facts=self.snapshot(tenant_id, without=session_id),
            model=self.model(session.model),
            reserved=True,
            before=session.state,
        )

    def settle(self, session_id: str, state: SessionState, *, reason: str, now_us: int) -> Session | None:
        """End a session as ``closed``, ``lost`` or ``denied``; None if it is in a state that has no such step."""
        row = self._connection.execute(BY_ID, {"session_id": session_id}).mappings().first()
        if row is None:
            return None
        session = _session(row)
        if state not in TRANSITIONS[session.state]:
            return None
        values = {"new_state": state.value, "new_reason": reason, "new_closed_us": now_us}
        self._connection.execute(SETTLE, {"key": session_id} | values)
        return replace(session, state=state, reason=reason)

    def abandon(self, session_id: str, pair_id: str, *, before: SessionState | None) -> None:
        """Give back what one attempt at an open took, however far it came; other attempts are left alone."""
        mine = (
            sessions.c.session_id == session_id,
            sessions.c.pair_id == pair_id,
            sessions.c.state.in_([state.value for state in HOLDING]),
        )
        if before is None:
            self._connection.execute(delete(sessions).where(*mine))
        else:
            self._connection.execute(update(sessions).where(*mine).values(state=before.value))

    def in_state(
        self, state: SessionState, *, partition_id: str = "", credential_id: str = "", tenant_id: str = ""
    ) -> tuple[Session, ...]:
        """Return the sessions in a state, narrowed by whatever is not empty."""
        query = select(sessions).where(sessions.c.state == state.value)
        for column, value in (
            (sessions.c.partition_id, partition_id),
            (sessions.c.credential_id, credential_id),
            (sessions.c.tenant_id, tenant_id),
        ):
            if value:
                query = query.where(column == value)
        return self._all(query)

    def expired(self, before_us: int, *, limit: int) -> tuple[Session, ...]:
        """Return open sessions whose last ticket ended before ``before_us``."""
        return self._all(
            select(sessions)
            .where(sessions.c.state == SessionState.OPEN.value, sessions.c.expires_us < before_us)
            .limit(limit)
        )

    def ended_with_tickets(self, now_us: int) -> tuple[Session, ...]:
        """Return sessions that may not be served any more although a ticket of theirs has not expired."""
        ended = [SessionState.CLOSED.value, SessionState.LOST.value]
        return self._all(select(sessions).where(sessions.c.state.in_(ended), sessions.c.expires_us > now_us))

    def ended_by_others(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (credentials, tenants) that have open sessions although revoked, or no longer active."""
        live = sessions.c.state.in_([state.value for state in HOLDING])
        revoked = select(sessions.c.credential_id).join(
            credentials, credentials.c.credential_id == sessions.c.credential_id
        )
        inactive = select(sessions.c.tenant_id).join(tenants, tenants.c.tenant_id == sessions.c.tenant_id)
        found = (
            self._connection.execute(revoked.where(live, credentials.c.revoked_us.is_not(None)).distinct()),
            self._connection.execute(inactive.where(live, tenants.c.status != "active").distinct()),
        )
        return tuple(row[0] for row in found[0]), tuple(row[0] for row in found[1])

    def page(self, *, tenant_id: str, open_only: bool, after: str, limit: int) -> tuple[Session, ...]:
        """Return a tenant's sessions by descending id (newest first) before the id ``after``."""
        query = select(sessions).where(sessions.c.tenant_id == tenant_id)
        if open_only:
            query = query.where(sessions.c.state == SessionState.OPEN.value)
        if after:
            query = query.where(sessions.c.session_id < after)
        return self._all(query.order_by(sessions.c.session_id.desc()).limit(limit))

    def _by_request(self, tenant_id: str, request_id: str) -> Session | None:
        parameters = {"tenant_id": tenant_id, "request_id": request_id}
        row = self._connection.execute(BY_REQUEST, parameters).mappings().first()
        return None if row is None else _session(row)

    def _all(self, query: Select[Any]) -> tuple[Session, ...]:
        return tuple(_session(row) for row in self._connection.execute(query).mappings())

    def _store(self, session: Session) -> None:
        self._connection.execute(
            update(sessions).where(sessions.c.session_id == session.session_id).values(_columns(session))
        )


_TIERS = ("minimum_tier", "tier", "tier_floor")


def _columns(session: Session) -> dict[str, Any]:
    values = {name: getattr(session, name) for name in Session.__slots__}
    for name in _TIERS:
        values[name] = "" if values[name] is None else values[name].label
    values["state"] = session.state.value
    values["partition_id"] = session.partition_id or None
    values["data_classes"] = list(session.data_classes)
    values["obligations"] = list(session.obligations)
    return values


def _session(row: RowMapping) -> Session:
    values = {name: row[name] for name in Session.__slots__}
    for name in _TIERS:
        values[name] = tier_from_label(values[name]) if values[name] else None
    values["state"] = SessionState(row["state"])
    values["partition_id"] = row["partition_id"] or ""
    values["data_classes"] = tuple(row["data_classes"])
    values["obligations"] = tuple(row["obligations"])
    return Session(**values)
