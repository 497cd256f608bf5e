"""Messages of tenancy and policy administration to values and back; the only place where the two meet."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from bulkhead.errors import InvalidRequestError, SealedModelError
from bulkhead.ids import TENANT, check_id
from bulkhead.models import SealedManifest
from bulkhead.models.manifest import claimed_signer
from bulkhead.v1 import common_pb2, policy_pb2, tenancy_pb2
from control_plane.domain.bundles import PolicyBundle
from control_plane.domain.roles import Role
from control_plane.domain.tenancy import (
    Credential,
    Custody,
    Model,
    ModelStatus,
    Principal,
    SealedModel,
    Tenant,
    TenantStatus,
)
from control_plane.domain.tiers import Tier
from control_plane.rpc.session_convert import tier_number, tier_of
from control_plane.services.paging import page_size, page_token

__all__ = [
    "bundle_message",
    "credential_message",
    "model_message",
    "model_value",
    "next_token",
    "page_of",
    "policy_files",
    "principal_message",
    "role_value",
    "tenant_changes",
    "tenant_message",
    "tenant_reference",
    "tenant_value",
    "text_list",
]

T = TypeVar("T")

US_PER_S: Final = 1_000_000
MAX_LIST: Final = 1_024  # above every bound of the domain, so that a long list fails there with its own words
MAX_POLICY_FILES: Final = 512

_ROLES: Final = {
    common_pb2.ROLE_DEVELOPER: Role.DEVELOPER,
    common_pb2.ROLE_OFFICER: Role.OFFICER,
    common_pb2.ROLE_ADMIN: Role.ADMIN,
}
_ROLE_NUMBERS: Final = {role: number for number, role in _ROLES.items()}


def text_list(values: Iterable[str], what: str) -> tuple[str, ...]:
    """Return a repeated field as a tuple without repetition, in the caller's order.

    Raises:
        InvalidRequestError: longer than any list here may be.
    """
    found = tuple(dict.fromkeys(values))
    if len(found) > MAX_LIST:
        raise InvalidRequestError(f"{what}: too many values")
    return found


def page_of(page: common_pb2.PageRequest) -> tuple[str, int]:
    """Return where a page begins, and its size as asked for.

    Raises:
        InvalidRequestError: the token is none of ours.
    """
    return page_token(page.token), page.size


def next_token(keys: list[str], asked: int) -> str:
    """Return the token of the page behind ``keys``; empty when this one was not full."""
    return keys[-1] if keys and len(keys) >= page_size(asked) else ""


def role_value(number: int) -> Role:
    """Return the role.

    Raises:
        InvalidRequestError: unspecified, or unknown to this build.
    """
    role = _ROLES.get(common_pb2.Role.ValueType(number))
    if role is None:
        raise InvalidRequestError("role: developer, officer or admin")
    return role


def tenant_value(message: tenancy_pb2.Tenant) -> Tenant:
    """Return the tenant that an administrator describes; identifier, status, revision, key and time stay open.

    Raises:
        InvalidRequestError: naming the field.
    """
    return Tenant(
        tenant_id="",
        name=message.name,
        status=TenantStatus.ACTIVE,
        regions=text_list(message.regions, "regions"),
        packs=text_list(message.packs, "packs"),
        models=text_list(message.models, "models"),
        minimum_tier=_minimum_tier(message),
        session_limit=message.session_limit,
        max_output_tokens=message.max_output_tokens,
        revision=0,
        log_vkey="",
        created_us=0,
        tenant_root=message.tenant_root,
    )


def tenant_changes(request: tenancy_pb2.UpdateTenantRequest) -> dict[str, Any]:
    """Return field -> value for the fields that the request names.

    Raises:
        InvalidRequestError: an unknown field or status.
    """
    names = text_list(request.fields, "fields")
    unknown = [name for name in names if name not in _READ_FIELD]
    if unknown or not names:
        raise InvalidRequestError(f"fields: at least one of {', '.join(sorted(_READ_FIELD))}")
    return {name: _READ_FIELD[name](request.tenant) for name in names}


def tenant_message(tenant: Tenant) -> tenancy_pb2.Tenant:
    """Return the message of a tenant."""
    return tenancy_pb2.Tenant(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        status=tenant.status.value,
        regions=tenant.regions,
        packs=tenant.packs,
        models=tenant.models,
        minimum_tier=tier_number(tenant.minimum_tier),
        session_limit=tenant.session_limit,
        max_output_tokens=tenant.max_output_tokens,
        revision=tenant.revision,
        log_vkey=tenant.log_vkey,
        tenant_root=tenant.tenant_root,
    )


def principal_message(principal: Principal) -> tenancy_pb2.Principal:
    """Return the message of a principal."""
    return tenancy_pb2.Principal(
        principal_id=principal.principal_id,
        tenant_id=principal.tenant_id,
        name=principal.name,
        role=_ROLE_NUMBERS[principal.role],
        subject_id=principal.subject_id,
    )


def credential_message(credential: Credential) -> tenancy_pb2.Credential:
    """Return the message of a credential, which holds no secret."""
    return tenancy_pb2.Credential(
        credential_id=credential.credential_id,
        principal_id=credential.principal_id,
        kind=credential.kind.value,
        scopes=sorted(scope.value for scope in credential.scopes),
        created_unix_s=credential.created_us // US_PER_S,
        expires_unix_s=credential.expires_us // US_PER_S,
        revoked_unix_s=credential.revoked_us // US_PER_S,
    )


def model_value(message: tenancy_pb2.Model) -> Model:
    """Return the model that an administrator describes; status and time stay open.

    Raises:
        InvalidRequestError: naming the field.
    """
    return Model(
        name=message.name,
        digest=message.digest,
        path=message.path,
        status=ModelStatus.ACTIVE,
        context_length=message.context_length,
        memory_mib=message.memory_mib,
        created_us=0,
        sealed=_sealed_value(message) if message.HasField("sealed") else None,
    )


def _sealed_value(message: tenancy_pb2.Model) -> SealedModel:
    """Return how a model is sealed; its manifest must be of this model, and consistent with its own signature."""
    sealed = message.sealed
    try:
        manifest = SealedManifest.open(sealed.manifest, signers=[claimed_signer(sealed.manifest)])
        custody = Custody(sealed.custody)
    except (SealedModelError, ValueError) as error:
        reason = error.message if isinstance(error, SealedModelError) else "custody is platform or tenant"
        raise InvalidRequestError(f"sealed: {reason}") from error
    if manifest.model != message.name or manifest.model_digest != message.digest:
        raise InvalidRequestError("sealed: the manifest is of another model or digest")
    return SealedModel(
        custody=custody,
        manifest=sealed.manifest,
        manifest_digest=manifest.digest,
        version=manifest.version,
        broker_address=sealed.broker_address,
        broker_name=sealed.broker_name,
        broker_certificate=sealed.broker_certificate,
    )


def model_message(model: Model) -> tenancy_pb2.Model:
    """Return the message of a model."""
    message = tenancy_pb2.Model(
        name=model.name,
        digest=model.digest,
        path=model.path,
        status=model.status.value,
        context_length=model.context_length,
        memory_mib=model.memory_mib,
    )
    if (sealed := model.sealed) is not None:
        message.sealed.CopyFrom(
            tenancy_pb2.SealedModel(
                custody=sealed.custody.value,
                broker_address=sealed.broker_address,
                broker_name=sealed.broker_name,
                broker_certificate=sealed.broker_certificate,
                manifest_digest=sealed.manifest_digest,
                version=sealed.version,
            )
        )
    return message


def policy_files(files: Iterable[policy_pb2.PolicyFile]) -> dict[str, bytes]:
    """Return path -> content.

    Raises:
        InvalidRequestError: too many files, or a path twice.
    """
    found: dict[str, bytes] = {}
    for file in files:
        if file.path in found or len(found) >= MAX_POLICY_FILES:
            raise InvalidRequestError(f"files: at most {MAX_POLICY_FILES}, each path once")
        found[file.path] = file.content
    return found


def bundle_message(bundle: PolicyBundle) -> policy_pb2.PolicyBundle:
    """Return the message of a bundle."""
    return policy_pb2.PolicyBundle(
        bundle_id=bundle.bundle_id,
        digest=bundle.digest,
        revision=bundle.number,
        status=bundle.status.value,
        published_by=bundle.published_by,
        activated_by=bundle.activated_by,
        created_unix_s=bundle.created_us // US_PER_S,
        activated_unix_s=bundle.activated_us // US_PER_S,
    )


def tenant_reference(text: str) -> str:
    """Return an optional tenant id of a request.

    Raises:
        InvalidRequestError: neither empty nor a tenant id.
    """
    return check_id(text, TENANT) if text else ""


def _minimum_tier(message: tenancy_pb2.Tenant) -> Tier:
    return tier_of(message.minimum_tier) or Tier.PROCESS


def _status(message: tenancy_pb2.Tenant) -> TenantStatus:
    try:
        return TenantStatus(message.status)
    except ValueError as error:
        raise InvalidRequestError("status: active or suspended") from error


_READ_FIELD: Final[dict[str, Callable[[tenancy_pb2.Tenant], Any]]] = {
    "status": _status,
    "regions": lambda message: text_list(message.regions, "regions"),
    "packs": lambda message: text_list(message.packs, "packs"),
    "models": lambda message: text_list(message.models, "models"),
    "minimum_tier": _minimum_tier,
    "session_limit": lambda message: message.session_limit,
    "max_output_tokens": lambda message: message.max_output_tokens,
    "tenant_root": lambda message: message.tenant_root,
}
