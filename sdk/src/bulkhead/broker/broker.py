"""The broker's one decision: does this worker get this key? Yes is a sealed key; everything else raises."""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bulkhead.attestation import AppraisedWorker, EvidenceKind, HardwareVerifier, Phase, TrustPolicy, appraise
from bulkhead.broker.nonces import Nonces
from bulkhead.errors import (
    EvidenceBindingError,
    EvidenceExpiredError,
    EvidencePolicyError,
    KeyReleaseError,
)
from bulkhead.models import DataKey, KeyEncryptionKey, SealedManifest, unwrap_key
from bulkhead.protocol.release import ReleaseRequest, ReleaseTerms, release_info
from bulkhead.sealing import KemPublicKey, Keyset
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.receipt import VerifiedLeaf, verify_receipt

__all__ = ["Floors", "KeyBroker", "Released"]

_DECISION: Final = "decision"
_ALLOW: Final = "allow"


class Floors(Protocol):
    """Port: the lowest version of each model whose key is still released."""

    def raise_to(self, model: str, version: int) -> None:
        """Make ``version`` the floor, durably.

        Raises:
            ModelRolledBackError: a higher one was released before.
            KeyBrokerError: it could not be made durable.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A release.

    Attributes:
        sealed_key: HPKE enc, ciphertext and tag: the data key for the worker's weights key alone.
        terms: what it is about.
        kek: id of the key encryption key that unwrapped it.
        worker: to whom.
        evidence_digest: SHA-256 of the evidence.
    """

    sealed_key: bytes
    terms: ReleaseTerms
    kek: tuple[str, ...]
    worker: AppraisedWorker
    evidence_digest: bytes


