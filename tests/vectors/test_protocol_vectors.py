import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bulkhead.attestation import EvidenceKind, Tier, TrustPolicy, appraise
from bulkhead.attestation.statement import batch_leaf, batch_root, gpu_nonce, root_from_path, statement
from bulkhead.encoding import lp, lp_join
from bulkhead.errors import BulkheadError, CertificateError, SealError, TicketError
from bulkhead.protocol.certificates import verify_certificate
from bulkhead.protocol.context import session_context
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.payloads import parse_generate_request, parse_record
from bulkhead.protocol.receipts import SignedReceipt, verify_signed_receipt
from bulkhead.protocol.tickets import TicketVerifier
from bulkhead.sealing import ChunkOpener, ChunkSealer, Direction, KemPrivateKey, Keyset, PaddingMode
from bulkhead.sealing.padding import pad, unpad
from bulkhead.sealing.schedule import KeySchedule
from bulkhead.transparency import ReceiptBatch, check_usage, parse_leaf
from bulkhead.transparency.receipt import AuditReceipt, verify_receipt
from bulkhead.transparency.totals import SessionTotal
from tests.vectors.protocol.totals import entry_of

HERE = Path(__file__).parent / "protocol"


def load(name):
    return json.loads((HERE / f"{name}.json").read_text())


def raw(value):
    return bytes.fromhex(value)


def opened(opener, chunks, direction):
    return [unpad(opener.open(raw(chunk))[0], PaddingMode.DEFAULT, direction) for chunk in chunks]


@pytest.mark.parametrize("case", load("hpke"), ids=lambda case: case["info"])
def test_hpke_vectors_open(case):
    """A recorded seed gives the recorded public key and opens the recorded secret."""
    key = KemPrivateKey(raw(case["seed"]))
    assert key.public_key.encoded == raw(case["public_key"])
    assert key.open(raw(case["sealed"]), info=raw(case["info"])) == raw(case["plaintext"])


@pytest.mark.parametrize("case", load("chunks"), ids=lambda case: f"{case['direction']}-{case['padding']}")
def test_chunk_vectors(case):
    """Chunks are deterministic: they open to the records, and the records seal to them."""
    material, direction, mode = raw(case["key_material"]), Direction(case["direction"]), PaddingMode(case["padding"])
    opener, sealer = ChunkOpener(material, direction), ChunkSealer(material, direction)
    for place, (record, chunk) in enumerate(zip(case["records"], case["chunks"], strict=True)):
        final = place == len(case["chunks"]) - 1
        plaintext, flag = opener.open(raw(chunk))
        assert (unpad(plaintext, mode, direction), flag) == (raw(record), final)
        assert sealer.seal(pad(raw(record), mode, direction), final=final) == raw(chunk)


def test_schedule_vectors():
    """The three derivations give the recorded keys."""
    case = load("schedule")
    keys = KeySchedule(raw(case["secret"]), transcript_hash=raw(case["transcript_hash"]))
    assert keys.client_to_server() == raw(case["client_to_server"])
    assert keys.commitment() == raw(case["commitment"])
    assert keys.server_to_client(
        request_digest=raw(case["request_digest"]), worker_random=raw(case["worker_random"])
    ) == raw(case["server_to_client"])


def test_statement_vectors():
    """Session context, batch root, paths, statement and GPU nonce are the recorded ones."""
    case = load("statement")
    context = session_context(
        tenant=case["tenant"],
        session=case["session"],
        cnf=raw(case["cnf"]),
        model_digest=raw(case["model_digest"]),
        decision_leaf_hash=raw(case["decision_leaf_hash"]),
        policy_digest=raw(case["policy_digest"]),
    )
    assert context == raw(case["session_context"])
    leaves = [batch_leaf(raw(nonce), context) for nonce in case["nonces"]]
    assert batch_root(leaves) == raw(case["batch_root"])
    for index, (leaf, path) in enumerate(zip(leaves, case["paths"], strict=True)):
        root = root_from_path(leaf, index=index, size=len(leaves), path=[raw(node) for node in path])
        assert root == raw(case["batch_root"])
    keyset_digest = raw(case["keyset_digest"])
    assert statement(
        batch_root=batch_root(leaves),
        keyset_digest=keyset_digest,
        device_digest=raw(case["device_digest"]),
        descriptor=case["descriptor"].encode(),
        not_after_s=case["not_after_s"],
    ) == raw(case["statement"])
    assert gpu_nonce(batch_root=batch_root(leaves), keyset_digest=keyset_digest) == raw(case["gpu_nonce"])


@pytest.fixture(scope="module")
def case():
    return load("exchange")


@pytest.fixture(scope="module")
def claims(case):
    verifier = TicketVerifier(issuer_keys=[raw(case["ticket_issuer"])])
    return verifier.verify(case["ticket"], now_s=case["now_s"], audience=case["authority"])


