"""The partition descriptor: what a worker's evidence says about where and for whom it runs.

Every value comes from the node agent that created the partition; evidence signs it, so a tenant that trusts the
signer (or, on hardware, the measured software) may compare it with what was promised.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bulkhead.attestation.tiers import Tier
from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import EvidenceError
from bulkhead.fields import Fields

__all__ = ["DESCRIPTOR_VERSION", "PartitionDescriptor", "Phase", "key_fingerprint", "read_descriptor"]

DESCRIPTOR_VERSION: Final = 1
MAX_GPUS: Final = 576  # eight NVL72 racks; MIG instances never exceed seven per GPU of one partition's few
MAX_TICKET_ISSUERS: Final = 4  # rotation needs two


class Phase(StrEnum):
    """What the worker is ready for: ``boot`` may receive model keys, ``serving`` holds the model it names."""

    BOOT = "boot"
    SERVING = "serving"


def key_fingerprint(public_key: bytes) -> bytes:
    """Return SHA-256 of a raw (32-byte) Ed25519 public key: how a ticket issuer or tenant root is named."""
    return hashlib.sha256(public_key).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionDescriptor:
    """One partition, as evidence describes it.

    Attributes:
        partition: partition id.
        tenant: tenant id; a partition serves one tenant.
        tier: isolation tier of the partition.
        simulated: whether any part of it is simulated.
        phase: ``serving`` for every worker that takes requests.
        region: where it stands, as policy names regions.
        rack: rack name.
        tray: compute tray's name in the rack.
        agent: id of the node agent.
        gpus: UUIDs of exactly the GPUs (or MIG instances) assigned; empty at tier ``process`` without a GPU.
        memory_mib: accelerator memory assigned, or host memory at tier ``process``.
        ticket_issuers: fingerprints (32 bytes each) of the keys whose tickets the worker takes; one to four.
        tenant_root: fingerprint of the tenant's root key, or None where the tenant has none.
        model: name of the model served.
        model_digest: SHA-256 of the model's manifest, computed by the worker.
        software: name and version of the worker's software.
    """

    partition: str
    tenant: str
    tier: Tier
    simulated: bool
    region: str
    rack: str
    tray: str
    agent: str
    gpus: tuple[str, ...]
    memory_mib: int
    ticket_issuers: tuple[bytes, ...]
    model: str
    model_digest: bytes
    software: str
    phase: Phase = Phase.SERVING
    tenant_root: bytes | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON object that is signed (as RFC 8785)."""
        return {
            "version": DESCRIPTOR_VERSION,
            "partition": self.partition,
            "tenant": self.tenant,
            "tier": self.tier.value,
            "simulated": self.simulated,
            "phase": self.phase.value,
            "region": self.region,
            "rack": self.rack,
            "tray": self.tray,
            "agent": self.agent,
            "gpus": list(self.gpus),
            "memory_mib": self.memory_mib,
            "ticket_issuers": [fingerprint.hex() for fingerprint in self.ticket_issuers],
            "tenant_root": self.tenant_root.hex() if self.tenant_root is not None else None,
            "model": self.model,
            "model_digest": self.model_digest.hex(),
            "software": self.software,
        }

    @property
    def encoded(self) -> bytes:
        """The RFC 8785 bytes, as they enter the statement."""
        return canonical_json(self.to_json())


def read_descriptor(fields: Fields) -> PartitionDescriptor:
    """Return the descriptor in ``fields`` (untrusted).

    Raises:
        EvidenceError: a field is missing, unknown, of another type or out of bounds.
    """
    with fields:
        fields.integer("version", low=DESCRIPTOR_VERSION, high=DESCRIPTOR_VERSION)
        tenant_root = None if fields.is_null("tenant_root") else fields.digest("tenant_root")
        try:
            tier, phase = Tier(fields.text("tier")), Phase(fields.text("phase"))
        except ValueError as error:
            raise EvidenceError("partition descriptor: unknown tier or phase") from error
        return PartitionDescriptor(
            partition=fields.text("partition"),
            tenant=fields.text("tenant"),
            tier=tier,
            simulated=fields.boolean("simulated"),
            phase=phase,
            region=fields.text("region"),
            rack=fields.text("rack"),
            tray=fields.text("tray"),
            agent=fields.text("agent"),
            gpus=fields.texts("gpus", max_items=MAX_GPUS),
            memory_mib=fields.integer("memory_mib"),
            ticket_issuers=fields.digests("ticket_issuers", max_items=MAX_TICKET_ISSUERS, min_items=1),
            tenant_root=tenant_root,
            model=fields.text("model"),
            model_digest=fields.digest("model_digest"),
            software=fields.text("software"),
        )
