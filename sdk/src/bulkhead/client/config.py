"""Profiles: what a client must know before it believes anybody, read from one TOML file.

::

    default_profile = "acme"

    [profile.acme]
    address = "bulkhead.example:8443"       # the control plane
    ca_file = "ca.pem"                      # the only roots that may sign its certificate
    server_name = "bulkhead.example"        # if the certificate names another host than the address
    api_key_file = "acme.key"               # mode 0600; or the next two
    client_certificate_file = "acme.pem"
    client_key_file = "acme-key.pem"        # mode 0600
    tenant = "tenant_01h…"                  # own tenant id; needed to open sessions
    role = "developer"                      # developer, officer or admin; for early errors only
    log_vkey = "audit.example/t/…+…"        # verifier key of the tenant's audit log
    platform_vkey = "audit.example/platform/1+…" # verifier key of the platform's log: rounds are checked against it
    witnesses = ["witness.example/w1+…"]    # verifier keys of the platform log's witnesses that are believed
    witness_quorum = 1                      # how many of them must have cosigned
    request_journal = "acme.journal"        # every request id is noted there before it is sent; see `audit monitor`
    ticket_issuer = "base64url"             # Ed25519 public key, or ticket_issuer_fingerprint = "SHA-256, hexadecimal";
                                            # a list of several while the operator changes to another issuer
    tenant_root_key_file = "root.pem"       # mode 0600: the tenant's root, which certifies session keys; or
    tenant_root_fingerprint = "SHA-256"     # hexadecimal, where the root lives elsewhere, perhaps with the next two
    session_key_file = "session.pem"        # mode 0600: a session key that was certified elsewhere
    session_certificate_file = "session.cert" # its certificate, read anew at each renewal
    trust_policy_file = "trust.toml"        # or the table [profile.acme.trust]; docs/trust-policy.md
    collateral_directory = "collateral"     # what vendors publish, at hand; without it ~/.cache/bulkhead/collateral
    development_mode = false                # true accepts simulated evidence, and says so every time

    [profile.acme.model_digests]            # optional pins: model name = SHA-256 of its manifest, hexadecimal
    "smollm2-135m-instruct" = "…"

    [profile.acme.defaults]
    model = "smollm2-135m-instruct"
    tier = "gpu"
    region = "eu-central"
    purpose = "treatment"
    data_classes = ["phi"]

The file is ``$BULKHEAD_CONFIG`` or ``~/.config/bulkhead/config.toml``; the profile ``$BULKHEAD_PROFILE`` or
``default_profile``. Paths are relative to the file. An unknown key is an error: a misspelt pin must not be no pin.
"""

import hashlib
import hmac
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bulkhead.attestation.policy import TrustPolicy, load_trust_policy, parse_trust_policy
from bulkhead.client.roots import RootPin
from bulkhead.client.toml_table import TomlTable
from bulkhead.encoding import b64url_decode
from bulkhead.errors import BulkheadError, ConfigError, EvidencePolicyError
from bulkhead.ids import TENANT, check_id
from bulkhead.key_files import load_key_file

__all__ = [
    "Profile",
    "SessionDefaults",
    "TicketIssuerPin",
    "config_path",
    "fingerprint_of",
    "list_profiles",
    "load_profile",
]

