"""Tables of the audit database. The migrations create them; a test holds the two to each other.

Only ``audit_log``, ``audit_leaf`` and ``audit_commit`` are the record. ``audit_head`` and ``audit_tile`` follow from
the leaves, and ``audit_index`` is rebuilt by ``bulkhead-audit reindex``; verification compares them all.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint

__all__ = [
    "METADATA",
    "PROJECTOR",
    "SEQUENCER",
    "audit_checkpoint",
    "audit_commit",
    "audit_head",
    "audit_index",
    "audit_leaf",
    "audit_log",
    "audit_reader",
    "audit_round",
    "audit_tile",
    "audit_writer",
]

METADATA: Final = MetaData()
_BIG: Final = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's rowid is an INTEGER primary key
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")  # compared byte by byte, whatever the locale

# Rows whose locks are the sequencer (whoever holds it may append; SQLite: BEGIN IMMEDIATE does the same) and the turn
# to bring the index up to date.
SEQUENCER: Final = 1
PROJECTOR: Final = 2
audit_writer = Table("audit_writer", METADATA, Column("id", Integer, primary_key=True, autoincrement=False))

# `pos`: the last leaf of the commit, so that verification can replay the chain commit by commit.
audit_commit = Table(
    "audit_commit",
    METADATA,
    Column("seq", _BIG, primary_key=True, autoincrement=False),
    Column("pos", _BIG, nullable=False),
    Column("chain", LargeBinary(32), nullable=False),
)

audit_log = Table(
    "audit_log",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("origin", _TEXT, nullable=False, unique=True),
    Column("tenant", _TEXT),
    Column("epoch", Integer, nullable=False),
    Column("slot", Integer),
    UniqueConstraint("tenant", "epoch", name="uq_audit_log_tenant_epoch"),
    UniqueConstraint("slot", "epoch", name="uq_audit_log_slot_epoch"),
)

audit_leaf = Table(
    "audit_leaf",
    METADATA,
    Column("pos", _BIG, primary_key=True, autoincrement=False),
    Column("log_id", Integer, nullable=False),
    Column("idx", _BIG, nullable=False),
    Column("record_id", _TEXT, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    UniqueConstraint("log_id", "idx", name="uq_audit_leaf_place"),
    UniqueConstraint("record_id", name="uq_audit_leaf_record"),
)

audit_head = Table(
    "audit_head",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", _BIG, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
)

audit_tile = Table(
    "audit_tile",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("n", _BIG, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)

# `cosigs`: witnesses' signature lines, gathered after the note was signed.
audit_checkpoint = Table(
    "audit_checkpoint",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", _BIG, primary_key=True, autoincrement=False),
    Column("note", _TEXT, nullable=False),
    Column("cosigs", _TEXT),
)

# The size of each tenant's log that a round committed to; a log that did not change keeps its earlier row. The row of
# the platform's own log, which every round has, says where the search for the round's record begins.
audit_round = Table(
    "audit_round",
    METADATA,
    Column("round", _BIG, primary_key=True, autoincrement=False),
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", _BIG, nullable=False),
    Index("ix_audit_round_log", "log_id", "round"),
)

audit_index = Table(
    "audit_index",
    METADATA,
    Column("pos", _BIG, primary_key=True, autoincrement=False),
    Column("log_id", Integer, nullable=False),
    Column("idx", _BIG, nullable=False),
    Column("ts_us", _BIG, nullable=False),
    Column("action", _TEXT, nullable=False),
    Column("decision", _TEXT, nullable=False),
    Column("subject", _TEXT, nullable=False),
    Column("session", _TEXT, nullable=False),
    Column("pair_id", _TEXT, nullable=False),
    Index("ix_audit_index_place", "log_id", "idx", unique=True),
    Index("ix_audit_index_time", "log_id", "ts_us", "idx"),
    Index("ix_audit_index_action", "log_id", "action", "idx"),
    Index("ix_audit_index_session", "log_id", "session", "idx"),
    Index("ix_audit_index_subject", "log_id", "subject", "idx"),
    Index("ix_audit_index_pair", "pair_id"),
)

# Which tenant's records a database role sees through the views (PostgreSQL); NULL: every log.
audit_reader = Table("audit_reader", METADATA, Column("role_name", Text, primary_key=True), Column("tenant", Text))
