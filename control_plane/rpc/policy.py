"""PolicyAdminService and PolicyQueryService. Admission has authenticated the caller and checked the scope."""

from typing import Any

from bulkhead.v1 import policy_pb2 as pb
from bulkhead.v1 import policy_pb2_grpc
from control_plane.rpc import convert_admin as convert
from control_plane.rpc.caller import current_caller
from control_plane.services.authorisation import AdminCall
from control_plane.services.policies import PolicyAdmin, PolicyQuery
from service.interceptors import current_request_id

__all__ = ["PolicyAdminServicer", "PolicyQueryServicer"]


class PolicyAdminServicer(policy_pb2_grpc.PolicyAdminServiceServicer):
    """Changes which policy bundle decides."""

    def __init__(self, *, policies: PolicyAdmin) -> None:
        self._policies = policies

    async def PublishBundle(self, request: pb.PublishBundleRequest, context: Any) -> pb.PublishBundleResponse:  # noqa: N802, ARG002  gRPC's names
        """Check, test, build and sign sources; store the candidate."""
        call = AdminCall(current_caller(), request.request_id)
        bundle = await self._policies.publish(call, convert.policy_files(request.files))
        return pb.PublishBundleResponse(bundle=convert.bundle_message(bundle))

    async def ActivateBundle(self, request: pb.ActivateBundleRequest, context: Any) -> pb.ActivateBundleResponse:  # noqa: N802, ARG002  gRPC's names
        """Serve a candidate that another person published."""
        call = AdminCall(current_caller(), request.request_id)
        bundle = await self._policies.activate(call, request.bundle_id)
        return pb.ActivateBundleResponse(bundle=convert.bundle_message(bundle))

    async def RollbackBundle(self, request: pb.RollbackBundleRequest, context: Any) -> pb.RollbackBundleResponse:  # noqa: N802, ARG002  gRPC's names
        """Serve the bundle that was active before."""
        bundle = await self._policies.roll_back(AdminCall(current_caller(), request.request_id))
        return pb.RollbackBundleResponse(bundle=convert.bundle_message(bundle))


class PolicyQueryServicer(policy_pb2_grpc.PolicyQueryServiceServicer):
    """Reads policy bundles."""

    def __init__(self, *, policies: PolicyQuery) -> None:
        self._policies = policies

    async def ListBundles(self, request: pb.ListBundlesRequest, context: Any) -> pb.ListBundlesResponse:  # noqa: N802, ARG002  gRPC's names
        """List bundles."""
        after, limit = convert.page_of(request.page)
        found = await self._policies.bundles(
            AdminCall(current_caller(), current_request_id()), after=after, limit=limit
        )
        return pb.ListBundlesResponse(
            bundles=[convert.bundle_message(bundle) for bundle in found],
            next_page_token=convert.next_token([bundle.bundle_id for bundle in found], limit),
        )
