"""Vectors of what must be refused, each with its code: what the honest vectors beside them would not notice."""

import base64
import copy
import json
from dataclasses import replace

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.records import Decision
from bulkhead.attestation import EvidenceKind, Tier, appraise
from bulkhead.encoding import b64url_encode, canonical_json, lp
from bulkhead.errors import BulkheadError
from bulkhead.protocol.certificates import verify_certificate
from bulkhead.protocol.context import Method, RequestInfo, session_context
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.grant import verify_grant
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import read_receipt, sign_receipt
from bulkhead.sealing import ChunkSealer, Direction, PaddingMode
from bulkhead.sealing.padding import pad, unpad
from tests.simulator.sealed_world import NOW_S, World

__all__ = ["refusals"]

MATERIAL = bytes(range(44))


def refusals(session):
    """Return every refusal, by kind."""
    return {
        "chunks": _chunks(),
        "plaintexts": _plaintexts(),
        "envelopes": _envelopes(session),
        "tickets": _tickets(session),
        "certificates": _certificates(session),
        "roots": _roots(session),
        "evidence": _evidence(session),
        "decisions": _decisions(session),
        "responses": _responses(session),
    }


def _flipped(data, place=-1):
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _chunks():
    """Streams in server direction whose last chunk must not open."""
    sealer = ChunkSealer(MATERIAL, Direction.SERVER_TO_CLIENT)
    one, two, three = (sealer.seal(text) for text in (b"one", b"two", b"three"))
    final = sealer.seal(b"four", final=True)
    other = ChunkSealer(MATERIAL[::-1], Direction.SERVER_TO_CLIENT).seal(b"one")
    back = ChunkSealer(MATERIAL, Direction.CLIENT_TO_SERVER).seal(b"one")
    cases = (
        ("altered", [_flipped(one)], "SEAL_BROKEN"),
        ("altered tag of the second", [one, _flipped(two, 5)], "SEAL_BROKEN"),
        ("reordered", [two], "CHUNK_REORDERED"),
        ("one missing", [one, three], "CHUNK_REORDERED"),
        ("repeated", [one, two, one], "CHUNK_REPEATED"),
        ("cut", [one[:-1]], "SEAL_BROKEN"),
        ("shorter than a tag", [b"\0" * 16], "SEAL_BROKEN"),
        ("made final", [b"\1" + one[1:]], "SEAL_BROKEN"),
        ("made not final", [one, two, three, b"\0" + final[1:]], "SEAL_BROKEN"),
        ("flag of two", [b"\2" + one[1:]], "SEAL_BROKEN"),
        ("after the final chunk", [one, two, three, final, final], "SEAL_BROKEN"),
        ("of another stream", [other], "SEAL_BROKEN"),
        ("of the other direction under the same key", [back], "SEAL_BROKEN"),
    )
    return [
        {"name": name, "key_material": MATERIAL.hex(), "chunks": [chunk.hex() for chunk in chunks], "code": code}
        for name, chunks, code in cases
    ]


def _plaintexts():
    """Plaintexts of response chunks that are no record under their padding."""
    down = Direction.SERVER_TO_CLIENT
    cases = [
        ("no length", PaddingMode.OFF, b"\0\0\0"),
        ("length beyond the end", PaddingMode.OFF, b"\0\0\0\4abc"),
        ("filling under off", PaddingMode.OFF, b"\0\0\0\3abc\0"),
        ("filling that is not zero", PaddingMode.DEFAULT, pad(b"abc", PaddingMode.DEFAULT, down)[:-1] + b"\1"),
        ("no filling under default", PaddingMode.DEFAULT, pad(b"abc", PaddingMode.OFF, down)),
        ("too large a bucket", PaddingMode.DEFAULT, pad(b"abc", PaddingMode.STRICT, down)),
        ("too small a bucket", PaddingMode.STRICT, pad(b"abc", PaddingMode.DEFAULT, down)),
    ]
    return [
        {"name": name, "padding": mode.value, "plaintext": plaintext.hex(), "code": _code(unpad, plaintext, mode, down)}
        for name, mode, plaintext in cases
    ]


