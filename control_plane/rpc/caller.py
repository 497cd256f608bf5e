"""The caller of the current call, set by the admission of the port and read by servicers.

A context variable, because admission and handler run in one task (:mod:`service.interceptors`): nothing that a peer
sends can set it, unlike metadata.
"""

from contextvars import ContextVar
from typing import Final

from bulkhead.errors import CredentialMissingError
from control_plane.domain.roles import Caller

__all__ = ["agent_if_any", "caller_if_any", "current_agent", "current_caller", "set_agent", "set_caller"]

_CALLER: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)
_AGENT: Final[ContextVar[str | None]] = ContextVar("agent", default=None)


def set_caller(caller: Caller) -> None:
    """Name the caller of this call: admission only."""
    _CALLER.set(caller)


def current_caller() -> Caller:
    """Return the authenticated caller of a call on a public port.

    Raises:
        CredentialMissingError: admission named none (the servicer runs on a port without authentication: a defect).
    """
    caller = _CALLER.get()
    if caller is None:
        raise CredentialMissingError("the call carries no credential")
    return caller


def caller_if_any() -> Caller | None:
    """Return the caller where admission named one: for what runs around refused calls too."""
    return _CALLER.get()


def set_agent(agent_id: str) -> None:
    """Name the node agent of this call: admission of the internal port only."""
    _AGENT.set(agent_id)


def agent_if_any() -> str | None:
    """Return the node agent's id where admission named one: for what runs around refused calls too."""
    return _AGENT.get()


def current_agent() -> str:
    """Return the id of the node agent whose certificate carries a call on the internal port.

    Raises:
        CredentialMissingError: admission named none.
    """
    agent_id = _AGENT.get()
    if agent_id is None:
        raise CredentialMissingError("the call carries no agent's certificate")
    return agent_id
