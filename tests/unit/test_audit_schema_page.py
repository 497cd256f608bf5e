"""The published schema of records: current, true of what is written, and without anything personal."""

import json
from pathlib import Path

import pytest

from audit.records.schema import DATA_MEMBERS, FIELDS, About, json_schema, page
from bulkhead.encoding import canonical_json
from bulkhead.errors import RecordError
from bulkhead.transparency.leaf import parse_leaf
from control_plane.domain.tenancy import UPDATABLE
from tests.unit.test_audit_records import every_kind

ROOT = Path(__file__).parents[2]
PERSONAL_WORDS = ("mail", "first", "last", "family", "birth", "phone", "street", "address", "ip", "person", "user")
"""Parts of names, between underscores, by which a field about a person would be called."""


def test_the_document_is_current():
    """docs/audit-schema.md is what the code says."""
    assert (ROOT / "docs" / "audit-schema.md").read_text(encoding="utf-8") == page()


def test_nothing_in_the_schema_is_personal():
    """No field, and no member of data, is personal; none is named as if it were."""
    marked = [about for _, about, _ in FIELDS.values()] + [about for about, _ in DATA_MEMBERS.values()]
    assert About.PERSONAL not in marked
    named = {"first"}  # the first index or number of a range
    for name in {*FIELDS, *DATA_MEMBERS} - named:
        assert not set(name.split("_")) & set(PERSONAL_WORDS), name


def test_the_policy_input_is_not_personal():
    """What a decision records of its input, by the schema that the policies are checked with, names nobody."""

    def names(shape: object):
        if isinstance(shape, dict):
            for name, inner in shape.get("properties", {}).items():
                yield name
                yield from names(inner)
            for inner in (shape.get("items"), *shape.get("anyOf", []), *shape.get("oneOf", [])):
                yield from names(inner)

    found = set(names(json.loads((ROOT / "policies" / "input.schema.json").read_text())))
    assert {"subject", "action", "resource", "context", "roles"} <= found
    for name in found:
        assert not set(name.split("_")) & set(PERSONAL_WORDS), name


@pytest.mark.parametrize("record", every_kind(), ids=lambda record: record.fields.action)
def test_every_record_s_members_are_published(record):
    """What a builder writes has the schema's fields and, in data, members that are published."""
    raw = json.loads(record.leaf)
    assert raw.keys() <= FIELDS.keys()
    assert set(json_schema()["required"]) <= raw.keys()
    assert raw.get("data", {}).keys() <= DATA_MEMBERS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_schema_and_parser_agree_on_presence(name):
    """A field that the schema calls required is missed by the parser; an unknown one is refused by both."""
    whole = next(record for record in every_kind() if record.fields.action == "decision")
    raw = json.loads(whole.leaf)
    if name in json_schema()["required"]:
        del raw[name]
        with pytest.raises(RecordError):
            parse_leaf(canonical_json(raw))
    else:
        raw.pop(name, None)
        parse_leaf(canonical_json(raw))
    with pytest.raises(RecordError):
        parse_leaf(canonical_json(json.loads(whole.leaf) | {f"{name}_": "x"}))


def test_a_tenant_s_facts_are_published():
    """Every setting of a tenant that its records show is in the schema."""
    assert set(UPDATABLE) <= DATA_MEMBERS.keys()


def test_secrets_given_to_builders_do_not_get_in():
    """Of every builder, what it is given as root, digest or id is what is written, never a key, token or prompt."""
    for record in every_kind():
        text = record.leaf.decode()
        for word in ("bhk_", "PRIVATE", "eyJ", "-----BEGIN"):
            assert word not in text
