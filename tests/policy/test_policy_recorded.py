"""Inputs that earlier builds recorded: replayed by their own bundle, and asked of today's in today's form."""

import json

import pytest

from audit.records import Decision, Reason, Subject, decision, tenant_cause
from bulkhead.errors import BundleError, RecordError
from bulkhead.transparency import LeafFields
from control_plane.authz.input import PolicyInput
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.recorded import INPUT_VERSION, input_version, present_form
from control_plane.authz.replay import replay
from control_plane.authz.sources import read_sources
from tests.simulator.audit_world import stamper
from tests.simulator.policies import DEVELOPER, POLICIES, SESSION, TENANT, open_session, supervised

STAMPS = stamper(start_us=1_767_225_600_000_000)


def first_version(**properties: object) -> dict:
    """Return a session's input as builds recorded it that knew no sealed models."""
    recorded = open_session(**properties).to_json()
    del recorded["resource"]["properties"]["key_custody"]
    return recorded


async def asked(document: dict) -> dict:
    """Return what the repository's policies say to a document."""
    async with supervised() as supervisor:
        reply = await supervisor.connection().query(open_session().entrypoint, document)
    return reply.result


async def test_an_input_of_before_sealed_models_is_decided_in_todays_form() -> None:
    """As it stands a field is missing, which is a denial; in today's form it is what the same request gets today."""
    old = first_version()
    assert [reason["code"] for reason in (await asked(old))["reasons"]] == ["KEY_CUSTODY"]
    assert await asked(present_form(old)) == await asked(open_session().to_json())
    assert (await asked(present_form(old)))["allow"]


async def test_what_was_denied_for_another_reason_stays_so() -> None:
    """The new form turns no answer: only what did not exist is added."""
    reasons = (await asked(present_form(first_version(region="mars"))))["reasons"]
    assert {reason["code"] for reason in reasons} == {"REGION_NOT_ALLOWED", "REGION_UNAVAILABLE"}


def test_versions_are_told_by_their_fields() -> None:
    """Old inputs come into the present form, present ones stay byte for byte, and the one given is not changed."""
    old = first_version()
    before = json.dumps(old)
    assert (input_version(old), input_version(present_form(old))) == (1, INPUT_VERSION)
    assert present_form(old) == open_session().to_json()
    assert json.dumps(old) == before
    today: PolicyInput = open_session(key_custody="tenant")
    assert present_form(today.to_json()) == today.to_json()


@pytest.mark.parametrize("document", [{}, {"resource": []}, {"resource": {"type": "session"}}], ids=str)
def test_what_is_no_input_is_refused(document: dict) -> None:
    """Something else under `data.input` is a typed error."""
    with pytest.raises(RecordError):
        present_form(document)


def decision_record(document: dict, verdict: Decision) -> LeafFields:
    """Return the record of a decision on an input."""
    return decision(
        STAMPS.stamp(), tenant=TENANT, subject=Subject(DEVELOPER, ("developer",)), session=SESSION, pair_id="pair-1",
        cause=tenant_cause(credential="cred_1", request_id="req_1"), model="tiny", tier="gpu", decision=verdict,
        reasons=[Reason("ANY", "session", "Any.")], bundle="ab" * 32, policy_input=document,
    ).fields  # fmt: skip


def test_recorded_decisions_are_asked_again() -> None:
    """What the policies decide as before does not differ, whatever version its input has; what they turn is named."""
    records = [
        decision_record(first_version(), Decision.ALLOW),
        decision_record(open_session().to_json(), Decision.ALLOW),
        decision_record(open_session(region="mars").to_json(), Decision.DENY),
        decision_record(first_version(), Decision.DENY),
        decision_record(open_session().to_json(), Decision.ERROR),
    ]
    asked = list(replay(records, read_sources(POLICIES), opa=find_opa()))
    assert [(item.version, item.recorded, item.now) for item in asked] == [
        (1, "allow", "allow"),
        (2, "allow", "allow"),
        (2, "deny", "deny"),
        (1, "deny", "allow"),
    ]
    assert [item.record_id for item in asked if item.differs] == [records[3].record_id]
    assert "REGION_NOT_ALLOWED" in asked[2].codes


def test_policies_that_do_not_answer_are_no_denial() -> None:
    """Sources without the decision, or with a broken one, are a typed error."""
    records = [decision_record(open_session().to_json(), Decision.ALLOW)]
    for rego in (b"package other\n\nx := 1\n", b"package bulkhead.session\n\ndecision := 7\n"):
        sources = {**read_sources(POLICIES), "session/session.rego": rego}
        sources = {path: data for path, data in sources.items() if not path.endswith("_test.rego")}
        with pytest.raises(BundleError):
            list(replay(records, sources, opa=find_opa()))
