"""Logs, commits, tiles, checkpoints, rounds and the index."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    writer = op.create_table("audit_writer", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    op.bulk_insert(writer, [{"id": 1}])
    op.create_table(
        "audit_commit",
        sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
        sa.Column("pos", _BIG, nullable=False),
        sa.Column("chain", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "audit_log",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("origin", _TEXT, nullable=False, unique=True),
        sa.Column("tenant", _TEXT),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("slot", sa.Integer),
        sa.UniqueConstraint("tenant", "epoch", name="uq_audit_log_tenant_epoch"),
        sa.UniqueConstraint("slot", "epoch", name="uq_audit_log_slot_epoch"),
    )
    op.create_table(
        "audit_leaf",
        sa.Column("pos", _BIG, primary_key=True, autoincrement=False),
        sa.Column("log_id", sa.Integer, nullable=False),
        sa.Column("idx", _BIG, nullable=False),
        sa.Column("record_id", _TEXT, nullable=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.UniqueConstraint("log_id", "idx", name="uq_audit_leaf_place"),
        sa.UniqueConstraint("record_id", name="uq_audit_leaf_record"),
    )
    op.create_table(
        "audit_head",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_tile",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", _BIG, primary_key=True, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", _BIG, primary_key=True, autoincrement=False),
        sa.Column("note", _TEXT, nullable=False),
        sa.Column("cosigs", _TEXT),
    )
    op.create_table(
        "audit_round",
        sa.Column("round", _BIG, primary_key=True, autoincrement=False),
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", _BIG, nullable=False),
    )
    _create_index()


def _create_index() -> None:
    op.create_table(
        "audit_index",
        sa.Column("pos", _BIG, primary_key=True, autoincrement=False),
        sa.Column("log_id", sa.Integer, nullable=False),
        sa.Column("idx", _BIG, nullable=False),
        sa.Column("ts_us", _BIG, nullable=False),
        sa.Column("action", _TEXT, nullable=False),
        sa.Column("decision", _TEXT, nullable=False),
        sa.Column("subject", _TEXT, nullable=False),
        sa.Column("session", _TEXT, nullable=False),
        sa.Column("pair_id", _TEXT, nullable=False),
    )
    op.create_index("ix_audit_index_place", "audit_index", ["log_id", "idx"], unique=True)
    op.create_index("ix_audit_index_time", "audit_index", ["log_id", "ts_us"])
    op.create_index("ix_audit_index_action", "audit_index", ["log_id", "action", "idx"])
    op.create_index("ix_audit_index_session", "audit_index", ["log_id", "session", "idx"])
    op.create_index("ix_audit_index_subject", "audit_index", ["log_id", "subject", "idx"])
    op.create_index("ix_audit_index_pair", "audit_index", ["pair_id"])


def downgrade() -> None:
    for table in (
        "audit_index", "audit_round", "audit_checkpoint", "audit_tile", "audit_head", "audit_leaf", "audit_log",
        "audit_commit", "audit_writer",
    ):  # fmt: skip
        op.drop_table(table)
