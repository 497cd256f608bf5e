import io
import json

import pytest

from audit.records import log_opened
from bulkhead.encoding import b64encode
from bulkhead.errors import BulkheadError, CheckpointError, ConsistencyError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.export import ExportWriter, VerifiedExport, verify_export
from bulkhead.transparency.merkle import Frontier, leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner
from tests.simulator.audit_world import OTHER, TENANT, decision, stamper

ORIGIN, SECOND = "audit.test/t/a/1", "audit.test/t/b/1"
SIGNER, SIGNER2 = (NoteSigner.from_seed(name, bytes(range(32))) for name in (ORIGIN, SECOND))


def leaves(tenant: str, origin: str, count: int) -> list[bytes]:
    """Return a log's leaves: the opening and decisions."""
    first = log_opened(stamper().stamp(), tenant=tenant, origin=origin, epoch=1, slot=0)
    return [first.leaf, *(decision(tenant=tenant, number=n).leaf for n in range(count - 1))]


FOREIGN = NoteSigner.from_seed(ORIGIN, bytes(32))
LEAVES, LEAVES2 = leaves(TENANT, ORIGIN, 12), leaves(OTHER, SECOND, 3)


def note(items: list[bytes], signer: NoteSigner = SIGNER) -> str:
    return sign_checkpoint(
        Checkpoint(signer.verifier.name, len(items), tree_root(leaf_hash(item) for item in items)), signer
    )


def lines(*, at: tuple[int, ...] = (4, 9), first: int = 0) -> list[dict]:
    """Return an export of both logs as parsed lines, with checkpoints after the sizes ``at``."""
    stream = io.BytesIO()
    writer = ExportWriter(stream)
    before = Frontier().extend(leaf_hash(item) for item in LEAVES[:first])
    writer.begin_log(origin=ORIGIN, tenant=TENANT, vkey=SIGNER.vkey, before=before)
    for index, item in enumerate(LEAVES):
        if index >= first:
            writer.record(index, item, leaf_hash(item))
            if index + 1 in at:
                writer.checkpoint(note(LEAVES[: index + 1]))
    writer.end_log(note(LEAVES))
    writer.begin_log(origin=SECOND, tenant=OTHER, vkey=SIGNER2.vkey)
    for index, item in enumerate(LEAVES2):
        writer.record(index, item, leaf_hash(item))
    writer.end_log(note(LEAVES2, SIGNER2))
    writer.end()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def verify(items: list[dict], **options) -> VerifiedExport:
    data = b"".join(json.dumps(item).encode() + b"\n" for item in items)
    return verify_export(io.BytesIO(data), **({"vkeys": [SIGNER.vkey, SIGNER2.vkey]} | options))


def test_an_export_verifies():
    """Every record of every log is covered by a checkpoint under a pinned key."""
    found = verify(lines())
    assert [(log.origin, log.tenant, log.records, log.checkpoints) for log in found.logs] == [
        (ORIGIN, TENANT, 12, 3),
        (SECOND, OTHER, 3, 1),
    ]
    assert found.records == 15


def test_a_part_of_a_log_verifies():
    """An export from a later record on carries the frontier before it and verifies against the same checkpoint."""
    found = verify(lines(first=7))
    assert (found.logs[0].first, found.logs[0].records) == (7, 5)
    moved = lines(first=7)
    moved[1]["frontier"][0] = b64encode(bytes(32))
    with pytest.raises(ConsistencyError):
        verify(moved)


def test_progress_counts_records():
    """The callback learns how many records have been verified."""
    seen: list[int] = []
    verify(lines(), progress=seen.append)
    assert seen == [15]


def test_the_first_bad_record_is_named():
    """A changed record is named by origin, index and id, whichever it is."""
    for index in range(12):
        items = lines()
        target = next(item for item in items if item["type"] == "record" and item["index"] == index)
        target["leaf"] = target["leaf"].replace("ts_us", "ts_uS", 1)
        with pytest.raises(RecordError) as caught:
            verify(items)
        assert caught.value.details["index"] == str(index)
        assert caught.value.details["origin"] == ORIGIN


def test_a_consistent_forgery_is_named_between_checkpoints():
    """A record changed together with its hash is found by the next checkpoint; the range in doubt is named."""
    for index in range(1, 12):
        items = lines()
        target = next(item for item in items if item["type"] == "record" and item["index"] == index)
        forged = decision(number=99).leaf
        target |= {"leaf": forged.decode(), "hash": b64encode(leaf_hash(forged))}
        with pytest.raises(ConsistencyError) as caught:
            verify(items)
        details = caught.value.details
        assert int(details["first"]) <= index <= int(details["last"])
        assert (details["first"], details["last"]) in {("0", "3"), ("4", "8"), ("9", "11")}


def record(items: list[dict], index: int) -> int:
    """Return the line of the first log's record at ``index``."""
    return next(at for at, item in enumerate(items) if item["type"] == "record" and item["index"] == index)


