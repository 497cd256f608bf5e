"""What an agent's evidence says of a partition."""

import hashlib
from typing import Final

from bulkhead.attestation import PartitionDescriptor, Phase
from bulkhead.attestation.descriptor import key_fingerprint
from data_plane.ports import TrayInventory
from data_plane.session.messages import WorkerBooted, WorkerReady
from data_plane.session.partition import Partition

__all__ = ["describe_partition", "evidence_digest"]

MAX_SOFTWARE_CHARS: Final = 256  # of the descriptor's texts


def describe_partition(
    partition: Partition, *, said: WorkerReady | WorkerBooted, inventory: TrayInventory, agent_id: str, software: str
) -> PartitionDescriptor:
    """Return the descriptor of a partition whose worker said that it listens, or that it waits for its model's key.

    Its software names the confinements that the worker reported to hold.
    """
    return PartitionDescriptor(
        partition=partition.partition_id,
        tenant=partition.spec.tenant_id,
        tier=partition.spec.tier,
        simulated=inventory.simulated,
        region=inventory.region,
        rack=inventory.rack,
        tray=str(inventory.tray),
        agent=agent_id,
        gpus=partition.assignment.device_uuids,
        memory_mib=partition.assignment.memory_mib,
        ticket_issuers=tuple(key_fingerprint(key) for key in partition.ticket_issuers),
        tenant_root=partition.tenant_root,
        model=partition.model_name,
        model_digest=said.model_digest,
        software=f"{software}; sandbox: {' '.join(said.sandbox)}"[:MAX_SOFTWARE_CHARS],
        phase=Phase.SERVING if isinstance(said, WorkerReady) else Phase.BOOT,
    )


def evidence_digest(evidence: bytes) -> bytes:
    """Return the digest (32 bytes) by which tickets name encoded evidence."""
    return hashlib.sha256(evidence).digest()
