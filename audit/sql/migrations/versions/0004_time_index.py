"""The index by time holds the place, too: a page of a span of time is found in it alone.

Without, the newest records of an hour cost one look into the table for each record of that hour, most of which no page
shows.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _set_columns("log_id", "ts_us", "idx")


def downgrade() -> None:
    _set_columns("log_id", "ts_us")


def _set_columns(*columns: str) -> None:
    op.drop_index("ix_audit_index_time", "audit_index")
    op.create_index("ix_audit_index_time", "audit_index", columns)
