import json

import pytest

from audit import records
from bulkhead.encoding import canonical_json
from bulkhead.errors import InvalidRequestError
from bulkhead.transparency.leaf import MAX_LEAF_BYTES, parse_leaf
from tests.simulator.audit_world import DIGEST, TENANT, decision, stamper

STAMPS = stamper(start_us=1_700_000_000_000_000)
SUBJECT = records.Subject("subj_1", ("officer",))
CAUSE = records.tenant_cause(credential="cred_1", request_id="req_1")
ADMIN = records.platform_cause(records.PlatformReason.ADMIN, credential="cred_2", request_id="req_2")


def every_kind() -> list[records.Record]:
    """Return one record of each builder, with every field set."""
    session = {"session": "sess_1", "pair_id": "pair_1"}
    return [
        decision(stamps=STAMPS),
        records.outcome(
            STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, result="ready", model="tiny", tier="gpu",
            partition="part_1", evidence=DIGEST, evidence_kind="simulated", details={"agent": "agent_1"}, **session,
        ),
        records.outcome(
            STAMPS.stamp(), tenant=TENANT, subject=None, cause=CAUSE, result="failed", model="tiny", code="NO_CAPACITY",
            message="nothing is free", **session,
        ),
        records.receipts(
            STAMPS.stamp(), tenant=TENANT, cause=records.platform_cause(records.PlatformReason.SPOOL), model="tiny",
            tier="gpu", partition="part_1", root=bytes(32), first=1, count=3, prompt_tokens=10, completion_tokens=20,
            final=True, **session,
        ),
        records.session_renewed(
            STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, partition="part_1", tier="gpu",
            evidence=DIGEST, **session,
        ),
        records.session_closed(
            STAMPS.stamp(), tenant=TENANT, subject=None, cause=CAUSE, partition="part_1",
            code="TICKET_EXPIRED", **session,
        ),
        records.partition_step(
            STAMPS.stamp(), action=records.Action.PARTITION_READY, tenant=TENANT, cause=CAUSE, partition="part_1",
            tier="gpu", details={"simulated": True}, **session,
        ),
        records.administered(
            STAMPS.stamp(), action=records.Action.CREDENTIAL_REVOKED, tenant=TENANT, subject=SUBJECT, cause=ADMIN,
            resource=("credential", "cred_3"), details={"scopes": ["chat"]},
        ),
        records.administered(
            STAMPS.stamp(), action=records.Action.POLICY_ACTIVATED, tenant=None, subject=SUBJECT, cause=ADMIN,
            resource=("bundle", "bndl_1"), bundle=DIGEST,
        ),
        records.access_denied(
            STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, method="/x", code="SCOPE_MISSING", message="no"
        ),
        records.authentication_failed(STAMPS.stamp(), method="/x", code="CREDENTIAL_INVALID"),
        records.audit_read(
            STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, method="/x", query={"action": "decision"},
            returned=3, size=10,
        ),
        records.audit_exported(STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, first=0, size=10),
        records.platform_event(
            STAMPS.stamp(), action=records.Action.PLATFORM_STOP, reason=records.PlatformReason.SHUTDOWN
        ),
        records.log_opened(STAMPS.stamp(), tenant=TENANT, origin="audit.test/t/a/1", epoch=1, slot=3),
        records.log_round(STAMPS.stamp(), round_number=9, slots=2, root=bytes(32)),
    ]  # fmt: skip


def tenant_updated(stamp: records.Stamp, details: dict) -> records.Record:
    return records.administered(
        stamp, action=records.Action.TENANT_UPDATED, tenant=TENANT, subject=SUBJECT, cause=ADMIN,
        resource=("tenant", TENANT), details=details,
    )  # fmt: skip


@pytest.mark.parametrize("record", every_kind(), ids=lambda record: record.fields.action)
def test_every_record_is_its_own_canonical_leaf(record):
    """What a builder writes is RFC 8785, parses strictly, and says what the builder says."""
    assert canonical_json(json.loads(record.leaf)) == record.leaf
    assert parse_leaf(record.leaf) == record.fields


def test_ids_are_fresh_and_times_are_the_clocks():
    """Two records of the same thing differ in id; the wall clock is recorded as it is."""
    first, second = decision(stamps=STAMPS), decision(stamps=STAMPS)
    assert first.record_id != second.record_id
    assert second.fields.ts_us - first.fields.ts_us == 1_000_000


