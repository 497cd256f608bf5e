"""Records of everything around sessions: partitions, administration, refusals, reads, the platform and the log."""

from audit.records.envelope import (
    Action,
    Decision,
    PlatformReason,
    Reason,
    Record,
    Stamp,
    Subject,
    build_record,
    platform_cause,
)
from bulkhead.encoding import Json, JsonObject
from bulkhead.transparency.leaf import Cause

__all__ = [
    "access_denied",
    "administered",
    "agent_refused",
    "audit_exported",
    "audit_read",
    "authentication_failed",
    "log_opened",
    "log_round",
    "partition_step",
    "platform_event",
]


def partition_step(
    stamp: Stamp,
    *,
    action: Action,
    tenant: str | None,
    cause: Cause,
    partition: str,
    tier: str,
    session: str = "",
    pair_id: str = "",
    details: JsonObject | None = None,
) -> Record:
    """Record a step of a partition's life (``partition.*``).

    Args:
        stamp: fresh identity and time.
        action: one of ``Action.PARTITION_…``.
        tenant: the tenant that holds the partition, or None once it is free (platform's log).
        cause: the session's request, or the platform's.
        partition: partition id.
        tier: its tier.
        session: the session it was made for, if one.
        pair_id: that session's.
        details: e.g. agent id, device, placement score, ``simulated``, an error code.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    if not action.value.startswith("partition."):
        raise ValueError(f"{action.value} is not a step of a partition")  # the caller's defect, never input
    return build_record(
        stamp,
        action=action,
        tenant=tenant,
        cause=cause,
        resource=("partition", partition),
        data=details,
        tier=tier,
        session=session,
        partition=partition,
        pair_id=pair_id,
    )


def administered(
    stamp: Stamp,
    *,
    action: Action,
    tenant: str | None,
    subject: Subject | None,
    cause: Cause,
    resource: tuple[str, str],
    bundle: str = "",
    details: JsonObject | None = None,
) -> Record:
    """Record an administrative change.

    Actions: ``tenant.*``, ``principal.*``, ``credential.*``, ``model.*``, ``policy.*``, ``agent.*``.

    Args:
        stamp: fresh identity and time.
        action: what was done.
        tenant: whose log it belongs into; None for what concerns the platform.
        subject: who did it.
        cause: usually ``platform_cause(PlatformReason.ADMIN, credential=…, request_id=…)``.
        resource: (type, id), e.g. ``("credential", "cred_…")``.
        bundle: for ``policy.*``: hex SHA-256 of the bundle.
        details: what changed, without secrets: scopes, expiry, limits, digests.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=action,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=resource,
        data=details,
        bundle=bundle,
    )


def access_denied(
    stamp: Stamp,
    *,
    tenant: str | None,
    subject: Subject | None,
    cause: Cause,
    method: str,
    code: str,
    message: str,
    session: str = "",
) -> Record:
    """Record that a known caller was refused outside a policy decision (scope, another tenant's thing, revoked).

    Args:
        stamp: fresh identity and time.
        tenant: the caller's tenant, or None.
        subject: the caller.
        cause: the request.
        method: what was called.
        code: stable error code.
        message: the sentence that the caller got.
        session: the session that was named, if it is the caller's own.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.ACCESS_DENIED,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("method", method),
        decision=Decision.DENY,
        reasons=[Reason(code, "", message)],
        session=session,
    )


def agent_refused(stamp: Stamp, *, agent: str, code: str, message: str) -> Record:
    """Record that a node agent, known by its certificate, was refused: what it said of itself or reported is not so.

    Args:
        stamp: fresh identity and time.
        agent: agent id in its certificate.
        code: stable error code.
        message: what was refused, in words of this platform.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.ACCESS_DENIED,
        tenant=None,
        cause=platform_cause(PlatformReason.AGENT),
        resource=("agent", agent),
        decision=Decision.DENY,
        reasons=[Reason(code, "", message)],
    )


def authentication_failed(
    stamp: Stamp, *, method: str, code: str, tenant: str | None = None, credential: str = ""
) -> Record:
    """Record that a caller could not be authenticated; nothing of what it presented is recorded.

    Args:
        stamp: fresh identity and time.
        method: what was called.
        code: stable error code.
        tenant: known only where the credential exists but does not hold (expired, revoked).
        credential: its id, likewise.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.AUTHENTICATION_FAILED,
        tenant=tenant,
        cause=platform_cause(PlatformReason.AUTHENTICATION, credential=credential),
        resource=("method", method),
        decision=Decision.DENY,
        reasons=[Reason(code, "", "")],
    )


def audit_read(
    stamp: Stamp,
    *,
    tenant: str | None,
    subject: Subject,
    cause: Cause,
    method: str,
    query: JsonObject,
    returned: int,
    size: int,
) -> Record:
    """Record a read of the log: by whom, with which filter, how much it returned at which tree size.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.AUDIT_READ,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("method", method),
        data={"query": query, "returned": returned, "size": size},
    )


def audit_exported(
    stamp: Stamp, *, tenant: str | None, subject: Subject, cause: Cause, first: int, size: int
) -> Record:
    """Record an export of the records ``first`` up to ``size`` (exclusive) of a log.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.AUDIT_EXPORTED,
        tenant=tenant,
        cause=cause,
        subject=subject,
        data={"first": first, "size": size},
    )


def platform_event(
    stamp: Stamp, *, action: Action, reason: PlatformReason, details: JsonObject | None = None
) -> Record:
    """Record the platform's start, stop or configuration (digest, never the file).

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(stamp, action=action, tenant=None, cause=platform_cause(reason), data=details)


def log_opened(
    stamp: Stamp,
    *,
    tenant: str | None,
    origin: str,
    epoch: int,
    slot: int | None,
    predecessor: str | None = None,
    declared: JsonObject | None = None,
) -> Record:
    """Build leaf 0 of a log: its origin, epoch, slot in the platform's rounds, and its predecessor's last checkpoint.

    ``declared`` is the break after which the log begins (:mod:`audit.log.breaking`); the predecessor's checkpoint is
    unsigned then.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    data: dict[str, Json] = {"origin": origin, "epoch": epoch, "slot": slot, "predecessor": predecessor}
    if declared is not None:
        data["break"] = declared
    return build_record(
        stamp,
        action=Action.LOG_OPENED,
        tenant=tenant,
        cause=platform_cause(PlatformReason.STARTUP if tenant is None else PlatformReason.ADMIN),
        resource=("log", origin),
        data=data,
    )


def log_round(stamp: Stamp, *, round_number: int, slots: int, root: bytes) -> Record:
    """Build a round of the platform's log (:mod:`bulkhead.transparency.rounds`).

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.LOG_ROUND,
        tenant=None,
        cause=platform_cause(PlatformReason.ROUND),
        data={"round": round_number, "slots": slots, "root": root.hex()},
    )
