"""Policy bundles as the control plane keeps them: numbered, at most one active, activated by a second person.

States::

    candidate -> active -> superseded -> active     the last step is a rollback, or an activation of an older bundle
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BundleStatus", "PolicyBundle"]


class BundleStatus(StrEnum):
    """State of a bundle."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    """A bundle, without its bytes.

    Attributes:
        digest: SHA-256 over the sources, lower-case hexadecimal: the revision that decisions name.
        number: grows with each publication.
        published_by: subject id.
        activated_by: subject id of who activated it last; empty for a candidate.
        activated_us: time of the last activation; 0 for a candidate.
    """

    bundle_id: str
    digest: str
    number: int
    status: BundleStatus
    published_by: str
    activated_by: str
    created_us: int
    activated_us: int
