"""A whole, consistent session without processes: log, decision, evidence, keys, ticket, both machines.

Everything is made by the real code from a seed, so a test changes one thing and sees which check notices.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from audit.records import Decision, Reason, Stamp, Subject, decision, tenant_cause
from bulkhead.attestation import (
    AttestationRequest,
    EvidenceIssuer,
    EvidenceKind,
    PartitionDescriptor,
    Tier,
    TrustPolicy,
)
from bulkhead.attestation.descriptor import key_fingerprint
from bulkhead.ids import PARTITION, PRINCIPAL, RECORD, REQUEST, SESSION, SUBJECT, TENANT, TICKET, new_id
from bulkhead.protocol.certificates import SessionCertificate, issue_certificate
from bulkhead.protocol.client import ClientSession
from bulkhead.protocol.context import session_context
from bulkhead.protocol.grant import Expectation, SessionOffer, TrustAnchors, VerifiedGrant, verify_grant
from bulkhead.protocol.server import SealedServer
from bulkhead.protocol.tickets import TicketClaims, TicketIssuer, TicketLimits, TicketVerifier
from bulkhead.sealing import PaddingMode, WorkerKeys
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.merkle import inclusion_proof, leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.receipt import AuditReceipt

NOW_S = 1_900_000_000
ORIGIN = "audit.example/t/4f2a/0"
MODEL = "smollm2-135m-instruct"
MODEL_DIGEST = bytes(range(32))
POLICY_DIGEST = bytes(range(32, 64))


@dataclass
class World:
    """One tenant, one worker, one open session; fields may be changed before the methods are called.

    Attributes:
        seed: of all randomness but HPKE's and the TLS key's.
        kind: of evidence.
        tier: of the partition.
        padding: in the ticket.
        now_s: Unix seconds at which everything is made; real TLS needs the real time.
        rooted: whether the tenant has a root, which certifies its session key.
    """

    seed: int = 0
    kind: EvidenceKind = EvidenceKind.OPERATOR
    tier: Tier = Tier.GPU
    padding: PaddingMode = PaddingMode.DEFAULT
    tenant: str = ""
    now_s: int = NOW_S
    revoked: set[str] = field(default_factory=set)
    rooted: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.tenant = self.tenant or self.ids(TENANT)
        self.session, self.partition, self.open_request = self.ids(SESSION), self.ids(PARTITION), self.ids(REQUEST)
        self.session_key = self.key()
        self.issuer = TicketIssuer(key=self.key())
        self.evidence_issuer = EvidenceIssuer(kind=self.kind, key=self.key())
        self.log = NoteSigner.from_seed(ORIGIN, self.random.randbytes(32))
        self.nonce = self.random.randbytes(32)
        self.authority = "part-1.tray-1.example"
        self.keys = WorkerKeys.generate(authority=self.authority, now_s=self.now_s, random_bytes=self.random.randbytes)
        self.root = self.key()
        self.server = self.make_server()

    def ids(self, prefix: str) -> str:
        """Return a fresh TypeID."""
        return new_id(prefix, now_ms=lambda: self.now_s * 1000, random_bytes=self.random.randbytes)

    def key(self) -> Ed25519PrivateKey:
        """Return a fresh key."""
        return Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))

    @property
    def cnf(self) -> bytes:
        """Public session key."""
        return self.session_key.public_key().public_bytes_raw()

    @property
    def tenant_root(self) -> bytes | None:
        """Fingerprint of the tenant's root, if it has one."""
        return key_fingerprint(self.root.public_key().public_bytes_raw()) if self.rooted else None

    def certificate(self, *, root: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
        """Return the session key's certificate by ``root`` (None: the tenant's), with ``changes`` to what it says."""
        key = root or self.root
        said = SessionCertificate(
            tenant=self.tenant,
            root=key.public_key().public_bytes_raw(),
            cnf=self.cnf,
            not_before_s=self.now_s - 60,
            not_after_s=self.now_s + 3_600,
        )
        return issue_certificate(replace(said, **changes), sign=key.sign)

    def make_server(self) -> SealedServer:
        """Return the worker's machine."""
        return SealedServer(
            authority=self.authority,
            tenant=self.tenant,
            partition=self.partition,
            model_digest=MODEL_DIGEST,
            tickets=TicketVerifier(issuer_keys=[self.issuer.public_key]),
            keys=self.keys,
            is_revoked=lambda claims: claims.session in self.revoked,
            tenant_root=self.tenant_root,
            random_bytes=self.random.randbytes,
        )

    def descriptor(self) -> PartitionDescriptor:
        """Return what the agent says of the partition."""
        return PartitionDescriptor(
            partition=self.partition,
            tenant=self.tenant,
            tier=self.tier,
            simulated=self.kind is EvidenceKind.SIMULATED,
            region="eu-central",
            rack="rack-1",
            tray="tray-1",
            agent="agent-1",
            gpus=("GPU-6a1c",),
            memory_mib=1024,
            ticket_issuers=(self.issuer.fingerprint,),
            model=MODEL,
            model_digest=MODEL_DIGEST,
            software="bulkhead-worker 0.1.0",
            tenant_root=self.tenant_root,
        )

    def decision_leaf(self, **changes: Any) -> bytes:
        """Return the leaf of the decision that allowed the session, with ``changes`` to its arguments."""
        arguments: dict[str, Any] = {
            "tenant": self.tenant,
            "subject": Subject(self.ids(SUBJECT), ("developer",)),
            "cause": tenant_cause(credential=self.ids(PRINCIPAL), request_id=self.open_request),
            "session": self.session,
            "pair_id": "pair-1",
            "model": MODEL,
            "tier": self.tier.value,
            "decision": Decision.ALLOW,
            "reasons": [Reason("ALLOWED", "tenancy", "The tenant may use the model.")],
            "bundle": POLICY_DIGEST.hex(),
            "policy_input": {},
        }
        return decision(Stamp(self.ids(RECORD), self.now_s * 10**6, 0, "writer-1"), **(arguments | changes)).leaf

    def audit_receipt(self, leaf: bytes) -> AuditReceipt:
        """Return a receipt for ``leaf`` in a log of three records."""
        hashes = [leaf_hash(b"first"), leaf_hash(leaf), leaf_hash(b"third")]
        proof = inclusion_proof(1, 3, lambda level, at: tree_root(hashes[at << level : (at + 1) << level]))
        note = sign_checkpoint(Checkpoint(ORIGIN, 3, tree_root(hashes)), self.log)
        return AuditReceipt(leaf, 1, tuple(proof), note)

    def claims(self, *, evidence_digest: bytes, decision_leaf_hash: bytes) -> TicketClaims:
        """Return the claims of an honest ticket."""
        return TicketClaims(
            ticket_id=self.ids(TICKET),
            audience=self.authority,
            tenant=self.tenant,
            session=self.session,
            cnf=self.cnf,
            partition=self.partition,
            tier=self.tier,
            simulated=self.kind is EvidenceKind.SIMULATED,
            model=MODEL,
            model_digest=MODEL_DIGEST,
            limits=TicketLimits(max_tokens=256, max_concurrent_requests=8),
            padding=self.padding,
            keyset_digest=self.keys.key_id,
            evidence_digest=evidence_digest,
            decision_leaf_hash=decision_leaf_hash,
            issued_at_s=self.now_s,
            expires_at_s=self.now_s + 300,
        )

    def evidence(self, leaf: bytes, descriptor: PartitionDescriptor | None = None) -> bytes:
        """Return evidence for this session's nonce and context, from a batch of two."""
        context = session_context(
            tenant=self.tenant,
            session=self.session,
            cnf=self.cnf,
            model_digest=MODEL_DIGEST,
            decision_leaf_hash=leaf_hash(leaf),
            policy_digest=POLICY_DIGEST,
        )
        requests = [
            AttestationRequest(nonce=self.random.randbytes(32), context=b"someone else"),
            AttestationRequest(nonce=self.nonce, context=context),
        ]
        return self.vouch(requests, descriptor or self.descriptor(), not_after_s=self.now_s + 3600)

    def vouch(
        self, requests: Sequence[AttestationRequest], descriptor: PartitionDescriptor, *, not_after_s: int
    ) -> bytes:
        """Return the evidence of a batch for its last request."""
        return self.evidence_issuer.issue(
            requests, keyset=self.keys.keyset.encoded, descriptor=descriptor, not_after_s=not_after_s
        )[-1]

    def offer(
        self,
        *,
        leaf: bytes | None = None,
        descriptor: PartitionDescriptor | None = None,
        **claim_changes: Any,
    ) -> SessionOffer:
        """Return what the control plane would hand out, with changes for tests."""
        leaf = leaf if leaf is not None else self.decision_leaf()
        evidence = self.evidence(leaf, descriptor)
        claims = self.claims(evidence_digest=hashlib.sha256(evidence).digest(), decision_leaf_hash=leaf_hash(leaf))
        certificate = x509.load_pem_x509_certificate(self.keys.tls_certificate)
        return SessionOffer(
            session=self.session,
            ticket=self.issuer.issue(replace(claims, **claim_changes)),
            authority=self.authority,
            worker_certificate=certificate.public_bytes(Encoding.DER),
            evidence=evidence,
            decision=self.audit_receipt(leaf),
            model_digest=MODEL_DIGEST,
            policy_digest=POLICY_DIGEST,
        )

    def expectation(self) -> Expectation:
        """Return what the client knows by itself."""
        return Expectation(
            tenant=self.tenant,
            request_id=self.open_request,
            model=MODEL,
            minimum_tier=Tier.PROCESS,
            nonce=self.nonce,
            cnf=self.cnf,
        )

    def anchors(self) -> TrustAnchors:
        """Return the client's configuration."""
        simulated = self.kind is EvidenceKind.SIMULATED
        return TrustAnchors(
            log_vkey=self.log.vkey,
            ticket_issuers=(self.issuer.public_key,),
            trust_policy=TrustPolicy(
                accepted_kinds=frozenset({self.kind}),
                operator_keys=(self.evidence_issuer.public_key,),
                minimum_tier=Tier.PROCESS,
            ),
            development_mode=simulated,
            tenant_roots=() if self.tenant_root is None else (self.tenant_root,),
        )

    def grant(self, **claim_changes: Any) -> VerifiedGrant:
        """Return the verified grant."""
        return verify_grant(
            self.offer(**claim_changes),
            expectation=self.expectation(),
            anchors=self.anchors(),
            now_s=self.now_s,
        )

    def client(self, grant: VerifiedGrant | None = None) -> ClientSession:
        """Return the client's machine."""
        return ClientSession(
            grant=grant or self.grant(),
            session_key=self.session_key,
            certificate=self.certificate() if self.rooted else b"",
            random_bytes=self.random.randbytes,
        )