class KeyBroker:
    """Releases keys. Blocking; safe from any thread.

    Args:
        keks: key encryption keys that unwrap data keys.
        signers: raw Ed25519 public keys that are trusted for models.
        floors: no version below what was released before.
        nonces: of this broker.
        wall_s: Unix seconds.
        software: accepted software of workers, as descriptors name it up to their ``;``; None accepts any that the
            evidence's own measurement rules accept.
        development_mode: whether simulated workers get keys; set by the program that makes the broker, never by a peer.
        hardware: verifies hardware evidence, with the collateral at hand; None has none, so such evidence is refused.
    """

    def __init__(
        self,
        *,
        keks: Sequence[KeyEncryptionKey],
        signers: Sequence[bytes],
        floors: Floors,
        nonces: Nonces,
        wall_s: Callable[[], float],
        software: frozenset[str] | None = None,
        development_mode: bool = False,
        hardware: HardwareVerifier | None = None,
    ) -> None:
        self._keks = tuple(keks)
        self._signers = tuple(signers)
        self._floors = floors
        self._nonces = nonces
        self._wall_s = wall_s
        self._software = software
        self._development_mode = development_mode
        self._hardware = hardware

    def challenge(self) -> bytes:
        """Return a nonce for one release.

        Raises:
            ExhaustedError: too many releases are under way.
        """
        return self._nonces.make()

    def release(self, request: ReleaseRequest, *, trust_policy: TrustPolicy, log_vkey: str) -> Released:
        """Return the key of a sealed model, for the worker whose evidence the request holds.

        Obligations:
            1. The nonce is this broker's, fresh and unused; it is used up whatever comes of the request.
            2. A trusted signer signed the manifest.
            3. The decision stands in the log of ``log_vkey``: an allow for this tenant, model and model digest.
            4. The evidence holds under ``trust_policy`` for the nonce and these terms; simulated in development only.
            5. It is of phase ``boot``, of a partition of this tenant that is to serve this model, and of accepted
               software.
            6. The keyset in it has not ended.
            7. No higher version of the model was released before; from now on none below this one will be.
            8. The unwrapped key is the one that the manifest commits to.

        The caller checks that ``log_vkey`` is the tenant's own log, records the outcome before anything leaves, and
        records refusals.

        Args:
            request: as received (untrusted).
            trust_policy: of whoever runs the broker.
            log_vkey: verifier key of the tenant's audit log.

        Raises:
            EvidenceError: 1, 4, 5 or 6 fails, each with its own class.
            ModelManifestError, ModelSignatureError: 2 fails.
            ProofError, KeyReleaseError: 3 fails.
            ModelRolledBackError: 7 fails.
            ModelKeyError: 8 fails, or no key encryption key here unwraps it.
            KeyBrokerError: the key store or the floors are out of reach.
            ConnectionFailedError: collateral was to be fetched, and its service did not answer.
        """
        self._nonces.claim(request.nonce)  # 1
        manifest = SealedManifest.open(request.manifest, signers=self._signers)  # 2
        decision = verify_receipt(request.decision, vkey=log_vkey, origin=request.origin)
        _check_decision(decision.fields, request.tenant, manifest)  # 3
        terms = _terms(request, manifest, decision)
        if self._hardware is not None and EvidenceKind.HARDWARE in trust_policy.accepted_kinds:
            self._hardware.prepare(request.evidence, trust_policy=trust_policy)
        worker = appraise(  # 4
            request.evidence,
            nonce=request.nonce,
            context=terms.context,
            trust_policy=trust_policy,
            now_s=int(self._wall_s()),
            development_mode=self._development_mode,
            hardware=self._hardware,
        )
        self._check_worker(worker, terms, manifest)  # 5
        weights_kem = self._weights_kem(worker)  # 6
        sealed = self._seal(manifest, terms, request.nonce, worker, weights_kem)  # 7, 8
        return Released(
            sealed_key=sealed,
            terms=terms,
            kek=tuple(item.kek for item in manifest.wrapped),
            worker=worker,
            evidence_digest=worker.evidence_digest,
        )

    def _check_worker(self, worker: AppraisedWorker, terms: ReleaseTerms, manifest: SealedManifest) -> None:
        descriptor = worker.descriptor
        if descriptor.phase is not Phase.BOOT:
            raise EvidenceBindingError("the evidence is of a worker that serves already, not of one that boots")
        expected = (
            ("tenant", descriptor.tenant, terms.tenant),
            ("model", descriptor.model, terms.model),
            ("model digest", descriptor.model_digest, manifest.model_digest),
        )
        for name, shown, wanted in expected:
            if shown != wanted:
                raise EvidenceBindingError(f"the evidence is of another {name} than the key is asked for")
        software = descriptor.software.partition(";")[0].strip()
        if self._software is not None and software not in self._software:
            raise EvidencePolicyError(
                "the worker runs software that gets no keys", details={"software": software[:128]}
            )

    def _weights_kem(self, worker: AppraisedWorker) -> KemPublicKey:
        keyset = Keyset.parse(worker.keyset)
        if self._wall_s() >= keyset.not_after_s:
            raise EvidenceExpiredError("the worker's keys have ended: it must be started anew")
        return KemPublicKey(keyset.keys.weights_kem)

    def _seal(
        self,
        manifest: SealedManifest,
        terms: ReleaseTerms,
        nonce: bytes,
        worker: AppraisedWorker,
        weights_kem: KemPublicKey,
    ) -> bytes:
        key = unwrap_key(manifest, self._keks)
        try:
            DataKey(key).check(manifest.commitment)  # 8
            self._floors.raise_to(manifest.model, manifest.version)  # 7: last, so that a refusal raises no floor
            info = release_info(
                nonce=nonce,
                manifest_digest=terms.manifest_digest,
                version=terms.version,
                evidence_digest=worker.evidence_digest,
                decision_leaf_hash=terms.decision_leaf_hash,
            )
            return weights_kem.seal(bytes(key), info=info)
        finally:
            key[:] = bytes(len(key))


def _check_decision(leaf: LeafFields, tenant: str, manifest: SealedManifest) -> None:
    if leaf.action != _DECISION or leaf.decision != _ALLOW:
        raise KeyReleaseError("the audit record is not an allowed decision", details={"reason": "DECISION"})
    if leaf.tenant != tenant or leaf.model != manifest.model:
        raise KeyReleaseError("the decision is for another tenant or model", details={"reason": "DECISION"})
    if not hmac.compare_digest(_decided_digest(leaf), manifest.model_digest.hex()):
        raise KeyReleaseError("the decision is for another digest of the model", details={"reason": "DECISION"})


def _decided_digest(leaf: LeafFields) -> str:
    """Return the model digest in the policy input of a decision's record, empty where there is none."""
    found: object = leaf.data
    for name in ("input", "resource", "properties", "model_digest"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) and found.isascii() else ""


def _terms(request: ReleaseRequest, manifest: SealedManifest, decision: VerifiedLeaf) -> ReleaseTerms:
    return ReleaseTerms(
        tenant=request.tenant,
        model=manifest.model,
        manifest_digest=manifest.digest,
        version=manifest.version,
        decision_leaf_hash=decision.leaf_hash,
    )
