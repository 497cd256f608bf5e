"""Batches of receipts: which went under which record of the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "receipt_batches",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("partition_id", sa.String(length=64), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=True),
        sa.Column("log_id", sa.BigInteger(), nullable=True),
        sa.Column("log_index", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "partition_id", "first", name=op.f("pk_receipt_batches")),
        sa.UniqueConstraint("record_id", name=op.f("uq_receipt_batches_record_id")),
    )
    op.create_index(
        "ix_receipt_batches_unrecorded",
        "receipt_batches",
        ["record_id"],
        unique=False,
        sqlite_where=sa.text("log_index IS NULL"),
        postgresql_where=sa.text("log_index IS NULL"),
    )
