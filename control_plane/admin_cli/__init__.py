"""The `bulkhead-admin` command: tenants, principals, credentials, models, policies and the fleet, over gRPC only."""

from control_plane.admin_cli.program import main

__all__ = ["main"]
