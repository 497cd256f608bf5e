"""TenancyAdminService and TenancyQueryService. Admission has authenticated the caller and checked the scope."""

from typing import Any

from bulkhead.v1 import tenancy_pb2 as pb
from bulkhead.v1 import tenancy_pb2_grpc
from control_plane.rpc import convert_admin as convert
from control_plane.rpc.caller import current_caller
from control_plane.services.authorisation import AdminCall
from control_plane.services.credentials import CredentialAdmin, CredentialQuery, PrincipalAdmin
from control_plane.services.tenancy import ModelAdmin, TenancyQuery, TenantAdmin
from service.interceptors import current_request_id

__all__ = ["TenancyAdminServicer", "TenancyQueryServicer"]


def _change(request_id: str) -> AdminCall:
    """Return a change's call: its request id is the message's own, checked later, never one made here."""
    return AdminCall(current_caller(), request_id)


def _read() -> AdminCall:
    return AdminCall(current_caller(), current_request_id())


class TenancyAdminServicer(tenancy_pb2_grpc.TenancyAdminServiceServicer):
    """Changes tenants, principals, credentials and models."""

    def __init__(
        self, *, tenants: TenantAdmin, principals: PrincipalAdmin, credentials: CredentialAdmin, models: ModelAdmin
    ) -> None:
        self._tenants = tenants
        self._principals = principals
        self._credentials = credentials
        self._models = models

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:  # noqa: N802, ARG002  gRPC's names
        """Create a tenant with its audit log."""
        tenant = await self._tenants.create(_change(request.request_id), convert.tenant_value(request.tenant))
        return pb.CreateTenantResponse(tenant=convert.tenant_message(tenant))

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Any) -> pb.UpdateTenantResponse:  # noqa: N802, ARG002  gRPC's names
        """Change the named fields of a tenant."""
        changes = convert.tenant_changes(request)
        tenant = await self._tenants.update(_change(request.request_id), request.tenant_id, changes)
        return pb.UpdateTenantResponse(tenant=convert.tenant_message(tenant))

    async def CreatePrincipal(self, request: pb.CreatePrincipalRequest, context: Any) -> pb.CreatePrincipalResponse:  # noqa: N802, ARG002  gRPC's names
        """Create a principal."""
        principal = await self._principals.create(
            _change(request.request_id),
            tenant_id=convert.tenant_reference(request.tenant_id),
            name=request.name,
            role=convert.role_value(request.role),
        )
        return pb.CreatePrincipalResponse(principal=convert.principal_message(principal))

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:  # noqa: N802, ARG002  gRPC's names
        """Issue an API key; the reply is the only place where it appears."""
        credential, key = await self._credentials.create_api_key(
            _change(request.request_id),
            principal_id=request.principal_id,
            scopes=convert.text_list(request.scopes, "scopes"),
            lifetime_s=request.lifetime_s,
        )
        return pb.CreateApiKeyResponse(credential=convert.credential_message(credential), api_key=key)

    async def RegisterCertificate(  # noqa: N802  gRPC's names
        self,
        request: pb.RegisterCertificateRequest,
        context: Any,  # noqa: ARG002  gRPC's signature
    ) -> pb.RegisterCertificateResponse:
        """Register a client certificate's fingerprint."""
        credential = await self._credentials.register_certificate(
            _change(request.request_id),
            principal_id=request.principal_id,
            certificate=request.certificate,
            scopes=convert.text_list(request.scopes, "scopes"),
        )
        return pb.RegisterCertificateResponse(credential=convert.credential_message(credential))

    async def RevokeCredential(self, request: pb.RevokeCredentialRequest, context: Any) -> pb.RevokeCredentialResponse:  # noqa: N802, ARG002  gRPC's names
        """Revoke a credential."""
        credential = await self._credentials.revoke(_change(request.request_id), request.credential_id)
        return pb.RevokeCredentialResponse(credential=convert.credential_message(credential))

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.RegisterModelResponse:  # noqa: N802, ARG002  gRPC's names
        """Register a model."""
        model = await self._models.register(_change(request.request_id), convert.model_value(request.model))
        return pb.RegisterModelResponse(model=convert.model_message(model))

    async def RetireModel(self, request: pb.RetireModelRequest, context: Any) -> pb.RetireModelResponse:  # noqa: N802, ARG002  gRPC's names
        """Retire a model."""
        model = await self._models.retire(_change(request.request_id), request.name)
        return pb.RetireModelResponse(model=convert.model_message(model))


class TenancyQueryServicer(tenancy_pb2_grpc.TenancyQueryServiceServicer):
    """Reads tenants, principals, credentials and models."""

    def __init__(self, *, tenancy: TenancyQuery, credentials: CredentialQuery) -> None:
        self._tenancy = tenancy
        self._credentials = credentials

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:  # noqa: N802, ARG002  gRPC's names
        """List tenants."""
        after, limit = convert.page_of(request.page)
        found = await self._tenancy.tenants(_read(), after=after, limit=limit)
        return pb.ListTenantsResponse(
            tenants=[convert.tenant_message(tenant) for tenant in found],
            next_page_token=convert.next_token([tenant.tenant_id for tenant in found], limit),
        )

    async def GetTenant(self, request: pb.GetTenantRequest, context: Any) -> pb.GetTenantResponse:  # noqa: N802, ARG002  gRPC's names
        """Return one tenant, by identifier or name."""
        return pb.GetTenantResponse(tenant=convert.tenant_message(await self._tenancy.tenant(_read(), request.tenant)))

    async def ListPrincipals(self, request: pb.ListPrincipalsRequest, context: Any) -> pb.ListPrincipalsResponse:  # noqa: N802, ARG002  gRPC's names
        """List principals."""
        after, limit = convert.page_of(request.page)
        found = await self._credentials.principals(
            _read(), tenant_id=convert.tenant_reference(request.tenant_id), after=after, limit=limit
        )
        return pb.ListPrincipalsResponse(
            principals=[convert.principal_message(principal) for principal in found],
            next_page_token=convert.next_token([principal.principal_id for principal in found], limit),
        )

    async def ListCredentials(self, request: pb.ListCredentialsRequest, context: Any) -> pb.ListCredentialsResponse:  # noqa: N802, ARG002  gRPC's names
        """List credentials, without secrets."""
        after, limit = convert.page_of(request.page)
        found = await self._credentials.credentials(
            _read(), principal_id=request.principal_id, after=after, limit=limit
        )
        return pb.ListCredentialsResponse(
            credentials=[convert.credential_message(credential) for credential in found],
            next_page_token=convert.next_token([credential.credential_id for credential in found], limit),
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802, ARG002  gRPC's names
        """List models, retired ones included."""
        after, limit = convert.page_of(request.page)
        found = await self._tenancy.models(_read(), after=after, limit=limit)
        return pb.ListModelsResponse(
            models=[convert.model_message(model) for model in found],
            next_page_token=convert.next_token([model.name for model in found], limit),
        )
