"""Finding collateral: at hand first, fetched only where the tenant's policy allows it, refused with its source else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from bulkhead.attestation.collateral.dates import end_of_use
from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralItem, CollateralKind
from bulkhead.attestation.collateral.policy import CollateralPolicy
from bulkhead.attestation.collateral.store import CarriedCollateral, CollateralCopies
from bulkhead.attestation.obligations import failed
from bulkhead.errors import BulkheadError, EvidenceError, EvidenceExpiredError

__all__ = ["Answer", "CollateralCache", "Fetcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service sent: the body, the issuer's chain from its header (PEM, may be empty), and the URL asked."""

    data: bytes
    chain: bytes
    source: str


class Fetcher(Protocol):
    """Port: asks a vendor's service, or a mirror of it."""

    def fetch(self, item: CollateralItem) -> Answer:
        """Return the answer for ``item``; blocks within its own time-out.

        Raises:
            ConnectionFailedError: no answer that can be used.
        """
        ...


class CollateralCache:
    """Collateral at hand and, where allowed, from vendors' services.

    Args:
        store: the copies at hand; None where nothing is kept.
        policy: which kinds may be fetched, and how old a copy may be.
        fetcher: None to stay offline whatever the policy allows.
        now_s: Unix seconds of the clock by which copies age.
    """

    def __init__(
        self,
        *,
        store: CollateralCopies | None,
        policy: CollateralPolicy,
        now_s: Callable[[], int],
        fetcher: Fetcher | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._fetcher = fetcher
        self._now_s = now_s

    def under(self, policy: CollateralPolicy) -> "CollateralCache":
        """Return the same cache under another policy."""
        return CollateralCache(store=self._store, policy=policy, fetcher=self._fetcher, now_s=self._now_s)

    def offline(self) -> "CollateralCache":
        """Return the same cache without a fetcher."""
        return CollateralCache(store=self._store, policy=self._policy, now_s=self._now_s)

    def carrying(self, entries: Iterable[CollateralEntry], *, now_s: int) -> "CollateralCache":
        """Return a cache of these pieces alone, offline, as of a time (Unix seconds)."""
        return CollateralCache(store=CarriedCollateral(entries), policy=self._policy, now_s=lambda: now_s)

    def noting(self, found: CarriedCollateral) -> "CollateralCache":
        """Return the same cache, offline; what is found in it is put into ``found``."""
        return CollateralCache(store=_Noting(self._store, found), policy=self._policy, now_s=self._now_s)

    def allows(self, item: CollateralItem) -> bool:
        """Whether ``item`` may be fetched and somebody is there to do it."""
        return self._fetcher is not None and item.kind in self._policy.fetch

    def find(self, item: CollateralItem, *, fresh: bool = False) -> CollateralEntry:
        """Return a piece: from the cache if it is there and of use still, else from its service.

        A copy that is past its own end is still returned where nothing newer can be had: its verifier says what is out
        of date.

        Args:
            item: which piece.
            fresh: ask the service even if a copy is at hand.

        Raises:
            EvidenceError: missing, and not to be fetched: names the piece, its source and what would allow it.
            EvidenceExpiredError: at hand, but older than the policy allows, and not to be fetched.
            ConnectionFailedError: to be fetched, and the service did not answer.
        """
        entry = self._store.get(item.kind, item.name) if self._store is not None else None
        if self.allows(item) and (fresh or entry is None or self._is_stale(entry)):
            return self._fetch(item)
        if entry is None:
            raise _missing(item)
        if self._is_too_old(entry):
            raise failed(
                item.kind.obligation,
                f"the copy of {item.kind.value} {item.name} is older than the policy's [collateral] maximum_age_s",
                EvidenceExpiredError,
                details={"collateral": item.kind.value, "source": item.url},
            )
        return entry

    def has(self, item: CollateralItem) -> bool:
        """Whether a copy is at hand that is of use still."""
        entry = self._store.get(item.kind, item.name) if self._store is not None else None
        return entry is not None and not self._is_stale(entry)

    def _fetch(self, item: CollateralItem) -> CollateralEntry:
        if self._fetcher is None:
            raise _missing(item)
        answer = self._fetcher.fetch(item)
        entry = CollateralEntry(
            kind=item.kind,
            name=item.name,
            data=answer.data,
            chain=answer.chain,
            fetched_s=self._now_s(),
            source=answer.source,
        )
        try:
            end_of_use(entry)  # an answer that is none, such as a portal's page, must not displace a copy
        except EvidenceError as error:
            raise failed(item.kind.obligation, f"{answer.source}: {error.message}") from error
        if self._store is not None:
            self._store.put(entry)
        return entry

    def _is_too_old(self, entry: CollateralEntry) -> bool:
        age_s = self._policy.maximum_age_s.get(entry.kind)
        return age_s is not None and self._now_s() - entry.fetched_s > age_s

    def _is_stale(self, entry: CollateralEntry) -> bool:
        try:
            end_s = end_of_use(entry)
        except BulkheadError:
            return True
        return self._is_too_old(entry) or (end_s is not None and self._now_s() > end_s)


class _Noting:
    """Copies that are noted as they are found."""

    def __init__(self, store: CollateralCopies | None, found: CarriedCollateral) -> None:
        self._store = store
        self._found = found

    def get(self, kind: CollateralKind, name: str) -> CollateralEntry | None:
        entry = None if self._store is None else self._store.get(kind, name)
        if entry is not None:
            self._found.put(entry)
        return entry

    def put(self, entry: CollateralEntry) -> None:
        self._found.put(entry)


def _missing(item: CollateralItem) -> BulkheadError:
    return failed(
        item.kind.obligation,
        f"{item.kind.value} {item.name} is missing: {item.url} gives it; to have it fetched, allow "
        f'"{item.kind.value}" in the policy\'s [collateral] fetch',
        details={"collateral": item.kind.value, "source": item.url},
    )