MAX_CONFIG_BYTES: Final = 1024 * 1024
MAX_CREDENTIAL_BYTES: Final = 256 * 1024  # a certificate chain; an API key is below 100
ROLES: Final = ("developer", "officer", "admin")
TIERS: Final = ("process", "mig", "gpu", "confidential")
_API_KEY: Final = re.compile(r"bhk_[0-9a-hjkmnp-tv-z]{26}_[A-Za-z0-9_-]{43}")
_HEX_32: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketIssuerPin:
    """The ticket issuers that a tenant accepts, by SHA-256 of their 32-byte Ed25519 public keys.

    Usually one; two while the operator changes to another, so that sessions go on (docs/sdk.md).
    """

    fingerprints: frozenset[bytes]

    def check(self, public_key: bytes) -> bytes:
        """Return ``public_key`` if it is a pinned one.

        Raises:
            EvidencePolicyError: it is another key.
        """
        digest = hashlib.sha256(public_key).digest()
        if len(public_key) != 32 or not any(hmac.compare_digest(digest, pin) for pin in self.fingerprints):
            raise EvidencePolicyError("the ticket issuer is not one that this profile pins (ticket_issuer)")
        return public_key

    def also(self, fingerprints: Iterable[str]) -> "TicketIssuerPin":
        """Return the pins with further ones, each SHA-256 in hexadecimal.

        Raises:
            ConfigError: not 64 lower-case hexadecimal digits.
        """
        more = frozenset(map(fingerprint_of, fingerprints))
        return TicketIssuerPin(fingerprints=self.fingerprints | more)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDefaults:
    """What a session asks for where the caller does not say; empty leaves it to policy."""

    model: str = ""
    tier: str = ""
    region: str = ""
    purpose: str = ""
    data_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One profile, checked, its files read.

    Attributes:
        name: name of the profile.
        path: the file it stands in.
        address: ``host:port`` of the control plane.
        ca_pem: the only roots for its certificate.
        server_name: name that certificate must have; None takes the address's host.
        api_key: secret; excluded from ``repr``.
        client_certificate_pem: certificate chain for mutual TLS.
        client_key_pem: its private key; excluded from ``repr``.
        tenant_id: own tenant; None for admins and platform officers.
        role: `developer`, `officer` or `admin`.
        log_vkey: C2SP verifier key of the tenant's audit log; None where nothing is to be verified (admins).
        platform_vkey: C2SP verifier key of the platform's log, or None.
        witnesses: verifier keys of the platform log's witnesses that are believed.
        witness_quorum: how many of them must have cosigned.
        request_journal: file of :class:`bulkhead.client.journal.RequestJournal`, or None.
        ticket_issuer: None where no session is opened.
        trust: which evidence is accepted; without a table only hardware evidence of tier `confidential`.
        development_mode: whether simulated evidence is accepted.
        model_digests: pinned manifests' digests (32 bytes) by model name.
        defaults: what sessions ask for.
        root: the tenant's root; empty for a tenant without.
        collateral_directory: of what vendors publish for verification; None for the user's cache directory.
    """

    name: str
    path: Path
    address: str
    ca_pem: bytes
    server_name: str | None = None
    api_key: str | None = field(default=None, repr=False)
    client_certificate_pem: bytes | None = None
    client_key_pem: bytes | None = field(default=None, repr=False)
    tenant_id: str | None = None
    role: str = "developer"
    log_vkey: str | None = None
    platform_vkey: str | None = None
    witnesses: tuple[str, ...] = ()
    witness_quorum: int = 0
    request_journal: Path | None = None
    ticket_issuer: TicketIssuerPin | None = None
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    development_mode: bool = False
    model_digests: Mapping[str, bytes] = field(default_factory=dict)
    defaults: SessionDefaults = field(default_factory=SessionDefaults)
    collateral_directory: Path | None = None
    root: RootPin = field(default_factory=RootPin)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where profiles stand: ``$BULKHEAD_CONFIG``, else ``~/.config/bulkhead/config.toml``."""
    given = environ.get("BULKHEAD_CONFIG")
    if given:
        return Path(given)
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "bulkhead" / "config.toml"


