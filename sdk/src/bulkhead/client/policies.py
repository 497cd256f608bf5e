"""Administration of policy bundles over gRPC. Changes need role admin; an officer may list.

Every change carries a request id of its own, so that a repetition after a lost answer changes nothing twice.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Final

from bulkhead.client import convert
from bulkhead.client.paging import pages
from bulkhead.client.transport import Channel
from bulkhead.client.views import PolicyBundleView
from bulkhead.ids import REQUEST, new_id
from bulkhead.v1 import common_pb2, policy_pb2, policy_pb2_grpc

__all__ = ["PolicyAdmin"]

PUBLISH_DEADLINE_S: Final = 28.0  # checking, testing and building a bundle takes OPA seconds


class PolicyAdmin:
    """Policy bundles.

    Args:
        channel: to the control plane, with an admin's credential (an officer's may list).
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._admin = policy_pb2_grpc.PolicyAdminServiceStub(channel.raw)
        self._query = policy_pb2_grpc.PolicyQueryServiceStub(channel.raw)

    async def publish(self, files: Mapping[str, bytes]) -> PolicyBundleView:
        """Check, test, sign and store sources (path below the policy directory -> content) as a candidate.

        Raises:
            InvalidRequestError: the sources do not pass; the message says what OPA said.
        """
        request = policy_pb2.PublishBundleRequest(
            request_id=new_id(REQUEST),
            files=[policy_pb2.PolicyFile(path=path, content=content) for path, content in sorted(files.items())],
        )
        reply = await self._channel.unary(
            self._admin.PublishBundle, request, idempotent=True, deadline_s=PUBLISH_DEADLINE_S
        )
        return convert.bundle_view(reply.bundle)

    async def activate(self, bundle_id: str) -> PolicyBundleView:
        """Activate a candidate that another person published."""
        request = policy_pb2.ActivateBundleRequest(request_id=new_id(REQUEST), bundle_id=bundle_id)
        reply = await self._channel.unary(
            self._admin.ActivateBundle, request, idempotent=True, deadline_s=PUBLISH_DEADLINE_S
        )
        return convert.bundle_view(reply.bundle)

    async def rollback(self) -> PolicyBundleView:
        """Activate the bundle that was active before."""
        request = policy_pb2.RollbackBundleRequest(request_id=new_id(REQUEST))
        reply = await self._channel.unary(
            self._admin.RollbackBundle, request, idempotent=True, deadline_s=PUBLISH_DEADLINE_S
        )
        return convert.bundle_view(reply.bundle)

    def bundles(self) -> AsyncGenerator[PolicyBundleView, None]:
        """Yield every bundle, the newest first."""

        async def fetch(page: common_pb2.PageRequest) -> tuple[Iterable[PolicyBundleView], str]:
            request = policy_pb2.ListBundlesRequest(page=page)
            reply = await self._channel.unary(self._query.ListBundles, request, idempotent=True)
            return map(convert.bundle_view, reply.bundles), reply.next_page_token

        return pages(fetch)
