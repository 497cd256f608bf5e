"""Alembic environment: runs on the connection that :func:`audit.sql.schema.migrate` hands in, never on a URL."""

from alembic import context

from audit.sql.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table="audit_schema",
    transactional_ddl=True,
)
context.run_migrations()