@pytest.mark.parametrize("name", ["email", "E-Mail", "prompt", "token", "ip_address", "api_key", "messages"])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"a": [v]}, lambda v: {"a": {"b": [[v]]}}], ids=range(3))
def test_content_secrets_and_names_are_refused(name, wrap):
    """A member that would carry content, a secret or a person's name is refused at any depth."""
    stamp = STAMPS.stamp()
    with pytest.raises(InvalidRequestError) as caught:
        tenant_updated(stamp, wrap({name: "x"}))
    assert caught.value.details["record"] == stamp.record_id


@pytest.mark.parametrize(
    "details",
    [
        {"x": "y" * MAX_LEAF_BYTES},
        {"x": 2**53},
        {"x": float("nan")},
        {"x": "\ud800"},
        {"x": object()},
        {1: "x"},
    ],
    ids=["16 KiB", "2^53", "nan", "surrogate", "object", "number as name"],
)
def test_what_cannot_be_recorded_names_the_record(details):
    """A record that is too large or not representable is a typed error with the record's id."""
    stamp = STAMPS.stamp()
    with pytest.raises(InvalidRequestError) as caught:
        tenant_updated(stamp, details)
    assert caught.value.details["record"] == stamp.record_id


def test_endless_nesting_is_refused():
    """Input that is nested without end is a typed error."""
    details: dict = {}
    for _ in range(5_000):
        details = {"x": details}
    with pytest.raises(InvalidRequestError):
        tenant_updated(STAMPS.stamp(), details)


def test_a_full_leaf_fits():
    """A record of exactly 16 KiB is written; one byte more is not."""

    def size(padding: int) -> int:
        return len(decision(padding="x" * padding).leaf)

    room = MAX_LEAF_BYTES - size(0)
    assert size(room) == MAX_LEAF_BYTES
    with pytest.raises(InvalidRequestError):
        size(room + 1)


def denied(reasons: list[records.Reason]) -> list[tuple[str, str, str]]:
    record = records.build_record(
        STAMPS.stamp(), action=records.Action.DECISION, tenant=TENANT, cause=CAUSE,
        decision=records.Decision.DENY, reasons=reasons,
    )  # fmt: skip
    assert parse_leaf(record.leaf) == record.fields
    return [(item["code"], item["policy"], item["message"]) for item in record.fields.reasons]


def test_reasons_are_recorded_whole_up_to_the_edge():
    """A list of exactly 2 KiB stands as it is; with one byte more its messages are cut, and each that was says so."""
    reasons = [records.Reason("A", "p", "é" * 100), records.Reason("B", "p", "x" * 100)]
    reasons += [records.Reason(f"C{number}", "p", "y" * 360) for number in range(4)]
    room = 2_048 - len(canonical_json([item.to_json() for item in reasons]))
    edge = [*reasons[:-1], records.Reason("C3", "p", "y" * (360 + room))]
    assert 0 <= room < 152
    assert denied(edge) == [(item.code, item.policy, item.message) for item in edge]
    cut = denied([*reasons[:-1], records.Reason("C3", "p", "y" * (361 + room))])
    assert cut[:2] == [("A", "p", "é" * 100), ("B", "p", "x" * 100)]
    assert cut[2:] == [(f"C{number}", "p", "y" * 256 + "… [cut]") for number in range(4)]


def test_more_reasons_than_a_record_holds_are_counted():
    """Many long reasons: the first stand, with short messages, and the last says how many were left out."""
    found = denied([records.Reason(f"C{number}", "p" * 200, '"' * 512) for number in range(64)])
    assert [code for code, _, _ in found[:-1]] == [f"C{number}" for number in range(len(found) - 1)]
    left_out = 64 - (len(found) - 1)
    assert found[-1] == (
        "REASONS_CUT", "", f"{left_out} further reasons are left out: a record has no room for them."
    )  # fmt: skip
    assert len(found) > 5
    assert denied([records.Reason("C", "", "")] * 65)[-1][0] == "REASONS_CUT"


def test_a_long_error_does_not_keep_an_outcome_from_the_log():
    """The message of a failed open is cut, and says so."""
    record = records.outcome(
        STAMPS.stamp(), tenant=TENANT, subject=SUBJECT, cause=CAUSE, session="sess_1", pair_id="pair_1",
        result="failed", model="tiny", code="WORKER_FAILED", message="w" * MAX_LEAF_BYTES,
    )  # fmt: skip
    assert record.fields.data["message"] == "w" * 512 + "… [cut]"