class TestExchange:
    def test_keyset_and_evidence(self, case, claims):
        """The evidence holds for nonce and context, and vouches for the keyset that ticket and key id name."""
        context = session_context(
            tenant=claims.tenant,
            session=claims.session,
            cnf=claims.cnf,
            model_digest=claims.model_digest,
            decision_leaf_hash=raw(case["decision_leaf_hash"]),
            policy_digest=raw(case["policy_digest"]),
        )
        worker = appraise(
            case["evidence"].encode(),
            nonce=raw(case["nonce"]),
            context=context,
            trust_policy=TrustPolicy(
                accepted_kinds=frozenset({EvidenceKind.OPERATOR}),
                operator_keys=(raw(case["operator_key"]),),
                minimum_tier=Tier.GPU,
            ),
            now_s=case["now_s"],
        )
        assert worker.keyset == case["keyset"].encode()
        assert Keyset.parse(worker.keyset).key_id == raw(case["key_id"]) == claims.keyset_digest
        assert worker.evidence_digest == raw(case["evidence_digest"]) == claims.evidence_digest

    def test_request(self, case, claims):
        """Info, transcript, signature and secret follow from ticket and envelope; the chunks open to the payload."""
        envelope = Envelope.parse(raw(case["envelope"]))
        info = lp_join(
            b"bulkhead/v1 request",
            raw(case["key_id"]),
            claims.tenant.encode(),
            claims.session.encode(),
            envelope.request_id.encode(),
            envelope.sequence.to_bytes(8, "big"),
            claims.model_digest,
            b"generate",
            claims.evidence_digest,
            claims.decision_leaf_hash,
        )
        assert info == raw(case["info"])
        transcript = hashlib.sha256(lp(info) + lp(envelope.sealed_secret)).digest()
        assert transcript == raw(case["transcript_hash"])
        Ed25519PublicKey.from_public_bytes(claims.cnf).verify(envelope.signature, transcript)
        key = KemPrivateKey(raw(case["request_kem_seed"]))
        assert key.public_key.encoded == Keyset.parse(case["keyset"].encode()).keys.request_kem
        secret = key.open(envelope.sealed_secret, info=info)
        assert secret == raw(case["secret"])
        opener = ChunkOpener(
            KeySchedule(secret, transcript_hash=transcript).client_to_server(), Direction.CLIENT_TO_SERVER
        )
        payload = b"".join(opened(opener, case["request_chunks"], Direction.CLIENT_TO_SERVER))
        assert opener.closed
        assert payload == case["payload"].encode()
        assert parse_generate_request(payload).messages[0].content == "What is the capital of France?"

    def test_response_and_receipt(self, case):
        """The response opens to the records and the receipt, whose signature and commitments hold."""
        keys = KeySchedule(raw(case["secret"]), transcript_hash=raw(case["transcript_hash"]))
        digest = hashlib.sha256(b"".join(lp(raw(chunk)) for chunk in case["request_chunks"])).digest()
        material = keys.server_to_client(request_digest=digest, worker_random=raw(case["worker_random"]))
        opener = ChunkOpener(material, Direction.SERVER_TO_CLIENT)
        *records, receipt = opened(opener, case["response_chunks"], Direction.SERVER_TO_CLIENT)
        assert opener.closed
        assert [record.decode() for record in records] == case["records"]
        assert all(parse_record(record) for record in records)
        assert receipt == case["receipt"].encode()
        signed = SignedReceipt.parse(receipt)
        assert signed.digest == hashlib.sha256(receipt).digest() == raw(case["receipt_digest"])
        verified = verify_signed_receipt(signed, key=Keyset.parse(case["keyset"].encode()).receipt_key)
        commitment = keys.commitment()
        assert verified.request_commitment == hmac.digest(commitment, case["payload"].encode(), "sha256")
        said = b"".join(lp(record) for record in records)
        assert verified.response_commitment == hmac.digest(commitment, said, "sha256")

    def test_decision_and_receipt_fetch(self, case, claims):
        """The decision's audit receipt holds under the log's key, and the session key signs a receipt's fetch."""
        decision = case["decision"]
        receipt = AuditReceipt(
            decision["leaf"].encode(), decision["index"], tuple(map(raw, decision["proof"])), decision["checkpoint"]
        )
        verified = verify_receipt(receipt, vkey=case["log_vkey"], origin=case["log_vkey"].partition("+")[0])
        assert verified.leaf_hash == raw(case["decision_leaf_hash"]) == claims.decision_leaf_hash
        assert verified.fields.cause.request_id == case["open_request_id"]
        message = b"bulkhead/v1 fetch receipt" + lp_join(
            case["tenant"].encode(), case["session"].encode(), b"req_01h455vb4pex5vsknk084sn02q"
        )
        Ed25519PublicKey.from_public_bytes(raw(case["cnf"])).verify(raw(case["receipt_fetch_signature"]), message)


def test_refusals_are_of_every_kind():
    """The vectors hold what the Go client must refuse, and more than one code of it."""
    made = load("refusals")
    assert set(made) == {
        "chunks", "plaintexts", "envelopes", "tickets", "certificates", "roots", "evidence", "decisions", "responses",
    }  # fmt: skip
    assert all(len(cases) >= 4 for cases in made.values())


