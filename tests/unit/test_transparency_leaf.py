import json

import pytest

from bulkhead.encoding import canonical_json
from bulkhead.errors import RecordError
from bulkhead.transparency.leaf import MAX_LEAF_BYTES, parse_leaf
from tests.simulator.audit_world import TENANT, decision, event

RECORD = decision(number=7)


def changed(**changes) -> bytes:
    raw = json.loads(RECORD.leaf)
    for name, value in changes.items():
        if value is KeyError:
            del raw[name]
        else:
            raw[name] = value
    return canonical_json(raw)


def test_a_record_parses_to_its_fields():
    """The strict parser reads what the builder wrote."""
    fields = parse_leaf(RECORD.leaf)
    assert fields == RECORD.fields
    assert (fields.tenant, fields.action, fields.decision) == (TENANT, "decision", "allow")
    assert (fields.session, fields.pair_id, fields.cause.request_id) == ("sess_7", "pair_7", "req_7")
    assert fields.resource is not None
    assert (fields.resource.type, fields.resource.id) == ("model", "tiny")


def test_the_platforms_records_have_no_tenant():
    """A platform record says null, not nothing."""
    assert parse_leaf(event().leaf).tenant is None


def test_an_action_of_a_later_build_is_read():
    """A verifier reads records of actions it does not know."""
    assert parse_leaf(changed(action="key.released")).action == "key.released"


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"v": "1"},
        {"v": KeyError},
        {"id": KeyError},
        {"id": "rec_1"},
        {"id": "sess_01h455vb4pex5vsknk084sn02q"},
        {"ts_us": -1},
        {"ts_us": 1.5},
        {"ts_us": KeyError},
        {"mono_us": True},
        {"tenant": KeyError},
        {"tenant": ""},
        {"tenant": 5},
        {"action": "Decision"},
        {"action": "a..b"},
        {"action": ""},
        {"cause": KeyError},
        {"cause": {"kind": "tenant", "reason": "admin"}},
        {"cause": {"kind": "platform"}},
        {"cause": {"kind": "weather"}},
        {"cause": {"kind": "tenant", "extra": "x"}},
        {"subject": {"id": "s"}},
        {"subject": {"id": "s", "roles": "developer"}},
        {"subject": {"id": "s", "roles": ["r"] * 17}},
        {"resource": {"type": "model"}},
        {"decision": "maybe"},
        {"reasons": [{"code": "X"}]},
        {"reasons": "no"},
        {"bundle": "AB" * 32},
        {"evidence": "00"},
        {"session": "x" * 257},
        {"data": []},
        {"unknown": 1},
    ],
    ids=str,
)
def test_anything_else_is_refused(changes):
    """A missing, unknown or ill-typed field is a RecordError, never another exception."""
    with pytest.raises(RecordError):
        parse_leaf(changed(**changes))


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        RECORD.leaf + b"\n",
        RECORD.leaf.replace(b'":', b'": ', 1),
        b'{"v":1,' + RECORD.leaf[1:],
        b"[" * 100_000,
        b"{" + b" " * MAX_LEAF_BYTES + RECORD.leaf[1:],
    ],
    ids=range(10),
)
def test_another_encoding_is_refused(leaf):
    """Bytes that are not the one canonical encoding of a record are refused."""
    with pytest.raises(RecordError):
        parse_leaf(leaf)


def test_the_error_names_the_record():
    """Once the id is read, errors carry it."""
    with pytest.raises(RecordError, match="subject") as caught:
        parse_leaf(changed(subject={}))
    assert caught.value.details["record"] == RECORD.record_id