def _envelopes(session):
    """Envelopes at the worker of the exchange, which holds its keys and has seen nothing."""
    world, good = session.world, session.sent.envelope
    parsed = Envelope.parse(good)
    other = World(seed=9)

    def resigned(**changes):
        changed = replace(parsed, **changes)
        info = RequestInfo(
            scope=session.grant.claims.scope,
            request_id=changed.request_id,
            sequence=changed.sequence,
            method=changed.method,
        )
        return replace(changed, signature=world.session_key.sign(info.transcript_hash(changed.sealed_secret))).encode()

    def certified(**changes):
        return replace(parsed, certificate=world.certificate(**changes)).encode()

    foreign = world.issuer.issue(replace(session.grant.claims, audience="part-2.example"))
    cases = (
        ("empty", b"", NOW_S),
        ("version 0", b"\0" + good[1:], NOW_S),
        ("version 2", b"\2" + good[1:], NOW_S),
        ("cut", good[:-1], NOW_S),
        ("one byte more", good + b"\0", NOW_S),
        ("too long", good + bytes(4_096), NOW_S),
        ("another request id", replace(parsed, request_id="req_01h455vb4pex5vsknk084sn02r").encode(), NOW_S),
        ("no request id", good.replace(b"req_01h455vb4pex5vsknk084sn02q", b"req_81h455vb4pex5vsknk084sn02q"), NOW_S),
        ("another sequence", replace(parsed, sequence=1).encode(), NOW_S),
        ("unknown method", good.replace(b"generate", b"generare"), NOW_S),
        ("another signature", replace(parsed, signature=bytes(64)).encode(), NOW_S),
        ("another key id", replace(parsed, key_id=bytes(32)).encode(), NOW_S),
        ("ticket for another worker", replace(parsed, ticket=foreign).encode(), NOW_S),
        ("ticket of another issuer", replace(parsed, ticket=other.grant().ticket).encode(), NOW_S),
        ("expired", good, NOW_S + 300),
        ("from the future", good, NOW_S - 61),
        ("sequence moved by the session key itself", resigned(sequence=1), NOW_S),
        ("secret altered by the session key itself", resigned(sealed_secret=_flipped(parsed.sealed_secret)), NOW_S),
        ("no certificate", replace(parsed, certificate=b"").encode(), NOW_S),
        ("too long a certificate", replace(parsed, certificate=bytes(1_025)).encode(), NOW_S),
        ("certificate by another root", certified(root=other.root), NOW_S),
        ("certificate of another session key", certified(cnf=other.cnf), NOW_S),
        ("certificate of another tenant", certified(tenant=other.tenant), NOW_S),
        ("certificate that ended before the ticket", certified(not_after_s=NOW_S + 30), NOW_S + 30),
        ("certificate from the future", certified(not_before_s=NOW_S + 61), NOW_S),
        ("altered certificate", replace(parsed, certificate=_altered(parsed.certificate)).encode(), NOW_S),
        ("ticket for a key that the root did not certify", _invented(session, other), NOW_S),
    )
    unrooted = World()
    known = [(name, envelope, now_s, world) for name, envelope, now_s in cases]
    known.append(("certificate where the tenant has no root", _with_certificate(unrooted), NOW_S, unrooted))
    return [
        {
            "name": name,
            "envelope": envelope.hex(),
            "now_s": now_s,
            "worker": _worker(at) if at is not world else None,
            "code": _code(lambda e, t, w: w.make_server().open(e, now_s=t), envelope, now_s, at),
        }
        for name, envelope, now_s, at in known
    ]


