"""The audit log as the control plane uses it."""

from audit.log.history import MAX_ROUNDS
from audit.log.log import AuditLog
from audit.log.past import RoundsAsked

__all__ = ["MAX_ROUNDS", "AuditLog", "RoundsAsked"]
