"""Administration services over real gRPC for command tests: they keep what they are told and answer in kind."""

import grpc.aio

from bulkhead.errors import AlreadyExistsError, NotFoundError
from bulkhead.v1 import (
    common_pb2,
    fleet_pb2,
    fleet_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    tenancy_pb2,
    tenancy_pb2_grpc,
)
from service.errors_rpc import abort_with

__all__ = ["ISSUED_KEY", "FakeAdmin"]

ISSUED_KEY = f"bhk_{'1' * 26}_{'b' * 43}"
Context = grpc.aio.ServicerContext


class FakeAdmin:
    """The state of the services; ``said`` is every request in order."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.tenants: dict[str, tenancy_pb2.Tenant] = {}

    def add(self, server: grpc.aio.Server) -> None:
        """Add the services to a server."""
        tenancy_pb2_grpc.add_TenancyAdminServiceServicer_to_server(_Tenancy(self), server)
        tenancy_pb2_grpc.add_TenancyQueryServiceServicer_to_server(_TenancyQuery(self), server)
        policy_pb2_grpc.add_PolicyAdminServiceServicer_to_server(_Policy(self), server)
        policy_pb2_grpc.add_PolicyQueryServiceServicer_to_server(_PolicyQuery(self), server)
        fleet_pb2_grpc.add_FleetAdminServiceServicer_to_server(_Fleet(self), server)
        fleet_pb2_grpc.add_FleetQueryServiceServicer_to_server(_FleetQuery(self), server)


class _Told:
    def __init__(self, state: FakeAdmin) -> None:
        self.state = state


class _Tenancy(_Told, tenancy_pb2_grpc.TenancyAdminServiceServicer):
    async def CreateTenant(self, request: tenancy_pb2.CreateTenantRequest, context: Context):
        self.state.said.append(request)
        if request.tenant.name in self.state.tenants:
            await abort_with(context, AlreadyExistsError("the name is taken"))
        made = tenancy_pb2.Tenant()
        made.CopyFrom(request.tenant)
        made.tenant_id, made.status, made.revision = f"tenant_{len(self.state.tenants):026}", "active", 1
        self.state.tenants[made.name] = made
        return tenancy_pb2.CreateTenantResponse(tenant=made)

    async def UpdateTenant(self, request: tenancy_pb2.UpdateTenantRequest, context: Context):
        self.state.said.append(request)
        found = next(item for item in self.state.tenants.values() if item.tenant_id == request.tenant_id)
        for name in request.fields:
            value = getattr(request.tenant, name)
            if isinstance(value, (str, int, bytes)):
                setattr(found, name, value)
            else:
                found.ClearField(name)
                getattr(found, name).extend(value)
        return tenancy_pb2.UpdateTenantResponse(tenant=found)

    async def CreatePrincipal(self, request: tenancy_pb2.CreatePrincipalRequest, context: Context):
        self.state.said.append(request)
        return tenancy_pb2.CreatePrincipalResponse(
            principal=tenancy_pb2.Principal(
                principal_id="prin_1", tenant_id=request.tenant_id, name=request.name, role=request.role
            )
        )

    async def CreateApiKey(self, request: tenancy_pb2.CreateApiKeyRequest, context: Context):
        self.state.said.append(request)
        if request.principal_id == "prin_none":
            await abort_with(context, NotFoundError("no such principal"))
        credential = tenancy_pb2.Credential(
            credential_id="cred_1", principal_id=request.principal_id, kind="api_key", expires_unix_s=2_000_000_000
        )
        return tenancy_pb2.CreateApiKeyResponse(credential=credential, api_key=ISSUED_KEY)

    async def RegisterCertificate(self, request: tenancy_pb2.RegisterCertificateRequest, context: Context):
        self.state.said.append(request)
        credential = tenancy_pb2.Credential(credential_id="cred_2", kind="certificate")
        return tenancy_pb2.RegisterCertificateResponse(credential=credential)

    async def RevokeCredential(self, request: tenancy_pb2.RevokeCredentialRequest, context: Context):
        self.state.said.append(request)
        credential = tenancy_pb2.Credential(credential_id=request.credential_id, revoked_unix_s=1_900_000_000)
        return tenancy_pb2.RevokeCredentialResponse(credential=credential)

    async def RegisterModel(self, request: tenancy_pb2.RegisterModelRequest, context: Context):
        self.state.said.append(request)
        return tenancy_pb2.RegisterModelResponse(model=request.model)

    async def RetireModel(self, request: tenancy_pb2.RetireModelRequest, context: Context):
        self.state.said.append(request)
        return tenancy_pb2.RetireModelResponse(model=tenancy_pb2.Model(name=request.name, status="retired"))


class _TenancyQuery(_Told, tenancy_pb2_grpc.TenancyQueryServiceServicer):
    async def ListTenants(self, request: tenancy_pb2.ListTenantsRequest, context: Context):
        return tenancy_pb2.ListTenantsResponse(tenants=self.state.tenants.values())

    async def GetTenant(self, request: tenancy_pb2.GetTenantRequest, context: Context):
        for tenant in self.state.tenants.values():
            if request.tenant in (tenant.name, tenant.tenant_id):
                return tenancy_pb2.GetTenantResponse(tenant=tenant)
        return await abort_with(context, NotFoundError("no such tenant"))

    async def ListPrincipals(self, request: tenancy_pb2.ListPrincipalsRequest, context: Context):
        self.state.said.append(request)
        principal = tenancy_pb2.Principal(principal_id="prin_1", name="ci", role=common_pb2.ROLE_DEVELOPER)
        return tenancy_pb2.ListPrincipalsResponse(principals=[principal])

    async def ListCredentials(self, request: tenancy_pb2.ListCredentialsRequest, context: Context):
        credential = tenancy_pb2.Credential(credential_id="cred_1", kind="api_key", scopes=["sessions"])
        return tenancy_pb2.ListCredentialsResponse(credentials=[credential])

    async def ListModels(self, request: tenancy_pb2.ListModelsRequest, context: Context):
        return tenancy_pb2.ListModelsResponse(models=[tenancy_pb2.Model(name="m", digest=bytes(32))])


class _Policy(_Told, policy_pb2_grpc.PolicyAdminServiceServicer):
    async def PublishBundle(self, request: policy_pb2.PublishBundleRequest, context: Context):
        self.state.said.append(request)
        return policy_pb2.PublishBundleResponse(bundle=policy_pb2.PolicyBundle(bundle_id="bndl_1", digest="d" * 64))

    async def ActivateBundle(self, request: policy_pb2.ActivateBundleRequest, context: Context):
        self.state.said.append(request)
        return policy_pb2.ActivateBundleResponse(
            bundle=policy_pb2.PolicyBundle(bundle_id=request.bundle_id, status="active", revision=2)
        )

    async def RollbackBundle(self, request: policy_pb2.RollbackBundleRequest, context: Context):
        self.state.said.append(request)
        return policy_pb2.RollbackBundleResponse(
            bundle=policy_pb2.PolicyBundle(bundle_id="bndl_0", status="active", revision=3)
        )


class _PolicyQuery(_Told, policy_pb2_grpc.PolicyQueryServiceServicer):
    async def ListBundles(self, request: policy_pb2.ListBundlesRequest, context: Context):
        return policy_pb2.ListBundlesResponse(bundles=[policy_pb2.PolicyBundle(bundle_id="bndl_1", digest="d" * 64)])


class _Fleet(_Told, fleet_pb2_grpc.FleetAdminServiceServicer):
    async def CordonAgent(self, request: fleet_pb2.CordonAgentRequest, context: Context):
        self.state.said.append(request)
        return fleet_pb2.CordonAgentResponse(agent=fleet_pb2.Agent(agent_id=request.agent_id, cordoned=True))

    async def UncordonAgent(self, request: fleet_pb2.UncordonAgentRequest, context: Context):
        self.state.said.append(request)
        return fleet_pb2.UncordonAgentResponse(agent=fleet_pb2.Agent(agent_id=request.agent_id))

    async def ReleasePartition(self, request: fleet_pb2.ReleasePartitionRequest, context: Context):
        self.state.said.append(request)
        partition = fleet_pb2.Partition(partition_id=request.partition_id, state="draining")
        return fleet_pb2.ReleasePartitionResponse(partition=partition)


class _FleetQuery(_Told, fleet_pb2_grpc.FleetQueryServiceServicer):
    async def ListAgents(self, request: fleet_pb2.ListAgentsRequest, context: Context):
        agent = fleet_pb2.Agent(
            agent_id="rack1-tray01",
            simulated=True,
            gpus=4,
            gpu_product="GB300",
            tiers=[common_pb2.TIER_MIG, common_pb2.TIER_GPU],
        )
        return fleet_pb2.ListAgentsResponse(agents=[agent])

    async def ListPartitions(self, request: fleet_pb2.ListPartitionsRequest, context: Context):
        self.state.said.append(request)
        partition = fleet_pb2.Partition(
            partition_id="part_1",
            tier=common_pb2.TIER_MIG,
            simulated=True,
            state="ready",
            memory_slice_start=2,
            memory_slices=2,
        )
        return fleet_pb2.ListPartitionsResponse(partitions=[partition])
