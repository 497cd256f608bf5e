import json
import random

import pytest

from bulkhead.errors import BundleError
from control_plane.authz.check import check_policies, main
from control_plane.authz.opa_tool import find_opa, run_opa
from control_plane.authz.sources import SCHEMA_PATH, read_sources
from control_plane.authz.vocabulary import ACTIONS
from tests.simulator import policies

REGO = b"""package bulkhead.session

decision := {"allow": input.action.name == "session.open"}
"""
TEST = b"""package bulkhead.session_test

import data.bulkhead.session

test_open if session.decision.allow with input as {"action": {"name": "session.open"}}
"""


def sources(**changed):
    schema = (policies.POLICIES / SCHEMA_PATH).read_bytes()
    base = {"data.json": b'{"bulkhead": {}}', SCHEMA_PATH: schema, "session.rego": REGO, "session_test.rego": TEST}
    return {**base, **{name.replace("__", "."): content for name, content in changed.items()}}


def test_the_repositorys_policies_pass(capsys):
    """Format, strict types, capabilities, tests and coverage; said in words."""
    assert main([str(policies.POLICIES)]) == 0
    assert "tests passed, 100.0% covered" in capsys.readouterr().out


def test_a_failed_check_is_said_and_exits_1(tmp_path, capsys):
    """The exit status and standard error tell."""
    assert main([str(tmp_path)]) == 1
    assert "data.json" in capsys.readouterr().err


def test_formatting_repairs_what_the_check_refuses(tmp_path, capsys):
    """`--format` rewrites; the check then passes."""
    for path, content in sources(session__rego=REGO.replace(b" := ", b"  :=   ")).items():
        (tmp_path / path).write_bytes(content)
    assert main([str(tmp_path)]) == 1
    assert "canonical format" in capsys.readouterr().err
    assert main([str(tmp_path), "--format"]) == 0
    assert main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        ("type-check", {"session__rego": REGO.replace(b"action.name", b"action.nmae")}),
        ("type-check", {"session__rego": REGO + b"\nunused(x) := y if {\n\ty := 1\n}\n"}),
        ("type-check", {"session__rego": REGO + b"\nx if print(input)\n"}),
        ("type-check", {"session__rego": REGO + b'\nx := http.send({"method": "get", "url": "http://localhost"})\n'}),
        ("canonical format", {"session__rego": b"package elsewhere.session\n\nnot rego\n"}),
        ("1 of 1 tests fail", {"session_test__rego": TEST.replace(b'"name": "session.open"', b'"name": "x"')}),
        ("no tests", {"session_test__rego": b"package bulkhead.session_test\n\nx := 1\n"}),
        ("evaluate", {"session__rego": REGO + b"\nx := 1 if input.action.name\n\ny := 2 if input.action.name\n"}),
        ("neither", {"capabilities__json": b"{}"}),
    ],
    ids=range(9),
)
def test_each_check_refuses_what_it_is_for(said, changed):
    """A misspelt input, an unused variable, output, network access, a failing or missing test, uncovered lines."""
    assert check_policies(sources(), opa=find_opa(), coverage_percent=80).tests == 1
    with pytest.raises(BundleError) as caught:
        check_policies(sources(**changed), opa=find_opa(), coverage_percent=80)
    assert said in caught.value.message


def leaves(schema, path=""):
    """Yield path and schema of every scalar."""
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from leaves(each, path)
    elif schema["type"] == "object":
        for name, each in schema["properties"].items():
            yield from leaves(each, f"{path}/{name}")
    elif schema["type"] == "array":
        yield from leaves(schema["items"], path)
    else:
        yield path, schema


def objects(schema):
    """Yield every schema of an object."""
    for each in schema.get("anyOf", ()):
        yield from objects(each)
    for each in schema.get("properties", {}).values():
        yield from objects(each)
    if schema.get("type") == "object":
        yield schema


SCHEMA = json.loads((policies.POLICIES / SCHEMA_PATH).read_text())
CONTENTS = {"opaque-id", "pseudonym", "closed-word", "word", "model-name", "digest", "number", "fact", "time"}


def test_the_schema_has_no_personal_field():
    """No field is called like one of the forbidden, and every text is closed by a pattern or a list."""
    forbidden = set(SCHEMA["x-forbidden"])
    assert {"email", "ip_address", "phone", "username", "prompt"} <= forbidden
    for path, leaf in leaves(SCHEMA):
        if leaf["type"] == "null":
            continue
        assert not forbidden & set(path.split("/")), path
        assert leaf["x-content"] in CONTENTS, path
        if leaf["type"] == "string":
            assert "enum" in leaf or leaf["pattern"].startswith("^"), path


def test_no_object_of_the_schema_takes_further_fields():
    """Every object is closed and complete: each of its fields is required."""
    for each in objects(SCHEMA):
        assert each["additionalProperties"] is False
        assert set(each["required"]) == set(each["properties"])


def test_the_schemas_patterns_hold_no_address():
    """No pattern of the schema matches an e-mail address, a name or an IPv6 address; only model names hold dots."""
    import re

    for path, leaf in leaves(SCHEMA):
        for personal in ("ada@example.org", "Ada Lovelace", "2001:db8::1", "+442079460958"):
            assert not re.search(leaf.get("pattern", "$^"), personal), path
        if leaf.get("x-content") not in (None, "model-name", "opaque-id"):
            assert not re.search(leaf.get("pattern", "$^"), "10.0.0.1"), path


def test_the_schema_lists_the_actions():
    """Code and schema know the same actions."""
    assert set(SCHEMA["properties"]["action"]["properties"]["name"]["enum"]) == set(ACTIONS)


def matches(tmp_path, documents):
    """Return, for each document, whether OPA finds that it matches the schema."""
    (tmp_path / "input.json").write_text(json.dumps({"schema": SCHEMA, "documents": documents}))
    query = "[ok | some each in input.documents; [ok, _] := json.match_schema(each, input.schema)]"
    run = run_opa(find_opa(), "eval", "--format=raw", "--input", "input.json", query, cwd=tmp_path)
    assert run.code == 0, run.said
    return json.loads(run.output)


def test_every_input_matches_the_schema(tmp_path):
    """What the code asks with is what the schema describes: 300 seeded random inputs."""
    rng = random.Random(6)
    documents = [policies.random_input(rng).to_json() for _ in range(300)]
    assert matches(tmp_path, documents) == [True] * 300


def test_an_added_or_missing_field_does_not_match(tmp_path):
    """A personal field added anywhere is refused, and so is leaving one out."""
    wrong = []

    def spoil(value, change):
        document = policies.open_session().to_json()
        target = document
        for name in value:
            target = target[name]
        change(target)
        wrong.append(document)

    paths = [
        [],
        ["subject"],
        ["subject", "properties"],
        ["action"],
        ["resource"],
        ["resource", "properties"],
        ["context"],
        ["context", "tenant"],
        ["context", "platform"],
    ]
    for path in paths:
        spoil(path, lambda target: target.update(email="ada@example.org"))
        spoil(path, lambda target: target.pop(next(iter(target))))
    assert matches(tmp_path, wrong) == [False] * len(wrong)


def test_hidden_files_are_no_sources(tmp_path):
    """An editor's leftovers do not enter a bundle."""
    for path, content in sources().items():
        (tmp_path / path).write_bytes(content)
    (tmp_path / ".session.rego.swp").write_bytes(b"x")
    assert set(read_sources(tmp_path)) == set(sources())
