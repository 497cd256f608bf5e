import dataclasses

import pytest

from audit import records
from bulkhead.encoding import canonical_json
from bulkhead.errors import InvalidRequestError
from bulkhead.transparency.leaf import MAX_LEAF_BYTES
from control_plane.authz.decision import Exclusive, KeyCustody, MaxTokens, MinTier, Padding, Region, Retention
from control_plane.authz.input import (
    ACTIONS,
    MAX_INPUT_BYTES,
    MAX_REGIONS,
    AdminResource,
    BundleResource,
    LogResource,
    PlatformFacts,
)
from control_plane.authz.resources import MAX_DATA_CLASSES
from control_plane.domain.tenancy import MAX_FACTS_BYTES
from control_plane.domain.tiers import Tier
from tests.simulator import policies
from tests.simulator.audit_world import stamper

PERSONAL = ("Ada Lovelace", "ada@example.org", "10.0.0.1", "2001:db8::1", "+44 20 7946 0958", "host.example.org")


def test_equal_inputs_have_equal_bytes():
    """The encoding is canonical: order and repetition in sets do not change it."""
    one = policies.open_session(data_classes=("personal", "public"), facts={"regions": ("us-east", "eu-central")})
    two = policies.open_session(
        data_classes=("public", "personal", "public"), facts={"regions": ("eu-central", "us-east")}
    )
    assert one.to_bytes() == two.to_bytes()
    assert one.digest() == two.digest()
    assert one.to_bytes() == canonical_json(one.to_json())


def test_every_difference_changes_the_digest():
    """No field of the input is left out of its bytes."""
    base = policies.open_session()
    other = [
        policies.open_session(purpose="treatment"),
        policies.open_session(max_output_tokens=1),
        policies.open_session(facts={"revision": 2}),
        policies.open_session(facts={"sessions_open": 1}),
        dataclasses.replace(base, action="session.renew"),
        dataclasses.replace(base, context=dataclasses.replace(base.context, time_us=1)),
        dataclasses.replace(base, subject=dataclasses.replace(base.subject, credential="certificate")),
    ]
    assert len({each.digest() for each in (base, *other)}) == 1 + len(other)


def test_time_is_rfc_3339_in_utc():
    """Microseconds are written with six decimals, also when they are zero."""
    context = dataclasses.replace(policies.open_session().context, time_us=1_700_000_000_000_007)
    assert context.to_json()["time"] == "2023-11-14T22:13:20.000007Z"
    assert dataclasses.replace(context, time_us=0).to_json()["time"] == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_text_fits_no_field(text):
    """A name, an e-mail address, a telephone number or a network address is refused wherever it is put."""
    subject = policies.open_session().subject
    for wrong in (
        lambda: dataclasses.replace(subject, id=text),
        lambda: dataclasses.replace(subject, tenant=text),
        lambda: dataclasses.replace(subject, roles=(text,)),
        lambda: dataclasses.replace(subject, credential=text),
        lambda: policies.open_session(purpose=text),
        lambda: policies.open_session(region=text),
        lambda: policies.open_session(data_classes=(text,)),
        lambda: policies.open_session(id=text),
        lambda: policies.open_session(facts={"packs": (text,)}),
        lambda: policies.open_session(facts={"regions": (text,)}),
        lambda: dataclasses.replace(policies.open_session().context, network=text),
        lambda: AdminResource(type="principal", id=text),
        lambda: LogResource(tenant=text),
        lambda: BundleResource(published_by=text, active_number=1),
    ):
        with pytest.raises(InvalidRequestError):
            wrong()


@pytest.mark.parametrize(
    "properties",
    [
        {"max_output_tokens": 0},
        {"max_output_tokens": -1},
        {"max_output_tokens": 2**32},
        {"max_output_tokens": True},
        {"max_output_tokens": 1.5},
        {"model": "UPPER"},
        {"model": "a" * 64},
        {"model_digest": "0" * 63},
        {"model_digest": "A" * 64},
        {"model_status": "beta"},
        {"padding": "much"},
        {"data_classes": tuple(f"c{i}" for i in range(17))},
        {"data_classes": ["public"]},
        {"purpose": "treat\nment"},
        {"purpose": 'treat"ment'},
        {"purpose": ""},
        {"region": "eu central"},
    ],
)
def test_a_session_resource_out_of_range_is_refused(properties):
    """Numbers, digests, words and lists are bounded; an error begins with the field."""
    with pytest.raises(InvalidRequestError) as caught:
        policies.open_session(**properties)
    assert caught.value.message.startswith(f"{next(iter(properties))}:")


