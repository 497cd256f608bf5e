"""Reports of GPUs from the driver, through NVML (``nvidia-ml-py``).

A GPU gives a report only while confidential computing is on. Developer tools, which let the host look inside, must be
off: a worker is not confidential with them, whatever its report says.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from bulkhead.errors import BulkheadError, ConfigError, InternalError, NotFoundError, UnavailableError, UnsupportedError

__all__ = ["GpuQuote", "GpuQuotes", "GpuState"]

NONCE_BYTES: Final = 32
MAX_GPUS: Final = 72
_PEM: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What the driver says of confidential computing.

    Attributes:
        driver_version: of the driver.
        supported: whether driver and GPUs have it at all.
        enabled: whether it is on.
        developer_tools: whether developers' tools may look inside.
        uuids: of the GPUs that this process sees.
    """

    driver_version: str
    supported: bool
    enabled: bool
    developer_tools: bool
    uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuQuote:
    """A GPU's report and its device's certificates (PEM, leaf first), as the driver gave them."""

    uuid: str
    report: bytes
    certificates: bytes


class GpuQuotes:
    """Asks GPUs for reports; blocks while they work."""

    def state(self) -> GpuState:
        """Return what the driver says.

        Raises:
            UnsupportedError: no driver, or no NVML.
            UnavailableError: the driver does not answer.
        """
        with _session() as nvml:
            return _state(nvml)

    def report(self, uuid: str, nonce: bytes) -> GpuQuote:
        """Return a fresh report of one GPU.

        Args:
            uuid: as the driver names it.
            nonce: 32 bytes that the report answers.

        Raises:
            UnsupportedError: see :meth:`state`, or there is no confidential computing.
            ConfigError: confidential computing is off, or developer tools are on.
            NotFoundError: no such GPU.
            UnavailableError: the driver does not answer.
        """
        if len(nonce) != NONCE_BYTES:
            raise InternalError(f"a GPU's nonce has {NONCE_BYTES} bytes")
        with _session() as nvml:
            state = _state(nvml)
            if not state.supported:
                raise UnsupportedError("this driver or its GPUs have no confidential computing: they give no reports")
            if not state.enabled:
                raise ConfigError("confidential computing is off on this host's GPUs: they give no reports")
            if state.developer_tools:
                raise ConfigError("the GPUs' developer tools are on: the host could look inside")
            device = nvml.nvmlDeviceGetHandleByUUID(uuid)
            given = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
            certificate = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
        report = _bounded(given.attestationReport, given.attestationReportSize, "report")
        chain = _bounded(certificate.attestationCertChain, certificate.attestationCertChainSize, "certificate chain")
        if _PEM not in chain:
            raise InternalError("the driver's certificate chain is not PEM")
        return GpuQuote(uuid=uuid, report=report, certificates=chain.rstrip(b"\0"))


def _state(nvml: Any) -> GpuState:
    state = _confidential_computing(nvml)
    count = min(nvml.nvmlDeviceGetCount(), MAX_GPUS)
    uuids = tuple(_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count))
    return GpuState(
        driver_version=_text(nvml.nvmlSystemGetDriverVersion()),
        supported=state is not None,
        enabled=state is not None and state.ccFeature == nvml.NVML_CC_SYSTEM_FEATURE_ENABLED,
        developer_tools=state is not None and state.devToolsMode == nvml.NVML_CC_SYSTEM_DEVTOOLS_MODE_ON,
        uuids=uuids,
    )


def _confidential_computing(nvml: Any) -> Any:
    """Return the driver's state of confidential computing, or None where it has none."""
    try:
        return nvml.nvmlSystemGetConfComputeState()
    except nvml.NVMLError as error:
        if error.value in {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}:
            return None
        raise


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    nvml = _nvml()
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise _error(nvml, error) from error


def _nvml() -> ModuleType:
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnsupportedError("GPU reports need nvidia-ml-py: install it beside this package") from error
    module: ModuleType = pynvml
    return module


def _error(nvml: Any, error: Any) -> BulkheadError:
    if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return UnsupportedError("no NVIDIA driver here: libnvidia-ml.so.1 is missing")
    if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return UnsupportedError("the NVIDIA driver is not loaded")
    if error.value in {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}:
        return UnsupportedError(f"the GPU or its driver gives no attestation reports ({error})")
    if error.value == nvml.NVML_ERROR_NO_PERMISSION:
        return ConfigError(f"this process may not ask the GPU for a report ({error})")
    if error.value in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT}:
        return NotFoundError(f"the driver knows no such GPU ({error})")
    return UnavailableError(f"the driver gives no report now ({error})")


def _bounded(buffer: Any, size: int, what: str) -> bytes:
    if not 0 < size <= len(buffer):
        raise InternalError(f"the driver's {what} has an impossible size")
    return bytes(buffer[:size])


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
