"""What a policy question is about: a session, an administered thing, an audit log, a policy bundle."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from bulkhead import ids
from bulkhead.encoding import MAX_SAFE_INTEGER, Json
from control_plane.authz.vocabulary import (
    AUDIT_DOMAIN,
    MAX_TOKENS,
    MODEL_CUSTODIES,
    MODEL_STATUSES,
    PADDING_MODES,
    PLATFORM_LOG,
    POLICY_DOMAIN,
    SESSION_DOMAIN,
    TENANCY_DOMAIN,
    check_digest,
    check_integer,
    check_member,
    check_subject,
    check_tenant,
    check_word,
    check_words,
    sorted_set,
)
from control_plane.domain.tiers import Tier

__all__ = ["RESOURCE_OF", "AdminResource", "BundleResource", "LogResource", "Resource", "SessionResource"]

MAX_DATA_CLASSES: Final = 16  # a request names a handful


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResource:
    """A session that is to be opened, renewed, closed or read.

    Attributes:
        id: session TypeID (for ``session.open`` the one about to be used).
        tenant: the session's tenant, from the caller's credential when opening, from the stored row otherwise.
        model: registered model name.
        model_digest: SHA-256 of the model's manifest, 64 lower-case hexadecimal digits.
        model_status: ``active`` or ``retired``.
        minimum_tier: least tier that the caller accepts; None leaves it to policy.
        region: required region; None leaves it to policy.
        purpose: purpose of use, a word such as ``treatment``; None when the caller names none.
        data_classes: classes of data that prompts may hold, e.g. ``phi``, ``personal``.
        max_output_tokens: per request, at least 1; None asks for the tenant's limit.
        padding: one of :data:`PADDING_MODES`.
        key_custody: who holds the model's key, one of :data:`MODEL_CUSTODIES`.
    """

    id: str
    tenant: str
    model: str
    model_digest: str
    model_status: str = "active"
    minimum_tier: Tier | None = None
    region: str | None = None
    purpose: str | None = None
    data_classes: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    padding: str = "default"
    key_custody: str = "none"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: a field outside its alphabet or range.
        """
        ids.check_id(self.id, ids.SESSION)
        ids.check_id(self.tenant, ids.TENANT)
        ids.check_name(self.model, "model")
        check_digest(self.model_digest, "model_digest")
        check_member(self.model_status, MODEL_STATUSES, "model_status")
        if self.region is not None:
            check_word(self.region, "region")
        if self.purpose is not None:
            check_word(self.purpose, "purpose")
        check_words(self.data_classes, MAX_DATA_CLASSES, "data_classes")
        if self.max_output_tokens is not None:
            check_integer(self.max_output_tokens, 1, MAX_TOKENS, "max_output_tokens")
        check_member(self.padding, PADDING_MODES, "padding")
        check_member(self.key_custody, MODEL_CUSTODIES, "key_custody")

    def to_json(self) -> Json:
        """Return the ``resource`` object."""
        properties: Json = {
            "tenant": self.tenant,
            "model": self.model,
            "model_digest": self.model_digest,
            "model_status": self.model_status,
            "minimum_tier": None if self.minimum_tier is None else self.minimum_tier.label,
            "region": self.region,
            "purpose": self.purpose,
            "data_classes": sorted_set(self.data_classes),
            "max_output_tokens": self.max_output_tokens,
            "padding": self.padding,
            "key_custody": self.key_custody,
        }
        return {"type": "session", "id": self.id, "properties": properties}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminResource:
    """What an administrative action is about: tenant, principal, credential, model, agent, partition, issuer, identity.

    Attributes:
        type: one of the words above.
        id: TypeID, or the name of a model, agent, issuer or identity; None for a listing, or when the thing does not
            exist yet.
        tenant: tenant that the thing belongs to; None for the platform's own and for listings over all tenants.
    """

    type: str
    id: str | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: an unknown type, or an id of another form.
        """
        check_member(self.type, tuple(_ADMIN_ID_PREFIXES), "resource.type")
        check_tenant(self.tenant)
        if self.id is None:
            return
        prefix = _ADMIN_ID_PREFIXES[self.type]
        if prefix is None:
            ids.check_name(self.id, self.type)
        else:
            ids.check_id(self.id, prefix)

    def to_json(self) -> Json:
        """Return the ``resource`` object."""
        return {"type": self.type, "id": self.id, "properties": {"tenant": self.tenant}}


_ADMIN_ID_PREFIXES: Final[dict[str, str | None]] = {
    "tenant": ids.TENANT,
    "principal": ids.PRINCIPAL,
    "credential": ids.CREDENTIAL,
    "model": None,  # models and agents are named, not numbered
    "agent": None,
    "partition": ids.PARTITION,
    "issuer": None,
    "identity": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogResource:
    """An audit log: a tenant's, or the platform's when ``tenant`` is None."""

    tenant: str | None

    def __post_init__(self) -> None:
        """Check the tenant.

        Raises:
            InvalidRequestError: not a tenant TypeID.
        """
        check_tenant(self.tenant)

    def to_json(self) -> Json:
        """Return the ``resource`` object."""
        return {"type": "log", "id": self.tenant or PLATFORM_LOG, "properties": {"tenant": self.tenant}}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleResource:
    """A policy bundle that is to be published, activated, rolled back to or listed.

    Attributes:
        id: bundle TypeID; None for a listing, or before publication.
        digest: the bundle's digest; None as for ``id``.
        number: its revision number; None as for ``id``.
        published_by: subject id of the person who published it; None as for ``id``.
        was_active: it has been active before, so two persons have agreed to it.
        active_number: revision number of the bundle that is active now.
    """

    id: str | None = None
    digest: str | None = None
    number: int | None = None
    published_by: str | None = None
    was_active: bool = False
    active_number: int

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: a field outside its alphabet or range.
        """
        if self.id is not None:
            ids.check_id(self.id, ids.BUNDLE)
        if self.digest is not None:
            check_digest(self.digest, "digest")
        if self.number is not None:
            check_integer(self.number, 1, MAX_SAFE_INTEGER, "number")
        if self.published_by is not None:
            check_subject(self.published_by)
        check_integer(self.active_number, 0, MAX_SAFE_INTEGER, "active_number")

    def to_json(self) -> Json:
        """Return the ``resource`` object."""
        properties: Json = {
            "digest": self.digest,
            "number": self.number,
            "published_by": self.published_by,
            "was_active": self.was_active,
            "active_number": self.active_number,
        }
        return {"type": "bundle", "id": self.id, "properties": properties}


Resource: TypeAlias = SessionResource | AdminResource | LogResource | BundleResource


RESOURCE_OF: Final[dict[str, type[Resource]]] = {
    SESSION_DOMAIN: SessionResource,
    TENANCY_DOMAIN: AdminResource,
    AUDIT_DOMAIN: LogResource,
    POLICY_DOMAIN: BundleResource,
}
"""Entrypoint -> class of the resource that its actions are about."""
