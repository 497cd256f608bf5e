"""Repository of ticket issuers: public halves and states; private keys are files beside no database."""

from sqlalchemy import Connection, RowMapping, insert, select, update

from control_plane.domain.issuers import IssuerStatus, TicketIssuerEntry
from control_plane.storage.schema import ticket_issuers

__all__ = ["TicketIssuers"]


class TicketIssuers:
    """Issuers on one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> tuple[TicketIssuerEntry, ...]:
        """Return every issuer, the oldest first."""
        query = select(ticket_issuers).order_by(ticket_issuers.c.created_us, ticket_issuers.c.fingerprint)
        return tuple(map(_entry, self._connection.execute(query).mappings()))

    def find(self, issuer_id: str) -> TicketIssuerEntry | None:
        """Return the issuer of that id."""
        return next((entry for entry in self.all() if entry.issuer_id == issuer_id), None)

    def add(self, entry: TicketIssuerEntry) -> None:
        """Add an issuer; a second active one violates a constraint."""
        self._connection.execute(insert(ticket_issuers).values(fingerprint=entry.fingerprint, **_columns(entry)))

    def put(self, entry: TicketIssuerEntry) -> None:
        """Write an issuer's new state."""
        self._connection.execute(
            update(ticket_issuers).where(ticket_issuers.c.fingerprint == entry.fingerprint).values(_columns(entry))
        )


def _columns(entry: TicketIssuerEntry) -> dict[str, object]:
    return {
        "public_key": entry.public_key,
        "status": entry.status.value,
        "created_us": entry.created_us,
        "activated_us": entry.activated_us,
        "replaced_us": entry.replaced_us,
        "retired_us": entry.retired_us,
    }


def _entry(row: RowMapping) -> TicketIssuerEntry:
    return TicketIssuerEntry(
        public_key=row["public_key"],
        status=IssuerStatus(row["status"]),
        created_us=row["created_us"],
        activated_us=row["activated_us"],
        replaced_us=row["replaced_us"],
        retired_us=row["retired_us"],
    )
