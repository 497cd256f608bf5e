"""Tables of the state database (SQLite here, PostgreSQL where replicas share it).

Times are microseconds since the Unix epoch, UTC, in ``*_us``; identifiers are TypeIDs as text; lists are JSON. The
audit log lives in its own database and refers to rows here by identifier only; the mapping of people to subject ids
moves to a key database when erasure comes, so nothing but ``principals.subject_id`` may grow to depend on it.

``storage/migrations`` creates these tables; a test compares the two, so a new column needs its migration. Tables of
one concern are written by one module only: tenancy and policy by :mod:`control_plane.storage.tenancy` and
:mod:`~control_plane.storage.policy`, the fleet and sessions by ``partitions`` and ``sessions``.
"""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

__all__ = [
    "agent_spools",
    "agents",
    "credentials",
    "idempotent_requests",
    "metadata",
    "model_floors",
    "models",
    "partition_slots",
    "partitions",
    "policy_bundles",
    "principals",
    "receipt_batches",
    "sealed_models",
    "sessions",
    "tenants",
    "ticket_issuers",
]

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ID: Final = String(64)
_NAME: Final = String(63)
_DIGEST: Final = LargeBinary(32)

tenants: Final = Table(
    "tenants",
    metadata,
    Column("tenant_id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False, unique=True),
    Column("status", String(16), nullable=False),  # active, suspended
    Column("regions", JSON, nullable=False),
    Column("packs", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("minimum_tier", String(16), nullable=False),
    Column("session_limit", Integer, nullable=False),
    Column("max_output_tokens", Integer, nullable=False),
    # Changes with every update; a decision names the revision it saw, and the open re-checks it before its outcome.
    Column("revision", BigInteger, nullable=False),
    Column("log_vkey", String(512), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("tenant_root", _DIGEST, nullable=True),  # SHA-256 of its root's public key; null where it has none
)

principals: Final = Table(
    "principals",
    metadata,
    Column("principal_id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.tenant_id"), nullable=True),  # null: admins, platform officers
    Column("name", _NAME, nullable=False),
    Column("role", String(16), nullable=False),
    Column("subject_id", _ID, nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    # A unique constraint takes nulls for different values, so platform names need an index of their own.
    Index(
        "uq_principals_platform_name",
        "name",
        unique=True,
        sqlite_where=text("tenant_id IS NULL"),
        postgresql_where=text("tenant_id IS NULL"),
    ),
)

credentials: Final = Table(
    "credentials",
    metadata,
    Column("credential_id", _ID, primary_key=True),
    Column("principal_id", _ID, ForeignKey("principals.principal_id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # api_key, certificate
    Column("secret_sha256", _DIGEST, nullable=True),  # api_key: SHA-256 of the 32 random bytes
    Column("fingerprint", String(64), nullable=True, unique=True),  # certificate: SHA-256 of the DER, hexadecimal
    Column("scopes", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger, nullable=True),
)

models: Final = Table(
    "models",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False),  # SHA-256 of the manifest
    Column("path", String(255), nullable=False),  # below an agent's model directory
    Column("status", String(16), nullable=False),  # active, retired
    Column("context_length", Integer, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("custody", String(16), nullable=False, server_default="none"),  # none, platform, tenant
)

sealed_models: Final = Table(
    "sealed_models",
    metadata,
    Column("name", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("manifest_digest", _DIGEST, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("broker_address", String(255), nullable=False),
    Column("broker_name", String(255), nullable=False),
    Column("broker_certificate", LargeBinary, nullable=False),
)

model_floors: Final = Table(
    "model_floors",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("version", BigInteger, nullable=False),  # no key of a lower one is released any more
)

policy_bundles: Final = Table(
    "policy_bundles",
    metadata,
    Column("bundle_id", _ID, primary_key=True),
    Column("digest", String(64), nullable=False),  # SHA-256 over the sources, hexadecimal: what decisions name
    Column("revision", BigInteger, nullable=False, unique=True),
    Column("status", String(16), nullable=False),  # candidate, active, superseded
    Column("bundle", LargeBinary, nullable=False),  # the signed bundle, as OPA loads it
    Column("published_by", _ID, nullable=False),  # subject ids
    Column("activated_by", _ID, nullable=True),
    Column("created_us", BigInteger, nullable=False),
    Column("activated_us", BigInteger, nullable=True),
    Index(
        "uq_policy_bundles_active",
        "status",
        unique=True,
        sqlite_where=text("status = 'active'"),
        postgresql_where=text("status = 'active'"),
    ),
)

# What an administrative request id was used for: the same content gets the same answer, other content is refused.
idempotent_requests: Final = Table(
    "idempotent_requests",
    metadata,
    Column("principal_id", _ID, primary_key=True),
    Column("request_id", _ID, primary_key=True),
    Column("content_sha256", _DIGEST, nullable=False),  # over method and canonical request
    Column("result_id", String(64), nullable=False),  # identifier of what the request made or changed
    Column("created_us", BigInteger, nullable=False),
)

agents: Final = Table(
    "agents",
    metadata,
    Column("agent_id", _NAME, primary_key=True),
    Column("boot_id", _ID, nullable=False),
    Column("rack", _NAME, nullable=False),
    Column("tray", Integer, nullable=False),
    Column("region", _NAME, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("evidence_kind", String(16), nullable=False),
    Column("evidence_public_key", _DIGEST, nullable=False),
    Column("ingress_address", String(255), nullable=False),
    Column("inventory", JSON, nullable=False),  # as reported: tiers, gpus, mig_profiles, process_slots
    Column("cordoned", Boolean, nullable=False),
    Column("first_seen_us", BigInteger, nullable=False),
    Column("last_seen_us", BigInteger, nullable=False),
)

# How far each agent's event spool is committed; written in the transaction that takes the events' effect.
agent_spools: Final = Table(
    "agent_spools",
    metadata,
    Column("agent_id", _NAME, ForeignKey("agents.agent_id"), primary_key=True),
    Column("spool_id", _ID, primary_key=True),
    Column("committed_seq", BigInteger, nullable=False),
)

partitions: Final = Table(
    "partitions",
    metadata,
    Column("partition_id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.tenant_id"), nullable=False),
    Column("model", _NAME, ForeignKey("models.name"), nullable=False),
    Column("model_digest", _DIGEST, nullable=False),
    Column("agent_id", _NAME, ForeignKey("agents.agent_id"), nullable=False),
    Column("tier", String(16), nullable=False),
    Column("region", _NAME, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    # The row's version. Every write increments it where it still has the value that was read; commands carry it, and
    # an agent refuses an older one.
    Column("fence", BigInteger, nullable=False),
    Column("sharing_key", String(64), nullable=False),  # sessions with equal keys may share the partition
    Column("exclusive", Boolean, nullable=False),
    Column("gpu_uuids", JSON, nullable=False),
    Column("mig_profile_id", Integer, nullable=True),  # null for tiers other than mig
    Column("memory_slice_start", Integer, nullable=True),
    Column("memory_slices", Integer, nullable=True),
    Column("memory_mib", BigInteger, nullable=False),
    Column("max_output_tokens", Integer, nullable=False),
    Column("authority", String(255), nullable=True),  # from here on: known once the worker is up
    Column("worker_certificate", LargeBinary, nullable=True),
    Column("keyset", LargeBinary, nullable=True),
    Column("reason", String(255), nullable=False),  # of the last transition
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("tenant_root", _DIGEST, nullable=True),  # the tenant's when the worker was started; never changes
    Index("ix_partitions_state", "state"),
    Index("ix_partitions_tenant", "tenant_id", "state"),
    Index("ix_partitions_agent", "agent_id", "state"),
)

# The places that partitions hold: a row for each memory slice of a GPU, or for a process slot of an agent. The primary
# key is what keeps two partitions of two replicas apart; the rows go when the partition is free.
partition_slots: Final = Table(
    "partition_slots",
    metadata,
    Column("device", String(255), primary_key=True),  # GPU UUID, or `process:<agent id>`
    Column("slot", Integer, primary_key=True),
    Column("partition_id", _ID, ForeignKey("partitions.partition_id"), nullable=False, index=True),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("session_id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.tenant_id"), nullable=False),
    Column("principal_id", _ID, ForeignKey("principals.principal_id"), nullable=False),
    Column("credential_id", _ID, ForeignKey("credentials.credential_id"), nullable=False),
    Column("subject_id", _ID, nullable=False),
    Column("request_id", _ID, nullable=False),
    Column("request_sha256", _DIGEST, nullable=False),  # a repeated request id must carry the same request
    Column("state", String(16), nullable=False),  # opening, open, lost, closed, denied
    Column("model", _NAME, nullable=False),
    Column("model_digest", _DIGEST, nullable=False),
    Column("tier", String(16), nullable=False),  # of its partition; empty until it was open once
    Column("tier_floor", String(16), nullable=False),  # highest that a decision demanded so far; empty before the first
    Column("minimum_tier", String(16), nullable=False),  # as asked for; empty leaves it to policy
    Column("region", _NAME, nullable=False),  # as asked for; empty leaves it to policy
    Column("simulated", Boolean, nullable=False),
    Column("partition_id", _ID, ForeignKey("partitions.partition_id"), nullable=True, index=True),
    Column("purpose", _NAME, nullable=False),
    Column("data_classes", JSON, nullable=False),
    Column("max_output_tokens", BigInteger, nullable=False),  # as asked for; 0 leaves it to tenant and model
    Column("padding", String(16), nullable=False),
    Column("session_public_key", _DIGEST, nullable=False),
    # Of the last decision; empty until the session was open once.
    Column("obligations", JSON, nullable=False),
    Column("policy_digest", String(64), nullable=False),
    Column("decision_record_id", _ID, nullable=False),
    Column("pair_id", _ID, nullable=False),  # joins the audit records of its open; made with the reservation
    Column("tenant_revision", BigInteger, nullable=False),
    Column("reason", String(255), nullable=False),  # of the last transition
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),  # of the newest ticket
    Column("closed_us", BigInteger, nullable=True),
    UniqueConstraint("tenant_id", "request_id"),
    Index("ix_sessions_tenant_state", "tenant_id", "state"),
    Index("ix_sessions_credential", "credential_id", "state"),
    Index("ix_sessions_state_expires", "state", "expires_us"),
)

# Which receipts went under which `receipts` record. A range is claimed here before its record is written, so that a
# crash in between leads to the same record again and never to a second one. No foreign keys: a session's row may go.
receipt_batches: Final = Table(
    "receipt_batches",
    metadata,
    Column("session_id", _ID, primary_key=True),
    Column("partition_id", _ID, primary_key=True),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # number of the batch's first receipt
    Column("count", Integer, nullable=False),
    Column("tenant_id", _ID, nullable=False),
    Column("digests", LargeBinary, nullable=False),  # 32 bytes each
    Column("record_id", _ID, nullable=False, unique=True),
    Column("leaf", LargeBinary, nullable=True),  # the record, until it is known to be in the log
    Column("log_id", BigInteger, nullable=True),
    Column("log_index", BigInteger, nullable=True),
    Index(
        "ix_receipt_batches_unrecorded",
        "record_id",
        sqlite_where=text("log_index IS NULL"),
        postgresql_where=text("log_index IS NULL"),
    ),
)

# Public halves; the private keys are files of the keys directory.
ticket_issuers: Final = Table(
    "ticket_issuers",
    metadata,
    Column("fingerprint", String(64), primary_key=True),  # SHA-256 of the public key, hexadecimal
    Column("public_key", _DIGEST, nullable=False),  # raw Ed25519
    Column("status", String(16), nullable=False),  # next, active, previous, retired
    Column("created_us", BigInteger, nullable=False),
    Column("activated_us", BigInteger, nullable=False),  # 0: never
    Column("replaced_us", BigInteger, nullable=False),
    Column("retired_us", BigInteger, nullable=False),
    Index(
        "uq_ticket_issuers_active",
        "status",
        unique=True,
        sqlite_where=text("status = 'active'"),
        postgresql_where=text("status = 'active'"),
    ),
)
