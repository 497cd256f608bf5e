"""What a tenant allows about collateral: which kinds may be fetched, from where, and how old a copy may be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bulkhead.attestation.collateral.kinds import CollateralKind
from bulkhead.attestation.policy_fields import read_named
from bulkhead.encoding import Json
from bulkhead.errors import ConfigError
from bulkhead.fields import Fields

__all__ = ["CollateralPolicy", "parse_collateral_policy"]

_DAY_S: Final = 24 * 3600
_MAX_AGE_S: Final = 400 * _DAY_S
_MIRROR: Final = re.compile(r"https://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]{0,200})?")
_KINDS: Final = {kind.value: kind for kind in CollateralKind}
_AGES: Final = MappingProxyType(
    {
        CollateralKind.AMD_CRL: 30 * _DAY_S,
        CollateralKind.INTEL_TCB_INFO: 30 * _DAY_S,
        CollateralKind.INTEL_QE_IDENTITY: 30 * _DAY_S,
        CollateralKind.INTEL_PCK_CRL: 30 * _DAY_S,
        CollateralKind.INTEL_ROOT_CRL: 90 * _DAY_S,
        CollateralKind.NVIDIA_OCSP: _DAY_S,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralPolicy:
    """A tenant's rules for collateral.

    Attributes:
        fetch: kinds that may be fetched. Default none: asking a vendor tells it which machines a tenant verifies, and
            when; what is at hand (in the cache, or along with the evidence) is used without asking anybody.
        maximum_age_s: kind -> seconds since a copy was fetched after which it is not used. Defaults: a day for OCSP
            answers, 30 days for revocation lists and Intel's documents, 90 for the list of Intel's root, which changes
            once a year; none for certificates and manifests, which do not change. The dates that vendors sign are
            judged beside this, by ``[snp]``, ``[tdx]`` and ``[nvidia]``.
        mirrors: kind -> URL in place of the vendor's host, such as a cache of one's own; HTTPS only. Default none.
    """

    fetch: frozenset[CollateralKind] = frozenset()
    maximum_age_s: Mapping[CollateralKind, int] = field(default_factory=lambda: _AGES)
    mirrors: Mapping[CollateralKind, str] = field(default_factory=lambda: MappingProxyType({}))


def parse_collateral_policy(table: Mapping[str, Json], *, what: str = "collateral") -> CollateralPolicy:
    """Return the rules in a parsed TOML table (``[collateral]`` of a trust policy).

    Keys: ``fetch`` (array of kinds), ``maximum_age_s`` and ``mirrors`` (tables by kind).

    Raises:
        ConfigError: unknown key or kind, wrong type, or value out of bounds.
    """
    default = CollateralPolicy()
    with Fields(dict(table), what=what, error=ConfigError) as fields:
        return CollateralPolicy(
            fetch=read_named(fields, "fetch", _KINDS, default.fetch),
            maximum_age_s=_ages(fields, default.maximum_age_s),
            mirrors=_mirrors(fields),
        )


def _ages(fields: Fields, default: Mapping[CollateralKind, int]) -> Mapping[CollateralKind, int]:
    if "maximum_age_s" not in fields:
        return default
    ages = dict(default)
    with fields.nested("maximum_age_s") as table:
        for name, kind in _KINDS.items():
            if name in table:
                ages[kind] = table.integer(name, low=1, high=_MAX_AGE_S)
    return MappingProxyType(ages)


def _mirrors(fields: Fields) -> Mapping[CollateralKind, str]:
    mirrors: dict[CollateralKind, str] = {}
    if "mirrors" in fields:
        with fields.nested("mirrors") as table:
            for name, kind in _KINDS.items():
                if name in table:
                    url = table.text(name)
                    if not _MIRROR.fullmatch(url):
                        raise table.wrong(name, "a URL such as https://cache.example:8443/intel")
                    mirrors[kind] = url.rstrip("/")
    return MappingProxyType(mirrors)
