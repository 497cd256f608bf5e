"""Views for people and tools that query in SQL, and which role may see which tenant's records through them.

On PostgreSQL a role sees, through the views, the logs that `audit_reader` gives it, and nothing else; the owner and
superusers see everything. SQLite knows no roles: whoever can open the file sees all of it.
"""

# ruff: noqa: S608 - the statements are made of this file's own constants

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_VIEWS = ("audit_logs", "audit_records", "audit_decisions", "audit_usage")


def upgrade() -> None:
    op.create_table("audit_reader", sa.Column("role_name", sa.Text, primary_key=True), sa.Column("tenant", sa.Text))
    postgres = op.get_bind().dialect.name == "postgresql"
    for name, query in _queries(postgres=postgres).items():
        barrier = " WITH (security_barrier)" if postgres else ""
        op.execute(f"CREATE VIEW {name}{barrier} AS {query}")


def downgrade() -> None:
    for name in reversed(_VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.drop_table("audit_reader")


def _queries(*, postgres: bool) -> dict[str, str]:
    record = "convert_from(l.leaf, 'UTF8')::jsonb" if postgres else "CAST(l.leaf AS TEXT)"
    moment = (
        "to_timestamp(i.ts_us / 1000000.0)"
        if postgres
        else "strftime('%Y-%m-%d %H:%M:%f', i.ts_us / 1000000.0, 'unixepoch')"
    )

    def text(*path: str, column: str = "r.record") -> str:
        if postgres:
            return f"{column} #>> '{{{','.join(path)}}}'"
        return f"json_extract({column}, '$.{'.'.join(path)}')"

    def number(*path: str) -> str:
        return f"({text(*path)})::bigint" if postgres else text(*path)

    return {
        "audit_logs": (
            "SELECT g.origin AS log, g.tenant, g.epoch, g.slot, coalesce(h.size, 0) AS size, "
            "coalesce((SELECT max(i.idx) + 1 FROM audit_index i WHERE i.log_id = g.log_id), 0) AS indexed "
            f"FROM audit_log g LEFT JOIN audit_head h ON h.log_id = g.log_id WHERE {_allowed(postgres=postgres)}"
        ),
        "audit_records": (
            f"SELECT g.origin AS log, g.tenant, i.idx AS place, l.record_id, i.ts_us, {moment} AS at, i.action, "
            f"i.decision, i.subject, i.session, i.pair_id, {record} AS record "
            "FROM audit_index i JOIN audit_leaf l ON l.pos = i.pos JOIN audit_log g ON g.log_id = i.log_id "
            f"WHERE {_allowed(postgres=postgres)}"
        ),
        "audit_decisions": (
            "SELECT r.log, r.tenant, r.place, r.record_id, r.ts_us, r.at, r.decision, r.subject, r.session, r.pair_id, "
            f"{text('data', 'on')} AS asked, {text('model')} AS model, {text('tier')} AS tier, "
            f"{text('cause', 'request_id')} AS request_id, {text('bundle')} AS bundle, {text('reasons')} AS reasons, "
            f"{text('data', 'result', column='o.record')} AS outcome "
            "FROM audit_records r LEFT JOIN audit_records o "
            "ON o.pair_id = r.pair_id AND o.log = r.log AND o.action = 'outcome' AND r.pair_id <> '' "
            "WHERE r.action = 'decision'"
        ),
        "audit_usage": (
            "SELECT r.log, r.tenant, r.place, r.ts_us, r.at, r.session, "
            f"{text('partition')} AS partition_id, {text('model')} AS model, {number('data', 'count')} AS receipts, "
            f"{number('data', 'prompt_tokens')} AS prompt_tokens, "
            f"{number('data', 'completion_tokens')} AS completion_tokens "
            "FROM audit_records r WHERE r.action = 'receipts'"
        ),
    }


def _allowed(*, postgres: bool) -> str:
    """Return the condition that a row is the reader's to see; `session_user` cannot be set by who logs in."""
    if not postgres:
        return "1 = 1"
    return (
        "(pg_has_role(session_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = 'audit_leaf'::regclass), "
        "'MEMBER') "
        "OR EXISTS (SELECT 1 FROM audit_reader a WHERE a.role_name = session_user::text "
        "AND (a.tenant IS NULL OR a.tenant = g.tenant)))"
    )
