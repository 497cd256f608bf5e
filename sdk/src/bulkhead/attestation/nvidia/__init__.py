"""NVIDIA GPUs (Hopper, Blackwell): SPDM reports, device certificates, reference integrity manifests.

``verify_gpu`` is the entry; ``GPU_OBLIGATIONS`` says what it checks.
"""

from bulkhead.attestation.nvidia.measurements import match_measurements
from bulkhead.attestation.nvidia.obligations import GPU_OBLIGATIONS
from bulkhead.attestation.nvidia.opaque import GpuMode
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.nvidia.report import GpuReport, parse_report
from bulkhead.attestation.nvidia.rim import Rim, parse_rim
from bulkhead.attestation.nvidia.roots import NvidiaRoots, nvidia_roots
from bulkhead.attestation.nvidia.verify import VerifiedGpu, driver_rim_id, verify_gpu

__all__ = [
    "GPU_OBLIGATIONS",
    "GpuMode",
    "GpuReport",
    "NvidiaPolicy",
    "NvidiaRoots",
    "Rim",
    "VerifiedGpu",
    "driver_rim_id",
    "match_measurements",
    "nvidia_roots",
    "parse_report",
    "parse_rim",
    "verify_gpu",
]
