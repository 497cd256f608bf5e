"""`bulkhead evidence verify --type nvidia`.

The report is known by its first bytes; every further file is the device's certificates, a manifest or an OCSP answer,
and its content says which. The nonce is the 32 bytes that the GPU was asked with.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from bulkhead.attestation.collateral.gpu import GpuCollateral, complete_gpu
from bulkhead.attestation.collateral.nvidia import manifest_of
from bulkhead.attestation.inputs import decode_text, load_certificates
from bulkhead.attestation.nvidia import (
    GPU_OBLIGATIONS,
    GpuReport,
    VerifiedGpu,
    driver_rim_id,
    nvidia_roots,
    parse_report,
    parse_rim,
    verify_gpu,
)
from bulkhead.attestation.nvidia.report import NONCE_BYTES
from bulkhead.attestation.nvidia.revocation import MAX_OCSP_RESPONSES
from bulkhead.attestation.obligations import failed
from bulkhead.cli.evidence_files import EvidenceFiles, NamedBytes, read_bounded, under
from bulkhead.encoding import Json
from bulkhead.errors import EvidenceError, InvalidRequestError

__all__ = ["OBLIGATIONS", "GpuEvidence", "evidence_in", "is_evidence", "read_claims", "verify_files"]

OBLIGATIONS: Final = GPU_OBLIGATIONS
_MAX_OCSP_BYTES: Final = 65_536
_MAX_REPORT_BYTES: Final = 16_384
_MAX_CHAIN_BYTES: Final = 65_536
_REPORT_START: Final = b"\x11\xe0"
_PEM: Final = b"-----BEGIN CERTIFICATE-----"
_OF_MANIFESTS: Final = ("RIM", "Reference Value")  # in the names of NVIDIA's authorities and signers of manifests
_VBIOS_PARTS: Final = 5  # such as 96.00.5E.00.01; drivers have two to four


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """A report, and the device's certificates if the same file holds them."""

    report: bytes
    certificates: bytes | None


def is_evidence(data: bytes) -> bool:
    """Whether ``data`` is a report in any encoding, or the JSON in which NVIDIA's tools hand one over."""
    try:
        return evidence_in(data).report.startswith(_REPORT_START)
    except (EvidenceError, InvalidRequestError):
        return False


def evidence_in(data: bytes) -> GpuEvidence:
    """Return the report in a file: raw, text, or JSON with ``evidence`` and ``certificate`` (base64), alone or listed.

    Raises:
        EvidenceError: GPU-1.
        InvalidRequestError: a list of several GPUs.
    """
    if data.lstrip().startswith((b"{", b"[")):
        return _json_evidence(data)
    with under("GPU-1"):
        return GpuEvidence(
            report=decode_text(
                data,
                is_binary=lambda candidate: candidate.startswith(_REPORT_START),
                max_bytes=_MAX_REPORT_BYTES,
                what="GPU report",
                error=EvidenceError,
            ),
            certificates=None,
        )


def verify_files(files: EvidenceFiles) -> Mapping[str, Any]:
    """Verify a report; return what it proves.

    Raises:
        EvidenceError: an obligation is not met.
        InvalidRequestError: a nonce of another length, or an option of another technology.
    """
    files.refuse("nvidia", crl=files.crls, collateral=files.collateral)
    if len(files.nonce) != NONCE_BYTES:
        raise InvalidRequestError(f"the nonce of a GPU report is {NONCE_BYTES} bytes: {2 * NONCE_BYTES} digits")
    evidence, further = files.split(is_evidence, "GPU-1")
    report = evidence_in(evidence.data)
    claims = parse_report(report.report)
    pieces = _Pieces(claims, report.certificates)
    for file in further:
        pieces.add(file)
    for path in files.certificates:
        with under("GPU-2"):
            pieces.add_certificates(NamedBytes(name=str(path), data=read_bounded(path)))
    for path in files.rims:
        with under("GPU-11"):
            pieces.add_rim(NamedBytes(name=str(path), data=read_bounded(path)))
    for path in files.ocsp:
        with under("GPU-7"):
            pieces.add_ocsp(NamedBytes(name=str(path), data=read_bounded(path)))
    if pieces.certificates is None:
        raise failed("GPU-2", "the device's certificates are missing: the driver gives them beside the report (NVML)")
    return _verify(files, claims, report.report, _with_root(pieces.certificates), pieces.collateral())


def _with_root(chain: bytes) -> bytes:
    """Return a chain that ends below the root, as NVIDIA's service takes it, with the pinned root behind it.

    Adding it proves nothing: the path must lead to that very certificate.
    """
    try:
        path = load_certificates(chain, what="the device's certificates")
    except EvidenceError:
        return chain  # the verifier says what is wrong with it
    root = nvidia_roots().device
    if len(path) == 0 or path[-1] == root or path[-1].issuer != root.subject:
        return chain
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (*path, root))


def _verify(
    files: EvidenceFiles, claims: GpuReport, report: bytes, certificates: bytes, given: GpuCollateral
) -> Mapping[str, Any]:
    collateral = complete_gpu(
        given,
        report=claims,
        certificates=certificates,
        policy=files.policy.nvidia,
        cache=files.cache,
        random_bytes=os.urandom,
    )
    try:
        verified = verify_gpu(
            report,
            certificates=certificates,
            driver_rim=collateral.driver_rim,
            vbios_rim=collateral.vbios_rim,
            ocsp_responses=collateral.ocsp_responses,
            nonce=files.nonce,
            policy=files.policy.nvidia,
            now_s=files.now_s,
        )
    except EvidenceError as error:
        raise collateral.explain(error) from error
    if files.product and files.product.upper() != verified.product:
        raise InvalidRequestError(f"--product {files.product}: the GPU is a {verified.product}")
    return _facts(verified)


