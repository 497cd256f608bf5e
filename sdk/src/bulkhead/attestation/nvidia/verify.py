"""A GPU's attestation report: evidence in, :class:`VerifiedGpu` out, or an error that names the obligation."""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, verify_chain
from bulkhead.attestation.nvidia.fwid import certificate_fwid
from bulkhead.attestation.nvidia.identity import agreed_chip, check_usage, verify_device_path
from bulkhead.attestation.nvidia.measurements import match_measurements
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.nvidia.report import NONCE_BYTES, GpuReport, parse_report
from bulkhead.attestation.nvidia.revocation import OcspAnswers
from bulkhead.attestation.nvidia.rim import Rim, check_rim_signature, parse_rim
from bulkhead.attestation.nvidia.roots import NvidiaRoots, nvidia_roots
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceBindingError, EvidencePolicyError

__all__ = ["VerifiedGpu", "driver_rim_id", "verify_gpu"]

_FIRST_ASKED: Final = 1  # the device makes the attestation key's certificate itself: no responder knows it
_RIM_RULES: Final = ChainRules(
    scheme=SignatureScheme.ECDSA_P384_SHA384,
    max_length=6,  # four so far: signer, its authority, the chip's authority, root
    chain="GPU-13",
    validity="GPU-14",
    revocation="GPU-7",
)
_RIM_SERVICE: Final = "rim.attestation.nvidia.com/v1/rim"
_DRIVER_RIM_PREFIX: Final = MappingProxyType({"GH100": "NV_GPU_DRIVER_GH100"})
_MAX_VERSION_PARTS: Final = 6
_DECIMAL: Final = re.compile(r"[0-9]{1,6}")
_HEXADECIMAL: Final = re.compile(r"[0-9A-Fa-f]{1,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGpu:
    """A GPU whose report held. Only :func:`verify_gpu` makes one.

    Attributes:
        product: chip, such as ``GH100``.
        device_serial: serial number of the boot ROM's certificate: one per chip.
        report: its claims, now proven.
        measurements_matched: how many reference measurements equal the report's.
        measurements_expected: how many there are; more than matched only by number 35, where NVDEC0 is off.
        driver_rim: ``tagId`` of the driver's manifest.
        vbios_rim: ``tagId`` of the VBIOS's manifest.
    """

    product: str
    device_serial: int
    report: GpuReport
    measurements_matched: int
    measurements_expected: int
    driver_rim: str
    vbios_rim: str


def verify_gpu(
    report: bytes,
    *,
    certificates: bytes,
    driver_rim: bytes | None,
    vbios_rim: bytes | None,
    ocsp_responses: Sequence[bytes] = (),
    nonce: bytes,
    policy: NvidiaPolicy,
    now_s: int,
    roots: NvidiaRoots | None = None,
) -> VerifiedGpu:
    """Verify one GPU's report.

    Obligations: GPU-1 to GPU-17, one sentence each in ``GPU_OBLIGATIONS``, checked in their order (GPU-7 twice):
        1 form; 2 to 4 the device's certificates and its signature; 5 nonce; 6 firmware identity; 7 revocation, of the
        device's certificates and of the manifests' signers; 8 to 10 the policy on chip, mode and versions; 11 to 15 the
        manifests; 16 and 17 what they say of the report.

    The caller checks: that the nonce is fresh and bound to the CPU's evidence, that the GPU is one of the partition's
    descriptor (one device serial each), and that the GPU is in fact attached (docs/protocol.md section 3).

    Args:
        report: as NVML returns it, or its hexadecimal or base64; untrusted.
        certificates: the device's chain, PEM, leaf first, root included; untrusted.
        driver_rim: manifest of the driver (XML or its base64), untrusted; None if there is none.
        vbios_rim: manifest of the VBIOS, likewise.
        ocsp_responses: DER, untrusted.
        nonce: the 32 bytes that the caller sent.
        policy: the tenant's own.
        now_s: Unix seconds.
        roots: pinned; None for NVIDIA's.

    Raises:
        EvidenceBindingError: GPU-5.
        EvidenceExpiredError: GPU-3, GPU-7, GPU-14.
        EvidencePolicyError: GPU-6 (no FWID), GPU-8, GPU-9, GPU-10.
        EvidenceError: anything else that does not hold.
        UnsupportedError: lxml is not installed.
    """
    pinned = roots or nvidia_roots()
    answers = OcspAnswers(ocsp_responses)
    claims = parse_report(report)  # GPU-1
    path = verify_device_path(certificates, root=pinned.device, now_s=now_s)  # GPU-2, GPU-3
    _check_signature(claims, path[0])  # GPU-4
    _check_nonce(claims, nonce)  # GPU-5
    _check_fwid(claims, path[0], policy)  # GPU-6
    answers.check(path, first=_FIRST_ASKED, policy=policy, now_s=now_s)  # GPU-7
    product = agreed_chip(path)  # GPU-8
    if product not in policy.products:  # GPU-8
        raise failed("GPU-8", f"the policy does not accept {product}", EvidencePolicyError)
    _check_mode(claims, policy)  # GPU-9
    _check_versions(claims, policy)  # GPU-10
    products = frozenset({product, claims.chip or product})
    manifests = _Manifests(root=pinned.rim, answers=answers, policy=policy, products=products, now_s=now_s)
    driver = manifests.verify(driver_rim, name=driver_rim_id(product, claims), version=claims.driver_version)
    vbios = manifests.verify(vbios_rim, name=claims.vbios_rim_id, version=claims.vbios_version)
    matched, expected = match_measurements(claims, driver=driver, vbios=vbios)  # GPU-16, GPU-17
    return VerifiedGpu(
        product=product,
        device_serial=path[1].serial_number,
        report=claims,
        measurements_matched=matched,
        measurements_expected=expected,
        driver_rim=driver.tag_id,
        vbios_rim=vbios.tag_id,
    )


def driver_rim_id(product: str, report: GpuReport) -> str:
    """Return the name of the driver's manifest at NVIDIA's RIM service.

    Since Blackwell the name has the chip as the firmware calls it. The service has manifests of Hopper's under the
    same versions, so that GPU-15 compares the chip, too.
    """
    chip = report.chip or product
    prefix = _DRIVER_RIM_PREFIX.get(chip, f"NV_GPU_CC_DRIVER_{chip}")
    return f"{prefix}_{report.driver_version}"


def _check_signature(report: GpuReport, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise failed("GPU-4", "the attestation key is not on P-384")
    half = len(report.signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise failed("GPU-4", "the attestation key did not sign this report") from error


def _check_nonce(report: GpuReport, nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES or not hmac.compare_digest(report.nonce, nonce):
        raise failed("GPU-5", "the report answers another nonce", EvidenceBindingError)


def _check_fwid(report: GpuReport, leaf: x509.Certificate, policy: NvidiaPolicy) -> None:
    if report.fwid is None:
        if not policy.allow_missing_fwid or policy.fwids is not None:
            raise failed("GPU-6", "the report states no FWID, and the policy demands one", EvidencePolicyError)
        return
    if not any(report.fwid) or not hmac.compare_digest(report.fwid, certificate_fwid(leaf)):
        raise failed("GPU-6", "the FWID in the report is not the one in the attestation key's certificate")
    if policy.fwids is not None and report.fwid not in policy.fwids:
        raise failed("GPU-6", f"FWID {report.fwid.hex()} is not on the policy's list", EvidencePolicyError)


def _check_mode(report: GpuReport, policy: NvidiaPolicy) -> None:
    if report.mode not in policy.modes or (policy.mode_must_be_stated and not report.mode_stated):
        stated = "" if report.mode_stated else " (not stated)"
        raise failed("GPU-9", f"the policy does not accept mode {report.mode.value}{stated}", EvidencePolicyError)


def _check_versions(report: GpuReport, policy: NvidiaPolicy) -> None:
    for what, version, accepted, minimum, base in (
        ("driver", report.driver_version, policy.driver_versions, policy.minimum_driver_version, 10),
        ("VBIOS", report.vbios_version, policy.vbios_versions, policy.minimum_vbios_version, 16),
    ):
        too_low = minimum is not None and _parts(version, base) < _parts(minimum, base)
        if too_low or (accepted and version not in accepted):
            raise failed("GPU-10", f"the policy does not accept {what} {version}", EvidencePolicyError)


def _parts(version: str, base: int) -> tuple[int, ...]:
    parts = version.split(".")
    form = _DECIMAL if base == 10 else _HEXADECIMAL
    if len(parts) > _MAX_VERSION_PARTS or not all(map(form.fullmatch, parts)):
        raise failed("GPU-10", f"version {version} cannot be compared with a floor", EvidencePolicyError)
    return tuple(int(part, base) for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifests:
    root: x509.Certificate
    answers: OcspAnswers
    policy: NvidiaPolicy
    products: frozenset[str]
    now_s: int

    def verify(self, data: bytes | None, *, name: str, version: str) -> Rim:
        """Return the manifest of exactly ``version``, verified (GPU-11 to GPU-15, and GPU-7 for its signers)."""
        if data is None:
            source = f"{_RIM_SERVICE}/{name}"
            raise failed("GPU-11", f"the manifest {name} is missing: {source} gives it", details={"rim": name})
        rim = parse_rim(data, what=name)  # GPU-11
        check_rim_signature(rim, what=name)  # GPU-12
        signer, *above = rim.certificates
        path = verify_chain(  # GPU-13, GPU-14
            signer, intermediates=above, roots=[self.root], rules=_RIM_RULES, now_s=self.now_s
        )
        # Nothing unused may stand there; the root, which is pinned, may be left out.
        if rim.certificates not in {path, path[:-1]}:
            raise failed("GPU-13", f"{name}: its certificates are not one path in order")
        check_usage(path[0], "GPU-13")
        self.answers.check(path, first=0, policy=self.policy, now_s=self.now_s)  # GPU-7
        if rim.version.upper() != version.upper() or rim.product not in self.products:  # GPU-15
            raise failed("GPU-15", f"the manifest is for {rim.product} {rim.version}, not {name}")
        return rim
