"""Alembic environment: runs on the connection that :func:`control_plane.storage.migrate.migrate` hands in."""

from alembic import context

from control_plane.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="state_schema",
    transactional_ddl=True,
)
context.run_migrations()
