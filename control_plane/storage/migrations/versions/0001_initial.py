"""Tenants, principals, credentials, models, policy bundles; agents, partitions, sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String(length=63), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("rack", sa.String(length=63), nullable=False),
        sa.Column("tray", sa.Integer(), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("evidence_kind", sa.String(length=16), nullable=False),
        sa.Column("evidence_public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("ingress_address", sa.String(length=255), nullable=False),
        sa.Column("inventory", sa.JSON(), nullable=False),
        sa.Column("cordoned", sa.Boolean(), nullable=False),
        sa.Column("first_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agents")),
    )
    op.create_table(
        "idempotent_requests",
        sa.Column("principal_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("content_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("result_id", sa.String(length=64), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("principal_id", "request_id", name=op.f("pk_idempotent_requests")),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("context_length", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_table(
        "policy_bundles",
        sa.Column("bundle_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("published_by", sa.String(length=64), nullable=False),
        sa.Column("activated_by", sa.String(length=64), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("activated_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("bundle_id", name=op.f("pk_policy_bundles")),
        sa.UniqueConstraint("revision", name=op.f("uq_policy_bundles_revision")),
    )
    op.create_index(
        "uq_policy_bundles_active",
        "policy_bundles",
        ["status"],
        unique=True,
        sqlite_where=sa.text("status = 'active'"),
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("regions", sa.JSON(), nullable=False),
        sa.Column("packs", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("minimum_tier", sa.String(length=16), nullable=False),
        sa.Column("session_limit", sa.Integer(), nullable=False),
        sa.Column("max_output_tokens", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("log_vkey", sa.String(length=512), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "agent_spools",
        sa.Column("agent_id", sa.String(length=63), nullable=False),
        sa.Column("spool_id", sa.String(length=64), nullable=False),
        sa.Column("committed_seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.agent_id"], name=op.f("fk_agent_spools_agent_id")),
        sa.PrimaryKeyConstraint("agent_id", "spool_id", name=op.f("pk_agent_spools")),
    )
    op.create_table(
        "partitions",
        sa.Column("partition_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("model_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("agent_id", sa.String(length=63), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("sharing_key", sa.String(length=64), nullable=False),
        sa.Column("exclusive", sa.Boolean(), nullable=False),
        sa.Column("gpu_uuids", sa.JSON(), nullable=False),
        sa.Column("mig_profile_id", sa.Integer(), nullable=True),
        sa.Column("memory_slice_start", sa.Integer(), nullable=True),
        sa.Column("memory_slices", sa.Integer(), nullable=True),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("max_output_tokens", sa.Integer(), nullable=False),
        sa.Column("authority", sa.String(length=255), nullable=True),
        sa.Column("worker_certificate", sa.LargeBinary(), nullable=True),
        sa.Column("keyset", sa.LargeBinary(), nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.agent_id"], name=op.f("fk_partitions_agent_id")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_partitions_model")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_partitions_tenant_id")),
        sa.PrimaryKeyConstraint("partition_id", name=op.f("pk_partitions")),
    )
    op.create_index("ix_partitions_agent", "partitions", ["agent_id", "state"], unique=False)
    op.create_index("ix_partitions_state", "partitions", ["state"], unique=False)
    op.create_index("ix_partitions_tenant", "partitions", ["tenant_id", "state"], unique=False)
    op.create_table(
        "principals",
        sa.Column("principal_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_principals_tenant_id")),
        sa.PrimaryKeyConstraint("principal_id", name=op.f("pk_principals")),
        sa.UniqueConstraint("subject_id", name=op.f("uq_principals_subject_id")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_principals_tenant_id_name")),
    )
    op.create_index(
        "uq_principals_platform_name",
        "principals",
        ["name"],
        unique=True,
        sqlite_where=sa.text("tenant_id IS NULL"),
        postgresql_where=sa.text("tenant_id IS NULL"),
    )
    op.create_table(
        "credentials",
        sa.Column("credential_id", sa.String(length=64), nullable=False),
        sa.Column("principal_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principals.principal_id"], name=op.f("fk_credentials_principal_id")
        ),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_credentials_fingerprint")),
    )
    op.create_index(op.f("ix_credentials_principal_id"), "credentials", ["principal_id"], unique=False)
    op.create_table(
        "partition_slots",
        sa.Column("device", sa.String(length=255), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("partition_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["partition_id"], ["partitions.partition_id"], name=op.f("fk_partition_slots_partition_id")
        ),
        sa.PrimaryKeyConstraint("device", "slot", name=op.f("pk_partition_slots")),
    )
    op.create_index(op.f("ix_partition_slots_partition_id"), "partition_slots", ["partition_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("principal_id", sa.String(length=64), nullable=False),
        sa.Column("credential_id", sa.String(length=64), nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("model_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("tier_floor", sa.String(length=16), nullable=False),
        sa.Column("minimum_tier", sa.String(length=16), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("partition_id", sa.String(length=64), nullable=True),
        sa.Column("purpose", sa.String(length=63), nullable=False),
        sa.Column("data_classes", sa.JSON(), nullable=False),
        sa.Column("max_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("padding", sa.String(length=16), nullable=False),
        sa.Column("session_public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("obligations", sa.JSON(), nullable=False),
        sa.Column("policy_digest", sa.String(length=64), nullable=False),
        sa.Column("decision_record_id", sa.String(length=64), nullable=False),
        sa.Column("pair_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_revision", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("closed_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["credential_id"], ["credentials.credential_id"], name=op.f("fk_sessions_credential_id")
        ),
        sa.ForeignKeyConstraint(["partition_id"], ["partitions.partition_id"], name=op.f("fk_sessions_partition_id")),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.principal_id"], name=op.f("fk_sessions_principal_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_sessions_tenant_id")),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("tenant_id", "request_id", name=op.f("uq_sessions_tenant_id_request_id")),
    )
    op.create_index("ix_sessions_credential", "sessions", ["credential_id", "state"], unique=False)
    op.create_index(op.f("ix_sessions_partition_id"), "sessions", ["partition_id"], unique=False)
    op.create_index("ix_sessions_state_expires", "sessions", ["state", "expires_us"], unique=False)
    op.create_index("ix_sessions_tenant_state", "sessions", ["tenant_id", "state"], unique=False)
