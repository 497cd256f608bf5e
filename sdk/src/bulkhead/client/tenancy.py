"""Administration of tenants, principals, credentials and models over gRPC. Needs role admin.

Every change carries a request id of its own, so that a repetition after a lost answer changes nothing twice.
"""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, fields

from bulkhead.client import convert
from bulkhead.client.paging import pages
from bulkhead.client.transport import Channel
from bulkhead.client.views import CredentialView, IssuedKey, ModelView, PrincipalView, SealedTerms, TenantView
from bulkhead.errors import InvalidRequestError
from bulkhead.ids import REQUEST, new_id
from bulkhead.v1 import common_pb2, tenancy_pb2, tenancy_pb2_grpc

__all__ = ["TenancyAdmin", "TenantSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What an admin sets for a tenant; None leaves it as it is. A new tenant needs both limits.

    Attributes:
        status: `active` or `suspended`; ignored when a tenant is created.
        regions: where its data may be processed.
        packs: compliance packs that it is under.
        models: names of models that it may use.
        minimum_tier: least isolation tier of its sessions.
        session_limit: sessions open at the same time.
        max_output_tokens: per request.
        tenant_root: fingerprint of its root, 32 bytes; empty takes it away.
    """

    status: str | None = None
    regions: tuple[str, ...] | None = None
    packs: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    minimum_tier: str | None = None
    session_limit: int | None = None
    max_output_tokens: int | None = None
    tenant_root: bytes | None = None

    def named(self) -> list[str]:
        """Return the names of the fields that are set: those of ``bulkhead.v1.Tenant``."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def message(self) -> tenancy_pb2.Tenant:
        """Return the protobuf form.

        Raises:
            InvalidRequestError: a limit is negative or above 2^32 - 1, or no tier is called that.
        """
        for limit in (self.session_limit, self.max_output_tokens):
            if limit is not None and not 0 <= limit < 2**32:
                raise InvalidRequestError("a limit is a number from 0 to 4294967295")
        return tenancy_pb2.Tenant(
            status=self.status or "",
            regions=self.regions or (),
            packs=self.packs or (),
            models=self.models or (),
            minimum_tier=convert.tier_value(self.minimum_tier or ""),
            session_limit=self.session_limit or 0,
            max_output_tokens=self.max_output_tokens or 0,
            tenant_root=self.tenant_root or b"",
        )


class TenancyAdmin:
    """Tenants, principals, credentials and models.

    Args:
        channel: to the control plane, with an admin's credential.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._admin = tenancy_pb2_grpc.TenancyAdminServiceStub(channel.raw)
        self._query = tenancy_pb2_grpc.TenancyQueryServiceStub(channel.raw)

    async def create_tenant(self, name: str, settings: TenantSettings) -> TenantView:
        """Create a tenant and its audit log.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidRequestError: a limit is missing or out of bounds.
            BulkheadError: see :meth:`Channel.unary`.
        """
        tenant = settings.message()
        tenant.name = name
        request = tenancy_pb2.CreateTenantRequest(request_id=new_id(REQUEST), tenant=tenant)
        reply = await self._channel.unary(self._admin.CreateTenant, request, idempotent=True)
        return convert.tenant_view(reply.tenant)

    async def update_tenant(self, tenant_id: str, settings: TenantSettings) -> TenantView:
        """Change what ``settings`` names, and nothing else.

        Raises:
            InvalidRequestError: it names nothing.
            NotFoundError: no such tenant.
        """
        changed = settings.named()
        if not changed:
            raise InvalidRequestError("nothing to change was named")
        request = tenancy_pb2.UpdateTenantRequest(
            request_id=new_id(REQUEST), tenant_id=tenant_id, fields=changed, tenant=settings.message()
        )
        reply = await self._channel.unary(self._admin.UpdateTenant, request, idempotent=True)
        return convert.tenant_view(reply.tenant)

    async def tenant(self, tenant: str) -> TenantView:
        """Return a tenant by identifier or name."""
        request = tenancy_pb2.GetTenantRequest(tenant=tenant)
        reply = await self._channel.unary(self._query.GetTenant, request, idempotent=True)
        return convert.tenant_view(reply.tenant)

    def tenants(self) -> AsyncGenerator[TenantView, None]:
        """Yield every tenant."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[TenantView], str]:
            request = tenancy_pb2.ListTenantsRequest(page=page)
            reply = await self._channel.unary(self._query.ListTenants, request, idempotent=True)
            return map(convert.tenant_view, reply.tenants), reply.next_page_token

        return pages(fetch)

    async def create_principal(self, *, tenant_id: str, name: str, role: str) -> PrincipalView:
        """Create a principal; ``tenant_id`` is empty for admins and platform officers."""
        request = tenancy_pb2.CreatePrincipalRequest(
            request_id=new_id(REQUEST), tenant_id=tenant_id, name=name, role=convert.role_value(role)
        )
        reply = await self._channel.unary(self._admin.CreatePrincipal, request, idempotent=True)
        return convert.principal_view(reply.principal)

    def principals(self, tenant_id: str) -> AsyncGenerator[PrincipalView, None]:
        """Yield the principals of a tenant; an empty id lists everybody."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[PrincipalView], str]:
            request = tenancy_pb2.ListPrincipalsRequest(tenant_id=tenant_id, page=page)
            reply = await self._channel.unary(self._query.ListPrincipals, request, idempotent=True)
            return map(convert.principal_view, reply.principals), reply.next_page_token

        return pages(fetch)

    async def create_api_key(self, principal_id: str, *, scopes: Iterable[str] = (), lifetime_s: int = 0) -> IssuedKey:
        """Issue an API key: its secret is in the returned value and nowhere else.

        Not repeated after a lost answer, since the secret could not be told a second time.
        """
        request = tenancy_pb2.CreateApiKeyRequest(
            request_id=new_id(REQUEST), principal_id=principal_id, scopes=scopes, lifetime_s=lifetime_s
        )
        reply = await self._channel.unary(self._admin.CreateApiKey, request, idempotent=False)
        return IssuedKey(credential=convert.credential_view(reply.credential), api_key=reply.api_key)

    async def register_certificate(
        self, principal_id: str, certificate: bytes, *, scopes: Iterable[str] = ()
    ) -> CredentialView:
        """Register a client certificate (PEM or DER) by its SHA-256 fingerprint."""
        request = tenancy_pb2.RegisterCertificateRequest(
            request_id=new_id(REQUEST), principal_id=principal_id, certificate=certificate, scopes=scopes
        )
        reply = await self._channel.unary(self._admin.RegisterCertificate, request, idempotent=True)
        return convert.credential_view(reply.credential)

    async def revoke_credential(self, credential_id: str) -> CredentialView:
        """Revoke a credential: at once for new calls, within seconds for open sessions."""
        request = tenancy_pb2.RevokeCredentialRequest(request_id=new_id(REQUEST), credential_id=credential_id)
        reply = await self._channel.unary(self._admin.RevokeCredential, request, idempotent=True)
        return convert.credential_view(reply.credential)

    def credentials(self, principal_id: str) -> AsyncGenerator[CredentialView, None]:
        """Yield a principal's credentials, without secrets."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[CredentialView], str]:
            request = tenancy_pb2.ListCredentialsRequest(principal_id=principal_id, page=page)
            reply = await self._channel.unary(self._query.ListCredentials, request, idempotent=True)
            return map(convert.credential_view, reply.credentials), reply.next_page_token

        return pages(fetch)

    async def register_model(
        self,
        *,
        name: str,
        digest: bytes,
        path: str,
        context_length: int,
        memory_mib: int,
        sealed: SealedTerms | None = None,
    ) -> ModelView:
        """Register a model by the digest of its manifest (32 bytes); ``sealed`` for one that lies encrypted."""
        model = tenancy_pb2.Model(
            name=name, digest=digest, path=path, context_length=context_length, memory_mib=memory_mib
        )
        if sealed is not None:
            model.sealed.CopyFrom(
                tenancy_pb2.SealedModel(
                    custody=sealed.custody,
                    manifest=sealed.manifest,
                    broker_address=sealed.broker_address,
                    broker_name=sealed.broker_name,
                    broker_certificate=sealed.broker_certificate,
                )
            )
        request = tenancy_pb2.RegisterModelRequest(request_id=new_id(REQUEST), model=model)
        reply = await self._channel.unary(self._admin.RegisterModel, request, idempotent=True)
        return convert.model_view(reply.model)

    async def retire_model(self, name: str) -> ModelView:
        """Retire a model: no new session gets it."""
        request = tenancy_pb2.RetireModelRequest(request_id=new_id(REQUEST), name=name)
        reply = await self._channel.unary(self._admin.RetireModel, request, idempotent=True)
        return convert.model_view(reply.model)

    def models(self) -> AsyncGenerator[ModelView, None]:
        """Yield every registered model."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[ModelView], str]:
            request = tenancy_pb2.ListModelsRequest(page=page)
            reply = await self._channel.unary(self._query.ListModels, request, idempotent=True)
            return map(convert.model_view, reply.models), reply.next_page_token

        return pages(fetch)
