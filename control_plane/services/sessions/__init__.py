"""Sessions: opened, renewed, read and ended (docs/architecture.md, "One session")."""

from control_plane.services.sessions.grant import Grant
from control_plane.services.sessions.serve import Phase, Report
from control_plane.services.sessions.service import SessionService

__all__ = ["Grant", "Phase", "Report", "SessionService"]
