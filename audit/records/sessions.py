"""Records of a session's life: decision, outcome, receipts, renewal, end.

``pair_id`` joins them: it is made with the decision and repeated by every later record of the session.
"""

from collections.abc import Sequence

from audit.records.envelope import Action, Decision, Reason, Record, Stamp, Subject, build_record
from audit.records.reasons import shortened
from bulkhead.encoding import Json, JsonObject
from bulkhead.transparency.leaf import Cause

__all__ = ["decision", "outcome", "receipts", "session_closed", "session_renewed"]


def decision(
    stamp: Stamp,
    *,
    tenant: str,
    subject: Subject,
    cause: Cause,
    session: str,
    pair_id: str,
    model: str,
    tier: str,
    decision: Decision,
    reasons: Sequence[Reason],
    bundle: str,
    policy_input: JsonObject,
    obligations: Sequence[JsonObject] = (),
    on: str = "session.open",
) -> Record:
    """Record a policy decision, before anything is done about it.

    Args:
        stamp: fresh identity and time.
        tenant: tenant id.
        subject: who asked.
        cause: :func:`~audit.records.tenant_cause` of the request.
        session: the session's id, made before the decision.
        pair_id: fresh id that the outcome will repeat.
        model: the model's name; the SDK compares it.
        tier: the tier that placement must meet at least, obligations included; the SDK compares it.
        decision: allow, deny or error.
        reasons: codes with sentences; bounded as :func:`~audit.records.build_record` says.
        bundle: hex SHA-256 of the bundle that decided (of the reply, not of the configuration); empty for ``error``.
        policy_input: the engine's input in full, the tenant's facts included, so that the decision can be replayed.
        obligations: as decided.
        on: the policy's action.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    data: dict[str, Json] = {"input": policy_input, "obligations": list(obligations), "on": on}
    return build_record(
        stamp,
        action=Action.DECISION,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("model", model),
        decision=decision,
        reasons=reasons,
        data=data,
        model=model,
        tier=tier,
        session=session,
        pair_id=pair_id,
        bundle=bundle,
    )


def outcome(
    stamp: Stamp,
    *,
    tenant: str,
    subject: Subject | None,
    cause: Cause,
    session: str,
    pair_id: str,
    result: str,
    model: str,
    tier: str = "",
    partition: str = "",
    evidence: str = "",
    evidence_kind: str = "",
    code: str = "",
    message: str = "",
    details: JsonObject | None = None,
) -> Record:
    """Record what became of an allowed decision.

    Args:
        stamp: fresh identity and time.
        tenant: tenant id.
        subject: who asked; None when the reconciler closes the pair.
        cause: the request's, or the platform's (reconciler).
        session: session id.
        pair_id: the decision's.
        result: ``ready``, ``failed`` or ``unknown``.
        model: the model's name.
        tier: the tier that was appraised.
        partition: where it runs.
        evidence: hex SHA-256 of the evidence that was appraised.
        evidence_kind: ``hardware``, ``operator`` or ``simulated``.
        code: stable error code, if it failed.
        message: one sentence, if it failed; cut, with a mark, where it is long.
        details: further facts, e.g. keyset and model digests, the agent's id.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    data: dict[str, Json] = {"result": result, **(details or {})}
    data.update(_present(evidence_kind=evidence_kind, code=code, message=shortened(message)))
    return build_record(
        stamp,
        action=Action.OUTCOME,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("model", model),
        data=data,
        model=model,
        tier=tier,
        session=session,
        partition=partition,
        pair_id=pair_id,
        evidence=evidence,
    )


def receipts(
    stamp: Stamp,
    *,
    tenant: str,
    cause: Cause,
    session: str,
    pair_id: str,
    partition: str,
    model: str,
    tier: str,
    root: bytes,
    first: int,
    count: int,
    prompt_tokens: int,
    completion_tokens: int,
    final: bool,
) -> Record:
    """Record a batch of usage receipts of one session.

    Args:
        stamp: fresh identity and time.
        tenant: tenant id.
        cause: the platform's (spool).
        session: session id.
        pair_id: the decision's.
        partition: where they were made.
        model: the model's name.
        tier: the session's tier.
        root: :func:`bulkhead.transparency.receipts_root` over the receipt digests, 32 bytes.
        first: number of the batch's first receipt in the session on that partition.
        count: receipts in the batch, numbered without a gap.
        prompt_tokens: total of the batch.
        completion_tokens: total of the batch.
        final: whether the session has ended with it.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.RECEIPTS,
        tenant=tenant,
        cause=cause,
        resource=("session", session),
        data={
            "root": root.hex(),
            "first": first,
            "count": count,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "final": final,
        },
        model=model,
        tier=tier,
        session=session,
        partition=partition,
        pair_id=pair_id,
    )


def session_renewed(
    stamp: Stamp,
    *,
    tenant: str,
    subject: Subject,
    cause: Cause,
    session: str,
    pair_id: str,
    partition: str,
    tier: str,
    evidence: str,
    details: JsonObject | None = None,
) -> Record:
    """Record that a session's ticket was renewed after fresh evidence.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.SESSION_RENEWED,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("session", session),
        data=details,
        tier=tier,
        session=session,
        partition=partition,
        pair_id=pair_id,
        evidence=evidence,
    )


def session_closed(
    stamp: Stamp,
    *,
    tenant: str,
    subject: Subject | None,
    cause: Cause,
    session: str,
    pair_id: str,
    partition: str,
    code: str = "",
) -> Record:
    """Record a session's end; ``code`` says why where nobody asked for it.

    Raises:
        InvalidRequestError: see :func:`~audit.records.build_record`.
    """
    return build_record(
        stamp,
        action=Action.SESSION_CLOSED,
        tenant=tenant,
        cause=cause,
        subject=subject,
        resource=("session", session),
        data=_present(code=code),
        session=session,
        partition=partition,
        pair_id=pair_id,
    )


def _present(**texts: str) -> dict[str, str]:
    return {name: value for name, value in texts.items() if value}
