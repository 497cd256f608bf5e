from dataclasses import replace

import pytest

from audit.records import Stamp, log_round
from bulkhead.attestation import Tier
from bulkhead.attestation.collateral import CollateralEntry, CollateralKind
from bulkhead.encoding import canonical_json
from bulkhead.errors import BulkheadError, InclusionError, ProofError, ReceiptError
from bulkhead.ids import RECORD
from bulkhead.protocol.payloads import Usage
from bulkhead.protocol.receipts import SignedReceipt, read_receipt, sign_receipt
from bulkhead.protocol.saved import LoggedReceipt, PublicPins, SavedReceipt, verify_saved
from bulkhead.transparency import (
    AuditReceipt,
    Checkpoint,
    RoundPath,
    sign_checkpoint,
)
from bulkhead.transparency.cosignature import Cosigner
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.rounds import round_leaf
from bulkhead.transparency.tlog_proof import read_record_proof, write_record_proof
from tests.simulator.saved_receipts import NOW_US, USAGE, logged, saved_answer
from tests.simulator.sealed_world import NOW_S, World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def saved(world):
    """A saved receipt of a whole answer, as the SDK writes it."""
    return saved_answer(world)


def check(world, saved):
    """Verify as another process would, from the file's bytes."""
    return verify_saved(SavedReceipt.parse(saved.encode()), tenant=world.tenant, anchors=world.anchors())


def resigned(world, saved, **changes):
    """Return the receipt with changes, signed by the worker's own key."""
    changed = replace(read_receipt(saved.signed.receipt), **changes)
    return replace(saved, signed=sign_receipt(changed, sign=world.keys.sign_receipt))


def edited(saved, **changes):
    """Return the receipt with changes and the signature that it had."""
    changed = replace(read_receipt(saved.signed.receipt), **changes)
    signed = SignedReceipt(receipt=canonical_json(changed.to_json()), signature=saved.signed.signature)
    return replace(saved, signed=signed)


