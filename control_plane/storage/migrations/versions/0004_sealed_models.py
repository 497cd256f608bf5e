"""Sealed models: custody, manifest, the tenant's broker, and the versions whose keys were released."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("custody", sa.String(length=16), nullable=False, server_default="none"))
    op.create_table(
        "sealed_models",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("broker_address", sa.String(length=255), nullable=False),
        sa.Column("broker_name", sa.String(length=255), nullable=False),
        sa.Column("broker_certificate", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["models.name"], name=op.f("fk_sealed_models_name_models")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sealed_models")),
    )
    op.create_table(
        "model_floors",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_floors")),
    )
