"""Statements of the path that every open takes, built once: building one costs more than SQLite takes to run it."""

from typing import Any, Final

from sqlalchemy import Select, bindparam, func, insert, select, update

from control_plane.domain.sessions import HOLDING, SessionState
from control_plane.storage.schema import models, partitions, policy_bundles, sessions, tenants

__all__ = ["ACTIVATE", "ACTIVATION", "BY_ID", "BY_REQUEST", "INSERT", "MODEL", "SETTLE", "SNAPSHOT"]

_BUNDLE: Final = select(policy_bundles.c.digest).where(policy_bundles.c.status == "active").limit(1).scalar_subquery()
_HELD: Final = (
    select(func.count())
    .where(
        sessions.c.tenant_id == bindparam("tenant_id"),
        sessions.c.state.in_([state.value for state in HOLDING]),
        sessions.c.session_id != bindparam("without"),
    )
    .scalar_subquery()
)

BY_ID: Final[Select[Any]] = select(sessions).where(sessions.c.session_id == bindparam("session_id"))
"""A session; parameter ``session_id``."""

BY_REQUEST: Final[Select[Any]] = select(sessions).where(
    sessions.c.tenant_id == bindparam("tenant_id"), sessions.c.request_id == bindparam("request_id")
)
"""The session of a request id; parameters ``tenant_id``, ``request_id``."""

MODEL: Final[Select[Any]] = select(models).where(models.c.name == bindparam("name"))
"""A model; parameter ``name``."""

SNAPSHOT: Final[Select[Any]] = select(tenants, _HELD.label("held"), _BUNDLE.label("bundle")).where(
    tenants.c.tenant_id == bindparam("tenant_id")
)
"""A tenant, its slots in use but for ``without``, the active bundle; parameters ``tenant_id``, ``without``."""

INSERT: Final = insert(sessions)
"""A new session; every column is a parameter."""

ACTIVATION: Final[Select[Any]] = (
    select(
        sessions,
        tenants.c.revision.label("current_revision"),
        select(partitions.c.fence)
        .where(partitions.c.partition_id == bindparam("partition_id"))
        .scalar_subquery()
        .label("current_fence"),
        _BUNDLE.label("current_bundle"),
    )
    .join(tenants, tenants.c.tenant_id == sessions.c.tenant_id)
    .where(sessions.c.session_id == bindparam("session_id"))
)
"""A session and what its decision was made on, as it is now; parameters ``session_id``, ``partition_id``."""

_ACTIVATED: Final = (
    "partition_id",
    "tier",
    "tier_floor",
    "simulated",
    "obligations",
    "policy_digest",
    "decision_record_id",
    "tenant_revision",
    "expires_us",
)
ACTIVATE: Final = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("key"))
    .values(
        {sessions.c[name]: bindparam(f"new_{name}", type_=sessions.c[name].type) for name in _ACTIVATED}
        | {sessions.c.state: SessionState.OPEN.value, sessions.c.reason: ""}
    )
)
"""Makes a session open; parameters ``key`` and ``new_`` with each name of what an activation writes."""

SETTLE: Final = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("key"))
    .values(
        {
            sessions.c.state: bindparam("new_state"),
            sessions.c.reason: bindparam("new_reason"),
            sessions.c.closed_us: bindparam("new_closed_us"),
        }
    )
)
"""Ends a session; parameters ``key``, ``new_state``, ``new_reason``, ``new_closed_us``."""