def list_profiles(path: Path | None = None) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the profiles in ``path`` and the default one.

    Raises:
        ConfigError: no such file, or it is not of the form above.
    """
    table = _read_toml(path if path is not None else config_path())
    return tuple(sorted(table.tables("profile"))), table.optional_text("default_profile")


def load_profile(
    name: str | None = None, *, path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Profile:
    """Return a profile, with every file it names read and checked.

    Args:
        name: None takes ``$BULKHEAD_PROFILE``, else ``default_profile``, else the only one.
        path: None takes :func:`config_path`.
        environ: environment variables.

    Raises:
        ConfigError: missing file or profile, unknown or missing key, wrong type, a secret that others can read.
    """
    where = path if path is not None else config_path(environ)
    table = _read_toml(where)
    profiles = table.tables("profile")
    default = table.optional_text("default_profile")
    table.end()
    wanted = name or environ.get("BULKHEAD_PROFILE") or default
    if wanted is None:
        if len(profiles) != 1:
            raise ConfigError(f"{where}: several profiles; name one with --profile or BULKHEAD_PROFILE")
        wanted = next(iter(profiles))
    if wanted not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigError(f"{where}: no profile {wanted!r}; there are: {known}")
    return _profile(wanted, profiles[wanted], where)


def _profile(name: str, table: TomlTable, where: Path) -> Profile:
    folder = where.parent
    certificate, key = table.optional_text("client_certificate_file"), table.optional_text("client_key_file")
    api_key_file = table.optional_text("api_key_file")
    if (certificate is None) != (key is None):
        raise table.wrong("client_certificate_file", "needs client_key_file beside it, and the reverse")
    if (api_key_file is None) == (certificate is None):
        raise table.wrong("api_key_file", "exactly one credential: api_key_file, or a client certificate")
    profile = Profile(
        name=name,
        path=where,
        address=table.text("address"),
        ca_pem=_read(folder / table.text("ca_file"), what="ca_file"),
        server_name=table.optional_text("server_name"),
        api_key=None if api_key_file is None else _api_key(folder / api_key_file),
        client_certificate_pem=None if certificate is None else _read(folder / certificate, what="client certificate"),
        client_key_pem=None if key is None else _read(folder / key, what="client key", secret=True),
        tenant_id=_tenant_id(table),
        role=table.choice("role", ROLES, default="developer"),
        log_vkey=table.optional_text("log_vkey"),
        platform_vkey=table.optional_text("platform_vkey"),
        witnesses=table.texts("witnesses"),
        witness_quorum=table.count("witness_quorum"),
        request_journal=_journal(table, folder),
        ticket_issuer=_ticket_issuer(table),
        trust=_trust(table, folder),
        development_mode=table.flag("development_mode"),
        model_digests=_model_digests(table),
        defaults=_defaults(table),
        collateral_directory=_directory(table, folder),
        root=_root(table, folder),
    )
    table.end()
    if profile.witness_quorum > len(profile.witnesses):
        raise table.wrong("witness_quorum", "is above the number of witnesses")
    return profile


def _journal(table: TomlTable, folder: Path) -> Path | None:
    name = table.optional_text("request_journal")
    return None if name is None else folder / name


def _tenant_id(table: TomlTable) -> str | None:
    value = table.optional_text("tenant")
    try:
        return None if value is None else check_id(value, TENANT)
    except BulkheadError as error:
        raise table.wrong("tenant", "expected tenant_<26 characters>") from error


def _model_digests(table: TomlTable) -> Mapping[str, bytes]:
    inner = table.optional_table("model_digests")
    if inner is None:
        return {}
    pins = inner.rest()
    for name, digest in pins.items():
        if not isinstance(digest, str) or not _HEX_32.fullmatch(digest):
            raise inner.wrong(name, "expected 64 lower-case hexadecimal digits")
    return {name: bytes.fromhex(digest) for name, digest in pins.items()}


def _ticket_issuer(table: TomlTable) -> TicketIssuerPin | None:
    keys, fingerprints = table.text_or_texts("ticket_issuer"), table.text_or_texts("ticket_issuer_fingerprint")
    if keys and fingerprints:
        raise table.wrong("ticket_issuer", "give keys or their fingerprints, not both")
    try:
        pins = frozenset((*map(_key_fingerprint, keys), *map(fingerprint_of, fingerprints)))
    except ConfigError as error:
        raise table.wrong("ticket_issuer" if keys else "ticket_issuer_fingerprint", error.message) from error
    return TicketIssuerPin(fingerprints=pins) if pins else None


def _key_fingerprint(key: str) -> bytes:
    try:
        raw = b64url_decode(key, what="ticket_issuer")
    except BulkheadError as error:
        raise ConfigError("expected base64url") from error
    if len(raw) != 32:
        raise ConfigError("expected the 32 bytes of an Ed25519 public key")
    return hashlib.sha256(raw).digest()


def fingerprint_of(text: str) -> bytes:
    """Return a fingerprint (32 bytes) from its text.

    Raises:
        ConfigError: not 64 lower-case hexadecimal digits.
    """
    if not _HEX_32.fullmatch(text):
        raise ConfigError("expected 64 lower-case hexadecimal digits")
    return bytes.fromhex(text)


def _root(table: TomlTable, folder: Path) -> RootPin:
    key_file, text = table.optional_text("tenant_root_key_file"), table.optional_text("tenant_root_fingerprint")
    session, certificate = table.optional_text("session_key_file"), table.optional_text("session_certificate_file")
    if (session is None) != (certificate is None):
        raise table.wrong("session_key_file", "needs session_certificate_file beside it, and the reverse")
    if session is not None and (text is None or key_file is not None):
        raise table.wrong("session_key_file", "needs tenant_root_fingerprint beside it, and no tenant_root_key_file")
    key = None if key_file is None else load_key_file(folder / key_file, what="tenant's root")
    try:
        fingerprint = None if text is None else fingerprint_of(text)
    except ConfigError as error:
        raise table.wrong("tenant_root_fingerprint", error.message) from error
    if key is not None:
        own = hashlib.sha256(key.public_key().public_bytes_raw()).digest()
        if fingerprint not in {None, own}:
            raise table.wrong("tenant_root_fingerprint", "is of another key than tenant_root_key_file")
        fingerprint = own
    return RootPin(
        fingerprint=fingerprint,
        key=key,
        session_key_file=None if session is None else folder / session,
        certificate_file=None if certificate is None else folder / certificate,
    )


def _trust(table: TomlTable, folder: Path) -> TrustPolicy:
    inline, file = table.optional_table("trust"), table.optional_text("trust_policy_file")
    if inline is not None and file is not None:
        raise table.wrong("trust_policy_file", "there is a [trust] table too; keep one of them")
    if file is not None:
        return load_trust_policy(folder / file)
    return TrustPolicy() if inline is None else parse_trust_policy(inline.rest(), what=inline.where)


def _directory(table: TomlTable, folder: Path) -> Path | None:
    text = table.optional_text("collateral_directory")
    return None if text is None else folder / text


def _defaults(table: TomlTable) -> SessionDefaults:
    inner = table.optional_table("defaults")
    if inner is None:
        return SessionDefaults()
    defaults = SessionDefaults(
        model=inner.optional_text("model") or "",
        tier=inner.choice("tier", ("", *TIERS), default=""),
        region=inner.optional_text("region") or "",
        purpose=inner.optional_text("purpose") or "",
        data_classes=inner.texts("data_classes"),
    )
    inner.end()
    return defaults


def _api_key(path: Path) -> str:
    text = _read(path, what="api_key_file", secret=True).decode("ascii", errors="replace").strip()
    if not _API_KEY.fullmatch(text):
        raise ConfigError(f"{path}: not an API key (bhk_<id>_<secret>)")
    return text


def _read(path: Path, *, what: str, secret: bool = False) -> bytes:
    """Return the bytes of ``path``. A secret must be its owner's alone; that is checked on the file that is read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_CREDENTIAL_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from error
    if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{what}: others can read {path}; run: chmod 600 {path}")
    if not data or len(data) > MAX_CREDENTIAL_BYTES:
        raise ConfigError(f"{what}: {path} is empty or above {MAX_CREDENTIAL_BYTES} bytes")
    return data


def _read_toml(path: Path) -> TomlTable:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; BULKHEAD_CONFIG names another file") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: above {MAX_CONFIG_BYTES} bytes")
    try:
        return TomlTable(tomllib.loads(data.decode("utf-8")), str(path))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path}: not TOML: {error}") from error
