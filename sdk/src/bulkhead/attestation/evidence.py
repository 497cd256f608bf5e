"""The evidence container: RFC 8785 JSON, in which keyset and descriptor stand as objects (docs/protocol.md section 3).

Because the whole is canonical, a part's own canonical bytes are found by encoding the parsed part again.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bulkhead.attestation.descriptor import PartitionDescriptor, read_descriptor
from bulkhead.attestation.statement import MAX_BATCH, MAX_PATH, gpu_nonce, root_from_path, statement
from bulkhead.encoding import b64url_encode, canonical_json, parse_canonical
from bulkhead.errors import EvidenceError
from bulkhead.fields import Fields

__all__ = ["EVIDENCE_VERSION", "MAX_EVIDENCE_BYTES", "Binding", "Evidence", "EvidenceKind", "signed_message"]

EVIDENCE_VERSION: Final = 1
MAX_EVIDENCE_BYTES: Final = 2 * 1024 * 1024  # room for 72 GPU reports of about 20 kB, below gRPC's 4 MiB
MAX_DEVICE_BYTES: Final = 1_500_000
MAX_QUOTE_BYTES: Final = 65_536  # a TDX quote with certificates has about 8 kB
_MAX_KEYSET_BYTES: Final = 8_192


class EvidenceKind(StrEnum):
    """Who vouches: the hardware's vendor, the operator, or nobody (a simulator)."""

    HARDWARE = "hardware"
    OPERATOR = "operator"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What evidence for one caller must show.

    Attributes:
        statement: 64 bytes that the processor, the operator or the simulator signs.
        gpu_nonce: 32 bytes that each GPU's report answers.
    """

    statement: bytes
    gpu_nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Parsed evidence. Nothing in it is trusted before :func:`bulkhead.attestation.appraise`.

    Attributes:
        kind: who vouches.
        index: of the caller's leaf in the batch.
        size: leaves in the batch.
        path: batch path from the leaf up, at most 16 hashes.
        keyset: RFC 8785 bytes of the worker's keyset.
        descriptor: of the partition.
        device: device evidence (:class:`bulkhead.attestation.parts.GpuParts`); empty where there is none.
        not_after_s: Unix seconds, end of validity.
        signer: raw Ed25519 public key (32 bytes) of an operator or simulator; empty for hardware.
        quote: Ed25519 signature (64 bytes) over :func:`signed_message`, or the processor's
            (:class:`bulkhead.attestation.parts.ProcessorPart`).
    """

    kind: EvidenceKind
    index: int
    size: int
    path: tuple[bytes, ...]
    keyset: bytes
    descriptor: PartitionDescriptor
    device: bytes
    not_after_s: int
    signer: bytes
    quote: bytes

    @property
    def keyset_digest(self) -> bytes:
        """SHA-256 of the keyset's encoding."""
        return hashlib.sha256(self.keyset).digest()

    def bind(self, leaf: bytes) -> Binding:
        """Return what must be signed if ``leaf`` (recomputed by the caller) is in the batch.

        Raises:
            EvidenceBindingError: the batch path is malformed.
        """
        batch_root = root_from_path(leaf, index=self.index, size=self.size, path=self.path)
        return Binding(
            statement=statement(
                batch_root=batch_root,
                keyset_digest=self.keyset_digest,
                device_digest=hashlib.sha256(self.device).digest(),
                descriptor=self.descriptor.encoded,
                not_after_s=self.not_after_s,
            ),
            gpu_nonce=gpu_nonce(batch_root=batch_root, keyset_digest=self.keyset_digest),
        )

    def encode(self) -> bytes:
        """Return the container's bytes; its SHA-256 is the evidence digest."""
        return canonical_json(
            {
                "version": EVIDENCE_VERSION,
                "kind": self.kind.value,
                "batch": {"index": self.index, "size": self.size, "path": [node.hex() for node in self.path]},
                "keyset": parse_canonical(self.keyset, max_bytes=_MAX_KEYSET_BYTES, what="keyset"),
                "descriptor": self.descriptor.to_json(),
                "device": b64url_encode(self.device),
                "not_after": self.not_after_s,
                "signer": b64url_encode(self.signer),
                "quote": b64url_encode(self.quote),
            }
        )

    @classmethod
    def parse(cls, encoded: bytes) -> "Evidence":
        """Return the evidence in untrusted bytes.

        Raises:
            EvidenceError: not a canonical container of version 1, or a field out of bounds.
        """
        with Fields.parse(encoded, max_bytes=MAX_EVIDENCE_BYTES, what="evidence", error=EvidenceError) as fields:
            fields.integer("version", low=EVIDENCE_VERSION, high=EVIDENCE_VERSION)
            try:
                kind = EvidenceKind(fields.text("kind"))
            except ValueError as error:
                raise EvidenceError("evidence: unknown kind") from error
            with fields.nested("batch") as batch:
                index = batch.integer("index", high=MAX_BATCH - 1)
                size = batch.integer("size", low=1, high=MAX_BATCH)
                path = batch.digests("path", max_items=MAX_PATH)
            return cls(
                kind=kind,
                index=index,
                size=size,
                path=path,
                keyset=canonical_json(fields.value("keyset")),
                descriptor=read_descriptor(fields.nested("descriptor")),
                device=fields.binary("device", max_bytes=MAX_DEVICE_BYTES),
                not_after_s=fields.integer("not_after", low=1),
                signer=fields.binary("signer", max_bytes=32),
                quote=fields.binary("quote", max_bytes=MAX_QUOTE_BYTES),
            )


def signed_message(kind: EvidenceKind, evidence_statement: bytes) -> bytes:
    """Return what an operator's or simulator's Ed25519 key signs: the kind is part of it."""
    return f"bulkhead/v1 {kind.value} evidence".encode() + evidence_statement
