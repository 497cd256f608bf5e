"""Usage that the log states, held against the receipts that a tenant keeps: nobody can invent usage without a receipt.

Under strict padding records state no request's usage but a session's total (:mod:`bulkhead.transparency.totals`), which
is held against the sum of the receipts.

What this shows is bounded by who signs receipts. At tier ``confidential`` with a tenant root the worker's key is
measured software's own, which took requests by keys that the root certified; below, or without a root, an operator
could have receipts signed for requests that the tenant never sent (docs/threat-model.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bulkhead.errors import UsageError
from bulkhead.transparency.batches import ReceiptBatch, receipts_root
from bulkhead.transparency.totals import SessionTotal

__all__ = ["ReceiptEntry", "UsageReport", "check_usage"]

_Key: TypeAlias = tuple[str, str, int]  # session, partition, number


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptEntry:
    """What counts of a kept, verified receipt.

    Attributes:
        session: session id.
        partition: partition id.
        number: in the session on the partition, from 1.
        digest: of the receipt as signed, 32 bytes.
        prompt_tokens: as the receipt states.
        completion_tokens: likewise.
        in_total: whether records state its usage in the session's total only: its ticket's padding was strict.
    """

    session: str
    partition: str
    number: int
    digest: bytes
    prompt_tokens: int
    completion_tokens: int
    in_total: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Usage that is covered by receipts to the last token. Made by :func:`check_usage` only.

    Attributes:
        records: `receipts` records that were checked.
        receipts: receipts that they cover.
        prompt_tokens: total of the records, equal to that of the receipts.
        completion_tokens: likewise.
        unrecorded: receipts that no record covers (yet: a record follows within ten seconds or so).
        untold: recorded receipts whose usage no total states (yet: it follows the session's end, or the worker's).
    """

    records: int
    receipts: int
    prompt_tokens: int
    completion_tokens: int
    unrecorded: tuple[ReceiptEntry, ...]
    untold: tuple[ReceiptEntry, ...] = ()


def check_usage(batches: Sequence[ReceiptBatch], kept: Iterable[ReceiptEntry]) -> UsageReport:
    """Return a report if the log's records state exactly the usage that receipts show.

    1. No number of a session on a partition is covered twice, by records or by kept receipts.
    2. Each number that a record covers has a kept receipt, or is a total of kept ones of lower numbers.
    3. A record's root is that over those receipts and totals.
    4. A record's totals are those of its receipts, as far as they are told one by one, and of its session totals.

    With the caller: that the batches stand in the tenant's log and are all of the sessions in question, and that the
    receipts were verified.

    Raises:
        UsageError: one does not hold; ``details`` name the session, and the record and number where there is one.
    """
    receipts = _by_number(kept)  # 1
    covered: set[_Key] = set()
    told: set[_Key] = set()
    for batch in sorted(batches, key=lambda item: (item.session, item.partition, item.numbers.start)):
        keys = [(batch.session, batch.partition, number) for number in batch.numbers]
        twice = next((key for key in keys if key in covered), None)
        if twice is not None:  # 1
            raise _wrong(batch, "covers a receipt that another record covers", number=twice[2])
        covered.update(keys)
        _check_batch(batch, [_entry(key, receipts, told) for key in keys])  # 2, 3, 4
    return UsageReport(
        records=len(batches),
        receipts=len(covered & receipts.keys()),
        prompt_tokens=sum(batch.prompt_tokens for batch in batches),
        completion_tokens=sum(batch.completion_tokens for batch in batches),
        unrecorded=tuple(entry for key, entry in receipts.items() if key not in covered),
        untold=tuple(entry for key, entry in receipts.items() if entry.in_total and key in covered and key not in told),
    )


def _entry(key: _Key, receipts: Mapping[_Key, ReceiptEntry], told: set[_Key]) -> tuple[_Key, ReceiptEntry | None]:
    """Return what a record may cover under ``key``: the kept receipt, else the total of those that it would sum up."""
    session, partition, number = key
    if (kept := receipts.get(key)) is not None:
        return key, kept
    summed = {
        other: entry
        for other, entry in receipts.items()
        if entry.in_total and other[:2] == key[:2] and other[2] < number and other not in told
    }
    if not summed:
        return key, None
    told.update(summed)
    total = SessionTotal(
        session=session,
        partition=partition,
        number=number,
        receipts=len(summed),
        prompt_tokens=sum(entry.prompt_tokens for entry in summed.values()),
        completion_tokens=sum(entry.completion_tokens for entry in summed.values()),
    )
    return key, ReceiptEntry(
        session=session,
        partition=partition,
        number=number,
        digest=total.digest,
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
    )


def _by_number(kept: Iterable[ReceiptEntry]) -> Mapping[_Key, ReceiptEntry]:
    found: dict[_Key, ReceiptEntry] = {}
    for entry in kept:
        key = (entry.session, entry.partition, entry.number)
        if found.setdefault(key, entry).digest != entry.digest:
            raise UsageError(
                f"two receipts of session {entry.session} have the number {entry.number}",
                details={"session": entry.session, "number": str(entry.number)},
            )
    return found


def _check_batch(batch: ReceiptBatch, found: list[tuple[_Key, ReceiptEntry | None]]) -> None:
    missing = next((key for key, entry in found if entry is None), None)
    if missing is not None:  # 2
        raise _wrong(batch, f"states usage of receipt {missing[2]}, which nobody holds", number=missing[2])
    entries = [entry for _, entry in found if entry is not None]
    stated = [entry for entry in entries if not entry.in_total]
    if receipts_root([entry.digest for entry in entries]) != batch.root:  # 3
        raise _wrong(batch, "has a root over other receipts, or a total of other usage")
    totals = (sum(entry.prompt_tokens for entry in stated), sum(entry.completion_tokens for entry in stated))
    if totals != (batch.prompt_tokens, batch.completion_tokens):  # 4
        raise _wrong(
            batch,
            f"states {batch.prompt_tokens} and {batch.completion_tokens} tokens, its receipts {totals[0]} and"
            f" {totals[1]}",
        )


def _wrong(batch: ReceiptBatch, what: str, *, number: int = 0) -> UsageError:
    details = {"session": batch.session, "record": batch.record_id} | ({"number": str(number)} if number else {})
    return UsageError(f"record {batch.record_id} {what}", details=details)
