"""The frozen policy input: everything a decision may depend on, and nothing about a person.

Shape: OpenID AuthZEN Authorization API 1.0 (subject, action, resource, context). Every field is a verified fact or a
checked request parameter with a closed alphabet, so no name, e-mail or network address can enter; the audit log keeps
the input in full and replay survives the erasure of a person's mapping. ``policies/input.schema.json`` describes the
JSON that :meth:`PolicyInput.to_json` returns; a test holds the two together.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from bulkhead import ids
from bulkhead.encoding import MAX_SAFE_INTEGER, Json, canonical_json
from bulkhead.errors import InvalidRequestError
from control_plane.authz.resources import (
    RESOURCE_OF,
    AdminResource,
    BundleResource,
    LogResource,
    Resource,
    SessionResource,
)
from control_plane.authz.vocabulary import (
    ACTIONS,
    CREDENTIAL_KINDS,
    MAX_TOKENS,
    NETWORK_CLASSES,
    ROLES,
    SUBJECT_TYPES,
    TENANT_STATUSES,
    check_bounded,
    check_integer,
    check_member,
    check_subject,
    check_tenant,
    check_words,
    sorted_set,
)
from control_plane.domain.tiers import Tier

__all__ = [
    "ACTIONS",
    "AdminResource",
    "BundleResource",
    "Context",
    "LogResource",
    "PlatformFacts",
    "PolicyInput",
    "Resource",
    "SessionResource",
    "Subject",
    "TenantFacts",
]

MAX_INPUT_BYTES: Final = 12 * 1024  # the audit leaf that keeps the input whole is at most 16 KiB (docs/audit.md)
MAX_REGIONS: Final = 64
MAX_PACKS: Final = 16
MAX_MODELS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who asks, as verified by authentication.

    Attributes:
        id: random pseudonym, a TypeID with prefix ``subj`` or ``prin``.
        roles: of :data:`ROLES`.
        tenant: tenant TypeID; None for admins and platform officers.
        credential: one of :data:`CREDENTIAL_KINDS`.
        type: ``user``, or ``service`` for a program's own principal.
    """

    id: str
    roles: tuple[str, ...]
    tenant: str | None
    credential: str
    type: str = "user"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: a field outside its alphabet.
        """
        check_subject(self.id)
        check_tenant(self.tenant)
        for role in self.roles:
            check_member(role, ROLES, "subject.roles")
        check_member(self.credential, CREDENTIAL_KINDS, "subject.credential")
        check_member(self.type, SUBJECT_TYPES, "subject.type")

    def to_json(self) -> Json:
        """Return the ``subject`` object."""
        properties: Json = {"roles": sorted_set(self.roles), "tenant": self.tenant, "credential": self.credential}
        return {"type": self.type, "id": self.id, "properties": properties}


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFacts:
    """A tenant's facts from one SQL snapshot.

    Attributes:
        id: tenant TypeID.
        status: ``active``, ``suspended`` or ``closed``.
        regions: where its data may be processed.
        packs: compliance packs it is under, e.g. ``hipaa``, ``gdpr``.
        models: names of models it may use.
        minimum_tier: least tier that its sessions get.
        session_limit: largest number of open sessions.
        sessions_open: sessions open in the same snapshot, without the one that is asked for.
        max_output_tokens: largest number of output tokens per request.
        revision: of the tenant's row; a decision holds only while it is unchanged.
    """

    id: str
    status: str
    regions: tuple[str, ...]
    packs: tuple[str, ...]
    models: tuple[str, ...]
    minimum_tier: Tier
    session_limit: int
    sessions_open: int
    max_output_tokens: int
    revision: int

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: a field outside its alphabet or range.
        """
        ids.check_id(self.id, ids.TENANT)
        check_member(self.status, TENANT_STATUSES, "tenant.status")
        check_words(self.regions, MAX_REGIONS, "tenant.regions")
        check_words(self.packs, MAX_PACKS, "tenant.packs")
        check_bounded(self.models, MAX_MODELS, "tenant.models")
        for model in self.models:
            ids.check_name(model, "tenant.models")
        check_integer(self.session_limit, 0, MAX_TOKENS, "tenant.session_limit")
        check_integer(self.sessions_open, 0, MAX_SAFE_INTEGER, "tenant.sessions_open")
        check_integer(self.max_output_tokens, 0, MAX_TOKENS, "tenant.max_output_tokens")
        check_integer(self.revision, 0, MAX_SAFE_INTEGER, "tenant.revision")

    def to_json(self) -> Json:
        """Return the ``context.tenant`` object."""
        return {
            "id": self.id,
            "status": self.status,
            "regions": sorted_set(self.regions),
            "packs": sorted_set(self.packs),
            "models": sorted_set(self.models),
            "minimum_tier": self.minimum_tier.label,
            "session_limit": self.session_limit,
            "sessions_open": self.sessions_open,
            "max_output_tokens": self.max_output_tokens,
            "revision": self.revision,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """What the fleet can offer now.

    Attributes:
        tiers: tiers that some connected, uncordoned agent offers.
        regions: regions of such agents.
        simulated: some of it is simulated.
    """

    tiers: tuple[Tier, ...]
    regions: tuple[str, ...]
    simulated: bool

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: an unknown tier or a malformed region.
        """
        check_words(self.regions, MAX_REGIONS, "platform.regions")

    def to_json(self) -> Json:
        """Return the ``context.platform`` object."""
        return {
            "tiers": [tier.label for tier in sorted(set(self.tiers))],
            "regions": sorted_set(self.regions),
            "simulated": self.simulated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The circumstances of the request.

    Attributes:
        time_us: Unix time in microseconds, from the injected clock.
        network: one of :data:`NETWORK_CLASSES`.
        tenant: facts of the tenant that the resource belongs to; None where it belongs to none.
        platform: what the fleet offers.
    """

    time_us: int
    network: str
    tenant: TenantFacts | None
    platform: PlatformFacts

    def __post_init__(self) -> None:
        """Check time and network class.

        Raises:
            InvalidRequestError: outside the year 9999, or an unknown network class.
        """
        check_integer(self.time_us, 0, 253_402_300_799_999_999, "context.time_us")
        check_member(self.network, NETWORK_CLASSES, "context.network")

    def to_json(self) -> Json:
        """Return the ``context`` object; ``time`` is RFC 3339 in UTC with six decimals."""
        seconds, micros = divmod(self.time_us, 1_000_000)
        stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return {
            "time": f"{stamp}.{micros:06d}Z",
            "network": self.network,
            "tenant": None if self.tenant is None else self.tenant.to_json(),
            "platform": self.platform.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInput:
    """One question to policy; equal inputs have equal bytes.

    Attributes:
        subject: who asks.
        action: a key of :data:`ACTIONS`.
        resource: what is asked for.
        context: the circumstances.
    """

    subject: Subject
    action: str
    resource: Resource
    context: Context

    def __post_init__(self) -> None:
        """Check that the action is known and fits the resource.

        Raises:
            InvalidRequestError: it is not, or does not.
        """
        check_member(self.action, tuple(ACTIONS), "action")
        if not isinstance(self.resource, RESOURCE_OF[ACTIONS[self.action]]):
            raise InvalidRequestError(f"{self.action} is not asked about a {type(self.resource).__name__}")

    @property
    def entrypoint(self) -> str:
        """Document path below ``/v1/data`` that decides this action."""
        return ACTIONS[self.action]

    def to_json(self) -> dict[str, Json]:
        """Return the input as JSON values, as the audit record keeps it."""
        return {
            "subject": self.subject.to_json(),
            "action": {"name": self.action},
            "resource": self.resource.to_json(),
            "context": self.context.to_json(),
        }

    def to_bytes(self) -> bytes:
        """Return the RFC 8785 encoding.

        Raises:
            InvalidRequestError: longer than :data:`MAX_INPUT_BYTES`, so the audit record could not hold it.
        """
        data = canonical_json(self.to_json())
        if len(data) > MAX_INPUT_BYTES:
            raise InvalidRequestError(f"the policy input is longer than {MAX_INPUT_BYTES} bytes")
        return data

    def digest(self) -> str:
        """Return SHA-256 of :meth:`to_bytes`, 64 lower-case hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
