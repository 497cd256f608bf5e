"""Configuration of a control-plane process: one TOML file, read by :func:`service.config.load_config`.

The smallest file names a state directory; everything else has a default that suits one host::

    state_directory = "var/control-plane"

A secret is never a value in the file: keys lie in the state directory, mode 0600, and a database URL that holds a
password is the content of a file.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from audit.config import AuditConfig, WitnessTarget
from bulkhead.encoding import b64url_decode
from bulkhead.errors import ConfigError, MalformedRequestError
from bulkhead.ids import check_name
from control_plane.services.settings import FleetSettings, SessionSettings
from service.config import require_between
from service.files import read_private
from service.logging import LogFormat

__all__ = [
    "AuditTable",
    "ControlPlaneConfig",
    "KeysTable",
    "LimitsTable",
    "ListenTable",
    "LogTable",
    "PolicyTable",
    "StateTable",
]

MAX_CALL_S: Final = 3_600.0
ED25519_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenTable:
    """Addresses, each ``host:port``; port 0 takes a free one (``ports.json`` in the state directory tells which).

    Attributes:
        public: tenants, officers and admins, with an API key.
        public_mtls: the same services with a registered client certificate.
        internal: node agents.
        dns_names: DNS names in the server certificate.
        addresses: IP addresses in the server certificate.
        client_roots: PEM file of further authorities below which tenants' client certificates may stand; the local
            authority's own always may.
    """

    public: str = "127.0.0.1:0"
    public_mtls: str = "127.0.0.1:0"
    internal: str = "127.0.0.1:0"
    dns_names: tuple[str, ...] = ("localhost",)
    addresses: tuple[str, ...] = ("127.0.0.1",)
    client_roots: Path | None = None

    def __post_init__(self) -> None:
        """Check the form of the addresses.

        Raises:
            ConfigError: one is not host:port.
        """
        for address in (self.public, self.public_mtls, self.internal):
            host, _, port = address.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
                raise ConfigError(f"{address} is not host:port")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTable:
    """The state database.

    Attributes:
        url_file: file (0600) that holds an SQLAlchemy URL; absent, SQLite's ``state.db`` in the state directory.
        timeout_s: longest that a call waits for the database, behind a burst of others too.
    """

    url_file: Path | None = None
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Check the time-out."""
        require_between(self.timeout_s, 0.5, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTable:
    """The audit log.

    Attributes:
        domain: name under which this platform's logs are published; empty takes the trust domain.
        database_url_file: file (0600) that holds a PostgreSQL URL; absent, SQLite's ``audit.db`` in the state
            directory.
        lock_file: the lock store; keep it out of the database's backups. Absent, ``audit.lock`` in the state
            directory.
        lock_url_file: file (0600) that holds the URL of a second PostgreSQL server, which is the lock store of control
            planes on several hosts.
        high_availability: PostgreSQL has standbys that may be promoted; refused unless they are synchronous.
        append_timeout_s: a record that is not durable by then fails its request.
        round_interval_s: least time between two rounds of the platform's log.
        quiet_round_interval_s: a round is made this often even when nothing changed.
        witnesses: who cosigns the platform's log: ``[[audit.witnesses]]`` with ``url`` and ``vkeys``.
        witness_quorum: how many of them must, before a tenant is shown a checkpoint of it.
        publish_interval_s: least time between two publications.
    """

    domain: str = ""
    database_url_file: Path | None = None
    lock_file: Path | None = None
    lock_url_file: Path | None = None
    high_availability: bool = False
    append_timeout_s: float = 2.0
    round_interval_s: float = 1.0
    quiet_round_interval_s: float = 600.0
    witnesses: tuple[WitnessTarget, ...] = ()
    witness_quorum: int = 0
    publish_interval_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTable:
    """The policy engine.

    Attributes:
        opa: the ``opa`` program; absent, ``BULKHEAD_OPA``, PATH and Bulkhead's cache are searched.
        run_directory: base of OPA's run directory, which its account must reach; absent, the system's temporary one.
        deadline_s: bound of one question.
        max_in_flight: questions at once.
    """

    opa: Path | None = None
    run_directory: Path | None = None
    deadline_s: float = 1.5
    max_in_flight: int = 16

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_between(self.deadline_s, 0.1, 10.0)
        require_between(self.max_in_flight, 1, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysTable:
    """The platform's own key broker, for models in its custody (docs/models.md).

    Attributes:
        keks: URIs of key encryption keys, ``file:PATH`` or PKCS#11 (RFC 7512); none: no model in platform custody.
        signers: Ed25519 public keys (base64url) that are trusted for models.
        software: workers' software that gets keys, as evidence names it; none: any that the evidence's rules accept.
    """

    keks: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()
    software: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that they go together.

        Raises:
            ConfigError: keys without signers, or a signer that is no key.
        """
        if bool(self.keks) != bool(self.signers):
            raise ConfigError("keys: keks and signers go together")
        self.signer_keys()

    def signer_keys(self) -> tuple[bytes, ...]:
        """Return the raw public keys.

        Raises:
            ConfigError: one is none.
        """
        try:
            keys = tuple(b64url_decode(text, what="keys.signers") for text in self.signers)
        except MalformedRequestError as error:
            raise ConfigError(error.message) from error
        if any(len(key) != ED25519_BYTES for key in keys):
            raise ConfigError(f"keys.signers: an Ed25519 public key is {ED25519_BYTES} bytes")
        return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsTable:
    """Limits of the servers.

    Attributes:
        max_call_s: longest that a call may take; above ``sessions.open_timeout_s``.
        max_concurrent_calls: of one port; more are RESOURCE_EXHAUSTED.
        drain_s: how long running calls may finish on SIGTERM.
    """

    max_call_s: float = 300.0
    max_concurrent_calls: int = 4_096
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_between(self.max_call_s, 1.0, MAX_CALL_S)
        require_between(self.max_concurrent_calls, 1, 100_000)
        require_between(self.drain_s, 0.0, 600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTable:
    """The process log.

    Attributes:
        format: ``json``, one object a line, or ``console``.
        level: least severe level that is written.
    """

    format: LogFormat = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneConfig:
    """A control-plane process.

    Attributes:
        state_directory: databases, keys and certificates of this process (0700).
        trust_domain: of its URI identities, ``spiffe://<trust domain>/…``.
        listen: addresses.
        state: the state database.
        audit: the audit log.
        policy: the policy engine.
        sessions: sessions.
        fleet: node agents and partitions.
        keys: the platform's own key broker.
        limits: limits of the servers.
        log: the process log.
    """

    state_directory: Path
    trust_domain: str = "bulkhead.internal"
    listen: ListenTable = field(default_factory=ListenTable)
    state: StateTable = field(default_factory=StateTable)
    audit: AuditTable = field(default_factory=AuditTable)
    policy: PolicyTable = field(default_factory=PolicyTable)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    keys: KeysTable = field(default_factory=KeysTable)
    limits: LimitsTable = field(default_factory=LimitsTable)
    log: LogTable = field(default_factory=LogTable)

    def __post_init__(self) -> None:
        """Check what concerns several tables.

        Raises:
            ConfigError: the trust domain is not a name, or the time-outs contradict each other.
        """
        check_name(self.trust_domain, "trust_domain")
        self.audit_config()
        if self.limits.max_call_s < self.sessions.open_timeout_s:
            raise ConfigError("limits.max_call_s: at least sessions.open_timeout_s")

    @property
    def issuances_directory(self) -> Path:
        """Where the command line asks the server to record what it issues."""
        return self.state_directory / "issuances"

    @property
    def keys_directory(self) -> Path:
        """Authority, server identity, ticket issuer and bundle signing key."""
        return self.state_directory / "keys"

    @property
    def ports_file(self) -> Path:
        """Where the addresses that were taken stand."""
        return self.state_directory / "ports.json"

    def database_url(self) -> str:
        """Return the state database's SQLAlchemy URL.

        Raises:
            ConfigError: its file cannot be read, or is open to others.
        """
        if self.state.url_file is None:
            return f"sqlite:///{self.state_directory.absolute() / 'state.db'}"
        return _read_url(self.state.url_file, "state.url_file")

    def digest(self) -> str:
        """Return the SHA-256 (hexadecimal) of every value; secrets are files of which this has the paths."""
        values = json.dumps(dataclasses.asdict(self), default=str, sort_keys=True)
        return hashlib.sha256(values.encode("utf-8")).hexdigest()

    def audit_config(self) -> AuditConfig:
        """Return the audit log's configuration.

        Raises:
            ConfigError: a value is out of range, or a URL's file cannot be read or is open to others.
        """
        directory, database, lock = (
            self.state_directory / "audit",
            self.audit.database_url_file,
            self.audit.lock_url_file,
        )
        lock_file = self.audit.lock_file or self.state_directory / "audit.lock"
        return AuditConfig(
            database=directory / "audit.db"
            if database is None
            else _read_url(database, what="audit.database_url_file"),
            lock=lock_file if lock is None else _read_url(lock, "audit.lock_url_file"),
            keys_dir=directory / "keys",
            high_availability=self.audit.high_availability,
            domain=self.audit.domain or self.trust_domain,
            append_timeout_s=self.audit.append_timeout_s,
            round_interval_s=self.audit.round_interval_s,
            quiet_round_interval_s=self.audit.quiet_round_interval_s,
            witnesses=self.audit.witnesses,
            witness_quorum=self.audit.witness_quorum,
            publish_interval_s=self.audit.publish_interval_s,
        )


def _read_url(path: Path, what: str) -> str:
    return read_private(path, what=what).decode("utf-8", errors="replace").strip()
