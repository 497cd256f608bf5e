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
from cryptography.x509.oid import NameOID

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, verify_chain
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia.fwid import certificate_fwid
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.nvidia.report import NONCE_BYTES, GpuReport, parse_report
from bulkhead.attestation.nvidia.revocation import OcspAnswers
from bulkhead.attestation.nvidia.rim import Rim, check_rim_signature, parse_rim
from bulkhead.attestation.nvidia.roots import NvidiaRoots, nvidia_roots
from bulkhead.attestation.obligations import Obligations, failed
from bulkhead.errors import EvidenceBindingError, EvidenceError, EvidencePolicyError

__all__ = ["GPU_OBLIGATIONS", "VerifiedGpu", "chip_of", "driver_rim_id", "match_measurements", "verify_gpu"]

GPU_OBLIGATIONS: Final[Obligations] = MappingProxyType(
    {
        "GPU-1": "The report is an SPDM 1.1 request and response for all measurements, exact in every length.",
        "GPU-2": "Five certificates, all ECDSA P-384 with SHA-384, lead from the attestation key to the pinned root.",
        "GPU-3": "Each of them is valid at the given time.",
        "GPU-4": "The attestation key signed everything but the last 96 bytes.",
        "GPU-5": "The nonce is the caller's own.",
        "GPU-6": "The report states a FWID, and it is the one in the attestation key's certificate.",
        "GPU-7": "No certificate is revoked or on hold, by current OCSP answers.",
        "GPU-8": "The chip is one that the policy accepts, and its certificates agree about it.",
        "GPU-9": "The mode (SPT, MPT, PPCIE) is one that the policy accepts.",
        "GPU-10": "The driver's and VBIOS's versions are ones that the policy accepts.",
        "GPU-11": "The manifests of driver and VBIOS are there, and well-formed.",
        "GPU-12": "Each manifest is signed as a whole by its first certificate.",
        "GPU-13": "That certificate leads to the pinned root of manifests.",
        "GPU-14": "Its certificates are valid at the given time.",
        "GPU-15": "Each manifest is for the report's chip and exactly its version.",
        "GPU-16": "No index stands in both manifests, and each active measurement equals the report's block.",
    }
)

_CHAIN_LENGTH: Final = 5  # attestation key, boot ROM, provisioner, model, root
_FIRST_ASKED: Final = 1  # the device makes the attestation key's certificate itself: no responder knows it
_DEVICE_RULES: Final = ChainRules(
    scheme=SignatureScheme.ECDSA_P384_SHA384,
    max_length=_CHAIN_LENGTH,
    chain="GPU-2",
    validity="GPU-3",
    revocation="GPU-7",
)
_RIM_RULES: Final = ChainRules(
    scheme=SignatureScheme.ECDSA_P384_SHA384,
    max_length=4,  # signer, its authority, the chip's authority, root
    chain="GPU-13",
    validity="GPU-14",
    revocation="GPU-7",
)
_NVDEC0_INDEX: Final = 35
_CHIP: Final = re.compile(r"[A-Z]{2}[0-9]{3}")
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
    """Verify one GPU's report under every obligation of :data:`GPU_OBLIGATIONS`, in their order but GPU-7's.

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
    path = _device_path(certificates, pinned, now_s)  # GPU-2, GPU-3
    _check_signature(claims, path[0])  # GPU-4
    _check_nonce(claims, nonce)  # GPU-5
    _check_fwid(claims, path[0], policy)  # GPU-6
    answers.check(path, first=_FIRST_ASKED, policy=policy, now_s=now_s)  # GPU-7
    product = _product(path, policy)  # GPU-8
    _check_mode(claims, policy)  # GPU-9
    _check_versions(claims, policy)  # GPU-10
    manifests = _Manifests(root=pinned.rim, answers=answers, policy=policy, product=product, now_s=now_s)
    driver = manifests.verify(driver_rim, name=driver_rim_id(product, claims), version=claims.driver_version)
    vbios = manifests.verify(vbios_rim, name=claims.vbios_rim_id, version=claims.vbios_version)
    matched, expected = match_measurements(claims, driver=driver, vbios=vbios)  # GPU-16
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
    """Return the name of the driver's manifest at NVIDIA's RIM service."""
    prefix = _DRIVER_RIM_PREFIX.get(product, f"NV_GPU_CC_DRIVER_{product}")
    return f"{prefix}_{report.driver_version}"


def match_measurements(report: GpuReport, *, driver: Rim, vbios: Rim) -> tuple[int, int]:
    """Return how many active reference measurements the report equals, and how many there are (GPU-16).

    A value of zeros is a value like any other, never a wildcard. Number 35 (NVDEC0) may differ only where the signed
    report says that NVDEC0 is off; blocks that no manifest speaks of are not judged.

    Raises:
        EvidenceError: GPU-16.
    """
    conflict = sorted(driver.measurements.keys() & vbios.measurements.keys())
    if conflict:
        raise failed("GPU-16", f"both manifests state measurement {conflict[0]}")
    expected = {**driver.measurements, **vbios.measurements}
    wrong = [index for index, values in sorted(expected.items()) if report.measurements.get(index + 1) not in values]
    if [index for index in wrong if index != _NVDEC0_INDEX or report.nvdec0_enabled]:
        numbers = ", ".join(map(str, wrong))
        raise failed("GPU-16", f"measurements {numbers} are not those of the manifests", details={"indices": numbers})
    return len(expected) - len(wrong), len(expected)


def chip_of(certificates: Sequence[x509.Certificate]) -> str:
    """Return the chip that a device's first certificate names, or nothing; for finding its manifests."""
    return _chip(certificates[0])


