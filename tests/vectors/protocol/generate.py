"""Writes the protocol's test vectors beside this file: ``python tests/vectors/protocol/generate.py [NAME...]``.

Binary values are lower-case hexadecimal, texts are texts. HPKE seals with fresh randomness and a P-256 key is made by
OpenSSL, so a new run writes other bytes in ``hpke.json`` and ``exchange.json``; both are for opening and verifying.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from bulkhead.attestation.statement import batch_leaf, batch_path, batch_root, gpu_nonce, statement  # noqa: E402
from bulkhead.protocol.context import Method, RequestInfo, session_context  # noqa: E402
from bulkhead.protocol.envelope import Envelope  # noqa: E402
from bulkhead.protocol.grant import verify_grant  # noqa: E402
from bulkhead.protocol.payloads import (  # noqa: E402
    Delta,
    End,
    GenerateRequest,
    Message,
    Usage,
    encode_generate_request,
    encode_record,
)
from bulkhead.sealing import ChunkSealer, Direction, KemPrivateKey, PaddingMode, WorkerKeys  # noqa: E402
from bulkhead.sealing.padding import pad  # noqa: E402
from bulkhead.sealing.schedule import KeySchedule  # noqa: E402
from tests.simulator.sealed_world import MODEL, MODEL_DIGEST, NOW_S, POLICY_DIGEST, World  # noqa: E402
from tests.vectors.protocol.refusals import refusals  # noqa: E402
from tests.vectors.protocol.totals import totals  # noqa: E402


def hpke():
    """Sealed secrets with the seeds that open them."""
    cases = []
    for number in range(3):
        seed = bytes([number]) * 32
        key = KemPrivateKey(seed)
        info, plaintext = f"info {number}".encode(), bytes([number + 16]) * 32
        cases.append(
            {
                "seed": seed.hex(),
                "public_key": key.public_key.encoded.hex(),
                "info": info.hex(),
                "plaintext": plaintext.hex(),
                "sealed": key.public_key.seal(plaintext, info=info).hex(),
            }
        )
    return cases


def chunks():
    """Chunk streams in both directions and both paddings."""
    cases = []
    for direction in Direction:
        for mode in PaddingMode:
            records = [b"", b"x" * 300] if mode is PaddingMode.STRICT else [b"", b"first", b"x" * 300]
            material = bytes(range(44))
            sealer = ChunkSealer(material, direction)
            sealed = [
                sealer.seal(pad(record, mode, direction), final=place == len(records) - 1)
                for place, record in enumerate(records)
            ]
            cases.append(
                {
                    "key_material": material.hex(),
                    "direction": int(direction),
                    "padding": mode.value,
                    "records": [record.hex() for record in records],
                    "chunks": [chunk.hex() for chunk in sealed],
                }
            )
    return cases


def schedule():
    """Derivations from one request secret."""
    secret, transcript = bytes(range(32)), bytes(range(32, 64))
    digest, worker_random = bytes(range(64, 96)), bytes(range(96, 128))
    keys = KeySchedule(secret, transcript_hash=transcript)
    return {
        "secret": secret.hex(),
        "transcript_hash": transcript.hex(),
        "request_digest": digest.hex(),
        "worker_random": worker_random.hex(),
        "client_to_server": keys.client_to_server().hex(),
        "server_to_client": keys.server_to_client(request_digest=digest, worker_random=worker_random).hex(),
        "commitment": keys.commitment().hex(),
    }


def statements():
    """Session context, batch and statement."""
    world = World()
    context = session_context(
        tenant=world.tenant,
        session=world.session,
        cnf=world.cnf,
        model_digest=MODEL_DIGEST,
        decision_leaf_hash=bytes(32),
        policy_digest=POLICY_DIGEST,
    )
    nonces = [bytes([number]) * 32 for number in range(5)]
    leaves = [batch_leaf(nonce, context) for nonce in nonces]
    root, keyset_digest, device_digest = batch_root(leaves), bytes([7]) * 32, bytes([8]) * 32
    descriptor = world.descriptor().encoded
    return {
        "tenant": world.tenant,
        "session": world.session,
        "cnf": world.cnf.hex(),
        "model_digest": MODEL_DIGEST.hex(),
        "decision_leaf_hash": bytes(32).hex(),
        "policy_digest": POLICY_DIGEST.hex(),
        "session_context": context.hex(),
        "nonces": [nonce.hex() for nonce in nonces],
        "batch_root": root.hex(),
        "paths": [[node.hex() for node in batch_path(leaves, index)] for index in range(len(leaves))],
        "keyset_digest": keyset_digest.hex(),
        "device_digest": device_digest.hex(),
        "descriptor": descriptor.decode(),
        "not_after_s": NOW_S,
        "statement": statement(
            batch_root=root,
            keyset_digest=keyset_digest,
            device_digest=device_digest,
            descriptor=descriptor,
            not_after_s=NOW_S,
        ).hex(),
        "gpu_nonce": gpu_nonce(batch_root=root, keyset_digest=keyset_digest).hex(),
    }


REQUEST_ID = "req_01h455vb4pex5vsknk084sn02q"


class Session:
    """One whole session, with everything that made it."""

    def __init__(self):
        self.world = World(padding=PaddingMode.DEFAULT, rooted=True)
        self.world.keys, self.seed = _known_keys(self.world)
        self.offer = self.world.offer()
        self.grant = verify_grant(
            self.offer, expectation=self.world.expectation(), anchors=self.world.anchors(), now_s=NOW_S
        )
        message = Message(role="user", content="What is the capital of France?")
        request = GenerateRequest(messages=(message,), max_tokens=8, temperature=0.5, priority=-3, timeout_s=30.5)
        self.payload = encode_generate_request(request)
        self.client = self.world.client(self.grant)
        self.sent = self.client.begin(Method.GENERATE, self.payload, now_s=NOW_S, request_id=REQUEST_ID)
        self.served = self.world.make_server().open(self.sent.envelope, now_s=NOW_S)
        for chunk in self.sent.chunks:
            self.served.receive(chunk)
        self.records = [
            Delta(text="The capital of France is", tokens=5),
            Delta(text=" Paris.", tokens=2),
            End(finish_reason="stop", usage=Usage(prompt_tokens=14, completion_tokens=7)),
        ]
        served, (first, second, end) = self.served, self.records
        self.response = [served.send(first), served.send(second), served.end(end)]
        self.receipt = served.make_receipt(ts_us=NOW_S * 10**6)
        self.response.append(served.finish())


def exchange(session):
    """One whole session: decision, evidence, ticket, request, response and receipt, with the secrets that open it."""
    world, grant, offer, sent = session.world, session.grant, session.offer, session.sent
    envelope = Envelope.parse(sent.envelope)
    info = RequestInfo(
        scope=grant.claims.scope, request_id=sent.request_id, sequence=envelope.sequence, method=Method.GENERATE
    )
    return {
        "now_s": NOW_S,
        "tenant": world.tenant,
        "session": world.session,
        "partition": world.partition,
        "open_request_id": world.open_request,
        "model": MODEL,
        "minimum_tier": "process",
        "nonce": world.nonce.hex(),
        "session_key_seed": world.session_key.private_bytes_raw().hex(),
        "cnf": world.cnf.hex(),
        "tenant_root_seed": world.root.private_bytes_raw().hex(),
        "tenant_root": world.tenant_root.hex(),
        "certificate": session.client.certificate.decode(),
        "log_vkey": world.log.vkey,
        "operator_key": world.evidence_issuer.public_key.hex(),
        "ticket_issuer": world.issuer.public_key.hex(),
        "model_digest": MODEL_DIGEST.hex(),
        "policy_digest": POLICY_DIGEST.hex(),
        "decision": {
            "leaf": offer.decision.leaf.decode(),
            "index": offer.decision.index,
            "proof": [node.hex() for node in offer.decision.proof],
            "checkpoint": offer.decision.checkpoint,
        },
        "decision_leaf_hash": grant.decision.leaf_hash.hex(),
        "request_kem_seed": session.seed.hex(),
        "keyset": grant.keyset.encoded.decode(),
        "key_id": grant.keyset.key_id.hex(),
        "worker_certificate": offer.worker_certificate.hex(),
        "evidence": offer.evidence.decode(),
        "evidence_digest": grant.worker.evidence_digest.hex(),
        "authority": world.authority,
        "ticket": grant.ticket,
        "info": info.encoded.hex(),
        "transcript_hash": info.transcript_hash(envelope.sealed_secret).hex(),
        "secret": world.keys.open_request(envelope.sealed_secret, info=info.encoded).hex(),
        "envelope": sent.envelope.hex(),
        "payload": session.payload.decode(),
        "request_chunks": [chunk.hex() for chunk in sent.chunks],
        "worker_random": session.served.worker_random.hex(),
        "records": [encode_record(record).decode() for record in session.records],
        "response_chunks": [chunk.hex() for chunk in session.response],
        "receipt": session.receipt.encode().decode(),
        "receipt_digest": session.receipt.digest.hex(),
        "receipt_fetch_signature": session.client.sign_receipt_fetch(sent.request_id).hex(),
    }


def _known_keys(world):
    """Return keys whose request KEM seed is written down, and that seed."""
    seeds = []

    def recording(size):
        seeds.append(world.random.randbytes(size))
        return seeds[-1]

    keys = WorkerKeys.generate(authority=world.authority, now_s=NOW_S, random_bytes=recording)
    return keys, seeds[0]


def main(wanted):
    """Write the files of those names, or all: ``refusals`` is about the session of ``exchange``, so both or neither.

    Raises:
        ValueError: a name is unknown, or one of the two comes alone.
    """
    session = Session()
    files = {
        "hpke": hpke,
        "chunks": chunks,
        "schedule": schedule,
        "statement": statements,
        "exchange": lambda: exchange(session),
        "refusals": lambda: refusals(session),
        "totals": totals,
    }
    names = set(wanted) or set(files)
    if names - files.keys() or len(names & {"exchange", "refusals"}) == 1:
        raise ValueError(f"write some of {', '.join(files)}; exchange and refusals together")
    for name in sorted(names):
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(files[name](), indent=1, ensure_ascii=False) + "\n")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
