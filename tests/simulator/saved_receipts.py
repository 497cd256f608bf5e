"""Saved receipts of a sealed world: a whole answer as the SDK keeps it, and its place in the log."""

from typing import Any

from audit.records import PlatformReason, Stamp, platform_cause, receipts
from bulkhead.attestation.collateral import CollateralEntry
from bulkhead.ids import RECORD
from bulkhead.protocol.client import Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.grant import TrustAnchors, verify_grant
from bulkhead.protocol.payloads import Delta, End, Usage
from bulkhead.protocol.saved import LoggedReceipt, SavedReceipt
from bulkhead.transparency import receipt_path, receipts_root
from bulkhead.transparency.tlog_proof import write_record_proof
from tests.simulator.sealed_world import NOW_S, World

__all__ = ["NEIGHBOURS", "NOW_US", "USAGE", "logged", "saved_answer"]

USAGE = Usage(prompt_tokens=3, completion_tokens=2)
NOW_US = NOW_S * 1_000_000
NEIGHBOURS = [bytes([number]) * 32 for number in range(4)]


def saved_answer(
    world: World, *, anchors: TrustAnchors | None = None, collateral: tuple[CollateralEntry, ...] = ()
) -> SavedReceipt:
    """Return the saved receipt of a whole answer under a fresh grant, which ``anchors`` (the world's) verify."""
    offer = world.offer()
    grant = verify_grant(offer, expectation=world.expectation(), anchors=anchors or world.anchors(), now_s=world.now_s)
    sent = world.client(grant).begin(Method.GENERATE, b"a prompt", now_s=world.now_s)
    served = world.server.open(sent.envelope, now_s=world.now_s)
    served.receive(sent.chunks[0])
    sent.accept(served.worker_random)
    sent.receive(served.send(Delta(text="Paris", tokens=2)))
    sent.receive(served.end(End(finish_reason="stop", usage=USAGE)))
    served.make_receipt(ts_us=(world.now_s + 7) * 1_000_000)
    done = sent.receive(served.finish())
    if not isinstance(done, Complete):
        raise TypeError("the answer is not whole")
    return SavedReceipt(
        signed=done.signed,
        answer=done.receipt.usage,
        offer=offer,
        ticket_issuer=world.issuer.public_key,
        nonce=world.nonce,
        collateral=collateral,
    )


def logged(
    world: World, saved: SavedReceipt, *, first: int = 1, ts_us: int = 0, place: int = 0, **changes: Any
) -> LoggedReceipt:
    """Return the place of the receipt in a `receipts` record over it and its neighbours."""
    digests = [*NEIGHBOURS[:place], saved.signed.digest, *NEIGHBOURS[place:]]
    fields: dict[str, Any] = {
        "tenant": world.tenant,
        "session": world.session,
        "partition": world.partition,
        "root": receipts_root(digests),
        "first": first,
        "count": len(digests),
        "prompt_tokens": 15,
        "completion_tokens": 10,
    }
    record = receipts(
        Stamp(world.ids(RECORD), ts_us or (world.now_s + 9) * 1_000_000, 0, "writer-1"),
        cause=platform_cause(PlatformReason.SPOOL),
        pair_id="pair-1",
        model="tiny",
        tier="gpu",
        final=False,
        **(fields | changes),
    )
    return LoggedReceipt(proof=write_record_proof(world.audit_receipt(record.leaf)), path=receipt_path(digests, place))
