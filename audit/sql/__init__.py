"""The audit store in SQL, through SQLAlchemy Core."""

from audit.sql.sqlite import open_sqlite
from audit.sql.store import SqlAuditStore

__all__ = ["SqlAuditStore", "open_sqlite"]
