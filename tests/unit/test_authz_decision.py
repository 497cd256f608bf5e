import copy
import json

import pytest

from bulkhead.errors import PolicyDeniedError, PolicyEngineError, SessionLimitError, UnknownObligationError
from control_plane.authz.decision import (
    Exclusive,
    KeyCustody,
    MaxTokens,
    MinTier,
    Padding,
    Reason,
    Region,
    Retention,
    denial_error,
    parse_decision,
)
from control_plane.domain.tiers import Tier

ALLOW = {"allow": True, "reasons": [], "obligations": []}
REASON = {"code": "NOT_PERMITTED", "policy": "packs.hipaa", "message": "No."}
DENY = {"allow": False, "reasons": [REASON], "obligations": []}


def parse(result):
    return parse_decision(result, bundle_digest="b" * 64, input_digest="i" * 64)


def obliging(*obligations):
    return {**ALLOW, "obligations": list(obligations)}


def test_an_allow_carries_its_obligations_and_digests():
    """Every known obligation becomes its own type, and writes itself as policy wrote it."""
    written = [
        {"type": "min_tier", "tier": "gpu"},
        {"type": "region", "region": "eu-central"},
        {"type": "exclusive"},
        {"type": "retention", "days": 2192},
        {"type": "max_tokens", "max": 256},
        {"type": "key_custody", "custody": "tenant"},
        {"type": "padding", "mode": "default"},
    ]
    decision = parse(obliging(*written))
    assert decision.allow
    assert decision.obligations == (
        MinTier(Tier.GPU),
        Region("eu-central"),
        Exclusive(),
        Retention(2192),
        MaxTokens(256),
        KeyCustody("tenant"),
        Padding("default"),
    )
    assert [obligation.to_json() for obligation in decision.obligations] == written
    assert decision.bundle_digest == "b" * 64
    assert decision.input_digest == "i" * 64
    assert decision.obligation(MinTier) == MinTier(Tier.GPU)
    assert parse(ALLOW).obligation(MinTier) is None


def test_a_well_formed_deny_is_a_decision():
    """A deny comes back as a value, with its reasons and without obligations."""
    decision = parse({**DENY, "obligations": [{"type": "whatever"}]})
    assert not decision.allow
    assert decision.reasons == (Reason("NOT_PERMITTED", "packs.hipaa", "No."),)
    assert decision.obligations == ()


@pytest.mark.parametrize(
    ("name", "obligation"),
    [
        ("notarise", {"type": "notarise"}),
        ("min_tier", {"type": "min_tier", "tier": "quantum"}),
        ("padding", {"type": "padding", "mode": "loose"}),
        ("key_custody", {"type": "key_custody", "custody": "moon"}),
        ("region", {"type": "region", "region": "eu\ncentral"}),
        ("exclusive", {"type": "exclusive", "until": "noon"}),
        ("retention", {"type": "retention", "days": 3, "place": "vault"}),
        ("malformed", {"type": 'x"\n'}),
    ],
)
def test_an_obligation_this_build_cannot_keep_is_refused_by_name(name, obligation):
    """An unknown type, value or parameter denies, and the error says what to record."""
    with pytest.raises(UnknownObligationError) as caught:
        parse(obliging({"type": "exclusive"}, obligation) if name != "exclusive" else obliging(obligation))
    assert caught.value.details == {"obligation": name, "bundle_digest": "b" * 64, "input_digest": "i" * 64}


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        [],
        "allow",
        True,
        {"allow": True},
        {"allow": True, "reasons": []},
        {**ALLOW, "extra": 1},
        {**ALLOW, "allow": "true"},
        {**ALLOW, "allow": 1},
        {**ALLOW, "reasons": None},
        {**ALLOW, "reasons": [REASON]},
        {**ALLOW, "obligations": {}},
        {**DENY, "reasons": []},
        {**DENY, "reasons": ["No."]},
        {**DENY, "reasons": [{**REASON, "code": "no"}]},
        {**DENY, "reasons": [{**REASON, "code": "A" * 65}]},
        {**DENY, "reasons": [{**REASON, "policy": "Packs Hipaa"}]},
        {**DENY, "reasons": [{**REASON, "message": ""}]},
        {**DENY, "reasons": [{**REASON, "message": "a" * 513}]},
        {**DENY, "reasons": [{**REASON, "message": "line\nforged line"}]},
        {**DENY, "reasons": [{**REASON, "message": "\x1b[31m"}]},
        {**DENY, "reasons": [{**REASON, "more": 1}]},
        {**DENY, "reasons": [{"code": "X", "policy": "y"}]},
        {**DENY, "reasons": [REASON] * 65},
        obliging("exclusive"),
        obliging({}),
        obliging({"type": 3}),
        obliging({"type": "min_tier"}),
        obliging({"type": "min_tier", "tier": 3}),
        obliging({"type": "retention", "days": "3"}),
        obliging({"type": "retention", "days": 0}),
        obliging({"type": "retention", "days": True}),
        obliging({"type": "max_tokens", "max": -1}),
        obliging({"type": "max_tokens", "max": 2**32}),
        obliging({"type": "exclusive"}, {"type": "exclusive"}),
        obliging({"type": "min_tier", "tier": "gpu"}, {"type": "min_tier", "tier": "mig"}),
        obliging(*({"type": "exclusive"},) * 17),
    ],
)
def test_anything_else_is_the_engine_talking_nonsense(result):
    """Undefined, incomplete, contradictory or out of bounds is neither allow nor deny."""
    before = copy.deepcopy(result)
    with pytest.raises(PolicyEngineError):
        parse(result)
    assert result == before


def test_a_session_limit_alone_is_told_as_a_limit():
    """Waiting helps only where nothing else stands against the session."""
    limit = {"code": "SESSION_LIMIT", "policy": "session", "message": "Full."}
    assert isinstance(denial_error(parse({**DENY, "reasons": [limit]})), SessionLimitError)
    both = denial_error(parse({**DENY, "reasons": [REASON, limit]}))
    assert type(both) is PolicyDeniedError
    assert both.message == "No. Full."
    assert json.loads(both.details["reasons"]) == [REASON, limit]


def test_a_denial_fits_a_grpc_trailer():
    """Many long reasons are cut before they break the transport's bound."""
    reasons = [{**REASON, "code": f"{'C' * 60}{i}", "message": "m" * 512} for i in range(64)]
    error = denial_error(parse({**DENY, "reasons": reasons}))
    assert len(error.message) + sum(map(len, error.details.values())) < 8192 - 2048
    assert json.loads(error.details["reasons"])[0] == reasons[0]
