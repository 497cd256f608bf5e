"""The tray's front door: relays bytes to workers by TLS server name, and terminates nothing."""

from data_plane.ingress.client_hello import parse_server_name
from data_plane.ingress.relay import Ingress, IngressLimits

__all__ = ["Ingress", "IngressLimits", "parse_server_name"]
