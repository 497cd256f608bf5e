"""Hardware evidence as a whole: a processor's quote and its GPUs' reports, bound to one statement.

The technologies' verifiers (``snp``, ``tdx``, ``nvidia``) judge each part under obligations of their own. What holds
between the parts is here, numbered HW-1 to HW-7.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.attestation.collateral.amd import crl_item, has_endorsement, vcek_item
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.gpu import GpuCollateral, complete_gpu, end_of_gpu
from bulkhead.attestation.collateral.intel import collateral_of, tdx_items
from bulkhead.attestation.collateral.kinds import CollateralEntry
from bulkhead.attestation.collateral.store import CarriedCollateral
from bulkhead.attestation.evidence import Binding, Evidence, EvidenceKind
from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.nvidia import NvidiaRoots, VerifiedGpu, parse_report, verify_gpu
from bulkhead.attestation.obligations import Obligations, failed
from bulkhead.attestation.parts import GpuPart, GpuParts, ProcessorPart
from bulkhead.attestation.policy import Technology, TrustPolicy
from bulkhead.attestation.snp import SigningKey, SnpProduct, SnpRoots, read_snp_report, verify_snp_report
from bulkhead.attestation.snp.certificate_table import read_certificate_table
from bulkhead.attestation.snp.product import product_of_cpuid
from bulkhead.attestation.snp.report import SnpReport
from bulkhead.attestation.tdx import parse_quote, verify_tdx_quote
from bulkhead.attestation.tiers import Tier
from bulkhead.errors import EvidenceBindingError, EvidenceError, EvidencePolicyError

__all__ = ["HARDWARE_OBLIGATIONS", "GpuClaims", "HardwareClaims", "HardwareRoots", "HardwareVerifier"]

HARDWARE_OBLIGATIONS: Final[Obligations] = MappingProxyType(
    {
        "HW-1": "The processor's part is well-formed, and nobody's signature stands beside the hardware's.",
        "HW-2": "The policy accepts the technologies of processor and GPUs.",
        "HW-3": "The processor's evidence meets every obligation of its technology, with the statement over batch, "
        "keyset, devices, descriptor and validity as REPORT_DATA.",
        "HW-4": "The device evidence is well-formed and covers exactly the GPUs of the descriptor, in its order.",
        "HW-5": "Each GPU's report meets every obligation of GPUs, with the nonce of this batch and keyset.",
        "HW-6": "No two GPUs are the same device: each has its own certificate and its own attestation key.",
        "HW-7": "Tier confidential, and every tier with GPUs, stands on processor and GPUs both; a slice of a GPU has "
        "no evidence of its own.",
    }
)
GPU_ATTACHMENT: Final = "software"


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareRoots:
    """Authorities to trust, for tests and for tools that look at evidence; None stands for the pinned ones."""

    snp: Mapping[SnpProduct, SnpRoots] | None = None
    tdx: Sequence[x509.Certificate] | None = None
    nvidia: NvidiaRoots | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaims:
    """What is proven of one GPU.

    Attributes:
        uuid: by which the measured software names it.
        product: chip.
        device_serial: of the device's certificate: one per chip.
        driver_version: of the driver.
        vbios_version: of the VBIOS.
        mode: how it is attached.
    """

    uuid: str
    product: str
    device_serial: int
    driver_version: str
    vbios_version: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareClaims:
    """What hardware evidence proves.

    Attributes:
        technology: of the processor.
        measurement: of the guest: MEASUREMENT of SEV-SNP, MRTD of TDX.
        machine: CHIP_ID of SEV-SNP, PPID of TDX.
        gpus: in the descriptor's order.
        gpu_attachment: ``software``: the measured software chose these GPUs and bound their reports to its quote; no
            hardware proves that they are attached to this processor (PROTOCOL, binding of CPU and GPU).
        not_after_s: Unix seconds; the first of certificates, lists and documents runs out then.
    """

    technology: Technology
    measurement: bytes
    machine: bytes
    gpus: tuple[GpuClaims, ...]
    gpu_attachment: str = GPU_ATTACHMENT
    not_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Processor:
    measurement: bytes
    machine: bytes
    not_after_s: int


class HardwareVerifier:
    """Verifies hardware evidence to vendors' roots.

    Args:
        collateral: at hand, and the only way to fetch any; each verification uses it under its own policy.
        roots: authorities; the default pins the vendors'. Set by the program that constructs the client, never by a
            peer or a configuration file.
        random_bytes: secure randomness, for the nonces of OCSP.
    """

    highest_tier: Tier = Tier.CONFIDENTIAL

    def __init__(
        self,
        *,
        collateral: CollateralCache,
        roots: HardwareRoots | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._collateral = collateral
        self._roots = roots if roots is not None else HardwareRoots()
        self._random_bytes = random_bytes

    def verify(self, evidence: Evidence, *, binding: Binding, trust_policy: TrustPolicy, now_s: int) -> HardwareClaims:
        """Return what ``evidence`` proves under ``trust_policy``.

        Obligations: HW-1 to HW-7 (:data:`HARDWARE_OBLIGATIONS`), and those of each technology inside HW-3 and HW-5.

        The caller checks: kind, validity, minimum tier, region and model (:func:`bulkhead.attestation.appraise`).

        Raises:
            EvidenceError: an obligation is not met, or collateral is missing, which is named with its source.
            ConnectionFailedError: collateral was to be fetched, and its service did not answer.
        """
        cache = self._collateral.under(trust_policy.collateral)
        part = _processor_part(evidence)  # HW-1
        gpus = _gpu_parts(evidence)  # HW-4
        _check_technologies(part, gpus, trust_policy)  # HW-2
        _check_tier(evidence, gpus)  # HW-7
        processor = self._verify_processor(part, binding.statement, cache, trust_policy, now_s)  # HW-3
        verified = [self._verify_gpu(gpu, binding.gpu_nonce, cache, trust_policy, now_s) for gpu in gpus]  # HW-5
        _check_distinct([gpu for gpu, _ in verified], gpus)  # HW-6
        return HardwareClaims(
            technology=part.technology,
            measurement=processor.measurement,
            machine=processor.machine,
            gpus=tuple(_gpu_claims(part.uuid, gpu) for part, (gpu, _) in zip(gpus, verified, strict=True)),
            not_after_s=min([processor.not_after_s, *(end_s for _, end_s in verified)]),
        )

    def prepare(self, encoded: bytes, *, trust_policy: TrustPolicy) -> None:
        """Find, or fetch where ``trust_policy`` allows it, what verifying ``encoded`` evidence will look for.

        Blocks while services are asked. What is wrong with the evidence, or missing, is said by :meth:`verify`.

        Raises:
            ConnectionFailedError: a service that may be asked did not answer.
        """
        self._look_up(encoded, self._collateral.under(trust_policy.collateral), trust_policy)

    def collateral_for(self, encoded: bytes, *, trust_policy: TrustPolicy) -> tuple[CollateralEntry, ...]:
        """Return the pieces at hand that verifying ``encoded`` evidence looks for; none for other kinds of evidence."""
        found = CarriedCollateral()
        self._look_up(encoded, self._collateral.under(trust_policy.collateral).noting(found), trust_policy)
        return found.entries

    def carrying(self, entries: Iterable[CollateralEntry], *, now_s: int) -> "HardwareVerifier":
        """Return a verifier with the same roots and these pieces alone, by which old evidence is verified offline.

        Args:
            entries: as :meth:`collateral_for` returned them then; untrusted.
            now_s: Unix seconds of the time as of which evidence is verified; copies age until then.
        """
        return HardwareVerifier(
            collateral=self._collateral.carrying(entries, now_s=now_s),
            roots=self._roots,
            random_bytes=self._random_bytes,
        )

    def _look_up(self, encoded: bytes, cache: CollateralCache, trust_policy: TrustPolicy) -> None:
        with contextlib.suppress(EvidenceError):
            evidence = Evidence.parse(encoded)
            if evidence.kind is not EvidenceKind.HARDWARE:
                return
            with contextlib.suppress(EvidenceError):
                _find_for_processor(_processor_part(evidence), cache, trust_policy)
            for part in _gpu_parts(evidence):
                self._complete(part, cache, trust_policy)

    def _complete(self, part: GpuPart, cache: CollateralCache, policy: TrustPolicy) -> GpuCollateral:
        return complete_gpu(
            GpuCollateral(),
            report=parse_report(part.report),
            certificates=part.certificates,
            policy=policy.nvidia,
            cache=cache,
            random_bytes=self._random_bytes,
        )

    def _verify_processor(
        self, part: ProcessorPart, statement: bytes, cache: CollateralCache, policy: TrustPolicy, now_s: int
    ) -> _Processor:
        if part.technology is Technology.TDX:
            return self._verify_tdx(part, statement, cache, policy, now_s)
        return self._verify_snp(part, statement, cache, policy, now_s)

    def _verify_snp(
        self, part: ProcessorPart, statement: bytes, cache: CollateralCache, policy: TrustPolicy, now_s: int
    ) -> _Processor:
        claims = read_snp_report(part.quote)
        certificates, crls = _snp_collateral(part, claims, cache, require_crl=policy.snp.require_crl)
        verified = verify_snp_report(
            part.quote,
            certificates=certificates,
            report_data=statement,
            policy=policy.snp,
            now_s=now_s,
            crls=crls,
            roots=self._roots.snp,
        )
        return _Processor(
            measurement=verified.claims.measurement,
            machine=verified.claims.chip_id,
            not_after_s=verified.not_after_s,
        )

    def _verify_tdx(
        self, part: ProcessorPart, statement: bytes, cache: CollateralCache, policy: TrustPolicy, now_s: int
    ) -> _Processor:
        items = tdx_items(parse_quote(part.quote))
        verified = verify_tdx_quote(
            part.quote,
            collateral=collateral_of(
                tcb_info=cache.find(items.tcb_info),
                qe_identity=cache.find(items.qe_identity),
                pck_crl=cache.find(items.pck_crl),
                root_crl=cache.find(items.root_crl),
            ),
            policy=policy.tdx,
            report_data=statement,
            now_s=now_s,
            roots=self._roots.tdx,
        )
        return _Processor(
            measurement=verified.report.mr_td, machine=verified.platform.ppid, not_after_s=verified.not_after_s
        )

    def _verify_gpu(
        self, part: GpuPart, nonce: bytes, cache: CollateralCache, policy: TrustPolicy, now_s: int
    ) -> tuple[VerifiedGpu, int]:
        collateral = self._complete(part, cache, policy)
        try:
            verified = verify_gpu(
                part.report,
                certificates=part.certificates,
                driver_rim=collateral.driver_rim,
                vbios_rim=collateral.vbios_rim,
                ocsp_responses=collateral.ocsp_responses,
                nonce=nonce,
                policy=policy.nvidia,
                now_s=now_s,
                roots=self._roots.nvidia,
            )
        except EvidenceError as error:
            raise collateral.explain(error) from error
        return verified, end_of_gpu(collateral, part.certificates)


def _find_for_processor(part: ProcessorPart, cache: CollateralCache, policy: TrustPolicy) -> None:
    if part.technology is Technology.SNP:
        _snp_collateral(part, read_snp_report(part.quote), cache, require_crl=policy.snp.require_crl)
        return
    for item in tdx_items(parse_quote(part.quote)):
        with contextlib.suppress(EvidenceError):
            cache.find(item)


def _processor_part(evidence: Evidence) -> ProcessorPart:
    if evidence.signer:
        raise failed("HW-1", "hardware evidence names no signer beside the hardware")
    try:
        return ProcessorPart.parse(evidence.quote)
    except EvidenceError as error:
        raise failed("HW-1", error.message) from error


def _gpu_parts(evidence: Evidence) -> tuple[GpuPart, ...]:
    try:
        gpus = GpuParts.parse(evidence.device).gpus
    except EvidenceError as error:
        raise failed("HW-4", error.message) from error
    if tuple(gpu.uuid for gpu in gpus) != evidence.descriptor.gpus or len({gpu.uuid for gpu in gpus}) != len(gpus):
        raise failed("HW-4", "the device evidence is not of exactly the descriptor's GPUs", EvidenceBindingError)
    return gpus


def _check_technologies(part: ProcessorPart, gpus: Sequence[GpuPart], policy: TrustPolicy) -> None:
    used = {part.technology} | ({Technology.NVIDIA} if gpus else set())
    refused = sorted(technology.value for technology in used - policy.technologies)
    if refused:
        raise failed("HW-2", f"the policy's technologies do not have {', '.join(refused)}", EvidencePolicyError)


def _check_tier(evidence: Evidence, gpus: Sequence[GpuPart]) -> None:
    tier = evidence.descriptor.tier
    if tier is Tier.MIG:
        raise failed("HW-7", "no hardware evidence covers a slice of a GPU")
    if tier is not Tier.PROCESS and not gpus:
        raise failed("HW-7", f"the processor's evidence alone does not show tier {tier.value}: the GPUs' is missing")


def _check_distinct(verified: Sequence[VerifiedGpu], parts: Sequence[GpuPart]) -> None:
    serials = {gpu.device_serial for gpu in verified}
    keys = {_attestation_key(part) for part in parts}
    if len(serials) != len(parts) or len(keys) != len(parts):
        raise failed("HW-6", "two GPUs of the evidence are one device", EvidenceBindingError)


def _attestation_key(part: GpuPart) -> bytes:
    leaf = load_certificates(part.certificates, what="the device's certificates")[0]
    return leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _snp_collateral(
    part: ProcessorPart, claims: SnpReport, cache: CollateralCache, *, require_crl: bool
) -> tuple[Sequence[x509.Certificate], Sequence[x509.CertificateRevocationList]]:
    certificates = read_certificate_table(part.auxiliary) if part.auxiliary else ()
    product = product_of_cpuid(claims.cpuid[0], claims.cpuid[1]) if claims.cpuid is not None else None
    if product is None or claims.signing_key not in {SigningKey.VCEK, SigningKey.VLEK}:
        return certificates, ()  # SNP-2 or SNP-3: said by the verifier
    key = SigningKey(claims.signing_key)
    if not has_endorsement(certificates) and key is SigningKey.VCEK:
        found = cache.find(vcek_item(claims, product)).data
        certificates = (*certificates, *load_certificates(found, what="the VCEK's certificate"))
    item = crl_item(product, key)
    if not (require_crl or cache.has(item) or cache.allows(item)):
        return certificates, ()
    return certificates, load_crls(cache.find(item).data, what="AMD's revocation list")


def _gpu_claims(uuid: str, gpu: VerifiedGpu) -> GpuClaims:
    return GpuClaims(
        uuid=uuid,
        product=gpu.product,
        device_serial=gpu.device_serial,
        driver_version=gpu.report.driver_version,
        vbios_version=gpu.report.vbios_version,
        mode=gpu.report.mode.value,
    )