@pytest.mark.parametrize("case", load("refusals")["chunks"], ids=lambda case: case["name"])
def test_refused_chunks(case):
    """Every chunk but the last opens, and the last is refused with its code."""
    opener = ChunkOpener(raw(case["key_material"]), Direction.SERVER_TO_CLIENT)
    *good, bad = case["chunks"]
    for chunk in good:
        opener.open(raw(chunk))
    with pytest.raises(SealError) as caught:
        opener.open(raw(bad))
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("refused", load("refusals")["tickets"], ids=lambda refused: refused["name"])
def test_refused_tickets(case, refused):
    """Tickets of the vectors are refused with their codes."""
    verifier = TicketVerifier(issuer_keys=[raw(case["ticket_issuer"])])
    with pytest.raises(TicketError) as caught:
        verifier.verify(refused["ticket"], now_s=refused["now_s"], audience=case["authority"])
    assert caught.value.code == refused["code"]


def test_certificate(case, claims):
    """The session key's certificate is by the recorded root, whose fingerprint the descriptor names."""
    root = Ed25519PrivateKey.from_private_bytes(raw(case["tenant_root_seed"])).public_key().public_bytes_raw()
    assert hashlib.sha256(root).digest() == raw(case["tenant_root"])
    assert json.loads(case["evidence"])["descriptor"]["tenant_root"] == case["tenant_root"]
    certificate = Envelope.parse(raw(case["envelope"])).certificate
    assert certificate == case["certificate"].encode()
    found = verify_certificate(
        certificate,
        root_fingerprint=raw(case["tenant_root"]),
        tenant=claims.tenant,
        cnf=claims.cnf,
        now_s=case["now_s"],
    )
    assert found.root == root
    value = json.loads(case["certificate"])
    signed = b"bulkhead/v1 session key" + lp(json.dumps(value["certificate"], separators=(",", ":")).encode())
    signature = base64.urlsafe_b64decode(value["signature"] + "==")
    Ed25519PublicKey.from_public_bytes(root).verify(signature, signed)


@pytest.mark.parametrize("refused", load("refusals")["certificates"], ids=lambda refused: refused["name"])
def test_refused_certificates(case, refused):
    """Certificates of the vectors are refused with their codes."""
    with pytest.raises(CertificateError) as caught:
        verify_certificate(
            refused["certificate"].encode(),
            root_fingerprint=raw(case["tenant_root"]),
            tenant=case["tenant"],
            cnf=raw(case["cnf"]),
            now_s=refused["now_s"],
        )
    assert caught.value.code == refused["code"]


@pytest.fixture(scope="module")
def usage():
    return load("totals")


def checked(usage, case):
    """Return the report of our own check over a case of the vectors."""
    batches = [ReceiptBatch.of(parse_leaf(leaf.encode())) for leaf in case["records"]]
    return check_usage(batches, [entry_of(usage["receipts"][place]) for place in case["kept"]])


def test_totals(usage):
    """Receipts are the worker's, and a total's digest is over the label and what it says of those it sums up."""
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(usage["receipt_key"] + "="))
    strict = {}
    for kept in usage["receipts"]:
        said = verify_signed_receipt(SignedReceipt.parse(kept["receipt"].encode()), key=key)
        assert (said.session, said.partition) == (usage["session"], usage["partition"])
        if kept["padding"] == "strict":
            strict[said.number] = said.usage
    told = 0
    for total in usage["totals"]:
        said = json.loads(total["said"])
        assert hashlib.sha256(b"bulkhead/v1 session usage" + total["said"].encode()).hexdigest() == total["digest"]
        assert said.pop("version") == 1
        assert SessionTotal(**said).digest == raw(total["digest"])
        summed = [counts for number, counts in strict.items() if told < number < total["number"]]
        told = total["number"]
        assert said == {
            "session": usage["session"],
            "partition": usage["partition"],
            "number": total["number"],
            "receipts": len(summed),
            "prompt_tokens": sum(counts.prompt_tokens for counts in summed),
            "completion_tokens": sum(counts.completion_tokens for counts in summed),
        }
    assert told > max(strict)


@pytest.mark.parametrize("accepted", load("totals")["accepted"], ids=lambda accepted: accepted["name"])
def test_accepted_usage(usage, accepted):
    """Records of the vectors state what the receipts show, and what they do not state yet is named."""
    report = checked(usage, accepted)
    assert (report.prompt_tokens, report.completion_tokens) == (
        accepted["prompt_tokens"],
        accepted["completion_tokens"],
    )
    assert [entry.number for entry in report.unrecorded] == accepted["unrecorded"]
    assert [entry.number for entry in report.untold] == accepted["untold"]


@pytest.mark.parametrize("refused", load("totals")["refused"], ids=lambda refused: refused["name"])
def test_refused_usage(usage, refused):
    """Records of the vectors that state other usage, or are malformed, are refused with their codes."""
    with pytest.raises(BulkheadError) as caught:
        checked(usage, refused)
    assert caught.value.code == refused["code"]
