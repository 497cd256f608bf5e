"""The first start of a platform: keys, certificates, databases, the first policy bundle, the first administrators.

Run once, by the operator, before the first start. What it makes is recorded in the platform's log, as the platform's
own doing: nobody could have authorised it yet. It may be repeated after a crash: what exists is kept, and
administrators are made last, in one transaction, after which it refuses to run again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from audit.log import AuditLog
from audit.records import Action, PlatformReason, administered, platform_cause, platform_event
from bulkhead import ids
from bulkhead.encoding import Json, b64url_encode
from bulkhead.errors import ConflictError, InvalidRequestError
from control_plane.authz.bundle import VerifiedBundle
from control_plane.config import ControlPlaneConfig
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.bundles import BundleStatus, PolicyBundle
from control_plane.domain.roles import ROLE_SCOPES, CredentialKind, Role
from control_plane.domain.tenancy import Credential, Principal
from control_plane.keys import KeyRing
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.migrate import migrate
from control_plane.storage.policy import Bundles
from control_plane.storage.tenancy import Credentials, Principals
from service.files import make_private_directory, write_file

__all__ = ["Bootstrap", "NewAdmin"]

US_PER_S: Final = 1_000_000
MAX_ADMINS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdmin:
    """An administrator that was made: principal, credential, and the file that holds the API key."""

    principal: Principal
    credential: Credential
    api_key_file: Path

    def to_json(self) -> dict[str, Json]:
        """Return what the operator is shown; the key itself is in the file only."""
        return {
            "name": self.principal.name,
            "principal_id": self.principal.principal_id,
            "credential_id": self.credential.credential_id,
            "api_key_file": str(self.api_key_file),
            "expires_unix_s": self.credential.expires_us // US_PER_S,
        }


class Bootstrap:
    """Initialises a platform.

    Args:
        config: of the control plane.
        build: builds and signs the first bundle: (sources, number, time in microseconds, keys).
        now_us: Unix time in microseconds.
        random_bytes: source of the keys' secrets.
    """

    def __init__(
        self,
        *,
        config: ControlPlaneConfig,
        build: Callable[[Mapping[str, bytes], int, int, KeyRing], VerifiedBundle],
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._config = config
        self._build = build
        self._now_us = now_us
        self._random_bytes = random_bytes

    async def run(self, *, admins: Sequence[str], policies: Mapping[str, bytes], lifetime_s: int) -> dict[str, Json]:
        """Make everything and return what was made, for the operator to read.

        Args:
            admins: names of the first administrators; two of them can change policies.
            policies: sources of the first bundle, path -> content.
            lifetime_s: of the administrators' API keys.

        Raises:
            ConflictError: the platform has administrators already.
            BundleError: the policies do not compile.
            ConfigError: a directory or file cannot be made.
            AuditUnavailableError, StateUnavailableError: a database cannot be written.
        """
        if not 1 <= len(set(admins)) == len(admins) <= MAX_ADMINS:
            raise InvalidRequestError(f"1 to {MAX_ADMINS} administrators, each with a name of their own")
        config = self._config
        make_private_directory(config.state_directory)
        keys = KeyRing.load_or_create(config)
        database = Database(url=config.database_url(), timeout_s=config.state.timeout_s)
        try:
            await migrate(database)
            if await database.read(lambda tx: Principals.of(tx).any_admin()):
                raise ConflictError("this platform is initialised: its administrators make further ones")
            make_private_directory(config.audit_config().keys_dir.parent)
            audit = await AuditLog.open(config.audit_config())
            try:
                built = self._build(policies, 1, self._now_us(), keys)
                made = [self._new_admin(name, lifetime_s) for name in admins]
                await self._record(audit, built, [admin for admin, _ in made])
                await database.write(lambda tx: self._write(tx, built, made))
                return self._shown(keys, audit, built, [admin for admin, _ in made])
            finally:
                await audit.close()
        finally:
            await database.close()

    def _new_admin(self, name: str, lifetime_s: int) -> tuple[NewAdmin, bytes]:
        now_us = self._now_us()
        principal = Principal(
            principal_id=ids.new_id(ids.PRINCIPAL),
            tenant_id="",
            name=name,
            role=Role.ADMIN,
            subject_id=ids.new_id(ids.SUBJECT),
            created_us=now_us,
        )
        key = ApiKey.new(ids.new_id(ids.CREDENTIAL), random_bytes=self._random_bytes)
        credential = Credential(
            credential_id=key.credential_id,
            principal_id=principal.principal_id,
            kind=CredentialKind.API_KEY,
            scopes=ROLE_SCOPES[Role.ADMIN],
            created_us=now_us,
            expires_us=now_us + lifetime_s * US_PER_S,
        )
        file = make_private_directory(self._config.state_directory / "bootstrap") / f"{name}.key"
        write_file(file, f"{key.text()}\n".encode("ascii"))
        return NewAdmin(principal=principal, credential=credential, api_key_file=file), key.secret_sha256()

    async def _record(self, audit: AuditLog, built: VerifiedBundle, admins: Sequence[NewAdmin]) -> None:
        cause = platform_cause(PlatformReason.STARTUP)
        details: dict[str, Json] = {"trust_domain": self._config.trust_domain, "initialised": True}
        await audit.write(
            platform_event(
                audit.stamp(), action=Action.PLATFORM_CONFIGURED, reason=PlatformReason.STARTUP, details=details
            )
        )
        for admin in admins:
            steps: tuple[tuple[Action, tuple[str, str], dict[str, Json]], ...] = (
                (Action.PRINCIPAL_CREATED, ("principal", admin.principal.principal_id), {"role": Role.ADMIN.value}),
                (
                    Action.CREDENTIAL_ISSUED,
                    ("credential", admin.credential.credential_id),
                    {"kind": CredentialKind.API_KEY.value, "expires_us": admin.credential.expires_us},
                ),
            )
            for action, resource, facts in steps:
                details = {**facts, "subject": admin.principal.subject_id}
                await audit.write(
                    administered(
                        audit.stamp(),
                        action=action,
                        tenant=None,
                        subject=None,
                        cause=cause,
                        resource=resource,
                        details=details,
                    )
                )
        await audit.write(
            administered(
                audit.stamp(),
                action=Action.POLICY_ACTIVATED,
                tenant=None,
                subject=None,
                cause=cause,
                resource=("bundle", built.info.digest),
                bundle=built.info.digest,
                details={"number": built.info.number},
            )
        )

    def _write(self, tx: Transaction, built: VerifiedBundle, made: Sequence[tuple[NewAdmin, bytes]]) -> None:
        now_us = self._now_us()
        platform = ids.new_id(ids.SUBJECT)  # the platform itself: no principal has this subject
        bundle = PolicyBundle(
            bundle_id=ids.new_id(ids.BUNDLE),
            digest=built.info.digest,
            number=built.info.number,
            status=BundleStatus.ACTIVE,
            published_by=platform,
            activated_by=platform,
            created_us=now_us,
            activated_us=now_us,
        )
        if Bundles.of(tx).active() is None:
            Bundles.of(tx).insert(bundle, built.data)
        for admin, secret_sha256 in made:
            Principals.of(tx).insert(admin.principal)
            Credentials.of(tx).insert(admin.credential, secret_sha256=secret_sha256)

    def _shown(
        self, keys: KeyRing, audit: AuditLog, built: VerifiedBundle, admins: Sequence[NewAdmin]
    ) -> dict[str, Json]:
        return {
            "state_directory": str(self._config.state_directory),
            "trust_domain": self._config.trust_domain,
            "authority": str(self._config.keys_directory / "ca" / "ca.pem"),
            "ticket_issuer": b64url_encode(keys.ticket_issuers.first().public_key),
            "platform_log_vkey": audit.vkey(audit.platform_log.log_id),
            "policy": {"digest": built.info.digest, "number": built.info.number},
            "admins": [admin.to_json() for admin in admins],
        }
