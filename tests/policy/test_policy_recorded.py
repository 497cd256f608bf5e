"""Inputs that earlier builds recorded: replayed by their own bundle, and asked of today's in today's form."""

import json

import pytest

from bulkhead.errors import RecordError
from control_plane.authz.input import PolicyInput
from control_plane.authz.recorded import INPUT_VERSION, input_version, present_form
from tests.simulator.policies import open_session, supervised


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
