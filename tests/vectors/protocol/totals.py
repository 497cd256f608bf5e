"""Vectors of a session's totals under strict padding: records of usage beside the receipts that a tenant keeps."""

import hashlib
from dataclasses import replace

from audit.records import PlatformReason, Stamp, platform_cause, receipts
from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import BulkheadError
from bulkhead.ids import RECORD
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import Delta, End, GenerateRequest, Message, Usage, encode_generate_request
from bulkhead.protocol.receipts import SignedReceipt, read_receipt
from bulkhead.sealing import PaddingMode
from bulkhead.transparency import ReceiptBatch, ReceiptEntry, check_usage, parse_leaf, receipts_root
from bulkhead.transparency.totals import SessionTotal
from tests.simulator.sealed_world import MODEL, NOW_S, World

__all__ = ["entry_of", "totals"]

LABEL = b"bulkhead/v1 session usage"
COUNTS = ((14, 3), (20, 0), (9, 31), (400, 7), (1, 1))  # prompt and completion tokens of one request each
LAST_PLAIN = 1  # the first receipt is of a ticket without strict padding
FIRST_TOTAL = 4  # its number; the other's is 7


def entry_of(kept):
    """Return what counts of a kept receipt of the vectors."""
    signed = SignedReceipt.parse(kept["receipt"].encode())
    said = read_receipt(signed.receipt)
    return ReceiptEntry(
        session=said.session,
        partition=said.partition,
        number=said.number,
        digest=signed.digest,
        prompt_tokens=said.usage.prompt_tokens,
        completion_tokens=said.usage.completion_tokens,
        in_total=kept["padding"] == PaddingMode.STRICT.value,
    )


def totals():
    """Return one session's receipts and totals, and records that state its usage honestly and otherwise."""
    made = _Session()
    return {
        "session": made.world.session,
        "partition": made.world.partition,
        "receipt_key": b64url_encode(made.world.keys.keyset.keys.receipt),
        "receipts": made.kept,
        "totals": [
            {"number": number, "said": _said(total).decode(), "digest": total.digest.hex()}
            for number, total in sorted(made.totals.items())
        ],
        "accepted": _accepted(made),
        "refused": _refused(made),
    }


class _Session:
    """A session whose ticket became strict after its first request: receipts 1 to 3, 5 and 6, totals 4 and 7."""

    def __init__(self):
        self.world = World(seed=5)
        self.kept = []
        client = self.world.client()
        for place, (prompt, completion) in enumerate(COUNTS, start=1):
            if place == LAST_PLAIN + 1:
                client = self.world.client(self.world.grant(padding=PaddingMode.STRICT))
            if place == FIRST_TOTAL:
                self.world.server.next_receipt_number(self.world.session)
            self.kept.append(self._ask(client, prompt, completion))
        self.entries = {entry.number: entry for entry in map(entry_of, self.kept)}
        self.totals = {4: self.total(4, (2, 3)), 7: self.total(7, (5, 6))}

    def _ask(self, client, prompt, completion):
        request = GenerateRequest(messages=(Message(role="user", content="How much?"),), max_tokens=64)
        sent = client.begin(
            Method.GENERATE, encode_generate_request(request), now_s=NOW_S, request_id=self.world.ids("req")
        )
        served = self.world.server.open(sent.envelope, now_s=NOW_S)
        for chunk in sent.chunks:
            served.receive(chunk)
        if completion:
            served.send(Delta(text="so much", tokens=completion))
        served.end(End(finish_reason="stop", usage=Usage(prompt_tokens=prompt, completion_tokens=completion)))
        signed = served.make_receipt(ts_us=NOW_S * 10**6)
        return {"receipt": signed.encode().decode(), "padding": client.grant.claims.padding.value}

    def total(self, number, of, **changes):
        """Return the total of receipts, with changes to what it says."""
        honest = SessionTotal(
            session=self.world.session,
            partition=self.world.partition,
            number=number,
            receipts=len(of),
            prompt_tokens=sum(self.entries[place].prompt_tokens for place in of),
            completion_tokens=sum(self.entries[place].completion_tokens for place in of),
        )
        return replace(honest, **changes)

    def record(self, *items, **changes):
        """Return the leaf of a record over receipts (by number) and totals (as they are), with changes to its data."""
        told = [self.totals.get(item, item) for item in items]
        covered = [self.entries[item] if isinstance(item, int) else item for item in told]
        stated = [item for item in covered if not getattr(item, "in_total", False)]
        said = {
            "root": receipts_root([item.digest for item in covered]),
            "first": covered[0].number,
            "count": len(covered),
            "prompt_tokens": sum(item.prompt_tokens for item in stated),
            "completion_tokens": sum(item.completion_tokens for item in stated),
            "final": False,
            "session": self.world.session,
            "partition": self.world.partition,
        }
        return receipts(
            Stamp(self.world.ids(RECORD), NOW_S * 10**6, 0, "writer-1"),
            tenant=self.world.tenant,
            cause=platform_cause(PlatformReason.SPOOL),
            pair_id="pair-1",
            model=MODEL,
            tier="gpu",
            **(said | changes),
        ).leaf