def _worker(world):
    """Return another worker than the exchange's, as far as it refuses before it opens anything."""
    return {
        "authority": world.authority,
        "tenant": world.tenant,
        "partition": world.partition,
        "ticket_issuer": world.issuer.public_key.hex(),
        "keyset": world.keys.keyset.encoded.decode(),
        "tenant_root": world.tenant_root.hex() if world.tenant_root else "",
    }


def _altered(certificate):
    """Return a certificate whose signature was changed in its first character."""
    place = certificate.rindex(b'"signature":"') + len(b'"signature":"')
    return certificate[:place] + (b"B" if certificate[place : place + 1] == b"A" else b"A") + certificate[place + 1 :]


def _invented(session, stranger):
    """Return what an operator can make without the root: a ticket for its own key, with the tenant's certificate."""
    parsed, claims = Envelope.parse(session.sent.envelope), session.grant.claims
    ticket = session.world.issuer.issue(replace(claims, cnf=stranger.cnf))
    info = RequestInfo(scope=claims.scope, request_id=parsed.request_id, sequence=parsed.sequence, method=parsed.method)
    signature = stranger.session_key.sign(info.transcript_hash(parsed.sealed_secret))
    return replace(parsed, ticket=ticket, signature=signature).encode()


def _with_certificate(world):
    sent = world.client().begin(Method.GENERATE, b"{}", now_s=NOW_S)
    return replace(Envelope.parse(sent.envelope), certificate=world.certificate()).encode()


def _certificates(session):
    """Certificates that do not vouch for the exchange's session key."""
    world, other, good = session.world, World(seed=9), session.client.certificate
    inner = json.loads(good)["certificate"]

    def made(**changes):
        said = canonical_json({name: value for name, value in (inner | changes).items() if value is not None})
        signature = b64url_encode(world.root.sign(b"bulkhead/v1 session key" + lp(said)))
        return b'{"certificate":' + said + b',"signature":"' + signature.encode() + b'"}'

    unlabelled = canonical_json(
        {"certificate": inner, "signature": b64url_encode(world.root.sign(canonical_json(inner)))}
    )
    cases = (
        ("empty", b"", NOW_S),
        ("not canonical", json.dumps(json.loads(good)).encode(), NOW_S),
        ("one byte more", good + b" ", NOW_S),
        ("altered signature", _altered(good), NOW_S),
        ("a member more", made(admin=True), NOW_S),
        ("a member less", made(not_before=None), NOW_S),
        ("version 2", made(version=2), NOW_S),
        ("a life of more than a day", made(not_before=NOW_S - 86_400, not_after=NOW_S + 1), NOW_S),
        ("no life", made(not_before=NOW_S, not_after=NOW_S), NOW_S),
        ("number as text", made(not_after=str(NOW_S + 60)), NOW_S),
        ("signed without the label", unlabelled, NOW_S),
        ("by another root", world.certificate(root=other.root), NOW_S),
        ("another root's name under this one's signature", made(root=b64url_encode(bytes(32))), NOW_S),
        ("of another tenant", world.certificate(tenant=other.tenant), NOW_S),
        ("of another session key", world.certificate(cnf=other.cnf), NOW_S),
        ("expired", good, NOW_S + 3_600),
        ("from the future", good, NOW_S - 121),
    )
    return [
        {
            "name": name,
            "certificate": certificate.decode(),
            "now_s": now_s,
            "code": _code(
                lambda c, t: verify_certificate(
                    c, root_fingerprint=world.tenant_root, tenant=world.tenant, cnf=world.cnf, now_s=t
                ),
                certificate,
                now_s,
            ),
        }
        for name, certificate, now_s in cases
    ]


