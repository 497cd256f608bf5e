"""A key release without processes: a sealed model, a log with its decision, a worker that boots, a broker."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bulkhead.attestation import (
    AttestationRequest,
    EvidenceKind,
    HardwareVerifier,
    PartitionDescriptor,
    Phase,
    Tier,
    TrustPolicy,
)
from bulkhead.broker import FileFloors, KeyBroker, Nonces, Released
from bulkhead.models import read_manifest
from bulkhead.protocol.release import ReleaseRequest, ReleaseTerms, release_info
from bulkhead.sealing import WorkerKeys
from bulkhead.transparency.merkle import leaf_hash
from tests.simulator.sealed_models import SealedModel, seal
from tests.simulator.sealed_world import ORIGIN, World
from tests.simulator.tiny_model import make_tiny_model

MODEL = "tiny"
SOFTWARE = "bulkhead-worker 0.1.0"


class ReleaseWorld(World):
    """Makes honest requests; a test changes one thing and sees what the broker says.

    Args:
        directory: for the model and the broker's state.
    """

    def __init__(self, directory: Path, **fields: Any) -> None:
        super().__init__(**fields)
        self.directory = directory
        self.monotonic_s = 0.0
        self.sealed = self.seal(1)
        self.development_mode = False
        self.software: frozenset[str] | None = frozenset({SOFTWARE})
        self.policy = TrustPolicy(
            accepted_kinds=frozenset({EvidenceKind.OPERATOR, EvidenceKind.SIMULATED}),
            operator_keys=(self.evidence_issuer.public_key,),
            minimum_tier=Tier.GPU,
        )
        self.broker = self.make_broker()

    def seal(self, version: int) -> SealedModel:
        """Seal the tiny model as ``version``."""
        plain = make_tiny_model(self.directory / "plain")
        return seal(plain, self.directory / f"v{version}", model=MODEL, version=version, keys=self.directory / "keys")

    def make_broker(self, *, development_mode: bool = False, hardware: HardwareVerifier | None = None) -> KeyBroker:
        """Return the broker as a new process, with the floors of the one before."""
        return KeyBroker(
            keks=[self.sealed.kek],
            signers=self.sealed.signers,
            floors=FileFloors(self.directory / "floors.json"),
            nonces=Nonces(monotonic_s=lambda: self.monotonic_s),
            wall_s=lambda: self.now_s,
            software=self.software,
            development_mode=development_mode,
            hardware=hardware,
        )

    def leaf(self, sealed: SealedModel | None = None, **changes: Any) -> bytes:
        """Return the record of a decision that allows the model."""
        digest = (sealed or self.sealed).manifest().model_digest.hex()
        policy_input = {"resource": {"properties": {"model_digest": digest}}}
        return self.decision_leaf(**({"model": MODEL, "policy_input": policy_input} | changes))

    def boot_descriptor(self, **changes: Any) -> PartitionDescriptor:
        """Return what the agent says of a worker that boots."""
        fields = {"phase": Phase.BOOT, "model": MODEL, "model_digest": self.sealed.manifest().model_digest}
        return replace(self.descriptor(), **(fields | changes))

    def request(
        self,
        *,
        sealed: SealedModel | None = None,
        leaf: bytes | None = None,
        nonce: bytes | None = None,
        keys: WorkerKeys | None = None,
        context: bytes | None = None,
        manifest: bytes | None = None,
        edit: Callable[[bytes], bytes] = lambda evidence: evidence,
        **descriptor: Any,
    ) -> ReleaseRequest:
        """Return an honest request, but for what the arguments change."""
        sealed = sealed or self.sealed
        leaf = leaf if leaf is not None else self.leaf(sealed)
        nonce = nonce if nonce is not None else self.broker.challenge()
        (evidence,) = self.evidence_issuer.issue(
            [AttestationRequest(nonce=nonce, context=context or self.terms(sealed, leaf).context)],
            keyset=(keys or self.keys).keyset.encoded,
            descriptor=self.boot_descriptor(**descriptor),
            not_after_s=self.now_s + 600,
        )
        return ReleaseRequest(
            nonce=nonce,
            tenant=self.tenant,
            manifest=manifest or read_manifest(sealed.directory),
            evidence=edit(evidence),
            decision=self.audit_receipt(leaf),
            origin=ORIGIN,
        )

    def terms(self, sealed: SealedModel, leaf: bytes) -> ReleaseTerms:
        """Return what a release of ``sealed`` is about."""
        manifest = sealed.manifest()
        return ReleaseTerms(
            tenant=self.tenant,
            model=MODEL,
            manifest_digest=manifest.digest,
            version=manifest.version,
            decision_leaf_hash=leaf_hash(leaf),
        )

    def release(self, request: ReleaseRequest) -> Released:
        """Ask the broker."""
        return self.broker.release(request, trust_policy=self.policy, log_vkey=self.log.vkey)

    def open(self, released: Released, request: ReleaseRequest, **changes: Any) -> bytes:
        """Open a released key as the worker does, from what it knows itself."""
        manifest = self.sealed.manifest()
        known: dict[str, Any] = {
            "nonce": request.nonce,
            "manifest_digest": manifest.digest,
            "version": manifest.version,
            "evidence_digest": hashlib.sha256(request.evidence).digest(),
            "decision_leaf_hash": leaf_hash(request.decision.leaf),
        }
        return self.keys.open_weights_key(released.sealed_key, info=release_info(**(known | changes)))
