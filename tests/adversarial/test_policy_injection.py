import copy

from control_plane.authz.vocabulary import SESSION_DOMAIN
from tests.simulator.policies import OTHER_TENANT, TENANT, open_session, supervised

HOSTILE = [
    '"',
    "'",
    "`",
    "\\",
    '"}]}',
    "a\nb",
    "a\r\n\r\nHTTP/1.1 200 OK",
    "\t",
    "\x00",
    "\u2028",
    "\u202e",
    "\ufeff",
    "é",
    "e\u0301",
    "🦀",
    "\ud800\udc00",
    "true",
    "null",
    "*",
    ".*",
    "${jndi:x}",
    "{{input}}",
    "data.bulkhead.settings",
    "] | true",
    "' or 1=1 --",
    "%00",
    "../../x",
    "a" * 4000,
    "",
    " ",
]


async def test_text_is_text_wherever_it_stands():
    """Quotes, line breaks, control and look-alike characters decide like any other word, and equal only themselves."""
    async with supervised() as supervisor:
        connection = supervisor.connection()

        async def decide(document):
            return (await connection.query(SESSION_DOMAIN, document)).result

        plain = open_session().to_json()
        assert (await decide(plain))["allow"] is True
        for text in HOSTILE:
            for name, codes in (
                ("model", ["MODEL_NOT_ENTITLED"]),
                ("region", ["REGION_NOT_ALLOWED", "REGION_UNAVAILABLE"]),
                ("tenant", ["NOT_PERMITTED"]),
                ("minimum_tier", ["TIER_UNAVAILABLE"]),
                ("model_status", ["MODEL_RETIRED"]),
            ):
                document = copy.deepcopy(plain)
                document["resource"]["properties"][name] = text
                result = await decide(document)
                assert result["allow"] is False, (name, text)
                assert sorted(reason["code"] for reason in result["reasons"]) == codes, (name, text)
            document = copy.deepcopy(plain)
            document["context"]["tenant"]["models"] = [text]
            assert (await decide(document))["allow"] is False
            document["resource"]["properties"]["model"] = text
            assert (await decide(document))["allow"] is True  # equal to itself, and to nothing else
            document["resource"]["properties"]["model"] = f"{text} "
            assert (await decide(document))["allow"] is False


async def test_a_tenant_that_looks_like_another_is_another():
    """Prefix, suffix, case and composed forms of a tenant's id grant nothing of that tenant."""
    async with supervised() as supervisor:
        connection = supervisor.connection()
        for other in (
            OTHER_TENANT,
            TENANT.upper(),
            TENANT[:-1],
            f"{TENANT}0",
            f" {TENANT}",
            f"{TENANT}\n",
            f"{TENANT}\x00",
        ):
            document = open_session().to_json()
            document["subject"]["properties"]["tenant"] = other
            result = (await connection.query(SESSION_DOMAIN, document)).result
            assert [reason["code"] for reason in result["reasons"]] == ["NOT_PERMITTED"]


async def test_a_role_cannot_be_smuggled_in():
    """Roles count in the subject's list only: not elsewhere, not as part of a word, not as another type."""
    async with supervised() as supervisor:
        connection = supervisor.connection()
        for roles in ([], ["developers"], ["DEVELOPER"], "developer", {"developer": True}, [["developer"]], None):
            document = open_session().to_json()
            document["subject"]["properties"]["roles"] = roles
            document["roles"] = document["subject"]["roles"] = ["developer", "admin"]
            result = (await connection.query(SESSION_DOMAIN, document)).result
            assert result["allow"] is False, roles