def _roots(session):
    """Workers whose descriptor names another tenant root than the client's own configuration."""
    world, other, leaf = session.world, World(seed=9, rooted=True), session.offer.decision.leaf

    def offered(root):
        return world.offer(leaf=leaf, descriptor=replace(world.descriptor(), tenant_root=root))

    cases = (
        ("the operator's root", offered(other.tenant_root), [world.tenant_root]),
        ("no root", offered(None), [world.tenant_root]),
        ("another root than the pinned two", offered(world.tenant_root), [other.tenant_root, bytes(32)]),
        ("a root where none is configured", offered(world.tenant_root), []),
    )
    return [
        {
            "name": name,
            "evidence": offer.evidence.decode(),
            "ticket": offer.ticket,
            "tenant_roots": [root.hex() for root in roots],
            "code": _code(
                lambda o, r: verify_grant(
                    o,
                    expectation=world.expectation(),
                    anchors=replace(world.anchors(), tenant_roots=r),
                    now_s=NOW_S,
                ),
                offer,
                roots,
            ),
        }
        for name, offer, roots in cases
    ]


def _tickets(session):
    """Tickets that a client refuses before it looks at what they say."""
    world, good = session.world, session.grant.ticket
    head, body, signature = good.split(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    key, kid = world.issuer._key, world.issuer.fingerprint.hex()

    def made(changes=None, key=key, algorithm="EdDSA", **headers):
        claims = {name: value for name, value in (payload | (changes or {})).items() if value is not None}
        return jwt.encode(
            claims, key, algorithm=algorithm, headers={"typ": "bulkhead-ticket+jwt", "kid": kid} | headers
        )

    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    cases = (
        ("no JWT", "ticket", NOW_S),
        ("no signature", f"{head}.{body}.", NOW_S),
        ("altered signature", f"{head}.{body}.{'A' * len(signature)}", NOW_S),
        ("algorithm none", made(key=None, algorithm="none"), NOW_S),
        ("another type", made(typ="JWT"), NOW_S),
        ("another key of the same name", made(key=stranger), NOW_S),
        ("unknown issuer", made(kid="00" * 32), NOW_S),
        ("a header more", made(crit=["exp"]), NOW_S),
        ("a claim more", made({"admin": True}), NOW_S),
        ("a claim less", made({"padding": None}), NOW_S),
        ("unknown padding", made({"padding": "loose"}), NOW_S),
        ("version 2", made({"ver": 2}), NOW_S),
        ("too long a life", made({"exp": payload["iat"] + 901}), NOW_S),
        ("number as text", made({"exp": str(payload["exp"])}), NOW_S),
        ("boolean as number", made({"simulated": 0}), NOW_S),
        ("too long", made({"model": "m" * 4_096}), NOW_S),
        ("expired", good, NOW_S + 300),
        ("from the future", good, NOW_S - 61),
    )
    verifier = world.make_server()._tickets
    return [
        {
            "name": name,
            "ticket": ticket,
            "now_s": now_s,
            "code": _code(lambda t, n: verifier.verify(t, now_s=n, audience=world.authority), ticket, now_s),
        }
        for name, ticket, now_s in cases
    ]


def _evidence(session):
    """Evidence for the exchange's nonce and context that its client refuses."""
    world, good = session.world, session.offer.evidence
    value = json.loads(good)
    context = session_context(
        tenant=world.tenant,
        session=world.session,
        cnf=world.cnf,
        model_digest=session.offer.model_digest,
        decision_leaf_hash=session.grant.decision.leaf_hash,
        policy_digest=session.offer.policy_digest,
    )

    def changed(**members):
        return canonical_json(value | members)

    def kind_of(kind, tier=Tier.GPU):
        other = World(kind=kind, tier=tier)
        other.keys = world.keys
        return other.evidence(session.offer.decision.leaf)

    descriptor = value["descriptor"]
    cases = (
        ("another nonce", good, bytes(32), NOW_S),
        ("not canonical", json.dumps(value).encode(), world.nonce, NOW_S),
        ("a member twice", good.replace(b'"version":1}', b'"version":1,"version":1}'), world.nonce, NOW_S),
        ("a member more", changed(more=1), world.nonce, NOW_S),
        ("version 2", changed(version=2), world.nonce, NOW_S),
        ("unknown kind", changed(kind="promise"), world.nonce, NOW_S),
        ("kind simulated", changed(kind="simulated"), world.nonce, NOW_S),
        ("simulated evidence", kind_of(EvidenceKind.SIMULATED), world.nonce, NOW_S),
        ("another tier", changed(descriptor=descriptor | {"tier": "mig"}), world.nonce, NOW_S),
        ("another partition", changed(descriptor=descriptor | {"partition": "part_x"}), world.nonce, NOW_S),
        ("another end", changed(not_after=NOW_S + 86_000), world.nonce, NOW_S),
        ("a path of another length", changed(batch=value["batch"] | {"path": []}), world.nonce, NOW_S),
        ("another index", changed(batch=value["batch"] | {"index": 0}), world.nonce, NOW_S),
        ("an index beyond the batch", changed(batch=value["batch"] | {"index": 2}), world.nonce, NOW_S),
        ("device evidence added", changed(device="AAAA"), world.nonce, NOW_S),
        ("another signer", changed(signer="A" * 43), world.nonce, NOW_S),
        ("expired", good, world.nonce, NOW_S + 3_600),
    )
    return [
        {
            "name": name,
            "evidence": evidence.decode(),
            "nonce": nonce.hex(),
            "now_s": now_s,
            "code": _code(
                lambda e, n, t: appraise(
                    e, nonce=n, context=context, trust_policy=world.anchors().trust_policy, now_s=t
                ),
                evidence,
                nonce,
                now_s,
            ),
        }
        for name, evidence, nonce, now_s in cases
    ]


def _decisions(session):
    """Audit receipts that do not prove the exchange's decision."""
    world, good = session.world, session.offer.decision
    text, _, signatures = good.checkpoint.rpartition("\n\n")
    other = World(seed=9)
    cases = (
        ("another leaf", replace(good, leaf=good.leaf.replace(b"allow", b"alloy"))),
        ("another index", replace(good, index=0)),
        ("an index beyond the tree", replace(good, index=3)),
        ("a shorter proof", replace(good, proof=good.proof[:-1])),
        ("a longer proof", replace(good, proof=(*good.proof, bytes(32)))),
        ("an altered checkpoint", replace(good, checkpoint=good.checkpoint.replace("\n3\n", "\n4\n"))),
        ("a checkpoint without signature", replace(good, checkpoint=text + "\n\n")),
        ("a checkpoint of another log", other.audit_receipt(good.leaf)),
        ("a second signature that does not hold", replace(good, checkpoint=_second_signature(text, signatures))),
        ("a denial", world.audit_receipt(world.decision_leaf(decision=Decision.DENY))),
        ("of another tenant", world.audit_receipt(world.decision_leaf(tenant=other.tenant))),
        ("of another session", world.audit_receipt(world.decision_leaf(session=other.session))),
        ("of another model", world.audit_receipt(world.decision_leaf(model="other"))),
        ("by another policy", world.audit_receipt(world.decision_leaf(bundle="00" * 32))),
    )
    return [
        {
            "name": name,
            "leaf": receipt.leaf.decode(),
            "index": receipt.index,
            "proof": [node.hex() for node in receipt.proof],
            "checkpoint": receipt.checkpoint,
            "code": _code(
                lambda r: verify_grant(
                    replace(session.offer, decision=r),
                    expectation=world.expectation(),
                    anchors=world.anchors(),
                    now_s=NOW_S,
                ),
                receipt,
            ),
        }
        for name, receipt in cases
    ]


def _second_signature(text, signatures):
    """Return the note with another, altered signature line of the same key before the good one."""
    name, _, encoded = signatures.removeprefix("— ").strip().partition(" ")
    altered = base64.b64encode(_flipped(base64.b64decode(encoded))).decode()
    return f"{text}\n\n— {name} {altered}\n{signatures}"


def _responses(session):
    """Responses to the exchange's request: the code that a client ends with, the receipt's included."""
    good = session.response
    cases = [
        ("empty", []),
        ("cut before the receipt", good[:-1]),
        ("cut before the end", good[:1]),
        ("reordered", [good[1], good[0], *good[2:]]),
        ("repeated", [good[0], good[0], *good[1:]]),
        ("reflected", [session.sent.chunks[0], *good]),
        ("altered", [_flipped(good[0]), *good[1:]]),
        ("after the receipt", [*good, good[-1]]),
    ]
    for name, changes in (
        ("receipt of another request", {"request_id": "req_01h455vb4pex5vsknk084sn02r"}),
        ("receipt of other counts", {"usage": Usage(prompt_tokens=14, completion_tokens=8)}),
        ("receipt of another model", {"model": "other"}),
        ("receipt of another tier", {"tier": Tier.CONFIDENTIAL}),
        ("receipt of another response", {"response_commitment": bytes(32)}),
        ("receipt of another ticket", {"ticket_id": "tick_01h455vb4pex5vsknk084sn02r"}),
    ):
        cases.append((name, _by_the_worker(session, lambda served, c=changes: _signed(served, **c))))
    cases.append(("receipt by another key", _by_the_worker(session, _forged)))
    cases.append(("more after the end", _by_the_worker(session, _more)))
    cases.append(("filling under default padding", _by_the_worker(session, _filling)))
    cases.append(("an end of other counts than its deltas", _by_the_worker(session, None, miscount=True)))
    return [
        {"name": name, "chunks": [chunk.hex() for chunk in chunks], "code": _read(session, chunks)}
        for name, chunks in cases
    ]


def _by_the_worker(session, dishonestly, *, miscount=False):
    """Return a response to the exchange's request, sealed under the exchange's own keys."""
    served = session.world.make_server().open(session.sent.envelope, now_s=NOW_S)
    served.worker_random = session.served.worker_random
    for chunk in session.sent.chunks:
        served.receive(chunk)
    first, second, end = session.records
    chunks = [served.send(first), served.send(second)]
    chunks.append(served.end(replace(end, usage=Usage(prompt_tokens=14, completion_tokens=9)) if miscount else end))
    extra = dishonestly(served) if dishonestly is not None else None
    if extra is not None:
        return [*chunks, extra]
    if served._signed is None:
        served.make_receipt(ts_us=NOW_S * 10**6)
    return [*chunks, served.finish()]


def _signed(served, **changes):
    receipt = read_receipt(served.make_receipt(ts_us=NOW_S * 10**6).receipt)
    served._signed = sign_receipt(replace(receipt, **changes), sign=served._keys.sign_receipt)


def _forged(served):
    signed = served.make_receipt(ts_us=NOW_S * 10**6)
    served._signed = replace(signed, signature=_flipped(signed.signature))


def _more(served):
    record = canonical_json({"type": "delta", "text": "more", "tokens": 1})
    return served._sealer.seal(pad(record, PaddingMode.DEFAULT, Direction.SERVER_TO_CLIENT))


def _filling(served):
    return served._sealer.seal(pad(b"", PaddingMode.DEFAULT, Direction.SERVER_TO_CLIENT))


def _read(session, chunks):
    """Return the code that the SDK's own machine ends with."""
    request = copy.copy(session.sent)
    request._schedule = copy.deepcopy(session.sent._schedule)  # wiped by each reading
    request._state = type(request._state).SENT
    request._opener, request._ended, request._signed, request._received_tokens = None, None, None, 0
    request._response_commitment = type(request._response_commitment)(request._schedule.commitment())

    def read():
        request.accept(session.served.worker_random)
        for chunk in chunks:
            request.receive(chunk)
        request.end_of_stream()

    return _code(read)


def _code(attempt, *arguments):
    try:
        attempt(*arguments)
    except BulkheadError as error:
        return error.code
    raise AssertionError("it was not refused")
