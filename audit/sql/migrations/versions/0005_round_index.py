"""An index by log over the rounds' sizes: the size of a log in any round is found in it, without the rounds between."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_audit_round_log", "audit_round", ["log_id", "round"])


def downgrade() -> None:
    op.drop_index("ix_audit_round_log", "audit_round")
