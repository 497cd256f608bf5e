"""Which logs there are, and the heads that database and lock store agree on."""

from collections.abc import Callable, Sequence

from audit.log.opening import tenant_log
from audit.model import Head, LogInfo
from audit.store import NewLeaf, Placed, Survey
from bulkhead.errors import NotFoundError

__all__ = ["KnownLogs"]


class KnownLogs:
    """Used on the event loop alone. A tenant's log is that of its newest epoch, where nothing else is said."""

    def __init__(self, logs: Sequence[LogInfo], heads: Sequence[Head]) -> None:
        self._logs: dict[int, LogInfo] = {}
        self._newest: dict[str | None, LogInfo] = {}
        self._heads: dict[int, Head] = {}
        self._learn(logs, heads)

    def info(self, log_id: int) -> LogInfo:
        """Return a log.

        Raises:
            NotFoundError: no such log.
        """
        info = self._logs.get(log_id)
        if info is None:
            raise NotFoundError(f"there is no log {log_id}")
        return info

    def head(self, log_id: int) -> Head:
        """Return a log's acknowledged head.

        Raises:
            NotFoundError: no such log.
        """
        self.info(log_id)
        return self._heads[log_id]

    def of(self, tenant: str | None) -> LogInfo | None:
        """Return the newest log of a tenant (None: the platform's)."""
        return self._newest.get(tenant)

    def every(self) -> tuple[LogInfo, ...]:
        """Return every log, of every epoch, in the order of their ids."""
        return tuple(self._logs[log_id] for log_id in sorted(self._logs))

    def by_id(self) -> dict[int, LogInfo]:
        """Return every log, of every epoch, by id."""
        return dict(self._logs)

    def newest(self) -> tuple[LogInfo, ...]:
        """Return the newest log of the platform and of every tenant."""
        return tuple(self._newest.values())

    def heads(self) -> dict[int, Head]:
        """Return every acknowledged head by log id."""
        return dict(self._heads)

    def next_log(self, domain: str, tenant: str, *, random_bytes: Callable[[int], bytes]) -> LogInfo:
        """Return a tenant's first log as it could be opened now."""
        slots = {log.slot for log in self._logs.values() if log.slot is not None}
        return tenant_log(
            domain, tenant=tenant, log_id=max(self._logs, default=0) + 1, slot=len(slots), random_bytes=random_bytes
        )

    def acknowledged(self, placed: Sequence[tuple[NewLeaf, Placed]], heads: Sequence[Head]) -> None:
        """Take note of a batch that database and lock store have."""
        opened = [leaf.opens for leaf, _ in placed if leaf.opens is not None]
        self._learn(opened, heads)

    def surveyed(self, survey: Survey) -> None:
        """Take note of what all writers did, which database and lock store have."""
        self._learn(survey.logs, survey.heads)

    def _learn(self, logs: Sequence[LogInfo], heads: Sequence[Head]) -> None:
        for head in heads:
            known = self._heads.get(head.log_id)
            if known is None or known.size < head.size:
                self._heads[head.log_id] = head
        for log in logs:
            if log.log_id not in self._heads:
                continue
            self._logs[log.log_id] = log
            newest = self._newest.get(log.tenant)
            if newest is None or newest.epoch <= log.epoch:
                self._newest[log.tenant] = log
