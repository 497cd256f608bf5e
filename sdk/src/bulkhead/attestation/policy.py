"""A tenant's trust policy: which evidence it accepts. Kept by the tenant, read from TOML, never from a server.

One file holds everything: the keys of :class:`TrustPolicy`, a table for each technology (``[snp]``, ``[tdx]``,
``[nvidia]``) and one for collateral. docs/trust-policy.md explains it to whoever writes one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from bulkhead.attestation.collateral.policy import CollateralPolicy, parse_collateral_policy
from bulkhead.attestation.evidence import EvidenceKind
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.nvidia.policy_table import parse_nvidia_policy
from bulkhead.attestation.policy_fields import read_named, read_open_binaries, read_open_texts
from bulkhead.attestation.snp.policy import SnpPolicy, parse_snp_policy
from bulkhead.attestation.tdx.policy import TdxPolicy
from bulkhead.attestation.tdx.policy_table import parse_tdx_policy
from bulkhead.attestation.tiers import Tier
from bulkhead.encoding import Json, b64url_decode
from bulkhead.errors import ConfigError, MalformedRequestError
from bulkhead.fields import DIGEST_BYTES, Fields

__all__ = ["MAX_EVIDENCE_AGE_S", "Technology", "TrustPolicy", "load_trust_policy", "parse_trust_policy", "read_policy"]

MAX_EVIDENCE_AGE_S: Final = 24 * 3600  # the life of a worker's keys
MAX_POLICY_BYTES: Final = 65_536
MAX_OPERATOR_KEYS: Final = 64
_ED25519_BYTES: Final = 32


class Technology(StrEnum):
    """A hardware technology whose evidence this build verifies: two of processors, one of accelerators."""

    SNP = "snp"
    TDX = "tdx"
    NVIDIA = "nvidia"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What a tenant accepts as proof; each default with its reason.

    Attributes:
        accepted_kinds: kinds of evidence. Default hardware alone: it takes nobody's word but the vendor's. ``operator``
            trusts who runs the rack; ``simulated`` proves nothing and needs development mode in the SDK's constructor,
            too.
        technologies: accepted technologies. Default all that this build verifies: each still refuses every machine
            until its table names a measurement.
        operator_keys: raw Ed25519 public keys (32 bytes) whose operator evidence is believed. Default none.
        minimum_tier: the weakest tier accepted. Default confidential: below it the operator can read prompts.
        maximum_age_s: seconds for which one appraisal holds, whatever the evidence allows. Default an hour, within
            which a revocation or a raised floor takes effect.
        regions: accepted regions of the descriptor, or None for any. Default any: a region is what the measured
            software was told, no hardware proves it, and each session names the one it wants.
        model_digests: accepted digests (32 bytes) of model manifests, or None for any. Default any: profiles pin
            models by name, and a session is checked against what it asked for.
        tenant_roots: fingerprints (32 bytes) of tenant roots, one of which the descriptor names, or None for any and
            none. Default None: the SDK compares each session with its profile's own root besides. A key broker has no
            profile: without this list it takes whichever root the platform started the worker with.
        snp: rules for SEV-SNP.
        tdx: rules for TDX.
        nvidia: rules for NVIDIA GPUs.
        collateral: what may be fetched and how old it may be.

    Raises:
        ConfigError: measurements of SEV-SNP or images of TDX are None, which accepts any guest: for looking at
            evidence with the verifiers alone, never a policy.
    """

    accepted_kinds: frozenset[EvidenceKind] = field(default_factory=lambda: frozenset({EvidenceKind.HARDWARE}))
    technologies: frozenset[Technology] = field(default_factory=lambda: frozenset(Technology))
    operator_keys: tuple[bytes, ...] = ()
    minimum_tier: Tier = Tier.CONFIDENTIAL
    maximum_age_s: int = 3600
    regions: frozenset[str] | None = None
    model_digests: frozenset[bytes] | None = None
    tenant_roots: frozenset[bytes] | None = None
    snp: SnpPolicy = field(default_factory=SnpPolicy)
    tdx: TdxPolicy = field(default_factory=TdxPolicy)
    nvidia: NvidiaPolicy = field(default_factory=NvidiaPolicy)
    collateral: CollateralPolicy = field(default_factory=CollateralPolicy)

    def __post_init__(self) -> None:
        if self.snp.measurements is None or self.tdx.images is None:
            raise ConfigError("a trust policy names the measurements it accepts: there is no wildcard")


