"""Rows of policy bundles, and of the request ids that administrative calls have used."""

from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, func, insert, select, update

from control_plane.domain.bundles import BundleStatus, PolicyBundle
from control_plane.storage import schema
from control_plane.storage.engine import Transaction

__all__ = ["Bundles", "Requests", "UsedRequest"]

_B: Final = schema.policy_bundles.c
_R: Final = schema.idempotent_requests.c
_COLUMNS: Final = [column for column in schema.policy_bundles.c if column.name != "bundle"]


class Bundles:
    """The policy bundles."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def of(cls, tx: Transaction) -> Self:
        """Return the bundles as one transaction sees them."""
        return cls(tx.connection)

    def insert(self, bundle: PolicyBundle, content: bytes) -> None:
        """Add a candidate with its signed bytes; a taken number violates a constraint."""
        self._connection.execute(
            insert(schema.policy_bundles).values(
                bundle_id=bundle.bundle_id,
                digest=bundle.digest,
                revision=bundle.number,
                status=bundle.status.value,
                bundle=content,
                published_by=bundle.published_by,
                activated_by=bundle.activated_by or None,
                created_us=bundle.created_us,
                activated_us=bundle.activated_us or None,
            )
        )

    def activate(self, bundle_id: str, *, subject_id: str, now_us: int) -> None:
        """Make the bundle the only active one; the one before becomes superseded."""
        self._connection.execute(
            update(schema.policy_bundles)
            .where(_B.status == BundleStatus.ACTIVE.value)
            .values(status=BundleStatus.SUPERSEDED.value)
        )
        self._connection.execute(
            update(schema.policy_bundles)
            .where(_B.bundle_id == bundle_id)
            .values(status=BundleStatus.ACTIVE.value, activated_by=subject_id, activated_us=now_us)
        )

    def find(self, bundle_id: str) -> PolicyBundle | None:
        """Return the bundle of that identifier."""
        row = self._connection.execute(select(*_COLUMNS).where(_B.bundle_id == bundle_id)).one_or_none()
        return None if row is None else _bundle(row)

    def active(self) -> PolicyBundle | None:
        """Return the active bundle; None before the first."""
        row = self._connection.execute(select(*_COLUMNS).where(_B.status == BundleStatus.ACTIVE.value)).one_or_none()
        return None if row is None else _bundle(row)

    def active_before(self) -> PolicyBundle | None:
        """Return the bundle that was active before the active one: a rollback's goal."""
        row = self._connection.execute(
            select(*_COLUMNS)
            .where(_B.status == BundleStatus.SUPERSEDED.value)
            .order_by(_B.activated_us.desc(), _B.revision.desc())
            .limit(1)
        ).one_or_none()
        return None if row is None else _bundle(row)

    def content(self, bundle_id: str) -> bytes | None:
        """Return the signed bundle's bytes."""
        found: bytes | None = self._connection.execute(
            select(_B.bundle).where(_B.bundle_id == bundle_id)
        ).scalar_one_or_none()
        return found

    def highest_number(self) -> int:
        """Return the highest number that was given to a bundle; 0 before the first."""
        found: int | None = self._connection.execute(select(func.max(_B.revision))).scalar_one()
        return found or 0

    def page(self, *, after: str, limit: int) -> list[PolicyBundle]:
        """Return bundles in order of identifier, which is that of creation, beginning behind ``after``."""
        rows = self._connection.execute(
            select(*_COLUMNS).where(_B.bundle_id > after).order_by(_B.bundle_id).limit(limit)
        )
        return [_bundle(row) for row in rows]


@dataclass(frozen=True, slots=True)
class UsedRequest:
    """What a request id was used for: digest of its content, identifier of what it made."""

    content_sha256: bytes
    result_id: str


class Requests:
    """The request ids of administrative calls, per principal."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def of(cls, tx: Transaction) -> Self:
        """Return the requests as one transaction sees them."""
        return cls(tx.connection)

    def find(self, principal_id: str, request_id: str) -> UsedRequest | None:
        """Return what the principal used the request id for."""
        row = self._connection.execute(
            select(_R.content_sha256, _R.result_id).where(_R.principal_id == principal_id, _R.request_id == request_id)
        ).one_or_none()
        return None if row is None else UsedRequest(row.content_sha256, row.result_id)

    def insert(self, principal_id: str, request_id: str, used: UsedRequest, *, now_us: int) -> None:
        """Remember a request; a second use violates the primary key."""
        self._connection.execute(
            insert(schema.idempotent_requests).values(
                principal_id=principal_id,
                request_id=request_id,
                content_sha256=used.content_sha256,
                result_id=used.result_id,
                created_us=now_us,
            )
        )


def _bundle(row: Row[Any]) -> PolicyBundle:
    return PolicyBundle(
        bundle_id=row.bundle_id,
        digest=row.digest,
        number=row.revision,
        status=BundleStatus(row.status),
        published_by=row.published_by,
        activated_by=row.activated_by or "",
        created_us=row.created_us,
        activated_us=row.activated_us or 0,
    )
