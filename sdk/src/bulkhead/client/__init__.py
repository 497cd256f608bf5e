"""The client library: open a verified session, talk to its worker, read the audit log, administer the platform.

::

    async with AsyncBulkhead.from_profile("acme") as client:
        async with client.open_session(model="smollm2-135m-instruct", tier="mig") as session:
            async for delta in session.generate("What is the capital of France?", max_tokens=32):
                print(delta.text, end="", flush=True)

:class:`Bulkhead` is the same for programs without an event loop. Every failure is a
:class:`bulkhead.errors.BulkheadError`; no prompt is sent before the worker was verified, and no answer ends normally
before its receipt was. Names are imported when they are used, so that importing this package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bulkhead.client.audit import AuditLog, AuditRecord, RecordFilter
    from bulkhead.client.blocking import BlockingGeneration, Bulkhead, Session
    from bulkhead.client.client import AsyncBulkhead, SessionOpening
    from bulkhead.client.config import Profile, SessionDefaults, TicketIssuerPin, list_profiles, load_profile
    from bulkhead.client.fleet import FleetAdmin
    from bulkhead.client.generation import Choice, Completion, Embeddings, Generation
    from bulkhead.client.opening import Progress
    from bulkhead.client.policies import PolicyAdmin
    from bulkhead.client.roots import RootPin, RootSigner
    from bulkhead.client.session import AsyncSession
    from bulkhead.client.tenancy import TenancyAdmin, TenantSettings
    from bulkhead.protocol.payloads import Delta, Message, Usage

__all__ = [
    "AsyncBulkhead",
    "AsyncSession",
    "AuditLog",
    "AuditRecord",
    "BlockingGeneration",
    "Bulkhead",
    "Choice",
    "Completion",
    "Delta",
    "Embeddings",
    "FleetAdmin",
    "Generation",
    "Message",
    "PolicyAdmin",
    "Profile",
    "Progress",
    "RecordFilter",
    "RootPin",
    "RootSigner",
    "Session",
    "SessionDefaults",
    "SessionOpening",
    "TenancyAdmin",
    "TenantSettings",
    "TicketIssuerPin",
    "Usage",
    "list_profiles",
    "load_profile",
]

_HOMES: Final = {
    "bulkhead.client.audit": ("AuditLog", "AuditRecord", "RecordFilter"),
    "bulkhead.client.blocking": ("BlockingGeneration", "Bulkhead", "Session"),
    "bulkhead.client.client": ("AsyncBulkhead", "SessionOpening"),
    "bulkhead.client.config": ("Profile", "SessionDefaults", "TicketIssuerPin", "list_profiles", "load_profile"),
    "bulkhead.client.fleet": ("FleetAdmin",),
    "bulkhead.client.generation": ("Choice", "Completion", "Embeddings", "Generation"),
    "bulkhead.client.opening": ("Progress",),
    "bulkhead.client.policies": ("PolicyAdmin",),
    "bulkhead.client.roots": ("RootPin", "RootSigner"),
    "bulkhead.client.session": ("AsyncSession",),
    "bulkhead.client.tenancy": ("TenancyAdmin", "TenantSettings"),
    "bulkhead.protocol.payloads": ("Delta", "Message", "Usage"),
}
_HOME_OF: Final = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)
