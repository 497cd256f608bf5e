"""What a tenant accepts of an SEV-SNP guest: strict by default, each default with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bulkhead.attestation.policy_fields import (
    read_binaries,
    read_flag,
    read_integer,
    read_named,
    read_open_binaries,
    read_open_texts,
    read_optional_integer,
)
from bulkhead.attestation.snp.product import COMPONENTS, SnpProduct, Tcb
from bulkhead.attestation.snp.report import PlatformInfo, SigningKey
from bulkhead.encoding import Json
from bulkhead.errors import ConfigError
from bulkhead.fields import Fields

__all__ = ["SnpPolicy", "parse_snp_policy"]

_MEASUREMENT_BYTES: Final = 48
_HOST_DATA_BYTES: Final = 32
_CHIP_ID_BYTES: Final = 64
_MAX_CRL_AGE_S: Final = 400 * 24 * 3600  # a year and a month: an older list says little
_NO_BITS: Final = PlatformInfo(0)
_PRODUCTS: Final = {product.value: product for product in SnpProduct}
_SIGNING_KEYS: Final = {"vcek": SigningKey.VCEK, "vlek": SigningKey.VLEK}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """A tenant's rules for SEV-SNP evidence.

    Attributes:
        products: accepted product lines. Milan is off: its root key seed was extracted in software (MilanLaunchy and
            BadFuse), so a Milan report shows nothing against its host.
        tcb_floors: lowest accepted levels for each product. Empty, so that every product is refused until the tenant
            names levels: AMD's bulletins raise them several times a year, and no built-in value stays right.
        measurements: accepted launch measurements (48 bytes); None accepts any. Empty, so that no guest is accepted
            that the tenant did not name: genuine hardware runs an attacker's image just as well.
        signing_keys: VCEK only. A VLEK is shared by a provider's machines and loaded by it; its reports name no chip.
        csp_ids: providers whose VLEK is accepted, if ``signing_keys`` has VLEK; None accepts any. Empty: name yours.
        vmpl: 0, the level that owns the guest; a report of another may come from less trusted software in it.
        allow_migration_agent: False, since a migration agent can carry the guest to a host the tenant never verified.
        allow_smt: True, since most hosts have SMT on; side channels between threads of a core are a reason to refuse.
        allow_cxl: False, since memory on CXL devices lies outside the processor's package.
        require_single_socket: False, since large guests span sockets; demand it where their link is in reach.
        required_platform_info: ALIAS_CHECK_COMPLETE, without which memory modules that lie about their size break
            integrity (BadRAM, CVE-2024-21944).
        forbidden_platform_info: nothing; name what you mind, such as SMT_EN.
        allow_provisional_firmware: False, since firmware that is not committed can be rolled back below what runs.
        host_data: accepted HOST_DATA (32 bytes); None accepts any, since the host chose it and the binding of a
            session is in REPORT_DATA.
        chip_ids: accepted CHIP_IDs (64 bytes); None accepts any. Pinning is recommended where the machines are known:
            attestation keys can be extracted with physical access (TEE.fail).
        id_key_digests: accepted ID_KEY_DIGESTs (48 bytes); None accepts any, since MEASUREMENT is pinned anyway.
        author_key_digests: accepted AUTHOR_KEY_DIGESTs (48 bytes); None accepts any.
        minimum_guest_svn: 0; useful with a pinned ID key.
        require_crl: whether AMD's revocation list must be at hand. False, since it revokes intermediates only, which
            are pinned here; a list that is given is always applied.
        max_crl_age_s: greatest age of a list in seconds; None for its own ``nextUpdate`` alone.
    """

    products: frozenset[SnpProduct] = frozenset({SnpProduct.GENOA, SnpProduct.TURIN})
    tcb_floors: Mapping[SnpProduct, Tcb] = field(default_factory=lambda: MappingProxyType({}))
    measurements: frozenset[bytes] | None = frozenset()
    signing_keys: frozenset[SigningKey] = frozenset({SigningKey.VCEK})
    csp_ids: frozenset[str] | None = frozenset()
    vmpl: int = 0
    allow_migration_agent: bool = False
    allow_smt: bool = True
    allow_cxl: bool = False
    require_single_socket: bool = False
    required_platform_info: PlatformInfo = PlatformInfo.ALIAS_CHECK_COMPLETE
    forbidden_platform_info: PlatformInfo = _NO_BITS
    allow_provisional_firmware: bool = False
    host_data: frozenset[bytes] | None = None
    chip_ids: frozenset[bytes] | None = None
    id_key_digests: frozenset[bytes] | None = None
    author_key_digests: frozenset[bytes] | None = None
    minimum_guest_svn: int = 0
    require_crl: bool = False
    max_crl_age_s: int | None = None


def parse_snp_policy(table: Mapping[str, Json], *, what: str = "snp") -> SnpPolicy:
    """Return the policy in a parsed TOML table (``[snp]`` of a trust policy).

    Every key is optional and named as the attribute; an unknown one is an error. Byte strings are hexadecimal;
    ``chip_ids = ["any"]`` stands for None, and so for each list but ``measurements``, which has no wildcard: any guest
    is an attacker's guest, too. ``tcb_floors`` is a table per product
    (``[snp.tcb_floors.turin]`` with ``fmc``, ``bootloader``, ``tee``, ``snp``, ``microcode``, each 0 if left out).
    Debug has no key: a guest that its host can read is never accepted.

    Raises:
        ConfigError: unknown key, wrong type, or value out of bounds.
    """
    default = SnpPolicy()
    with Fields(dict(table), what=what, error=ConfigError) as fields:
        return SnpPolicy(
            products=read_named(fields, "products", _PRODUCTS, default.products),
            tcb_floors=_floors(fields, what),
            measurements=read_binaries(fields, "measurements", _MEASUREMENT_BYTES, frozenset()),
            signing_keys=read_named(fields, "signing_keys", _SIGNING_KEYS, default.signing_keys),
            csp_ids=read_open_texts(fields, "csp_ids", default.csp_ids),
            vmpl=read_integer(fields, "vmpl", default.vmpl, 3),
            allow_migration_agent=read_flag(fields, "allow_migration_agent", default.allow_migration_agent),
            allow_smt=read_flag(fields, "allow_smt", default.allow_smt),
            allow_cxl=read_flag(fields, "allow_cxl", default.allow_cxl),
            require_single_socket=read_flag(fields, "require_single_socket", default.require_single_socket),
            required_platform_info=_bits(fields, "required_platform_info", default.required_platform_info),
            forbidden_platform_info=_bits(fields, "forbidden_platform_info", default.forbidden_platform_info),
            allow_provisional_firmware=read_flag(
                fields, "allow_provisional_firmware", default.allow_provisional_firmware
            ),
            host_data=read_open_binaries(fields, "host_data", _HOST_DATA_BYTES, default.host_data),
            chip_ids=read_open_binaries(fields, "chip_ids", _CHIP_ID_BYTES, default.chip_ids),
            id_key_digests=read_open_binaries(fields, "id_key_digests", _MEASUREMENT_BYTES, default.id_key_digests),
            author_key_digests=read_open_binaries(
                fields, "author_key_digests", _MEASUREMENT_BYTES, default.author_key_digests
            ),
            minimum_guest_svn=read_integer(fields, "minimum_guest_svn", default.minimum_guest_svn, 2**32 - 1),
            require_crl=read_flag(fields, "require_crl", default.require_crl),
            max_crl_age_s=read_optional_integer(fields, "max_crl_age_s", default.max_crl_age_s, _MAX_CRL_AGE_S),
        )


def _floors(fields: Fields, what: str) -> Mapping[SnpProduct, Tcb]:
    if "tcb_floors" not in fields:
        return MappingProxyType({})
    floors = {}
    with fields.nested("tcb_floors") as products:
        for product in SnpProduct:
            if product.value not in products:
                continue
            with products.nested(product.value) as levels:
                floors[product] = Tcb(**{name: read_integer(levels, name, 0, 255) for name in COMPONENTS})
            if floors[product].fmc and product is not SnpProduct.TURIN:
                raise ConfigError(f"{what}: tcb_floors.{product.value} has no component fmc")
    return MappingProxyType(floors)


def _bits(fields: Fields, name: str, default: PlatformInfo) -> PlatformInfo:
    known = {bit.name.lower(): bit for bit in PlatformInfo if bit.name}
    bits = _NO_BITS
    if name not in fields:
        return default
    for bit in read_named(fields, name, known, frozenset()):
        bits |= bit
    return bits
