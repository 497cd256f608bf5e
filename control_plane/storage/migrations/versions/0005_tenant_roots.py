"""Tenant roots: the fingerprint in a tenant's record, and the one that a partition's worker was started with."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tenants", "partitions"):
        op.add_column(table, sa.Column("tenant_root", sa.LargeBinary(length=32), nullable=True))


def downgrade() -> None:
    for table in ("partitions", "tenants"):
        op.drop_column(table, "tenant_root")