def test_saved_receipt_verifies_from_its_bytes(world, saved):
    """What the SDK wrote is read back the same, and holds although its ticket, evidence and keys are long gone."""
    assert SavedReceipt.parse(saved.encode()) == saved
    proven = check(world, saved)
    assert proven.receipt.usage == USAGE
    assert (proven.receipt.number, proven.counted, proven.logged) == (1, True, None)
    assert proven.digest == saved.signed.digest
    assert proven.grant.decision.fields.action == "decision"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"usage": Usage(prompt_tokens=3, completion_tokens=1)}, "RECEIPT_COUNT"),
        ({"usage": Usage(prompt_tokens=2, completion_tokens=2)}, "RECEIPT_COUNT"),
        ({"model": "another"}, "RECEIPT_MODEL"),
        ({"model_digest": bytes(32)}, "RECEIPT_DIGEST"),
        ({"keyset_digest": bytes(32)}, "RECEIPT_DIGEST"),
        ({"evidence_digest": bytes(32)}, "RECEIPT_DIGEST"),
        ({"tier": Tier.CONFIDENTIAL}, "RECEIPT_TIER"),
        ({"simulated": True}, "RECEIPT_TIER"),
        ({"ts_us": NOW_US - 61_000_000}, "RECEIPT_TIME"),
        ({"ts_us": NOW_US + 360_000_000}, "RECEIPT_TIME"),
        ({"session": "sess_another"}, "RECEIPT_INVALID"),
        ({"tenant": "tenant_another"}, "RECEIPT_INVALID"),
        ({"ticket_id": "tick_another"}, "RECEIPT_INVALID"),
        ({"cnf": bytes(32)}, "RECEIPT_INVALID"),
        ({"partition": "part_another"}, "RECEIPT_INVALID"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("signer", ["nobody", "worker"])
def test_changed_receipt_is_refused_by_name(world, saved, changes, code, signer):
    """A changed count, model, digest, tier or time has its own code, whether or not the worker itself signed it."""
    changed = edited(saved, **changes) if signer == "nobody" else resigned(world, saved, **changes)
    with pytest.raises(BulkheadError) as refused:
        check(world, changed)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "changes",
    [{"transcript_hash": bytes(32)}, {"number": 2}, {"request_commitment": bytes(32)}, {"request_id": "req_other"}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_only_the_signature_covers_needs_it(world, saved, changes):
    """Members that nothing else in the file repeats cannot be changed without the worker's key."""
    with pytest.raises(BulkheadError) as refused:
        check(world, edited(saved, **changes))
    assert refused.value.code == "SIGNATURE_INVALID"


def test_changed_signature_is_refused(world, saved):
    """One flipped bit of the signature, or a signature by another key, is refused by name."""
    signature = bytes([saved.signed.signature[0] ^ 1]) + saved.signed.signature[1:]
    other = sign_receipt(read_receipt(saved.signed.receipt), sign=world.key().sign)
    for signed in (replace(saved.signed, signature=signature), other):
        with pytest.raises(BulkheadError) as refused:
            check(world, replace(saved, signed=signed))
        assert refused.value.code == "SIGNATURE_INVALID"


def test_each_other_part_of_the_file_is_bound(world, saved):
    """Evidence, ticket, nonce, decision, certificate and digests of another session do not pass for this one's."""
    other = World(seed=9)
    foreign = other.offer()
    own = world.offer()  # of the same session, with other evidence and another ticket
    offers = [
        replace(saved.offer, **{name: getattr(offer, name)})
        for offer in (foreign, own)
        for name in ("ticket", "evidence", "decision")
    ]
    offers += [
        replace(saved.offer, worker_certificate=foreign.worker_certificate),
        replace(saved.offer, authority="part-2.tray-1.example"),
        replace(saved.offer, model_digest=bytes(32)),
        replace(saved.offer, policy_digest=bytes(32)),
    ]
    changed = [replace(saved, offer=offer) for offer in offers] + [replace(saved, nonce=bytes(32))]
    for item in changed:
        with pytest.raises(BulkheadError):
            check(world, item)
    with pytest.raises(BulkheadError):
        verify_saved(saved, tenant=other.tenant, anchors=world.anchors())


def test_unpinned_issuer_or_log_proves_nothing(world, saved):
    """A file is verified with the reader's own pins, not with what stands in it."""
    other = World(seed=9)
    for anchors in (
        replace(world.anchors(), ticket_issuers=(other.issuer.public_key,)),
        replace(world.anchors(), log_vkey=other.log.vkey),
        replace(world.anchors(), trust_policy=other.anchors().trust_policy),
    ):
        with pytest.raises(BulkheadError):
            verify_saved(saved, tenant=world.tenant, anchors=anchors)


def test_logged_receipt_is_proven_in_its_record(world, saved):
    """A receipt with its place in a `receipts` record leads to the checkpoint of the pinned log."""
    proven = check(world, saved.with_log(logged(world, saved)))
    assert proven.logged is not None
    assert proven.logged.leaf.fields.action == "receipts"


def test_path_of_another_place_is_refused(world, saved):
    """Receipt 1 is the first of a record that begins with 1: a path to its fourth place does not count."""
    with pytest.raises(InclusionError):
        check(world, saved.with_log(logged(world, saved, place=3)))


def witnessed(world, saved, *, cosigners):
    """Return the receipt's place in the log with a cosigned round of the platform's log over it."""
    platform = NoteSigner.from_seed("audit.example/platform", bytes(32))
    place = logged(world, saved)
    record = read_record_proof(place.proof).receipt
    text = record.checkpoint.partition("\n\n")[0] + "\n"
    leaf = round_leaf(round_number=7, slot=0, salt=b"s" * 32, checkpoint_text=text)
    of_round = log_round(Stamp(world.ids(RECORD), NOW_US, 0, "w"), round_number=7, slots=1, root=leaf_hash(leaf)).leaf
    checkpoint = Checkpoint(platform.verifier.name, 1, leaf_hash(of_round))
    note = sign_checkpoint(checkpoint, platform)
    note += "".join(cosigner.cosign(checkpoint.text(), NOW_S + 12) for cosigner in cosigners)
    path = RoundPath(0, b"s" * 32, text, (), AuditReceipt(of_round, 0, (), note))
    return LoggedReceipt(proof=write_record_proof(record, path), path=place.path), platform.vkey


def test_witnessed_receipt_names_its_witnesses(world, saved):
    """With platform and witness keys pinned, the time by which the receipt was in the log is the witnesses' word."""
    cosigners = [Cosigner.from_seed(f"witness.test/{name}", name.encode() * 32) for name in "ab"]
    place, platform_vkey = witnessed(world, saved, cosigners=cosigners)
    pins = PublicPins(platform_vkey=platform_vkey, witnesses=tuple(one.witness for one in cosigners), quorum=2)
    whole = SavedReceipt.parse(saved.with_log(place).encode())
    proven = verify_saved(whole, tenant=world.tenant, anchors=world.anchors(), pins=pins)
    assert proven.logged is not None
    assert proven.logged.witnesses == (("witness.test/a", NOW_S + 12), ("witness.test/b", NOW_S + 12))
    for wrong in (replace(pins, quorum=3), replace(pins, platform_vkey=world.log.vkey)):
        with pytest.raises(ProofError):
            verify_saved(whole, tenant=world.tenant, anchors=world.anchors(), pins=wrong)
    for lacking in (saved, saved.with_log(logged(world, saved))):
        with pytest.raises(ProofError):
            verify_saved(lacking, tenant=world.tenant, anchors=world.anchors(), pins=pins)


@pytest.mark.parametrize(
    "changes",
    [
        {"first": 2},
        {"root": bytes(32)},
        {"count": 3},
        {"session": "sess_another"},
        {"partition": "part_another"},
        {"tenant": "tenant_another"},
        {"ts_us": NOW_US - 60_000_000},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_record_of_other_receipts_proves_nothing(world, saved, changes):
    """A record of another range, session, tenant, partition or root, or one older than the receipt, is refused."""
    with pytest.raises(BulkheadError):
        check(world, saved.with_log(logged(world, saved, **changes)))


def test_file_that_is_none_is_refused(saved):
    """Anything but the canonical file is a ReceiptError."""
    data = saved.encode()
    for bad in (b"", b"{}", b"[1]", data + b" ", data[:-1], data.replace(b'"version":1', b'"version":2'), b"\xff" * 9):
        with pytest.raises(ReceiptError):
            SavedReceipt.parse(bad)


def test_collateral_of_then_is_carried_along(world, saved):
    """Hardware evidence is verified with the file's own collateral, as of the receipt's time, and nothing newer."""
    entry = CollateralEntry(
        kind=CollateralKind.AMD_CRL, name="genoa", data=b"crl", chain=b"", fetched_s=NOW_S, source="https://kds"
    )
    whole = replace(saved, collateral=(entry,))
    assert SavedReceipt.parse(whole.encode()) == whole
    asked = []

    class Hardware:
        def carrying(self, entries, *, now_s):
            asked.append((tuple(entries), now_s))

    verify_saved(whole, tenant=world.tenant, anchors=replace(world.anchors(), hardware=Hardware()))
    assert asked == [((entry,), NOW_S + 7)]
