"""What vendors publish for verification, and the one place where each piece comes from.

Every piece is signed by its vendor, so that it may come from anywhere; the host only matters for what it learns by
being asked (docs/trust-policy.md). Nothing here asks anybody.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ["MAX_ENTRY_BYTES", "CollateralEntry", "CollateralItem", "CollateralKind"]

MAX_ENTRY_BYTES: Final = 4_194_304  # the largest, a revocation list of an old authority, is far below


class CollateralKind(StrEnum):
    """A kind of collateral; its value names it in policies, on the command line and in the cache."""

    AMD_VCEK = "amd-vcek"
    AMD_CHAIN = "amd-chain"
    AMD_CRL = "amd-crl"
    INTEL_TCB_INFO = "intel-tcb-info"
    INTEL_QE_IDENTITY = "intel-qe-identity"
    INTEL_PCK_CRL = "intel-pck-crl"
    INTEL_ROOT_CRL = "intel-root-crl"
    NVIDIA_RIM = "nvidia-rim"
    NVIDIA_OCSP = "nvidia-ocsp"

    @property
    def origin(self) -> str:
        """Scheme and host of the vendor's service."""
        return _ORIGINS[self]

    @property
    def obligation(self) -> str:
        """The obligation that cannot be met while the piece is missing."""
        return _OBLIGATIONS[self]

    @property
    def chain_header(self) -> str | None:
        """Header in which the service sends the issuer's chain, URL-encoded PEM; None where there is none."""
        return _CHAIN_HEADERS.get(self)

    @property
    def discloses(self) -> str:
        """What the service learns by being asked."""
        return _DISCLOSES[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralItem:
    """One piece of collateral by name.

    Attributes:
        kind: of the piece.
        name: tells it from others of its kind: lower-case letters, digits, ``.``, ``_`` and ``-``.
        path: path and query at the service.
        body: request body (POST) for a service that is asked with one, else None (GET).
        nonce: that the answer must repeat; empty where the service knows none.
    """

    kind: CollateralKind
    name: str
    path: str
    body: bytes | None = None
    nonce: bytes = b""

    @property
    def url(self) -> str:
        """Where the vendor publishes it."""
        return self.kind.origin + self.path

    @property
    def max_bytes(self) -> int:
        """Most bytes of an answer."""
        return _MAX_BYTES[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralEntry:
    """A piece of collateral at hand, untrusted until a verifier has checked it.

    Attributes:
        kind: of the piece.
        name: of the item.
        data: as the service sent it.
        chain: issuer's chain from the service's header, PEM; empty where there is none.
        fetched_s: Unix seconds at which it came.
        source: URL from which it came.
    """

    kind: CollateralKind
    name: str
    data: bytes
    chain: bytes
    fetched_s: int
    source: str


_AMD: Final = "https://kdsintf.amd.com"
_INTEL: Final = "https://api.trustedservices.intel.com"
_ORIGINS: Final = MappingProxyType(
    {
        CollateralKind.AMD_VCEK: _AMD,
        CollateralKind.AMD_CHAIN: _AMD,
        CollateralKind.AMD_CRL: _AMD,
        CollateralKind.INTEL_TCB_INFO: _INTEL,
        CollateralKind.INTEL_QE_IDENTITY: _INTEL,
        CollateralKind.INTEL_PCK_CRL: _INTEL,
        CollateralKind.INTEL_ROOT_CRL: "https://certificates.trustedservices.intel.com",
        CollateralKind.NVIDIA_RIM: "https://rim.attestation.nvidia.com",
        CollateralKind.NVIDIA_OCSP: "https://ocsp.ndis.nvidia.com",
    }
)
_OBLIGATIONS: Final = MappingProxyType(
    {
        CollateralKind.AMD_VCEK: "SNP-4",
        CollateralKind.AMD_CHAIN: "SNP-4",
        CollateralKind.AMD_CRL: "SNP-6",
        CollateralKind.INTEL_TCB_INFO: "TDX-9",
        CollateralKind.INTEL_QE_IDENTITY: "TDX-10",
        CollateralKind.INTEL_PCK_CRL: "TDX-4",
        CollateralKind.INTEL_ROOT_CRL: "TDX-4",
        CollateralKind.NVIDIA_RIM: "GPU-11",
        CollateralKind.NVIDIA_OCSP: "GPU-7",
    }
)
_CHAIN_HEADERS: Final = MappingProxyType(
    {
        CollateralKind.INTEL_TCB_INFO: "TCB-Info-Issuer-Chain",
        CollateralKind.INTEL_QE_IDENTITY: "SGX-Enclave-Identity-Issuer-Chain",
        CollateralKind.INTEL_PCK_CRL: "SGX-PCK-CRL-Issuer-Chain",
    }
)
_DISCLOSES: Final = MappingProxyType(
    {
        CollateralKind.AMD_VCEK: "AMD learns which chip and firmware you verify",
        CollateralKind.AMD_CHAIN: "AMD learns that you verify machines of this product",
        CollateralKind.AMD_CRL: "AMD learns that you verify machines of this product",
        CollateralKind.INTEL_TCB_INFO: "Intel learns which kind of platform you verify",
        CollateralKind.INTEL_QE_IDENTITY: "Intel learns that you verify TDX",
        CollateralKind.INTEL_PCK_CRL: "Intel learns that you verify TDX",
        CollateralKind.INTEL_ROOT_CRL: "Intel learns that you verify TDX",
        CollateralKind.NVIDIA_RIM: "NVIDIA learns which driver and VBIOS versions you verify",
        CollateralKind.NVIDIA_OCSP: "NVIDIA learns which GPU you verify, and when",
    }
)
_KIB: Final = 1024
_MAX_BYTES: Final = MappingProxyType(
    {
        CollateralKind.AMD_VCEK: 8 * _KIB,
        CollateralKind.AMD_CHAIN: 32 * _KIB,
        CollateralKind.AMD_CRL: 1024 * _KIB,
        CollateralKind.INTEL_TCB_INFO: 256 * _KIB,
        CollateralKind.INTEL_QE_IDENTITY: 64 * _KIB,
        CollateralKind.INTEL_PCK_CRL: 1024 * _KIB,
        CollateralKind.INTEL_ROOT_CRL: 64 * _KIB,
        CollateralKind.NVIDIA_RIM: 512 * _KIB,
        CollateralKind.NVIDIA_OCSP: 16 * _KIB,
    }
)
