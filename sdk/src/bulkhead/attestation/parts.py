"""The parts of hardware evidence: the processor's quote and the GPUs' reports (docs/protocol.md section 3).

Both are RFC 8785 JSON inside the container's ``quote`` and ``device``. Nothing in them is trusted; what binds them to
each other and to the container is in :mod:`bulkhead.attestation.hardware`.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.policy import Technology
from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import EvidenceError
from bulkhead.fields import Fields

__all__ = ["MAX_GPU_REPORTS", "GpuPart", "GpuParts", "ProcessorPart"]

PARTS_VERSION: Final = 1
MAX_GPU_REPORTS: Final = 72  # an NVL72 rack; a host has 4 to 16
MAX_PROCESSOR_BYTES: Final = 65_536
MAX_PARTS_BYTES: Final = 1_500_000
_MAX_QUOTE_BYTES: Final = 32_768  # TDX quotes have 5 to 8 kB, SEV-SNP reports 1.2
_MAX_AUXILIARY_BYTES: Final = 16_384  # a host's table with VCEK, ASK and ARK has 5 kB
_MAX_REPORT_BYTES: Final = 16_384
_MAX_CHAIN_BYTES: Final = 16_384  # five certificates in PEM have 5 kB
_PROCESSORS: Final = frozenset({Technology.SNP, Technology.TDX})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorPart:
    """What the processor says.

    Attributes:
        technology: SEV-SNP or TDX.
        quote: report or quote, binary.
        auxiliary: what the host gave beside it: for SEV-SNP its table of certificates; may be empty.
    """

    technology: Technology
    quote: bytes
    auxiliary: bytes = b""

    def encode(self) -> bytes:
        """Return the container's ``quote``."""
        return canonical_json(
            {
                "version": PARTS_VERSION,
                "technology": self.technology.value,
                "quote": b64url_encode(self.quote),
                "auxiliary": b64url_encode(self.auxiliary),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "ProcessorPart":
        """Return the part in untrusted bytes.

        Raises:
            EvidenceError: not canonical, out of bounds, or of no processor.
        """
        with Fields.parse(data, max_bytes=MAX_PROCESSOR_BYTES, what="processor's part", error=EvidenceError) as fields:
            fields.integer("version", low=PARTS_VERSION, high=PARTS_VERSION)
            technology = fields.text("technology")
            if technology not in {processor.value for processor in _PROCESSORS}:
                raise fields.wrong("technology", "snp or tdx")
            return cls(
                technology=Technology(technology),
                quote=fields.binary("quote", max_bytes=_MAX_QUOTE_BYTES),
                auxiliary=fields.binary("auxiliary", max_bytes=_MAX_AUXILIARY_BYTES),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPart:
    """What one GPU says.

    Attributes:
        uuid: by which the descriptor names it: the measured software's word, as no report has it.
        report: SPDM report, binary.
        certificates: the device's chain, PEM, leaf first.
    """

    uuid: str
    report: bytes
    certificates: bytes


@dataclass(frozen=True, slots=True)
class GpuParts:
    """What all GPUs of a partition say, in the descriptor's order."""

    gpus: tuple[GpuPart, ...]

    def encode(self) -> bytes:
        """Return the container's ``device``, whose digest the processor's quote covers."""
        return canonical_json(
            {
                "version": PARTS_VERSION,
                "gpus": [
                    {
                        "uuid": gpu.uuid,
                        "report": b64url_encode(gpu.report),
                        "certificates": b64url_encode(gpu.certificates),
                    }
                    for gpu in self.gpus
                ],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "GpuParts":
        """Return the parts in untrusted bytes; no bytes are no GPUs.

        Raises:
            EvidenceError: not canonical, or out of bounds.
        """
        if not data:
            return cls(())
        with Fields.parse(data, max_bytes=MAX_PARTS_BYTES, what="device evidence", error=EvidenceError) as fields:
            fields.integer("version", low=PARTS_VERSION, high=PARTS_VERSION)
            items = fields.array("gpus", max_items=MAX_GPU_REPORTS, min_items=1)
        gpus = []
        for number, item in enumerate(items):
            with Fields(item, what=f"device evidence: GPU {number}", error=EvidenceError) as gpu:
                gpus.append(
                    GpuPart(
                        uuid=gpu.text("uuid"),
                        report=gpu.binary("report", max_bytes=_MAX_REPORT_BYTES),
                        certificates=gpu.binary("certificates", max_bytes=_MAX_CHAIN_BYTES),
                    )
                )
        return cls(tuple(gpus))
