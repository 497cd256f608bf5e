"""Several writers: the projector's row, and room for heads that are rewritten in place."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_WRITER = sa.table("audit_writer", sa.column("id", sa.Integer))


def upgrade() -> None:
    op.bulk_insert(_WRITER, [{"id": 2}])
    _set_fill(50)


def downgrade() -> None:
    op.execute(_WRITER.delete().where(_WRITER.c.id == 2))
    _set_fill(100)


def _set_fill(percent: int) -> None:
    """Every commit rewrites a head: with half a page free the new version stays on it (PostgreSQL's HOT update)."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE audit_head SET (fillfactor = {percent})")
