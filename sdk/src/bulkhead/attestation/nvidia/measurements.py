"""A report's measurements and security versions against those of the manifests (GPU-16, GPU-17)."""

from typing import Final

from bulkhead.attestation.nvidia.report import GpuReport
from bulkhead.attestation.nvidia.rim import Rim
from bulkhead.attestation.obligations import failed

__all__ = ["match_measurements"]

_NVDEC0_INDEX: Final = 35


def match_measurements(report: GpuReport, *, driver: Rim, vbios: Rim) -> tuple[int, int]:
    """Return how many active reference measurements the report equals, and how many there are.

    A value of zeros is a value like any other, never a wildcard. Number 35 (NVDEC0) may differ only where the signed
    report says that NVDEC0 is off; blocks that no manifest speaks of are not judged.

    Raises:
        EvidenceError: GPU-16, or GPU-17 for a security version.
    """
    measurements = driver.measurements.keys() & vbios.measurements.keys()
    svns = driver.minimum_svns.keys() & vbios.minimum_svns.keys()
    if measurements or svns:
        raise failed("GPU-16", f"both manifests state number {min(measurements or svns)}")
    expected = {**driver.measurements, **vbios.measurements}
    wrong = [index for index, values in sorted(expected.items()) if report.measurements.get(index + 1) not in values]
    if [index for index in wrong if index != _NVDEC0_INDEX or report.nvdec0_enabled]:
        numbers = ", ".join(map(str, wrong))
        raise failed("GPU-16", f"measurements {numbers} are not those of the manifests", details={"indices": numbers})
    for kind, minimum in sorted({**driver.minimum_svns, **vbios.minimum_svns}.items()):
        svn = report.opaque.svns.get(kind)
        if svn is None or svn < minimum:
            stated = "not stated" if svn is None else f"{svn}"
            raise failed("GPU-17", f"security version {kind} is {stated}, below the manifest's {minimum}")
    return len(expected) - len(wrong), len(expected)