def test_negative_facts_are_refused():
    """A broken row does not become a policy input."""
    for name in ("session_limit", "sessions_open", "max_output_tokens", "revision"):
        with pytest.raises(InvalidRequestError):
            policies.open_session(facts={name: -1})


def test_an_action_is_asked_about_its_own_resource_only():
    """An unknown action, or one with another domain's resource, is no question."""
    base = policies.open_session()
    with pytest.raises(InvalidRequestError):
        dataclasses.replace(base, action="session.steal")
    with pytest.raises(InvalidRequestError):
        dataclasses.replace(base, action="audit.read")
    with pytest.raises(InvalidRequestError):
        dataclasses.replace(base, resource=LogResource(tenant=None))


def test_every_action_has_an_entrypoint_of_its_domain():
    """Four entrypoints decide everything."""
    assert set(ACTIONS.values()) == {
        f"bulkhead/{domain}/decision" for domain in ("session", "tenancy", "audit", "policy")
    }


def test_an_input_too_long_for_its_record_is_refused():
    """What the audit log could not keep whole is not asked."""
    names = tuple(f"{'m' * 59}{i:03d}" for i in range(128))
    words = tuple(f"{'r' * 59}{i:03d}" for i in range(64))
    assert len(policies.open_session(facts={"models": names[:64]}).to_bytes()) < 12 * 1024
    with pytest.raises(InvalidRequestError):
        policies.open_session(facts={"models": names, "regions": words}).to_bytes()


def test_inputs_are_frozen():
    """A decision's input cannot change after it was asked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        policies.open_session().action = "session.close"


def test_admin_ids_have_the_form_of_their_type():
    """An id of another kind of thing is refused; models go by name."""
    assert AdminResource(type="model", id="smollm2").to_json()["id"] == "smollm2"
    with pytest.raises(InvalidRequestError):
        AdminResource(type="tenant", id="agent_01h455vb4pex5vsknk084sn02q")
    with pytest.raises(InvalidRequestError):
        AdminResource(type="planet")


def _words(count: int, characters: int = 63) -> tuple[str, ...]:
    return tuple(f"{chr(97 + number // 26)}{chr(97 + number % 26)}{'x' * (characters - 2)}" for number in range(count))


@pytest.mark.parametrize("allowed", [True, False])
def test_the_largest_decision_can_be_recorded(allowed):
    """Every bound reached at once: the input fits 12 KiB, and with the longest reasons its record fits 16 KiB."""
    number = 2**32 - 1
    models = _words((MAX_FACTS_BYTES - 4) // 66)
    asked = policies.open_session(
        facts={"regions": (), "packs": (), "models": models, "session_limit": number, "max_output_tokens": number}
        | {"sessions_open": 2**53 - 1, "revision": 2**53 - 1, "minimum_tier": Tier.CONFIDENTIAL},
        model="m" * 63,
        minimum_tier=Tier.CONFIDENTIAL,
        region="r" * 63,
        purpose="p" * 63,
        data_classes=_words(MAX_DATA_CLASSES),
        max_output_tokens=number,
        key_custody="platform",
    )
    platform = PlatformFacts(tiers=tuple(Tier), regions=_words(MAX_REGIONS), simulated=False)
    context = dataclasses.replace(asked.context, platform=platform)
    asked = dataclasses.replace(asked, context=context)
    assert len(asked.to_bytes()) + 66 > MAX_INPUT_BYTES - 512  # no room is given away
    obligations = (MinTier(Tier.CONFIDENTIAL), Region("r" * 63), Exclusive(), Retention(36_525), MaxTokens(number))
    record = records.decision(
        stamper(writer="w" * 64).stamp(),
        tenant=policies.TENANT,
        subject=records.Subject(policies.DEVELOPER, ("developer",)),
        cause=records.tenant_cause(credential="c" * 64, request_id="q" * 64),
        session=policies.SESSION,
        pair_id="p" * 64,
        model="m" * 63,
        tier="confidential",
        decision=records.Decision.ALLOW if allowed else records.Decision.DENY,
        reasons=[] if allowed else [records.Reason("C" * 64, "p" * 256, "\U0001f512" * 512)] * 64,
        bundle="0" * 64,
        policy_input=asked.to_json(),
        obligations=[item.to_json() for item in (*obligations, KeyCustody("platform"), Padding("strict"))]
        if allowed
        else [],
    )
    assert len(record.leaf) <= MAX_LEAF_BYTES
    assert [item["code"] for item in record.fields.reasons][-1:] == ([] if allowed else ["REASONS_CUT"])
