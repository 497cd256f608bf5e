"""What the control plane reports about sessions, tenants, models, policies and the fleet.

These are a server's words, for display and bookkeeping: nothing in them is verified, and nothing that a tenant must
be sure of (which worker, which decision) is taken from them. Tiers and roles are their lower-case names; times are
seconds since the epoch, 0 where something has not happened; digests are lower-case hexadecimal.
"""

from dataclasses import dataclass

__all__ = [
    "AgentView",
    "CredentialView",
    "IssuedKey",
    "ModelView",
    "PartitionView",
    "PolicyBundleView",
    "PrincipalView",
    "SealedTerms",
    "SessionView",
    "TenantView",
    "TicketIssuerView",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session; ``state`` is `opening`, `open`, `lost`, `closed` or `denied`."""

    session_id: str
    tenant_id: str
    model: str
    tier: str
    simulated: bool
    state: str
    partition_id: str
    purpose: str
    created_unix_s: int
    expires_unix_s: int
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantView:
    """A tenant; ``status`` is `active` or `suspended`, ``log_vkey`` the verifier key of its audit log.

    ``tenant_root`` is the fingerprint of its root, empty where it has none.
    """

    tenant_id: str
    name: str
    status: str
    regions: tuple[str, ...]
    packs: tuple[str, ...]
    models: tuple[str, ...]
    minimum_tier: str
    session_limit: int
    max_output_tokens: int
    revision: int
    log_vkey: str
    tenant_root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalView:
    """A person or program that may hold credentials; ``subject_id`` is its pseudonym in audit records."""

    principal_id: str
    tenant_id: str
    name: str
    role: str
    subject_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialView:
    """A credential without its secret; ``kind`` is `api_key` or `certificate`."""

    credential_id: str
    principal_id: str
    kind: str
    scopes: tuple[str, ...]
    created_unix_s: int
    expires_unix_s: int
    revoked_unix_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A new API key: the only time its secret is seen. ``repr`` hides it."""

    credential: CredentialView
    api_key: str

    def __repr__(self) -> str:
        return f"IssuedKey(credential={self.credential!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model; ``digest`` is the SHA-256 of its manifest, ``path`` is below the agents' model directory.

    A sealed one has custody ``platform`` or ``tenant``, version and manifest digest; ``broker`` is the tenant's.
    """

    name: str
    digest: str
    path: str
    status: str
    context_length: int
    memory_mib: int
    custody: str = "none"
    version: int = 0
    manifest_digest: str = ""
    broker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTerms:
    """How a model is sealed, as it is registered.

    Attributes:
        custody: ``platform`` or ``tenant``.
        manifest: the document ``manifest.json``.
        broker_address: ``host:port`` of a tenant's broker.
        broker_name: name in its certificate.
        broker_certificate: PEM, pinned.
    """

    custody: str
    manifest: bytes
    broker_address: str = ""
    broker_name: str = ""
    broker_certificate: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundleView:
    """A policy bundle; ``status`` is `candidate`, `active` or `superseded`; the people are subject ids."""

    bundle_id: str
    digest: str
    revision: int
    status: str
    published_by: str
    activated_by: str
    created_unix_s: int
    activated_unix_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """A node agent and the compute tray it speaks for."""

    agent_id: str
    rack: str
    tray: int
    region: str
    connected: bool
    cordoned: bool
    simulated: bool
    gpus: int
    gpu_product: str
    partitions: int
    last_seen_unix_s: int
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketIssuerView:
    """A ticket issuer; ``status`` is `next`, `active`, `previous` or `retired`, ``fingerprint`` what tenants pin."""

    issuer_id: str
    fingerprint: str
    public_key: bytes
    status: str
    created_unix_s: int
    activated_unix_s: int
    replaced_unix_s: int
    retired_unix_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionView:
    """A partition; ``state`` is one of the life cycle's, or `lost` or `cordoned`."""

    partition_id: str
    tenant_id: str
    model: str
    tier: str
    simulated: bool
    agent_id: str
    state: str
    gpu_uuids: tuple[str, ...]
    mig_profile_id: int
    memory_slice_start: int
    memory_slices: int
    sessions: int
    created_unix_s: int
