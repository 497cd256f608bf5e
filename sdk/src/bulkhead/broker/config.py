"""Configuration of a tenant's key broker: one TOML file, unknown keys are an error, secrets by path."""

import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.attestation import HardwareVerifier, TrustPolicy, load_trust_policy
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.https import HttpsFetcher
from bulkhead.attestation.collateral.store import CollateralStore, default_directory
from bulkhead.broker.broker import KeyBroker
from bulkhead.broker.floors import FileFloors
from bulkhead.broker.nonces import Nonces
from bulkhead.encoding import b64url_decode
from bulkhead.errors import ConfigError, InvalidRequestError, MalformedRequestError
from bulkhead.fields import Fields
from bulkhead.ids import TENANT, check_id
from bulkhead.models import open_kek

__all__ = ["BrokerConfig", "load_broker_config"]

MAX_CONFIG_BYTES: Final = 65_536
MAX_ITEMS: Final = 16
MAX_URI_CHARS: Final = 1024
_ED25519_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """A tenant's broker; paths are relative to the file.

    Attributes:
        listen: ``host:port``; port 0 takes a free one.
        tls_certificate: PEM file; the platform pins it.
        tls_key: PEM file of its key.
        tenant: tenant id; keys go to this tenant's partitions alone.
        log_key: verifier key of the tenant's audit log.
        trust_policy: the tenant's own.
        keks: URIs of key encryption keys.
        signers: raw Ed25519 public keys that are trusted for models.
        state_directory: for the released versions and the journal.
        software: accepted software, None for any.
        collateral_directory: of the collateral that hardware evidence is verified with.
        development_mode: whether simulated workers get keys: never where keys matter.
    """

    listen: str
    tls_certificate: Path
    tls_key: Path
    tenant: str
    log_key: str
    trust_policy: TrustPolicy
    keks: tuple[str, ...]
    signers: tuple[bytes, ...]
    state_directory: Path
    collateral_directory: Path
    software: frozenset[str] | None = None
    development_mode: bool = False

    def open_broker(self) -> KeyBroker:
        """Return the broker that this describes.

        Raises:
            ConfigError, KeyBrokerError: a key encryption key or the state cannot be used.
        """
        return KeyBroker(
            keks=[open_kek(uri) for uri in self.keks],
            signers=self.signers,
            floors=FileFloors(self.state_directory / "floors.json"),
            nonces=Nonces(monotonic_s=time.monotonic),
            wall_s=time.time,
            software=self.software,
            development_mode=self.development_mode,
            hardware=self._hardware(),
        )

    def _hardware(self) -> HardwareVerifier:
        rules = self.trust_policy.collateral
        return HardwareVerifier(
            collateral=CollateralCache(
                store=CollateralStore(self.collateral_directory),
                policy=rules,
                fetcher=HttpsFetcher(allowed=rules.fetch, mirrors=rules.mirrors) if rules.fetch else None,
                now_s=lambda: int(time.time()),
            )
        )


def load_broker_config(path: Path) -> BrokerConfig:
    """Return the configuration in a TOML file.

    Raises:
        ConfigError: unreadable, an unknown key, a missing one, or a value out of bounds.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: longer than {MAX_CONFIG_BYTES} bytes")
        table = tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML") from error
    base = path.absolute().parent
    with Fields(table, what=str(path), error=ConfigError) as fields:
        software = None
        if "software" in fields:
            software = frozenset(fields.texts("software", max_items=MAX_ITEMS, min_items=1))
        state = base / fields.text("state_directory")
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{state}: cannot be made: {error.strerror}") from error
        return BrokerConfig(
            listen=fields.text("listen"),
            tls_certificate=base / fields.text("tls_certificate"),
            tls_key=base / fields.text("tls_key"),
            tenant=_tenant(fields.text("tenant")),
            log_key=fields.text("log_key", max_chars=512),
            trust_policy=load_trust_policy(base / fields.text("trust_policy")),
            keks=fields.texts("keks", max_items=MAX_ITEMS, min_items=1, max_chars=MAX_URI_CHARS),
            signers=tuple(_key(text) for text in fields.texts("signers", max_items=MAX_ITEMS, min_items=1)),
            state_directory=state,
            collateral_directory=_collateral(fields, base),
            software=software,
            development_mode="development_mode" in fields and fields.boolean("development_mode"),
        )


def _collateral(fields: Fields, base: Path) -> Path:
    return base / fields.text("collateral_directory") if "collateral_directory" in fields else default_directory()


def _tenant(text: str) -> str:
    try:
        return check_id(text, TENANT)
    except InvalidRequestError as error:
        raise ConfigError(f"tenant: {error.message}") from error


def _key(text: str) -> bytes:
    try:
        key = b64url_decode(text, what="signers")
    except MalformedRequestError as error:
        raise ConfigError(error.message) from error
    if len(key) != _ED25519_BYTES:
        raise ConfigError(f"signers: an Ed25519 public key is {_ED25519_BYTES} bytes")
    return key
