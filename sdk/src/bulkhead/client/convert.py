"""The one boundary between protobuf messages and the dataclasses of this package."""

from bulkhead.client.views import (
    AgentView,
    CredentialView,
    ModelView,
    PartitionView,
    PolicyBundleView,
    PrincipalView,
    SessionView,
    TenantView,
    TicketIssuerView,
)
from bulkhead.errors import InvalidRequestError
from bulkhead.transparency import AuditReceipt, RoundPage, RoundPath
from bulkhead.v1 import audit_pb2, common_pb2, fleet_pb2, policy_pb2, session_pb2, tenancy_pb2

__all__ = [
    "agent_view",
    "audit_receipt",
    "bundle_view",
    "credential_view",
    "model_view",
    "partition_view",
    "principal_view",
    "role_label",
    "role_value",
    "round_page",
    "session_view",
    "tenant_view",
    "ticket_issuer_view",
    "tier_label",
    "tier_value",
]


def tier_label(value: "common_pb2.Tier.ValueType") -> str:
    """Return a tier's name, empty for an unspecified one or one that this build does not know."""
    known = value in common_pb2.Tier.values() and value != common_pb2.TIER_UNSPECIFIED
    return common_pb2.Tier.Name(value).removeprefix("TIER_").lower() if known else ""


def tier_value(label: str) -> "common_pb2.Tier.ValueType":
    """Return the tier of that name, unspecified for an empty one.

    Raises:
        InvalidRequestError: no tier is called that.
    """
    if not label:
        return common_pb2.TIER_UNSPECIFIED
    try:
        return common_pb2.Tier.Value(f"TIER_{label.upper()}")
    except ValueError as error:
        raise InvalidRequestError("tier: expected process, mig, gpu or confidential") from error


def role_label(value: "common_pb2.Role.ValueType") -> str:
    """Return a role's name, empty for one that this build does not know."""
    known = value in common_pb2.Role.values() and value != common_pb2.ROLE_UNSPECIFIED
    return common_pb2.Role.Name(value).removeprefix("ROLE_").lower() if known else ""


def role_value(label: str) -> "common_pb2.Role.ValueType":
    """Return the role of that name.

    Raises:
        InvalidRequestError: no role is called that.
    """
    try:
        return common_pb2.Role.Value(f"ROLE_{label.upper()}")
    except ValueError as error:
        raise InvalidRequestError("role: expected developer, officer or admin") from error


def audit_receipt(message: audit_pb2.AuditReceipt) -> AuditReceipt:
    """Return a receipt as received; verify it before believing it."""
    return AuditReceipt(
        leaf=message.leaf, index=message.index, proof=tuple(message.proof), checkpoint=message.checkpoint
    )


def round_page(message: audit_pb2.ListRoundPathsResponse) -> RoundPage:
    """Return a page of rounds as received; verify it before believing it."""
    paths = tuple(
        RoundPath(
            slot=item.slot,
            salt=item.salt,
            checkpoint_text=item.checkpoint,
            path=tuple(item.path),
            receipt=AuditReceipt(item.leaf, item.index, tuple(item.proof), message.checkpoint),
        )
        for item in message.rounds
    )
    heads = tuple(tuple(item.consistency) for item in message.rounds)
    return RoundPage(message.checkpoint, tuple(message.extension), paths, heads)


def session_view(message: session_pb2.Session) -> SessionView:
    """Return a session."""
    return SessionView(
        session_id=message.session_id,
        tenant_id=message.tenant_id,
        model=message.model,
        tier=tier_label(message.tier),
        simulated=message.simulated,
        state=message.state,
        partition_id=message.partition_id,
        purpose=message.purpose,
        created_unix_s=message.created_unix_s,
        expires_unix_s=message.expires_unix_s,
        request_id=message.request_id,
    )


def tenant_view(message: tenancy_pb2.Tenant) -> TenantView:
    """Return a tenant."""
    return TenantView(
        tenant_id=message.tenant_id,
        name=message.name,
        status=message.status,
        regions=tuple(message.regions),
        packs=tuple(message.packs),
        models=tuple(message.models),
        minimum_tier=tier_label(message.minimum_tier),
        session_limit=message.session_limit,
        max_output_tokens=message.max_output_tokens,
        revision=message.revision,
        log_vkey=message.log_vkey,
        tenant_root=message.tenant_root,
    )


def principal_view(message: tenancy_pb2.Principal) -> PrincipalView:
    """Return a principal."""
    return PrincipalView(
        principal_id=message.principal_id,
        tenant_id=message.tenant_id,
        name=message.name,
        role=role_label(message.role),
        subject_id=message.subject_id,
    )


def credential_view(message: tenancy_pb2.Credential) -> CredentialView:
    """Return a credential."""
    return CredentialView(
        credential_id=message.credential_id,
        principal_id=message.principal_id,
        kind=message.kind,
        scopes=tuple(message.scopes),
        created_unix_s=message.created_unix_s,
        expires_unix_s=message.expires_unix_s,
        revoked_unix_s=message.revoked_unix_s,
    )


def model_view(message: tenancy_pb2.Model) -> ModelView:
    """Return a model."""
    return ModelView(
        name=message.name,
        digest=message.digest.hex(),
        path=message.path,
        status=message.status,
        context_length=message.context_length,
        memory_mib=message.memory_mib,
        custody=message.sealed.custody or "none",
        version=message.sealed.version,
        manifest_digest=message.sealed.manifest_digest.hex(),
        broker=message.sealed.broker_address,
    )


def bundle_view(message: policy_pb2.PolicyBundle) -> PolicyBundleView:
    """Return a policy bundle."""
    return PolicyBundleView(
        bundle_id=message.bundle_id,
        digest=message.digest,
        revision=message.revision,
        status=message.status,
        published_by=message.published_by,
        activated_by=message.activated_by,
        created_unix_s=message.created_unix_s,
        activated_unix_s=message.activated_unix_s,
    )


def agent_view(message: fleet_pb2.Agent) -> AgentView:
    """Return a node agent."""
    return AgentView(
        agent_id=message.agent_id,
        rack=message.rack,
        tray=message.tray,
        region=message.region,
        connected=message.connected,
        cordoned=message.cordoned,
        simulated=message.simulated,
        gpus=message.gpus,
        gpu_product=message.gpu_product,
        partitions=message.partitions,
        last_seen_unix_s=message.last_seen_unix_s,
        tiers=tuple(tier_label(tier) for tier in message.tiers),
    )


def partition_view(message: fleet_pb2.Partition) -> PartitionView:
    """Return a partition."""
    return PartitionView(
        partition_id=message.partition_id,
        tenant_id=message.tenant_id,
        model=message.model,
        tier=tier_label(message.tier),
        simulated=message.simulated,
        agent_id=message.agent_id,
        state=message.state,
        gpu_uuids=tuple(message.gpu_uuids),
        mig_profile_id=message.mig_profile_id,
        memory_slice_start=message.memory_slice_start,
        memory_slices=message.memory_slices,
        sessions=message.sessions,
        created_unix_s=message.created_unix_s,
    )


def ticket_issuer_view(message: fleet_pb2.TicketIssuer) -> TicketIssuerView:
    """Return a ticket issuer."""
    return TicketIssuerView(
        issuer_id=message.issuer_id,
        fingerprint=message.fingerprint,
        public_key=message.public_key,
        status=message.status,
        created_unix_s=message.created_unix_s,
        activated_unix_s=message.activated_unix_s,
        replaced_unix_s=message.replaced_unix_s,
        retired_unix_s=message.retired_unix_s,
    )
