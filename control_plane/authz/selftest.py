"""Questions whose answers every usable bundle agrees on, asked before a bundle takes over.

Nobody may do anything; an administrator may publish policies. The second keeps a bundle out that would lock everybody
out, this very remedy included.
"""

from typing import Final

from bulkhead.errors import PolicyEngineError
from control_plane.authz.connection import OpaConnection
from control_plane.authz.decision import parse_decision
from control_plane.authz.input import (
    AdminResource,
    BundleResource,
    Context,
    LogResource,
    PlatformFacts,
    PolicyInput,
    Resource,
    SessionResource,
    Subject,
)

__all__ = ["self_test"]

_ZERO: Final = "0" * 26
_CONTEXT: Final = Context(
    time_us=0, network="loopback", tenant=None, platform=PlatformFacts(tiers=(), regions=(), simulated=False)
)


def _question(action: str, resource: Resource, *roles: str) -> PolicyInput:
    subject = Subject(id=f"subj_{_ZERO}", roles=roles, tenant=None, credential="certificate")
    return PolicyInput(subject=subject, action=action, resource=resource, context=_CONTEXT)


_SESSION: Final = SessionResource(id=f"sess_{_ZERO}", tenant=f"tenant_{_ZERO}", model="none", model_digest="0" * 64)
_BUNDLE: Final = BundleResource(active_number=0)
_DENIED: Final = (
    _question("session.open", _SESSION),
    _question("tenant.create", AdminResource(type="tenant")),
    _question("audit.read", LogResource(tenant=None)),
    _question("policy.publish", _BUNDLE),
)
_ALLOWED: Final = _question("policy.publish", _BUNDLE, "admin")


async def self_test(connection: OpaConnection) -> None:
    """Return if the server decides with its own bundle and answers every question as it must.

    Raises:
        PolicyEngineError: it does not; the message says which action.
        ConnectionError, TimeoutError: as :meth:`OpaConnection.query`.
    """
    for question, expected in (*((question, False) for question in _DENIED), (_ALLOWED, True)):
        reply = await connection.query(question.entrypoint, question.to_json())
        if reply.revision != connection.revision:
            raise PolicyEngineError("self-test: the policy engine serves another bundle than it was given")
        decision = parse_decision(reply.result, bundle_digest=reply.revision, input_digest=question.digest())
        if decision.allow is not expected:
            told = "an administrator is refused" if expected else "nobody in particular is allowed"
            raise PolicyEngineError(f"self-test: {told} {question.action}")
