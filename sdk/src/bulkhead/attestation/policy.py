"""A tenant's trust policy: which evidence it accepts. Kept by the tenant, read from TOML, never from a server."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bulkhead.attestation.evidence import EvidenceKind
from bulkhead.attestation.tiers import Tier
from bulkhead.encoding import Json, b64url_decode
from bulkhead.errors import ConfigError, MalformedRequestError
from bulkhead.fields import Fields

__all__ = ["MAX_EVIDENCE_AGE_S", "TrustPolicy", "load_trust_policy", "parse_trust_policy"]

MAX_EVIDENCE_AGE_S: Final = 24 * 3600  # the life of a worker's keys
MAX_POLICY_BYTES: Final = 65_536
MAX_OPERATOR_KEYS: Final = 64
_ED25519_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What a tenant accepts as proof.

    Attributes:
        accepted_kinds: kinds of evidence; ``simulated`` here still needs development mode in the SDK's constructor.
        operator_keys: raw Ed25519 public keys (32 bytes) whose operator evidence is believed.
        minimum_tier: the weakest tier accepted.
        maximum_age_s: seconds for which one appraisal holds, whatever the evidence allows.
    """

    accepted_kinds: frozenset[EvidenceKind] = field(default_factory=lambda: frozenset({EvidenceKind.HARDWARE}))
    operator_keys: tuple[bytes, ...] = ()
    minimum_tier: Tier = Tier.CONFIDENTIAL
    maximum_age_s: int = 3600


def parse_trust_policy(table: dict[str, Json], *, what: str = "trust policy") -> TrustPolicy:
    """Return the policy in a parsed TOML table; every key is optional, an unknown one is an error.

    Keys: ``accepted_kinds`` (array), ``operator_keys`` (array of base64url), ``minimum_tier``, ``maximum_age_s``.

    Raises:
        ConfigError: unknown key, wrong type, or value out of bounds.
    """
    default = TrustPolicy()
    kinds, keys = default.accepted_kinds, default.operator_keys
    tier, age_s = default.minimum_tier, default.maximum_age_s
    with Fields(table, what=what, error=ConfigError) as fields:
        try:
            if "accepted_kinds" in fields:
                kinds = frozenset(EvidenceKind(kind) for kind in fields.texts("accepted_kinds", max_items=3))
            if "minimum_tier" in fields:
                tier = Tier(fields.text("minimum_tier"))
        except ValueError as error:
            raise ConfigError(f"{what}: unknown kind of evidence or tier") from error
        if "operator_keys" in fields:
            keys = tuple(_key(text, what) for text in fields.texts("operator_keys", max_items=MAX_OPERATOR_KEYS))
        if "maximum_age_s" in fields:
            age_s = fields.integer("maximum_age_s", low=1, high=MAX_EVIDENCE_AGE_S)
    return TrustPolicy(accepted_kinds=kinds, operator_keys=keys, minimum_tier=tier, maximum_age_s=age_s)


def load_trust_policy(path: Path) -> TrustPolicy:
    """Return the policy in a TOML file of at most 64 KiB.

    Raises:
        ConfigError: unreadable, not TOML, or as :func:`parse_trust_policy`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
        if len(data) > MAX_POLICY_BYTES:
            raise ConfigError(f"{path}: longer than {MAX_POLICY_BYTES} bytes")
        table = tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML") from error
    return parse_trust_policy(table, what=str(path))


def _key(text: str, what: str) -> bytes:
    try:
        key = b64url_decode(text, what=f"{what}: operator_keys")
    except MalformedRequestError as error:
        raise ConfigError(error.message) from error
    if len(key) != _ED25519_BYTES:
        raise ConfigError(f"{what}: operator_keys: an Ed25519 public key is {_ED25519_BYTES} bytes")
    return key
