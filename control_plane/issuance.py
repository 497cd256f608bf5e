"""Identities that the command line issues are in the audit log before anybody holds them.

The command runs beside the server and holds the authority's key, but the log may have one writing process only. So it
records in the log itself where it can open it (the server does not run, or several may write), and otherwise leaves a
request in a private directory and waits until the server has recorded that; whichever comes first. If neither happens
within :data:`PATIENCE_S`, nothing is issued.
"""

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from audit.log import AuditLog
from audit.records import Action, PlatformReason, Record, Stamp, administered, platform_cause
from bulkhead.errors import AuditUnavailableError, BulkheadError, MalformedRequestError
from bulkhead.fields import Fields
from bulkhead.ids import REQUEST, new_id
from control_plane.config import ControlPlaneConfig
from control_plane.services.journal import Journal
from service.files import make_private_directory, write_file

__all__ = ["IssuanceRecorder", "IssuedIdentity", "record_issued"]

PATIENCE_S: Final = 20.0
LOOK_EVERY_S: Final = 0.5
MAX_REQUEST_BYTES: Final = 4_096  # a URI and a fingerprint
_REQUEST: Final = ".json"
_RECORDED: Final = ".recorded"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedIdentity:
    """What is recorded of an identity.

    Attributes:
        uri: in its certificate.
        fingerprint: SHA-256 over the certificate's DER, hexadecimal.
        expires_us: end of the certificate, microseconds since the epoch.
    """

    uri: str
    fingerprint: str
    expires_us: int

    def record(self, stamp: Stamp) -> Record:
        """Return the record in the platform's log."""
        return administered(
            stamp,
            action=Action.IDENTITY_ISSUED,
            tenant=None,
            subject=None,
            cause=platform_cause(PlatformReason.COMMAND),
            resource=("identity", self.uri),
            details={"fingerprint": self.fingerprint, "expires_us": self.expires_us},
        )


class IssuanceRecorder:
    """The server's side: records what the command line asks for.

    Args:
        directory: of the requests.
        journal: the audit log.
    """

    def __init__(self, *, directory: Path, journal: Journal) -> None:
        self._directory = directory
        self._journal = journal

    async def run(self) -> None:
        """Look for requests until cancelled."""
        while True:
            for path in await asyncio.to_thread(_requests, self._directory):
                try:
                    issued = await asyncio.to_thread(_read, path)
                    await self._journal.write(issued.record(self._journal.stamp()))
                    await asyncio.to_thread(path.rename, path.with_suffix(_RECORDED))
                except (BulkheadError, OSError) as error:
                    log.warning("issuance.not_recorded", reason=type(error).__name__)
            await asyncio.sleep(LOOK_EVERY_S)


def record_issued(config: ControlPlaneConfig, issued: IssuedIdentity) -> None:
    """Return once the issue of an identity is in the audit log; for the command line, which has no event loop.

    Raises:
        AuditUnavailableError: it is not known to be; the identity must not be handed out.
        ConfigError: a file cannot be written.
    """
    request = make_private_directory(config.issuances_directory) / f"{new_id(REQUEST)}{_REQUEST}"
    deadline_s = time.monotonic() + PATIENCE_S
    try:
        while not _recorded(config, issued, request):
            if time.monotonic() > deadline_s:
                raise AuditUnavailableError(
                    "the issue could not be recorded: the audit log is in use, and no control plane records it"
                )
            time.sleep(LOOK_EVERY_S)
    finally:
        for suffix in (_REQUEST, _RECORDED):
            request.with_suffix(suffix).unlink(missing_ok=True)


def _recorded(config: ControlPlaneConfig, issued: IssuedIdentity, request: Path) -> bool:
    if request.with_suffix(_RECORDED).exists():
        return True
    try:
        asyncio.run(_append(config, issued))
    except AuditUnavailableError:
        if not request.exists() and not request.with_suffix(_RECORDED).exists():
            write_file(request, json.dumps(asdict(issued)).encode("ascii"))
        return False
    return True  # a request that the server took meanwhile is recorded twice, which misleads nobody


async def _append(config: ControlPlaneConfig, issued: IssuedIdentity) -> None:
    audit = await AuditLog.open(config.audit_config())
    try:
        await audit.write(issued.record(audit.stamp()))
    finally:
        await audit.close()


def _requests(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{_REQUEST}"))


def _read(path: Path) -> IssuedIdentity:
    """Return what a request asks to record; one that is none is removed.

    Raises:
        MalformedRequestError: it is none.
    """
    try:
        value = json.loads(path.read_bytes()[:MAX_REQUEST_BYTES])
        with Fields(value, what="issuance", error=MalformedRequestError) as fields:
            return IssuedIdentity(
                uri=fields.text("uri"),
                fingerprint=fields.text("fingerprint"),
                expires_us=fields.integer("expires_us"),
            )
    except (ValueError, MalformedRequestError) as error:
        path.unlink(missing_ok=True)
        raise MalformedRequestError("not an issuance") from error
