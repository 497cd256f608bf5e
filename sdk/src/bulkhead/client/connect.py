"""From a profile to a connection."""

from bulkhead.client.config import Profile
from bulkhead.client.journal import RequestJournal
from bulkhead.client.status import Peer
from bulkhead.client.transport import Channel, RetryPolicy

__all__ = ["control_plane_channel"]


def control_plane_channel(profile: Profile, *, retry: RetryPolicy | None = None) -> Channel:
    """Return a channel to the profile's control plane with its credential; the caller closes it.

    Raises:
        InvalidRequestError: the profile's address is not host:port.
    """
    return Channel(
        peer=Peer.CONTROL_PLANE,
        address=profile.address,
        roots_pem=profile.ca_pem,
        server_name=profile.server_name,
        client_certificate_pem=profile.client_certificate_pem,
        client_key_pem=profile.client_key_pem,
        api_key=profile.api_key,
        retry=retry,
        journal=None if profile.request_journal is None else RequestJournal(profile.request_journal),
    )
