import aiohttp

from control_plane.authz.client import PolicyClient
from control_plane.authz.vocabulary import SESSION_DOMAIN
from tests.simulator.policies import bundle, open_session, supervised

DECISION = f"/v1/data/{SESSION_DOMAIN}"
WRITES = [
    ("PUT", "/v1/data/bulkhead/settings", "{}"),
    ("PUT", "/v1/data/system/bundles/policy", '{"manifest": {"revision": "forged"}}'),
    ("PUT", "/v1/data/system/authz", '{"allow": true}'),
    ("PATCH", "/v1/data/bulkhead", '[{"op": "add", "path": "/x", "value": 1}]'),
    ("DELETE", "/v1/data/bulkhead/settings", ""),
    ("PUT", "/v1/policies/evil", "package bulkhead.evil\n\nx := 1\n"),
    ("PUT", "/v1/policies/system/authz", "package system.authz\n\nallow := true\n"),
    ("DELETE", "/v1/policies/session/session.rego", ""),
    ("PUT", DECISION, '{"allow": true}'),
]
READS = [
    ("GET", "/v1/data", ""),
    ("GET", DECISION, ""),
    ("GET", "/v1/policies", ""),
    ("GET", "/v1/config", ""),
    ("GET", "/v1/status", ""),
    ("GET", "/metrics", ""),
    ("GET", "/debug/pprof/heap", ""),
    ("GET", "/health/live", ""),
    ("GET", "/", ""),
    ("POST", "/", "{}"),
    ("POST", "/v1/query", '{"query": "data"}'),
    ("POST", "/v1/compile", '{"query": "data.bulkhead.session.decision"}'),
    ("POST", "/v1/data", "{}"),
    ("POST", "/v1/data/bulkhead/settings", "{}"),
    ("POST", "/v1/data/system/authz/allow", "{}"),
    ("POST", "/v0/data/bulkhead/session/decision", "{}"),
    ("POST", f"{DECISION}?explain=full", '{"input": {}}'),
    ("POST", f"{DECISION}?instrument=true", '{"input": {}}'),
    ("POST", f"{DECISION}/allow", '{"input": {}}'),
    ("GET", f"{DECISION}?input=%7B%7D", ""),
]


async def status(http, method, url, body, token):
    headers = {} if token is None else {"Authorization": token}
    async with http.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
        await response.read()
        return response.status


async def test_the_token_opens_the_entrypoints_and_health_alone():
    """Without a token nothing answers; with it, no write and no other read; decisions stay what they were."""
    async with supervised() as supervisor, aiohttp.ClientSession() as http:
        client = PolicyClient(engine=supervisor)
        before = await client.decide(open_session())
        opa = supervisor.connection()._client
        base, token = opa.root_url.removesuffix("/v1"), opa.headers["Authorization"]
        for method, path, body in WRITES + READS:
            for given in (None, token):
                assert await status(http, method, base + path, body, given) == 401, (method, path, given)
        assert await status(http, "POST", base + DECISION, '{"input": {}}', token) == 200
        assert await status(http, "GET", base + "/health", "", token) == 200
        assert await client.decide(open_session()) == before
        assert before.bundle_digest == bundle().info.digest


FORGED = ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "Bearer {}x", "Bearer {} x", "{}"]


async def test_any_other_token_is_refused():
    """Wrong, empty, extended, or under another scheme."""
    async with supervised() as supervisor, aiohttp.ClientSession() as http:
        opa = supervisor.connection()._client
        base = opa.root_url.removesuffix("/v1")
        for form in FORGED:
            token = form.format(opa.headers["Authorization"].removeprefix("Bearer "))
            assert await status(http, "POST", base + DECISION, '{"input": {}}', token) == 401, form
            assert await status(http, "GET", base + "/health", "", token) == 401, form


async def test_each_process_has_its_own_token_and_none_lies_on_disk():
    """The token of one OPA opens no other; files hold its hash only."""
    async with supervised() as supervisor, aiohttp.ClientSession() as http:
        first = supervisor.connection()._client.headers["Authorization"]
        await supervisor.switch(bundle(2).data)
        second = supervisor.connection()._client
        assert await status(http, "POST", f"{second.root_url}/data/{SESSION_DOMAIN}", '{"input": {}}', first) == 401
        for file in supervisor._directory.path.glob("*/*"):
            if file.is_file():
                for token in (first, second.headers["Authorization"]):
                    assert token.removeprefix("Bearer ").encode() not in file.read_bytes()


async def test_an_oversized_question_is_refused():
    """A body beyond the bound is not decoded."""
    async with supervised() as supervisor, aiohttp.ClientSession() as http:
        opa = supervisor.connection()._client
        body = '{"input": {"x": "%s"}}' % ("a" * 200_000)
        assert (
            await status(http, "POST", f"{opa.root_url}/data/{SESSION_DOMAIN}", body, opa.headers["Authorization"])
            == 400
        )
        assert (await PolicyClient(engine=supervisor).decide(open_session())).allow
