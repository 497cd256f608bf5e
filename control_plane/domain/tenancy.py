"""Tenants, principals, credentials and models: values and the rules that each keeps by itself.

Rules that need several rows (a unique name, a tenant that exists) are kept where the rows are written; rules about who
may do what are policy's.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from bulkhead import ids
from bulkhead.encoding import canonical_json
from bulkhead.errors import InvalidRequestError
from control_plane.authz.vocabulary import check_word
from control_plane.domain.roles import CredentialKind, Role, Scope
from control_plane.domain.tiers import Tier

__all__ = [
    "DIGEST_BYTES",
    "MAX_FACTS_BYTES",
    "UPDATABLE",
    "Credential",
    "Custody",
    "Model",
    "ModelStatus",
    "Principal",
    "SealedModel",
    "Tenant",
    "TenantStatus",
    "check_facts_fit",
    "check_tenancy",
]

MAX_REGIONS: Final = 64  # these three are policy's bounds: a tenant beyond them could never open a session
MAX_PACKS: Final = 16
MAX_MODELS: Final = 128
MAX_FACTS_BYTES: Final = 5_632  # of those three together, so that the policy input fits its 12 KiB whatever is asked
MAX_SESSION_LIMIT: Final = 100_000
MAX_OUTPUT_TOKENS: Final = 2**31 - 1
MAX_BROKER_CHARACTERS: Final = 255  # a DNS name and a port
MAX_CERTIFICATE_BYTES: Final = 16_384
MAX_PATH_CHARACTERS: Final = 255
MAX_CONTEXT_LENGTH: Final = 2**24
MAX_MEMORY_MIB: Final = 2**24  # 16 TiB, more than a rack's device memory
DIGEST_BYTES: Final = 32  # SHA-256

UPDATABLE: Final = (
    "status",
    "regions",
    "packs",
    "models",
    "minimum_tier",
    "session_limit",
    "max_output_tokens",
    "tenant_root",
)
"""Fields of a tenant that an update may name."""


class TenantStatus(StrEnum):
    """Whether a tenant may open sessions at all; policy reads it."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class ModelStatus(StrEnum):
    """A retired model takes no new session."""

    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant.

    Attributes:
        name: unique.
        regions: where its data may be processed.
        packs: compliance packs it is under.
        models: names of models it may use.
        minimum_tier: least tier of its sessions.
        session_limit: largest number of open sessions.
        max_output_tokens: per request.
        revision: grows with every update; decisions name it.
        log_vkey: C2SP verifier key of its audit log.
        created_us: microseconds since the Unix epoch.
        tenant_root: fingerprint of its root, 32 bytes, which certifies session keys; empty where it has none.
    """

    tenant_id: str
    name: str
    status: TenantStatus
    regions: tuple[str, ...]
    packs: tuple[str, ...]
    models: tuple[str, ...]
    minimum_tier: Tier
    session_limit: int
    max_output_tokens: int
    revision: int
    log_vkey: str
    created_us: int
    tenant_root: bytes = b""

    def __post_init__(self) -> None:
        """Check every field that an administrator chooses.

        Raises:
            InvalidRequestError: naming the field.
        """
        ids.check_name(self.name, "name")
        _check_list(self.regions, MAX_REGIONS, "regions")
        _check_list(self.packs, MAX_PACKS, "packs")
        if len(self.models) > MAX_MODELS:
            raise InvalidRequestError(f"models: at most {MAX_MODELS}")
        for model in self.models:
            ids.check_name(model, "models")
        _check_range(self.session_limit, 1, MAX_SESSION_LIMIT, "session_limit")
        _check_range(self.max_output_tokens, 1, MAX_OUTPUT_TOKENS, "max_output_tokens")
        if len(self.tenant_root) not in {0, DIGEST_BYTES}:
            raise InvalidRequestError(f"tenant_root: none, or the SHA-256 ({DIGEST_BYTES} bytes) of its public key")

    @property
    def facts_bytes(self) -> int:
        """Size of regions, packs and models as the policy input holds them (RFC 8785)."""
        return sum(len(canonical_json([*sorted(set(words))])) for words in (self.regions, self.packs, self.models))


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A person or program that may hold credentials.

    Attributes:
        tenant_id: empty for admins and platform officers.
        name: unique within its tenant (or the platform); personal data, so it goes into no audit record.
        subject_id: random pseudonym, which does.
    """

    principal_id: str
    tenant_id: str
    name: str
    role: Role
    subject_id: str
    created_us: int

    def __post_init__(self) -> None:
        """Check name, and that role and tenant fit.

        Raises:
            InvalidRequestError: naming the field.
        """
        ids.check_name(self.name, "name")
        check_tenancy(self.role, self.tenant_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A credential, without its secret.

    Attributes:
        scopes: as granted; what counts is their part within the principal's role.
        fingerprint: of a certificate, SHA-256 over the DER in hexadecimal; empty for an API key.
        revoked_us: 0 while it is not revoked.
    """

    credential_id: str
    principal_id: str
    kind: CredentialKind
    scopes: frozenset[Scope]
    created_us: int
    expires_us: int
    revoked_us: int = 0
    fingerprint: str = ""


class Custody(StrEnum):
    """Who holds the key of a model: nobody (it lies unsealed), the platform's broker, or the tenant's."""

    NONE = "none"
    PLATFORM = "platform"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """How a registered model is sealed.

    Attributes:
        custody: whose broker releases its key.
        manifest: the document ``manifest.json``, consistent with its own signature; brokers judge the signer.
        manifest_digest: 32 bytes.
        version: in the manifest.
        broker_address: ``host:port`` of the tenant's broker; empty for the platform's.
        broker_name: name in the broker's certificate.
        broker_certificate: PEM, the only one that is accepted.
    """

    custody: Custody
    manifest: bytes
    manifest_digest: bytes
    version: int
    broker_address: str = ""
    broker_name: str = ""
    broker_certificate: bytes = b""

    def __post_init__(self) -> None:
        """Check what custody demands.

        Raises:
            InvalidRequestError: naming the field.
        """
        named = (self.broker_address, self.broker_name, self.broker_certificate)
        if self.custody is Custody.NONE:
            raise InvalidRequestError("custody: a sealed model's is platform or tenant")
        if (self.custody is Custody.TENANT) != all(named) or (self.custody is Custody.PLATFORM and any(named)):
            raise InvalidRequestError("broker: address, name and certificate, for custody tenant and only there")
        if max(len(self.broker_address), len(self.broker_name)) > MAX_BROKER_CHARACTERS:
            raise InvalidRequestError(f"broker: address and name have at most {MAX_BROKER_CHARACTERS} characters")
        if len(self.broker_certificate) > MAX_CERTIFICATE_BYTES:
            raise InvalidRequestError(f"broker: a certificate has at most {MAX_CERTIFICATE_BYTES} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that workers can serve.

    Attributes:
        sealed: how it is sealed; None for a plain one.
        digest: SHA-256 of its manifest, 32 bytes; workers compute it again.
        path: below a node agent's model directory.
        context_length: tokens.
        memory_mib: device memory that a worker needs, weights and cache.
    """

    name: str
    digest: bytes
    path: str
    status: ModelStatus
    context_length: int
    memory_mib: int
    created_us: int
    sealed: SealedModel | None = None

    @property
    def custody(self) -> Custody:
        """Who holds its key."""
        return self.sealed.custody if self.sealed is not None else Custody.NONE

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: naming the field.
        """
        ids.check_name(self.name, "name")
        if len(self.digest) != DIGEST_BYTES:
            raise InvalidRequestError(f"digest: {DIGEST_BYTES} bytes, the SHA-256 of the model's manifest")
        parts = PurePosixPath(self.path).parts
        if not 0 < len(self.path) <= MAX_PATH_CHARACTERS or self.path.startswith("/") or ".." in parts:
            raise InvalidRequestError("path: relative to the agents' model directory, without '..'")
        if not self.path.isprintable():
            raise InvalidRequestError("path: printable characters only")
        _check_range(self.context_length, 1, MAX_CONTEXT_LENGTH, "context_length")
        _check_range(self.memory_mib, 1, MAX_MEMORY_MIB, "memory_mib")


def check_facts_fit(tenant: Tenant, before: Tenant | None = None) -> None:
    """Refuse facts that no policy input has room for; a tenant that has too many already may keep or shorten them.

    Raises:
        InvalidRequestError: regions, packs and models together are too long; details: ``bytes`` and ``limit``.
    """
    size = tenant.facts_bytes
    if size > MAX_FACTS_BYTES and (before is None or size > before.facts_bytes):
        raise InvalidRequestError(
            f"regions, packs and models: {size} bytes together, at most {MAX_FACTS_BYTES} fit into a policy decision;"
            " with more the tenant could open no session: name fewer, or use shorter names",
            details={"bytes": str(size), "limit": str(MAX_FACTS_BYTES)},
        )


def check_tenancy(role: Role, tenant_id: str) -> None:
    """Refuse a role outside its place: developers belong to a tenant, admins to none, officers to either.

    Raises:
        InvalidRequestError: they do not fit.
    """
    if role is Role.DEVELOPER and not tenant_id:
        raise InvalidRequestError("a developer belongs to a tenant")
    if role is Role.ADMIN and tenant_id:
        raise InvalidRequestError("an admin belongs to no tenant")


def _check_list(values: tuple[str, ...], limit: int, what: str) -> None:
    if len(values) > limit:
        raise InvalidRequestError(f"{what}: at most {limit}")
    for value in values:
        check_word(value, what)


def _check_range(value: int, low: int, high: int, what: str) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(f"{what}: between {low} and {high}")
