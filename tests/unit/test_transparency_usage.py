from dataclasses import replace

import pytest

from bulkhead.errors import UsageError
from bulkhead.transparency import ReceiptBatch, ReceiptEntry, check_usage, receipts_root
from bulkhead.transparency.totals import SessionTotal

KEPT = [
    ReceiptEntry(
        session="sess_1",
        partition="part_1",
        number=number,
        digest=bytes([number]) * 32,
        prompt_tokens=10,
        completion_tokens=number,
    )
    for number in range(1, 8)
]


def batch(first, count, **changes):
    """Return the batch of an honest record over kept receipts, with changes."""
    entries = KEPT[first - 1 : first - 1 + count]
    honest = ReceiptBatch(
        record_id=f"rec_{first}",
        session="sess_1",
        partition="part_1",
        numbers=range(first, first + count),
        root=receipts_root([entry.digest for entry in entries]),
        prompt_tokens=sum(entry.prompt_tokens for entry in entries),
        completion_tokens=sum(entry.completion_tokens for entry in entries),
        final=False,
    )
    return replace(honest, **changes)


def test_usage_that_receipts_show():
    """Records that cover kept receipts add up; receipts that no record covers yet are named."""
    report = check_usage([batch(1, 3), batch(4, 2)], KEPT)
    assert (report.records, report.receipts) == (2, 5)
    assert (report.prompt_tokens, report.completion_tokens) == (50, 15)
    assert [entry.number for entry in report.unrecorded] == [6, 7]


@pytest.mark.parametrize(
    ("batches", "names"),
    [
        ([batch(1, 3, numbers=range(1, 9))], "receipt 8"),
        ([batch(1, 3), replace(batch(1, 2), numbers=range(8, 10))], "receipt 8"),
        ([batch(1, 3, session="sess_2")], "receipt 1"),
        ([batch(1, 3, completion_tokens=7)], "tokens"),
        ([batch(1, 3, prompt_tokens=31)], "tokens"),
        ([batch(1, 3), batch(3, 2)], "another record covers"),
        ([batch(1, 3), batch(1, 3)], "another record covers"),
        ([batch(1, 3, root=bytes(32))], "root"),
    ],
    ids=["longer", "extra", "session", "completion", "prompt", "overlap", "twice", "root"],
)
def test_invented_usage_is_found(batches, names):
    """A record with more receipts, more tokens, another session's or the same receipts again does not pass."""
    with pytest.raises(UsageError, match=names) as found:
        check_usage(batches, KEPT)
    assert found.value.details["session"]
    assert found.value.details["record"]


def test_two_receipts_with_one_number():
    """A worker that signs two receipts with one number contradicts itself."""
    with pytest.raises(UsageError):
        check_usage([], [*KEPT, replace(KEPT[0], digest=bytes(32))])
    assert check_usage([], [*KEPT, KEPT[0]]).receipts == 0


STRICT = [replace(entry, in_total=True) for entry in KEPT[:3]]


def total(number, entries, **changes):
    """Return the entry that an honest worker's total of ``entries`` is in the log, with changes to what it says."""
    said = SessionTotal(
        session="sess_1",
        partition="part_1",
        number=number,
        receipts=len(entries),
        prompt_tokens=sum(entry.prompt_tokens for entry in entries),
        completion_tokens=sum(entry.completion_tokens for entry in entries),
    )
    said = replace(said, **changes)
    return replace(
        KEPT[0], number=number, digest=said.digest, prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
    )  # fmt: skip


def strict_batch(entries, **changes):
    """Return the batch of an honest record over strict receipts and totals."""
    stated = [entry for entry in entries if not entry.in_total]
    honest = batch(
        1,
        1,
        record_id=f"rec_{entries[0].number}",
        numbers=range(entries[0].number, entries[0].number + len(entries)),
        root=receipts_root([entry.digest for entry in entries]),
        prompt_tokens=sum(entry.prompt_tokens for entry in stated),
        completion_tokens=sum(entry.completion_tokens for entry in stated),
    )
    return replace(honest, **changes)


def test_a_sessions_total_is_the_sum_of_its_strict_receipts():
    """Records state no request's usage, and in the end all of it; until then the receipts are told as untold."""
    before = check_usage([strict_batch(STRICT)], STRICT)
    assert (before.receipts, before.prompt_tokens, before.completion_tokens) == (3, 0, 0)
    assert before.untold == tuple(STRICT)
    after = check_usage([strict_batch(STRICT), strict_batch([total(4, STRICT)])], STRICT)
    assert (after.receipts, after.prompt_tokens, after.completion_tokens, after.untold) == (3, 30, 6, ())
    # in one record, and a second total of what came later
    later = [replace(entry, in_total=True) for entry in KEPT[4:6]]
    both = [strict_batch([*STRICT, total(4, STRICT)]), strict_batch([*later, total(7, later)])]
    assert check_usage(both, [*STRICT, *later]).completion_tokens == 6 + 11


@pytest.mark.parametrize(
    "records",
    [
        [strict_batch(STRICT), strict_batch([total(4, STRICT, completion_tokens=7)])],
        [strict_batch(STRICT), strict_batch([total(4, STRICT, receipts=4)])],
        [strict_batch(STRICT), strict_batch([total(4, STRICT[:2])])],
        [strict_batch(STRICT), strict_batch([total(4, STRICT)]), strict_batch([total(5, STRICT)])],
        [strict_batch(STRICT), strict_batch([total(4, STRICT)], completion_tokens=7)],
        [strict_batch(STRICT, completion_tokens=6)],
    ],
    ids=["more tokens", "more receipts", "of fewer", "twice", "another total", "told one by one"],
)
def test_an_invented_total_is_found(records):
    """A total of other usage than the kept receipts', or a second one of the same, does not pass."""
    with pytest.raises(UsageError):
        check_usage(records, STRICT)