def end(items: list[dict]) -> dict:
    """Return the first log's last line."""
    return next(item for item in items if item["type"] == "log-end")


def drop(items: list[dict]) -> None:
    del items[record(items, 5)]


def swap(items: list[dict]) -> None:
    at = record(items, 5)
    items[at], items[at + 1] = items[at + 1], items[at]


def drop_last(items: list[dict]) -> None:
    del items[record(items, 11)]


def graft(items: list[dict]) -> None:
    items[record(items, 5)] |= {"leaf": LEAVES2[1].decode(), "hash": b64encode(leaf_hash(LEAVES2[1]))}


def rewind(items: list[dict]) -> None:
    """Leave the last record out and give an honest checkpoint of the rest: only the counts are wrong."""
    del items[record(items, 11)]
    end(items)["note"] = note(LEAVES[:11])


def twice(items: list[dict]) -> None:
    items[-1:] = [*items[1:-1], {"type": "end", "logs": 4, "records": 30}]


EDITS = [
    ("dropped", drop, RecordError),
    ("swapped", swap, RecordError),
    ("last dropped", drop_last, ConsistencyError),
    ("another tenant's", graft, RecordError),
    ("rewound", rewind, ProofError),
    ("another key", lambda items: end(items).update(note=note(LEAVES, FOREIGN)), CheckpointError),
    ("another log's checkpoint", lambda items: end(items).update(note=note(LEAVES, SIGNER2)), CheckpointError),
    ("another tenant's name", lambda items: items[1].update(tenant=OTHER), RecordError),
    ("the same log twice", twice, ProofError),
    ("no end", lambda items: items.pop(), ProofError),
    ("after the end", lambda items: items.append({"type": "end"}), ProofError),
    ("no log end", lambda items: items.pop(-2), ProofError),
    ("wrong counts", lambda items: items[-1].update(records=14), ProofError),
    ("no header", lambda items: items.pop(0), ProofError),
    ("version", lambda items: items[0].update(version=2), ProofError),
    ("unknown line", lambda items: items.insert(2, {"type": "x"}), ProofError),
    ("record outside a log", lambda items: items.insert(1, items[2]), ProofError),
    ("hash", lambda items: items[2].update(hash="AAAA"), ProofError),
    ("leaf is no text", lambda items: items[2].update(leaf=5), ProofError),
    ("leaf is a surrogate", lambda items: items[2].update(leaf="\ud800"), ProofError),
    ("note is no text", lambda items: items[-2].update(note=5), ProofError),
    ("frontier", lambda items: items[1].update(frontier=["x"]), ProofError),
    ("first", lambda items: items[1].update(first=-1), ProofError),
    ("begun elsewhere", lambda items: items[1].update(first=1, frontier=[b64encode(bytes(32))]), RecordError),
]


@pytest.mark.parametrize(("edit", "error"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_edited_exports_are_refused(edit, error):
    """Each way to edit an export is refused with its own error."""
    items = lines()
    edit(items)
    with pytest.raises(error):
        verify(items)


def test_earlier_checkpoints_must_be_part_of_it():
    """A checkpoint from earlier of another history, or of a longer one, is a fork or a rewind."""
    assert verify(lines(), seen=[note(LEAVES[:6]), note(LEAVES2, SIGNER2)]).records == 15
    fork = [*LEAVES[:5], decision(number=77).leaf]
    for seen, error in (
        (note(fork), ConsistencyError),
        (note([*LEAVES, b"later"]), ConsistencyError),
        (note(LEAVES[:6], NoteSigner.from_seed("audit.test/t/c/1", bytes(32))), CheckpointError),
    ):
        with pytest.raises(error):
            verify(lines(), seen=[seen])
    with pytest.raises(ProofError):
        verify(lines(first=7), seen=[note(LEAVES[:6])])


def test_keys_must_be_pinned():
    """A log without a pinned key is refused, whatever key the export names."""
    with pytest.raises(CheckpointError):
        verify(lines(), vkeys=[SIGNER.vkey])


def test_every_truncation_is_refused():
    """An export cut anywhere is refused with a typed error."""
    data = b"".join(json.dumps(item).encode() + b"\n" for item in lines())
    for end in range(0, len(data), 97):
        with pytest.raises(ProofError):
            verify_export(io.BytesIO(data[:end]), vkeys=[SIGNER.vkey, SIGNER2.vkey])


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"[]\n", b"\xff\n", b"{" * 300_000, b'"' + b"x" * 300_000 + b'"\n', b"[" * 200_000 + b"\n"],
    ids=range(7),
)
def test_garbage_is_refused(data):
    """Anything else than an export is a typed error."""
    with pytest.raises(BulkheadError):
        verify_export(io.BytesIO(data), vkeys=[SIGNER.vkey])
