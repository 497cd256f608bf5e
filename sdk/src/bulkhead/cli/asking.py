"""Options of a session, and opening one with its progress and its banner."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from bulkhead.cli.console import compose, note

if TYPE_CHECKING:
    from bulkhead.client.client import AsyncBulkhead
    from bulkhead.client.config import Profile
    from bulkhead.client.opening import Progress
    from bulkhead.client.session import AsyncSession

__all__ = ["Wanted", "kind_of", "opened", "session_options", "standing"]

Function = TypeVar("Function", bound=Callable[..., Any])
TIERS: Final = ("process", "mig", "gpu", "confidential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a session is asked for; empty takes the profile's default."""

    model: str | None
    tier: str | None
    region: str | None
    purpose: str | None
    data_classes: tuple[str, ...]


def session_options(function: Function) -> Function:
    """Add ``--model --tier --region --purpose --data-class``."""
    return compose(
        (
            click.option("--model", help="Registered model; without it the profile's default."),
            click.option("--tier", type=click.Choice(TIERS), help="The weakest isolation accepted."),
            click.option("--region", help="Required region."),
            click.option("--purpose", help="Purpose of use, e.g. treatment; policy may demand one."),
            click.option("--data-class", "data_classes", multiple=True, help="What prompts may hold; repeatable."),
        ),
        function,
    )


@asynccontextmanager
async def opened(profile: "Profile", wanted: Wanted, *, quiet: bool) -> AsyncIterator["AsyncSession"]:
    """Open a session, telling its progress and its standing on standard error, and close it at the end.

    Raises:
        BulkheadError: see :meth:`AsyncBulkhead.open_session`.
    """
    from bulkhead.client.client import AsyncBulkhead

    async with AsyncBulkhead(profile=profile) as client, _opening(client, wanted, quiet=quiet) as session:
        if not quiet:
            note(standing(session))
        yield session


def _opening(client: "AsyncBulkhead", wanted: Wanted, *, quiet: bool) -> Any:
    def tell(step: "Progress") -> None:
        note(f"  {step.phase or 'working'}: {step.message}")

    return client.open_session(
        model=wanted.model,
        tier=wanted.tier,
        region=wanted.region,
        purpose=wanted.purpose,
        data_classes=wanted.data_classes or None,
        on_progress=None if quiet else tell,
    )


def kind_of(session: "AsyncSession") -> str:
    """Return the kind of evidence that was verified: `hardware`, `operator` or `simulated`."""
    from bulkhead.attestation import VerifiedWorker

    worker = session.worker
    return worker.kind.value if isinstance(worker, VerifiedWorker) else "simulated"


def standing(session: "AsyncSession") -> str:
    """Return one line on what was verified; a simulated worker is called simulated."""
    tier = session.tier.value
    if session.simulated:
        how = f"SIMULATED worker standing for tier {tier}: it proves nothing (development mode)"
    else:
        how = f"tier {tier}, verified by {kind_of(session)} evidence"
    return f"{session.session_id}: {session.model}, {how}"
