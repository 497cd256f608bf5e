"""Saved receipts: one file with everything that shows later what a receipt rests on (docs/protocol.md section 7).

The file is RFC 8785 JSON, binary fields unpadded base64url::

    {"version":1, "receipt":…, "signature":…, "answer":{"prompt_tokens":…,"completion_tokens":…} or null,
     "ticket":…, "ticket_issuer":…, "authority":…, "evidence":…, "nonce":…, "worker_certificate":…,
     "model_digest":…, "policy_digest":…,
     "collateral":[{"kind":…,"name":…,"data":…,"chain":…,"fetched_s":…,"source":…}],
     "decision":{"leaf":…,"index":0,"proof":[…],"checkpoint":"…"},
     "log":{"proof":"…","path":[…]} or null}

``receipt`` and the leaves are the exact signed and logged bytes. ``answer`` is what the client itself counted while it
opened the answer. ``log`` holds the `receipts` record that covers the receipt, once one does: a C2SP tlog-proof
(:mod:`bulkhead.transparency.tlog_proof`), with the cosigned round of the platform's log where there is one, and the
path from the receipt to that record. Keys, ticket and evidence have expired when the file is read: it shows what held
at the receipt's time, not what holds now.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from bulkhead.attestation import Tier
from bulkhead.attestation.collateral.kinds import MAX_ENTRY_BYTES, CollateralEntry, CollateralKind
from bulkhead.attestation.evidence import MAX_EVIDENCE_BYTES
from bulkhead.attestation.statement import NONCE_BYTES
from bulkhead.encoding import Json, b64url_encode, canonical_json
from bulkhead.errors import InclusionError, ProofError, ReceiptCountError, ReceiptError, ReceiptTimeError, RecordError
from bulkhead.fields import Fields
from bulkhead.protocol.generate import MAX_TOKENS
from bulkhead.protocol.grant import (
    MAX_CERTIFICATE_BYTES,
    Expectation,
    SessionOffer,
    TrustAnchors,
    VerifiedGrant,
    verify_grant,
)
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import (
    MAX_RECEIPT_BYTES,
    SIGNATURE_BYTES,
    Receipt,
    SignedReceipt,
    check_receipt_claims,
    read_receipt,
    verify_signed_receipt,
)
from bulkhead.protocol.tickets import MAX_TICKET_BYTES, TicketClaims, TicketVerifier
from bulkhead.transparency import AuditReceipt, parse_leaf
from bulkhead.transparency.batches import ReceiptBatch
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.leaf import MAX_LEAF_BYTES
from bulkhead.transparency.merkle import HASH_BYTES, MAX_PROOF_HASHES
from bulkhead.transparency.tlog_proof import ProvenRecord, verify_record_proof

__all__ = [
    "MAX_SAVED_BYTES",
    "LoggedReceipt",
    "ProvenReceipt",
    "PublicPins",
    "SavedReceipt",
    "verify_logged",
    "verify_saved",
]

SAVED_RECEIPT_VERSION: Final = 1
MAX_SAVED_BYTES: Final = 16 * 1024 * 1024  # evidence of 72 GPUs in base64, and collateral of some 100 kB a piece
MAX_COLLATERAL: Final = 256  # a processor's five, and three for each distinct GPU certificate and manifest
MAX_CHECKPOINT_CHARS: Final = 65_536  # a log's own has about 300
MAX_PROOF_CHARS: Final = 1_000_000  # two records, and a checkpoint with a hundred post-quantum cosignatures
CLOCK_SKEW_S: Final = 60  # between worker and control plane, as for tickets
_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedReceipt:
    """Where the log holds a receipt's digest; nothing in it is verified yet.

    Attributes:
        proof: tlog-proof of the `receipts` record.
        path: from the receipt's digest to that record's root, the digest's sibling first.
    """

    proof: str
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedReceipt:
    """A saved receipt as read; trusted only after :func:`verify_saved`.

    Attributes:
        signed: as the worker signed it.
        answer: tokens that the client counted; None where no whole answer came.
        offer: what the session's grant was verified from.
        ticket_issuer: raw Ed25519 public key (32 bytes) of the ticket's issuer.
        nonce: the client's 32 bytes that the evidence answers.
        collateral: what vendors publish and hardware evidence was verified with.
        logged: where the log holds it, if that was asked for.
    """

    signed: SignedReceipt
    answer: Usage | None
    offer: SessionOffer
    ticket_issuer: bytes
    nonce: bytes
    collateral: tuple[CollateralEntry, ...] = ()
    logged: LoggedReceipt | None = None

    def with_log(self, logged: LoggedReceipt) -> "SavedReceipt":
        """Return the same with its place in the log."""
        return replace(self, logged=logged)

    def encode(self) -> bytes:
        """Return the file's bytes."""
        offer = self.offer
        return canonical_json(
            {
                "version": SAVED_RECEIPT_VERSION,
                "receipt": b64url_encode(self.signed.receipt),
                "signature": b64url_encode(self.signed.signature),
                "answer": None
                if self.answer is None
                else {
                    "prompt_tokens": self.answer.prompt_tokens,
                    "completion_tokens": self.answer.completion_tokens,
                },
                "ticket": offer.ticket,
                "ticket_issuer": b64url_encode(self.ticket_issuer),
                "authority": offer.authority,
                "evidence": b64url_encode(offer.evidence),
                "nonce": b64url_encode(self.nonce),
                "worker_certificate": b64url_encode(offer.worker_certificate),
                "model_digest": b64url_encode(offer.model_digest),
                "policy_digest": b64url_encode(offer.policy_digest),
                "collateral": list(map(_entry_json, self.collateral)),
                "decision": _record_json(offer.decision),
                "log": None
                if self.logged is None
                else {
                    "proof": self.logged.proof,
                    "path": [b64url_encode(node) for node in self.logged.path],
                },
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the saved receipt in untrusted bytes.

        Raises:
            ReceiptError: not canonical JSON of that shape, or out of bounds.
        """
        with Fields.parse(data, max_bytes=MAX_SAVED_BYTES, what="saved receipt", error=ReceiptError) as fields:
            fields.integer("version", low=SAVED_RECEIPT_VERSION, high=SAVED_RECEIPT_VERSION)
            signed = SignedReceipt(
                receipt=fields.binary("receipt", max_bytes=MAX_RECEIPT_BYTES),
                signature=fields.binary("signature", max_bytes=SIGNATURE_BYTES, size=SIGNATURE_BYTES),
            )
            return cls(
                signed=signed,
                answer=_read_answer(fields),
                offer=SessionOffer(
                    session=read_receipt(signed.receipt).session,
                    ticket=fields.text("ticket", max_chars=MAX_TICKET_BYTES),
                    authority=fields.text("authority"),
                    worker_certificate=fields.binary("worker_certificate", max_bytes=MAX_CERTIFICATE_BYTES),
                    evidence=fields.binary("evidence", max_bytes=MAX_EVIDENCE_BYTES),
                    decision=_read_record(fields.nested("decision")),
                    model_digest=_read_hash(fields, "model_digest"),
                    policy_digest=_read_hash(fields, "policy_digest"),
                ),
                ticket_issuer=fields.binary("ticket_issuer", max_bytes=32, size=32),
                nonce=fields.binary("nonce", max_bytes=NONCE_BYTES, size=NONCE_BYTES),
                collateral=_read_collateral(fields),
                logged=_read_logged(fields),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenReceipt:
    """A receipt that held at its time. Made by :func:`verify_saved` only.

    Attributes:
        receipt: what the worker stated.
        digest: of the receipt as signed (32 bytes).
        grant: what it rests on, as of the receipt's time; long expired when this is read.
        counted: whether the client's own count of tokens was there to compare.
        logged: the `receipts` record that covers it, with the round and witnesses that were checked; None if the file
            holds none.
    """

    receipt: Receipt
    digest: bytes
    grant: VerifiedGrant
    counted: bool
    logged: ProvenRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicPins:
    """What a reader pins beyond the own tenant's log; nothing of it is needed to verify a receipt.

    Attributes:
        platform_vkey: verifier key of the platform's log, whose rounds commit to every tenant's log.
        witnesses: who may cosign it.
        quorum: how many of them must.
    """

    platform_vkey: str | None = None
    witnesses: tuple[Witness, ...] = ()
    quorum: int = 0


def verify_saved(
    saved: SavedReceipt, *, tenant: str, anchors: TrustAnchors, pins: PublicPins | None = None
) -> ProvenReceipt:
    """Verify a saved receipt as of the time that it names, long after keys and tickets are gone.

    Obligations:
        1. A trusted issuer signed the ticket, and the receipt was made during its life (60 s of skew).
        2. Decision, evidence, keyset and ticket held then, for this tenant (:func:`verify_grant`).
        3. The receipt is of that ticket's session, worker, evidence, model and tier.
        4. Its token counts are those that the client counted, where it did.
        5. The keyset's receipt key signed it.
        6. The `receipts` record, where there is one, is in the tenant's log and covers it (:func:`verify_logged`).

    The caller checks: that the pins in ``anchors`` are those of the receipt's time (an issuer that was rotated out
    since must still be named), and that the log's checkpoint is consistent with later ones.

    Args:
        saved: as read (untrusted).
        tenant: the reader's own tenant.
        anchors: the reader's own pins.
        pins: further ones; given, the file must hold what they are about.

    Raises:
        ReceiptTimeError: 1, another time.
        TicketError: 1, the ticket.
        ProofError, EvidenceError: 2.
        ReceiptModelError, ReceiptTierError, ReceiptDigestError, ReceiptError: 3.
        ReceiptCountError: 4.
        SignatureError: 5.
        ProofError: 6.
    """
    receipt = read_receipt(saved.signed.receipt)
    claims = TicketVerifier(issuer_keys=anchors.ticket_issuers).authenticate(saved.offer.ticket)  # 1
    ts_s = receipt.ts_us // _US_PER_S
    if not claims.issued_at_s - CLOCK_SKEW_S <= ts_s < claims.expires_at_s + CLOCK_SKEW_S:
        raise ReceiptTimeError("the receipt was not made during the life of its ticket")
    then_s = min(max(ts_s, claims.issued_at_s), claims.expires_at_s - 1)
    grant = verify_grant(  # 2
        replace(saved.offer, session=claims.session),
        expectation=_expectation(saved, claims, tenant),
        anchors=_as_of(anchors, saved.collateral, then_s),
        now_s=then_s,
    )
    check_receipt_claims(receipt, grant.claims)  # 3
    if saved.answer is not None and saved.answer != receipt.usage:  # 4
        raise ReceiptCountError("the receipt tells other token counts than the client counted")
    verify_signed_receipt(saved.signed, key=grant.keyset.receipt_key)  # 5
    logged = None
    if saved.logged is not None:
        logged = verify_logged(saved.logged, receipt, saved.signed.digest, log_vkey=anchors.log_vkey, pins=pins)  # 6
    elif pins is not None:
        raise ProofError("the file does not hold where the log has the receipt: bulkhead audit prove --receipt --save")
    return ProvenReceipt(
        receipt=receipt,
        digest=saved.signed.digest,
        grant=grant,
        counted=saved.answer is not None,
        logged=logged,
    )


def verify_logged(
    logged: LoggedReceipt, receipt: Receipt, digest: bytes, *, log_vkey: str, pins: PublicPins | None = None
) -> ProvenRecord:
    """Return the `receipts` record that covers a receipt.

    1. The record is in the log with the pinned key; with further pins, a cosigned round commits to that log.
    2. It speaks of the receipt's tenant, session and partition, and was not made before the receipt.
    3. The path leads from the receipt's digest, at the place of its number, to the record's root.

    Raises:
        ProofError: what does not hold.
    """
    pins = pins or PublicPins()
    proven = verify_record_proof(  # 1
        logged.proof,
        vkey=log_vkey,
        platform_vkey=pins.platform_vkey,
        witnesses=pins.witnesses,
        quorum=pins.quorum,
    )
    fields = proven.leaf.fields
    batch = ReceiptBatch.of(fields)
    of = (fields.tenant, batch.session, batch.partition)
    if of != (receipt.tenant, receipt.session, receipt.partition):  # 2
        raise RecordError("the record in the log is of another session's receipts")
    if fields.ts_us < receipt.ts_us - CLOCK_SKEW_S * _US_PER_S:
        raise RecordError("the record in the log is older than the receipt")
    if receipt.number not in batch.numbers:
        raise InclusionError("the record in the log covers other receipts of the session")
    batch.check_path(number=receipt.number, digest=digest, path=logged.path)  # 3
    return proven


def _as_of(anchors: TrustAnchors, collateral: tuple[CollateralEntry, ...], then_s: int) -> TrustAnchors:
    """Return the anchors with a verifier of hardware evidence that has the collateral of then, and nothing newer."""
    if anchors.hardware is None:
        return anchors
    return replace(anchors, hardware=anchors.hardware.carrying(collateral, now_s=then_s))


def _expectation(saved: SavedReceipt, claims: TicketClaims, tenant: str) -> Expectation:
    """Return what the client of then expected, as far as the file alone can say: the rest is compared with it."""
    return Expectation(
        tenant=tenant,
        request_id=parse_leaf(saved.offer.decision.leaf).cause.request_id,
        model=claims.model,
        minimum_tier=Tier.PROCESS,
        nonce=saved.nonce,
        cnf=claims.cnf,
    )


def _record_json(record: AuditReceipt) -> dict[str, Json]:
    return {
        "leaf": b64url_encode(record.leaf),
        "index": record.index,
        "proof": [b64url_encode(node) for node in record.proof],
        "checkpoint": record.checkpoint,
    }


def _read_record(fields: Fields) -> AuditReceipt:
    with fields:
        return AuditReceipt(
            leaf=fields.binary("leaf", max_bytes=MAX_LEAF_BYTES),
            index=fields.integer("index"),
            proof=_read_hashes(fields, "proof"),
            checkpoint=fields.text("checkpoint", max_chars=MAX_CHECKPOINT_CHARS),
        )


def _entry_json(entry: CollateralEntry) -> dict[str, Json]:
    return {
        "kind": entry.kind.value,
        "name": entry.name,
        "data": b64url_encode(entry.data),
        "chain": b64url_encode(entry.chain),
        "fetched_s": entry.fetched_s,
        "source": entry.source,
    }


def _read_collateral(fields: Fields) -> tuple[CollateralEntry, ...]:
    found = []
    for item in fields.array("collateral", max_items=MAX_COLLATERAL):
        with Fields(item, what="saved receipt: collateral", error=ReceiptError) as entry:
            kind = entry.text("kind")
            if kind not in set(CollateralKind):
                raise entry.wrong("kind", "a kind of collateral that this build knows")
            found.append(
                CollateralEntry(
                    kind=CollateralKind(kind),
                    name=entry.text("name"),
                    data=entry.binary("data", max_bytes=MAX_ENTRY_BYTES),
                    chain=entry.binary("chain", max_bytes=MAX_ENTRY_BYTES),
                    fetched_s=entry.integer("fetched_s"),
                    source=entry.text("source", max_chars=2_048),
                )
            )
    return tuple(found)


def _read_answer(fields: Fields) -> Usage | None:
    if fields.is_null("answer"):
        return None
    with fields.nested("answer") as answer:
        return Usage(
            prompt_tokens=answer.integer("prompt_tokens", high=MAX_TOKENS),
            completion_tokens=answer.integer("completion_tokens", high=MAX_TOKENS),
        )


def _read_logged(fields: Fields) -> LoggedReceipt | None:
    if fields.is_null("log"):
        return None
    with fields.nested("log") as log:
        return LoggedReceipt(proof=log.text("proof", max_chars=MAX_PROOF_CHARS), path=_read_hashes(log, "path"))


def _read_hash(fields: Fields, name: str) -> bytes:
    return fields.binary(name, max_bytes=HASH_BYTES, size=HASH_BYTES)


def _read_hashes(fields: Fields, name: str) -> tuple[bytes, ...]:
    places = fields.array(name, max_items=MAX_PROOF_HASHES)
    by_place = {str(place): node for place, node in enumerate(places)}
    nodes = Fields(by_place, what=f"saved receipt: {name}", error=ReceiptError)
    return tuple(_read_hash(nodes, str(place)) for place in range(len(places)))
