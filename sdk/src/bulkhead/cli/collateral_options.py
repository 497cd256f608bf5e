"""Options about collateral, and what they stand for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from bulkhead.cli.console import compose

if TYPE_CHECKING:
    from bulkhead.attestation.collateral.cache import CollateralCache
    from bulkhead.attestation.collateral.policy import CollateralPolicy
    from bulkhead.attestation.policy import TrustPolicy

__all__ = ["FETCHABLE", "cache_of", "collateral_options", "policy_of"]

Function = TypeVar("Function", bound=Callable[..., Any])
ALL: Final = "all"
FETCHABLE: Final = (
    "amd-vcek",
    "amd-chain",
    "amd-crl",
    "intel-tcb-info",
    "intel-qe-identity",
    "intel-pck-crl",
    "intel-root-crl",
    "nvidia-rim",
    "nvidia-ocsp",
)
"""The names of :class:`CollateralKind`, here so that ``--help`` need not import it; a test compares them."""


def collateral_options(function: Function) -> Function:
    """Add ``--cache`` and ``--fetch``."""
    return compose(
        (
            click.option(
                "--cache",
                type=click.Path(file_okay=False, path_type=Path),
                help="Directory of collateral at hand [default: ~/.cache/bulkhead/collateral].",
            ),
            click.option(
                "--fetch",
                multiple=True,
                type=click.Choice((*FETCHABLE, ALL)),
                help="Allow to fetch this kind from its vendor, beside those that the policy allows; repeatable.",
            ),
        ),
        function,
    )


def policy_of(path: Path | None, fetch: tuple[str, ...]) -> "TrustPolicy":
    """Return a policy, or the strict defaults; the kinds of ``--fetch`` are allowed beside its own.

    Raises:
        ConfigError: the file is not a policy.
    """
    from bulkhead.attestation.collateral.kinds import CollateralKind
    from bulkhead.attestation.policy import TrustPolicy, load_trust_policy

    policy = TrustPolicy() if path is None else load_trust_policy(path)
    kinds = frozenset(CollateralKind) if ALL in fetch else frozenset(map(CollateralKind, fetch))
    collateral = dataclasses.replace(policy.collateral, fetch=policy.collateral.fetch | kinds)
    return dataclasses.replace(policy, collateral=collateral)


def cache_of(directory: Path | None, policy: "CollateralPolicy") -> "CollateralCache":
    """Return the collateral at hand, with a fetcher of exactly the kinds that ``policy`` allows."""
    import time

    from bulkhead.attestation.collateral.cache import CollateralCache
    from bulkhead.attestation.collateral.store import CollateralStore, default_directory

    fetcher = None
    if policy.fetch:
        from bulkhead.attestation.collateral.https import HttpsFetcher  # ssl: only for who fetches

        fetcher = HttpsFetcher(allowed=policy.fetch, mirrors=policy.mirrors)
    return CollateralCache(
        store=CollateralStore(directory if directory is not None else default_directory()),
        policy=policy,
        fetcher=fetcher,
        now_s=lambda: int(time.time()),
    )
