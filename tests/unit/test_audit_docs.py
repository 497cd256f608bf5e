import dataclasses
import re
from pathlib import Path

from audit.records import Action, PlatformReason
from audit.sql.tables import METADATA
from tests.unit.test_audit_crash import STEPS

TEXT = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
NAMES = set(re.findall(r"`([^`\n]+)`", TEXT))


def test_every_action_and_cause_is_documented():
    """The list of actions, and of the platform's causes, is the code's."""
    assert {action.value for action in Action} <= NAMES
    assert {reason.value for reason in PlatformReason} <= NAMES


def test_every_table_and_step_is_documented():
    """The tables are the code's, and the steps are those that the crash tests stop at."""
    assert set(METADATA.tables) <= NAMES
    assert set(STEPS) <= NAMES
    for table in METADATA.tables.values():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{table.name}`"))
        assert table.name == "audit_writer" or all(f"`{column.name}`" in row for column in table.columns)


def test_every_field_is_documented():
    """Each field of a leaf has its place in the table."""
    from bulkhead.transparency.leaf import LeafFields

    renamed = {"version": "v", "record_id": "id", "roles": "subject"}
    fields = {renamed.get(field.name, field.name) for field in dataclasses.fields(LeafFields)}
    assert fields <= NAMES
