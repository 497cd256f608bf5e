"""The pinned AMD authorities: files of this package (vendor_roots/README.md has their source)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from cryptography import x509

from bulkhead.attestation.snp.product import SnpProduct
from bulkhead.attestation.snp.report import SigningKey
from bulkhead.attestation.vendor_roots import load_pinned

__all__ = ["SnpRoots", "amd_roots"]

_FILES: Final = MappingProxyType(
    {
        "milan_vcek": "22e62f8d2c21a156470145fc75f7b5a377cb053ced3e97f0bd3f8d8ca5941ce6",
        "milan_vlek": "3098f7e90ee7049b8cf116448d1bdf33b08847b4250bd99507cf73b5c49d3467",
        "genoa_vcek": "e6ecc853fa56d3170a624d40851f98a1036f974b50204ea69e6aec91d777aca3",
        "genoa_vlek": "95f8b0deab936fe5d44a7cd6ed32590ad360581da2858a27dc2e59ac6eacb2e8",
        "turin_vcek": "cc9a52fbed3fbc6e4a0a50149a541a75938f975658909c2a6084767829b36e85",
        "turin_vlek": "5928f39615a10790e4c3d985fbe5b025524eab50c0801c2b69d2031e476cdfe5",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRoots:
    """The authorities pinned for one product: ARK, its ASK for VCEKs and its ASVK for VLEKs."""

    ark: x509.Certificate
    ask: x509.Certificate
    asvk: x509.Certificate

    def intermediate(self, signing_key: SigningKey) -> x509.Certificate:
        """Return the authority that issues ``signing_key``'s certificates."""
        return self.asvk if signing_key is SigningKey.VLEK else self.ask


@cache
def amd_roots() -> Mapping[SnpProduct, SnpRoots]:
    """Return the authorities that AMD publishes.

    Raises:
        InternalError: a file is not the pinned one.
    """
    return MappingProxyType({product: _load_roots(product) for product in SnpProduct})


def _load_roots(product: SnpProduct) -> SnpRoots:
    ask, ark = _load(f"{product.value}_vcek")
    asvk, _ = _load(f"{product.value}_vlek")
    return SnpRoots(ark=ark, ask=ask, asvk=asvk)


def _load(name: str) -> tuple[x509.Certificate, ...]:
    return load_pinned(__package__, f"{name}.pem", _FILES[name])
