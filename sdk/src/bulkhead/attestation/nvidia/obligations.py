"""What :func:`bulkhead.attestation.nvidia.verify_gpu` checks, by number."""

from types import MappingProxyType
from typing import Final

from bulkhead.attestation.obligations import Obligations

__all__ = ["GPU_OBLIGATIONS"]

GPU_OBLIGATIONS: Final[Obligations] = MappingProxyType(
    {
        "GPU-1": "The report is an SPDM 1.1 request and response for all measurements, exact in every length.",
        "GPU-2": "Five certificates, all ECDSA P-384 with SHA-384, lead from the attestation key to the pinned root.",
        "GPU-3": "Each of them is valid at the given time.",
        "GPU-4": "The attestation key signed everything but the last 96 bytes.",
        "GPU-5": "The nonce is the caller's own.",
        "GPU-6": "The report states a FWID, and it is the one in the attestation key's certificate, and on the "
        "policy's list, where it has one.",
        "GPU-7": "No certificate is revoked or on hold, by current OCSP answers.",
        "GPU-8": "The chip is one that the policy accepts, and its certificates agree about it.",
        "GPU-9": "The mode (SPT, MPT, PPCIE) is one that the policy accepts.",
        "GPU-10": "The driver's and VBIOS's versions are ones that the policy accepts.",
        "GPU-11": "The manifests of driver and VBIOS are there, and well-formed.",
        "GPU-12": "Each manifest is signed as a whole by its first certificate.",
        "GPU-13": "That certificate leads to the pinned root of manifests.",
        "GPU-14": "Its certificates are valid at the given time.",
        "GPU-15": "Each manifest is for the report's chip and exactly its version.",
        "GPU-16": "No number stands in both manifests, and each active measurement equals the report's block.",
        "GPU-17": "Each security version for which a manifest has a minimum is reported, and reaches it.",
    }
)
