"""The audit log as the control plane uses it."""

from audit.log.log import AuditLog

__all__ = ["AuditLog"]