class _Pieces:
    def __init__(self, claims: GpuReport, certificates: bytes | None) -> None:
        self.certificates = certificates
        self._claims = claims
        self._driver: bytes | None = None
        self._vbios: bytes | None = None
        self._ocsp: list[bytes] = []

    def collateral(self) -> GpuCollateral:
        return GpuCollateral(driver_rim=self._driver, vbios_rim=self._vbios, ocsp_responses=tuple(self._ocsp))

    def add(self, file: NamedBytes) -> None:
        """Take a file by what it holds."""
        if _PEM in file.data:
            self.add_certificates(file)
            return
        try:
            self.add_ocsp(file)
        except EvidenceError:
            self.add_rim(file)

    def add_certificates(self, file: NamedBytes) -> None:
        """Take the device's chain, whole or, in its order, one certificate to a file.

        A root by itself counts only as the one that is pinned anyway.

        Raises:
            EvidenceError: GPU-13: a certificate of manifests that is not the pinned root; GPU-2: malformed.
        """
        with under("GPU-2"):
            certificates = load_certificates(file.data, what=file.name)
        pinned, name = nvidia_roots(), certificates[0].subject.rfc4514_string()
        if len(certificates) > 1:
            self.certificates = file.data
        elif any(word in name for word in _OF_MANIFESTS) and certificates[0] != pinned.rim:
            raise failed("GPU-13", f"{file.name}: not the root of manifests that is pinned: no other can be given")
        elif certificates[0] not in {pinned.device, pinned.rim}:
            self.certificates = (self.certificates or b"") + b"\n" + certificates[0].public_bytes(Encoding.PEM)

    def add_rim(self, file: NamedBytes) -> None:
        """Take a manifest: the driver's or the VBIOS's, as its version says."""
        data = manifest_of(file.data)
        version = parse_rim(data, what=file.name).version
        if version.upper() == self._claims.vbios_version.upper():
            self._vbios = data
        elif version == self._claims.driver_version or len(version.split(".")) != _VBIOS_PARTS:
            self._driver = data
        else:
            self._vbios = data

    def add_ocsp(self, file: NamedBytes) -> None:
        if len(self._ocsp) == MAX_OCSP_RESPONSES:
            raise failed("GPU-7", f"more than {MAX_OCSP_RESPONSES} OCSP answers")
        self._ocsp.append(
            decode_text(file.data, is_binary=_is_ocsp, max_bytes=_MAX_OCSP_BYTES, what=file.name, error=EvidenceError)
        )


def _is_ocsp(data: bytes) -> bool:
    if not data.startswith(b"\x30"):
        return False
    try:
        ocsp.load_der_ocsp_response(data)
    except ValueError:
        return False
    return True


def _json_evidence(data: bytes) -> GpuEvidence:
    try:
        value: Json = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise failed("GPU-1", "not JSON") from error
    if isinstance(value, dict) and isinstance(value.get("evidence_list"), list):
        value = value["evidence_list"]
    if isinstance(value, list):
        if len(value) > 1:
            raise InvalidRequestError(f"the file holds evidence of {len(value)} GPUs: verify one at a time")
        value = value[0] if value else None
    if not isinstance(value, dict):
        raise failed("GPU-1", "the JSON holds no evidence of a GPU")
    report, chain = value.get("evidence"), value.get("certificate")
    if not isinstance(report, str) or not isinstance(chain, str):
        raise failed("GPU-1", "the JSON lacks evidence or certificate")
    with under("GPU-2"):
        certificates = decode_text(
            chain.encode("utf-8", "replace"),
            is_binary=lambda candidate: candidate.lstrip().startswith(b"-----BEGIN"),
            max_bytes=_MAX_CHAIN_BYTES,
            what="certificate",
            error=EvidenceError,
        )
    return GpuEvidence(report=evidence_in(report.encode("utf-8", "replace")).report, certificates=certificates)


def read_claims(data: bytes) -> Mapping[str, Any]:
    """Return what a report says, verified by nobody.

    Raises:
        EvidenceError: GPU-1.
    """
    return _claims(parse_report(evidence_in(data).report))


def _facts(verified: VerifiedGpu) -> Mapping[str, Any]:
    return {
        "product": verified.product,
        "device_serial": f"{verified.device_serial:x}",
        "measurements_matched": verified.measurements_matched,
        "measurements_expected": verified.measurements_expected,
        "driver_rim": verified.driver_rim,
        "vbios_rim": verified.vbios_rim,
        "driver_rim_id": driver_rim_id(verified.product, verified.report),
        **_claims(verified.report),
    }


def _claims(report: GpuReport) -> Mapping[str, Any]:
    return {
        "driver_version": report.driver_version,
        "vbios_version": report.vbios_version,
        "mode": report.mode.value,
        "mode_stated": report.mode_stated,
        "fwid": report.fwid,
        "vbios_rim_id": report.vbios_rim_id,
        "project": report.project,
        "project_sku": report.project_sku,
        "chip_sku": report.chip_sku,
        "nonce": report.nonce,
    }