def _device_path(certificates: bytes, roots: NvidiaRoots, now_s: int) -> tuple[x509.Certificate, ...]:
    try:
        given = load_certificates(certificates, what="the device's certificates")
    except EvidenceError as error:
        raise failed("GPU-2", error.message) from error
    path = verify_chain(given[0], intermediates=given[1:], roots=[roots.device], rules=_DEVICE_RULES, now_s=now_s)
    if len(path) != _CHAIN_LENGTH or path != given:
        raise failed("GPU-2", f"not {_CHAIN_LENGTH} certificates in order, from the attestation key to the root")
    _check_usage(path[0], "GPU-2")
    return path


def _check_usage(leaf: x509.Certificate, obligation: str) -> None:
    """Refuse a leaf of the same authority that was made for something else, such as an OCSP responder's."""
    usages = [extension.value for extension in leaf.extensions]
    signs = any(isinstance(usage, x509.KeyUsage) and usage.digital_signature for usage in usages)
    if not signs or any(isinstance(usage, x509.ExtendedKeyUsage) for usage in usages):
        raise failed(obligation, "the first certificate's key is not one for signing reports or manifests")


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
        if not policy.allow_missing_fwid:
            raise failed("GPU-6", "the report states no FWID, and the policy demands one", EvidencePolicyError)
        return
    if not any(report.fwid) or not hmac.compare_digest(report.fwid, certificate_fwid(leaf)):
        raise failed("GPU-6", "the FWID in the report is not the one in the attestation key's certificate")


def _product(path: tuple[x509.Certificate, ...], policy: NvidiaPolicy) -> str:
    names = {_chip(certificate) for certificate in path[:-1]}
    if len(names) != 1:
        raise failed("GPU-8", "the device's certificates name different chips")
    (product,) = names
    if product not in policy.products:
        raise failed("GPU-8", f"the policy does not accept {product or 'a chip without a name'}", EvidencePolicyError)
    return product


def _chip(certificate: x509.Certificate) -> str:
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    words = str(common[0].value).split() if common else []
    return next((word for word in words if _CHIP.fullmatch(word)), "")


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
    product: str
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
        _check_usage(path[0], "GPU-13")
        self.answers.check(path, first=0, policy=self.policy, now_s=self.now_s)  # GPU-7
        if rim.version.upper() != version.upper() or rim.product != self.product:  # GPU-15
            raise failed("GPU-15", f"the manifest is for {rim.product} {rim.version}, not {self.product} {version}")
        return rim