def parse_trust_policy(table: Mapping[str, Json], *, what: str = "trust policy") -> TrustPolicy:
    """Return the policy in a parsed TOML table; every key is optional, an unknown one is an error.

    Keys are named as the attributes; ``operator_keys`` are base64url, other byte strings hexadecimal; ``["any"]``
    stands for None.

    Raises:
        ConfigError: unknown key, wrong type, or value out of bounds.
    """
    default = TrustPolicy()
    kinds = {kind.value: kind for kind in EvidenceKind}
    technologies = {technology.value: technology for technology in Technology}
    with Fields(dict(table), what=what, error=ConfigError) as fields:
        return TrustPolicy(
            accepted_kinds=read_named(fields, "accepted_kinds", kinds, default.accepted_kinds),
            technologies=read_named(fields, "technologies", technologies, default.technologies),
            operator_keys=_keys(fields, what),
            minimum_tier=_tier(fields, what, default.minimum_tier),
            maximum_age_s=_age(fields, default.maximum_age_s),
            regions=read_open_texts(fields, "regions", default.regions),
            model_digests=read_open_binaries(fields, "model_digests", DIGEST_BYTES, default.model_digests),
            tenant_roots=read_open_binaries(fields, "tenant_roots", DIGEST_BYTES, default.tenant_roots),
            snp=parse_snp_policy(_table(fields, "snp"), what=f"{what}: snp"),
            tdx=parse_tdx_policy(_table(fields, "tdx"), what=f"{what}: tdx"),
            nvidia=parse_nvidia_policy(_table(fields, "nvidia"), what=f"{what}: nvidia"),
            collateral=parse_collateral_policy(_table(fields, "collateral"), what=f"{what}: collateral"),
        )


def load_trust_policy(path: Path) -> TrustPolicy:
    """Return the policy in a TOML file of at most 64 KiB.

    Raises:
        ConfigError: unreadable, not TOML, or as :func:`parse_trust_policy`.
    """
    return parse_trust_policy(read_policy(path), what=str(path))


def read_policy(path: Path) -> Mapping[str, Json]:
    """Return the table in a policy's file, not yet checked to be one.

    Raises:
        ConfigError: unreadable, longer than 64 KiB, or not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
        if len(data) > MAX_POLICY_BYTES:
            raise ConfigError(f"{path}: longer than {MAX_POLICY_BYTES} bytes")
        return tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read as TOML: {reason}") from error


def _table(fields: Fields, name: str) -> Mapping[str, Json]:
    value = fields.value(name) if name in fields else {}
    if not isinstance(value, Mapping):
        raise fields.wrong(name, "a table")
    return value


def _tier(fields: Fields, what: str, default: Tier) -> Tier:
    try:
        return Tier(fields.text("minimum_tier")) if "minimum_tier" in fields else default
    except ValueError as error:
        raise ConfigError(f"{what}: unknown tier: one of {', '.join(tier.value for tier in Tier)}") from error


def _age(fields: Fields, default: int) -> int:
    return fields.integer("maximum_age_s", low=1, high=MAX_EVIDENCE_AGE_S) if "maximum_age_s" in fields else default


def _keys(fields: Fields, what: str) -> tuple[bytes, ...]:
    if "operator_keys" not in fields:
        return ()
    return tuple(_key(text, what) for text in fields.texts("operator_keys", max_items=MAX_OPERATOR_KEYS))


def _key(text: str, what: str) -> bytes:
    try:
        key = b64url_decode(text, what=f"{what}: operator_keys")
    except MalformedRequestError as error:
        raise ConfigError(error.message) from error
    if len(key) != _ED25519_BYTES:
        raise ConfigError(f"{what}: operator_keys: an Ed25519 public key is {_ED25519_BYTES} bytes")
    return key