def _accepted(made):
    record, every = made.record, range(1, 6)
    cases = (
        ("nothing recorded yet", [], every),
        ("told one by one", [record(1)], every),
        ("strict, before any total", [record(1, 2), record(3)], every),
        ("a total in a record of its own", [record(1, 2, 3), record(4)], every),
        ("a total behind its receipts in one record", [record(1, 2, 3, 4)], every),
        ("a total before later receipts in one record", [record(1, 2, 3), record(4, 5, 6)], every),
        ("two totals", [record(1, 2, 3, 4), record(5, 6), record(7)], every),
        ("two totals in one record", [record(1, 2, 3, 4, 5, 6, 7)], every),
        ("records out of order", [record(7), record(4, 5, 6), record(1, 2, 3)], every),
    )
    return [_case(made, name, records, kept) for name, records, kept in cases]


def _refused(made):
    record, total, every = made.record, made.total, range(1, 6)
    strict = record(1, 2, 3)
    unlabelled = replace(made.entries[1], number=4, digest=hashlib.sha256(_said(total(4, (2, 3)))).digest())
    newer = _said(total(4, (2, 3))).replace(b'"version":1', b'"version":2')
    versioned = replace(unlabelled, digest=hashlib.sha256(LABEL + newer).digest())
    honest = {"prompt_tokens": 29, "completion_tokens": 31}
    cases = [
        ("more completion tokens", [strict, record(total(4, (2, 3), completion_tokens=32))]),
        ("more prompt tokens", [strict, record(total(4, (2, 3), prompt_tokens=30))]),
        ("fewer tokens", [strict, record(total(4, (2, 3), completion_tokens=30))]),
        ("of more receipts", [strict, record(total(4, (2, 3), receipts=3))]),
        ("of a receipt less", [strict, record(total(4, (2,)))]),
        ("with the receipt told one by one", [strict, record(total(4, (1, 2, 3)))]),
        ("of what an earlier total has", [record(1, 2, 3, 4), record(5, 6), record(total(7, (2, 3, 5, 6)))]),
        ("under another number", [strict, record(total(5, (2, 3)), first=4)]),
        ("of another session", [strict, record(total(4, (2, 3), session="sess_01h455vb4pex5vsknk084sn02r"))]),
        ("of another partition", [strict, record(total(4, (2, 3), partition="part_01h455vb4pex5vsknk084sn02r"))]),
        ("a second total of the same receipts", [record(1, 2, 3, 4), record(5, 6, 7), record(total(8, (5, 6)))]),
        ("an empty total", [record(1, 2, 3, 4, 5, 6, 7), record(total(8, ()))]),
        ("without its label", [strict, record(unlabelled, **honest)]),
        ("of another version", [strict, record(versioned, **honest)]),
        ("a record of more than its total", [strict, record(4, completion_tokens=32)]),
        ("a record of less than its total", [strict, record(4, prompt_tokens=0, completion_tokens=0)]),
        ("strict receipts told one by one", [record(2, 3, **honest)]),
        ("told one by one and in total", [record(1, 2, 3, prompt_tokens=43, completion_tokens=34), record(4)]),
        ("the total twice", [strict, record(4), record(4)]),
        ("a receipt twice", [strict, record(3, 4)]),
        ("another root", [strict, record(4, root=bytes(32))]),
        ("another session's record", [record(1, session="sess_01h455vb4pex5vsknk084sn02r")]),
        ("another partition's record", [record(1, partition="part_01h455vb4pex5vsknk084sn02r")]),
        ("a receipt of a total was lost", [strict, record(4)], (1, 3, 4, 5)),
        ("a later receipt of a total was lost", [record(1, 2, 3, 4), record(7)], (1, 2, 3, 5)),
    ]
    good = record(4)
    malformed = [
        ("a record of another action", good.replace(b'"action":"receipts"', b'"action":"outcome"')),
        ("a record of no receipts", good.replace(b'"count":1', b'"count":0')),
        ("a record of too many receipts", good.replace(b'"count":1', b'"count":1025')),
        ("a record from number 0", good.replace(b'"first":4', b'"first":0')),
        ("a record with a fraction of a token", good.replace(b'"prompt_tokens":29', b'"prompt_tokens":29.5')),
        ("a record with negative tokens", good.replace(b'"prompt_tokens":29', b'"prompt_tokens":-29')),
        ("a record with an unknown member", good.replace(b'"prompt_tokens":29', b'"prompt_tokens":29,"sum":1')),
        ("a record without tokens", good.replace(b',"prompt_tokens":29', b"")),
        ("a record that is no canonical JSON", good.replace(b'"count":1', b'"count": 1')),
    ]
    cases += [(name, [strict, leaf]) for name, leaf in malformed]
    return [_case(made, name, records, *(kept or [every]), refused=True) for name, records, *kept in cases]


def _case(made, name, records, kept, *, refused=False):
    """Return a case with what our own check says of it. ``kept``: places among the receipts, from 1."""
    case = {"name": name, "kept": [place - 1 for place in kept], "records": [leaf.decode() for leaf in records]}
    entries = [entry_of(made.kept[place]) for place in case["kept"]]
    try:
        report = check_usage([ReceiptBatch.of(parse_leaf(leaf)) for leaf in records], entries)
    except BulkheadError as error:
        if not refused:
            raise
        return case | {"code": error.code}
    if refused:
        raise AssertionError(name)
    return case | {
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "unrecorded": [entry.number for entry in report.unrecorded],
        "untold": [entry.number for entry in report.untold],
    }


def _said(total):
    return canonical_json(
        {
            "version": 1,
            "session": total.session,
            "partition": total.partition,
            "number": total.number,
            "receipts": total.receipts,
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": total.completion_tokens,
        }
    )
