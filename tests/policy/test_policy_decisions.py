import copy
import random

from control_plane.authz.client import PolicyClient
from control_plane.authz.decision import MinTier, Padding, Region, parse_decision
from control_plane.authz.vocabulary import ACTIONS, SESSION_DOMAIN
from control_plane.domain.tiers import Tier
from tests.simulator.policies import open_session, random_input, supervised

SAMPLES = 400


def may(request):  # noqa: PLR0911 - a table
    """Return whether the roles alone permit the action: written from docs/policy.md, not from the Rego."""
    subject, action = request.subject, request.action
    about = request.resource.tenant if hasattr(request.resource, "tenant") else None
    own = subject.tenant is not None and subject.tenant == about
    platform = subject.tenant is None
    developer = own and "developer" in subject.roles
    officer = own and "officer" in subject.roles
    platform_officer = platform and "officer" in subject.roles
    admin = platform and "admin" in subject.roles
    match action.split("."):
        case ["session", "read"]:
            return developer or officer or platform_officer
        case ["session", _]:
            return developer
        case ["audit", _]:
            return officer or platform_officer
        case ["policy", "read"]:
            return admin or "officer" in subject.roles
        case ["policy", "activate"]:
            return admin or platform_officer
        case ["policy", _]:
            return admin
        case ["fleet", "read"]:
            return admin or platform_officer
        case [("tenant" | "model"), "read"]:
            return admin or platform_officer or officer or developer
        case [_, "read"]:
            return admin or platform_officer or officer
        case _:
            return admin


async def test_random_questions_get_well_formed_answers_that_keep_the_rules():
    """Each of the seeded random inputs is answered; what is allowed is permitted by role and keeps every fact."""
    rng = random.Random(3)
    allowed = 0
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        for _ in range(SAMPLES):
            request = random_input(rng)
            decision = await client.decide(request)
            if not may(request):
                assert not decision.allow, request
                assert "NOT_PERMITTED" in {reason.code for reason in decision.reasons}
            if decision.allow and request.action in ("session.open", "session.renew"):
                allowed += 1
                keeps_the_facts(request, decision)
            elif decision.allow:
                assert decision.obligations == ()
    assert allowed > 20  # else the sample shows nothing


def keeps_the_facts(request, decision):
    facts, resource = request.context.tenant, request.resource
    assert facts.status == "active"
    assert resource.model in facts.models
    assert resource.model_status == "active"
    assert request.action == "session.renew" or facts.sessions_open < facts.session_limit
    assert set(facts.packs) <= {"hipaa", "gdpr"}
    tier = decision.obligation(MinTier).tier
    assert tier >= facts.minimum_tier
    assert tier >= (resource.minimum_tier or tier.PROCESS)
    assert any(offered >= tier for offered in request.context.platform.tiers)
    region = decision.obligation(Region).region
    assert region in facts.regions
    assert region in request.context.platform.regions
    assert resource.region in (None, region)
    undeclared = not resource.data_classes
    if "hipaa" in facts.packs and (undeclared or "phi" in resource.data_classes):
        assert tier >= tier.GPU
        assert resource.purpose in ("treatment", "payment", "operations")
    if "gdpr" in facts.packs and (undeclared or {"personal", "special", "phi"} & set(resource.data_classes)):
        assert region == "eu-central"


async def test_broken_documents_are_denied_not_undefined():
    """Whatever JSON reaches an entrypoint, the answer is well formed; what is no question at all is denied."""
    rng = random.Random(4)
    scraps = [None, True, 0, -1, 2**53 - 1, "", "x", [], {}, [[]], {"a": 1}]
    async with supervised() as supervisor:
        connection = supervisor.connection()
        for entrypoint in sorted(set(ACTIONS.values())):
            for scrap in scraps:
                reply = await connection.query(entrypoint, scrap)
                decision = parse_decision(reply.result, bundle_digest="0" * 64, input_digest="0" * 64)
                assert not decision.allow
        for _ in range(SAMPLES // 2):
            document = copy.deepcopy(open_session().to_json())
            target = document
            while True:
                name = rng.choice(list(target))
                if isinstance(target[name], dict) and rng.random() < 0.9:
                    target = target[name]
                    continue
                target.pop(name)
                break
            reply = await connection.query(SESSION_DOMAIN, document)
            parse_decision(reply.result, bundle_digest="0" * 64, input_digest="0" * 64)


async def test_every_fact_that_a_session_stands_on_is_needed():
    """Removing any one of them denies; the free ones are recorded, and grant nothing."""
    free = {"revision", "model_digest", "time", "network", "simulated", "credential"}
    needless = {("subject", "id"), ("subject", "type"), ("resource", "id"), ("resource", "type")}
    async with supervised() as supervisor:
        connection = supervisor.connection()
        for path in paths_of(open_session().to_json()):
            if path[-1] in free or path in needless or path[-1] in ("data_classes", "purpose", "padding"):
                continue
            document = open_session().to_json()
            target = document
            for name in path[:-1]:
                target = target[name]
            del target[path[-1]]
            reply = await connection.query(SESSION_DOMAIN, document)
            assert reply.result["allow"] is False, path


def paths_of(value, prefix=()):
    for name, each in value.items():
        yield (*prefix, name)
        if isinstance(each, dict):
            yield from paths_of(each, (*prefix, name))


async def test_a_session_that_asks_for_strict_padding_is_obliged_to_it():
    """Policy passes the wish on as an obligation."""
    async with supervised() as supervisor:
        decision = await PolicyClient(engine=supervisor).decide(open_session(padding="strict"))
    padding = decision.obligation(Padding)
    assert padding is not None
    assert padding.mode == "strict"


async def test_the_demonstrations_two_tenants():
    """A hospital under HIPAA gets whole GPUs exclusively; a start-up without packs gets what it asks for."""
    hospital = open_session(facts={"packs": ("hipaa",)}, purpose="treatment", data_classes=("phi",))
    startup = open_session(minimum_tier=Tier.MIG)
    async with supervised() as supervisor:
        client = PolicyClient(engine=supervisor)
        first, second = await client.decide(hospital), await client.decide(startup)
    assert [each.to_json() for each in first.obligations] == [
        {"type": "min_tier", "tier": "gpu"},
        {"type": "region", "region": "eu-central"},
        {"type": "exclusive"},
        {"type": "retention", "days": 2192},
        {"type": "max_tokens", "max": 256},
        {"type": "padding", "mode": "default"},
    ]
    assert second.obligation(MinTier).tier is Tier.MIG
