"""The agent's spool: durable before it answers, in order, bounded, and sound again after failures."""

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import AuditLeaseError, ExhaustedError, MalformedRequestError, StateUnavailableError
from data_plane.session import spool as spool_module
from data_plane.session.events import (
    Event,
    EventKind,
    PartitionStep,
    ReceiptRecorded,
    RequestRefused,
    decode_event,
    encode_event,
    kind_of,
)
from data_plane.session.spool import MAX_UNACKNOWLEDGED_RECEIPTS, Spool


def receipt(number: int = 0) -> ReceiptRecorded:
    return ReceiptRecorded(
        partition_id="part_1",
        ts_us=1_700_000_000_000_000 + number,
        session_id="sess_1",
        session_number=number + 1,
        tenant_id="tenant_1",
        request_id=f"req_{number}",
        receipt_digest=bytes(32),
        prompt_tokens=3,
        completion_tokens=number,
        status="ok",
    )


def refusal() -> RequestRefused:
    return RequestRefused(partition_id="part_1", ts_us=5, code="TICKET_INVALID", session_id="", tenant_id="")


def step() -> PartitionStep:
    return PartitionStep(
        partition_id="part_1",
        ts_us=5,
        tenant_id="t",
        from_state="ready",
        to_state="lost",
        reason="x" * 999,
        fence=2**60,
    )


async def opened(path: Path, name: str = "spool-a") -> Spool:
    spool = Spool(path=path, new_id=lambda: name)
    await spool.open()
    return spool


def pending(spool: Spool) -> list[int]:
    return [event.seq for event in spool.pending_after(0, limit=100_000)]


@pytest.mark.parametrize("event", [receipt(), refusal(), step()])
def test_events_survive_their_encoding(event: Event) -> None:
    """What is read back from the spool is what was put in; only a long reason is cut."""
    read = decode_event(kind_of(event), encode_event(event))
    if isinstance(event, PartitionStep) and isinstance(read, PartitionStep):
        assert (read.fence, read.to_state, len(read.reason)) == (2**60, "lost", 256)
    else:
        assert read == event


async def test_events_are_numbered_and_survive_a_restart(tmp_path: Path) -> None:
    """Numbers go from 1 without gaps; after a restart the same spool holds the same unacknowledged events."""
    first = await opened(tmp_path / "s")
    assert [await first.append(receipt(number)) for number in range(5)] == [1, 2, 3, 4, 5]
    first.acknowledge(2)
    await first.aclose()
    second = await opened(tmp_path / "s", "spool-b")
    assert second.spool_id == "spool-a"
    assert second.last_seq == 5
    assert pending(second)[-3:] == [3, 4, 5]
    assert await second.append(receipt(9)) == 6
    assert second.pending_after(5, limit=10)[0].event == receipt(9)
    await second.aclose()


async def test_a_lost_file_makes_another_spool(tmp_path: Path) -> None:
    """Numbers of a file that is gone are never mistaken for the new one's."""
    await (await opened(tmp_path / "s", "spool-a")).aclose()
    (tmp_path / "s").unlink()
    again = await opened(tmp_path / "s", "spool-b")
    assert (again.spool_id, again.last_seq) == ("spool-b", 0)
    await again.aclose()


def numbers_until_killed(program: str) -> list[int]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(200)]
    process.kill()
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    return told


async def test_an_acknowledged_append_survives_kill_minus_nine(tmp_path: Path) -> None:
    """Everything that append returned for is there after the process was killed at an arbitrary moment."""
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path.cwd())!r})
        from tests.unit.test_data_spool import opened, receipt
        from pathlib import Path
        async def main():
            spool = await opened(Path({str(tmp_path / "s")!r}))
            async def writer(first):
                for number in range(first, 100_000, 4):
                    print(await spool.append(receipt(number)), flush=True)
            await asyncio.gather(*(writer(first) for first in range(4)))
        asyncio.run(main())
        """
    )
    told = await asyncio.to_thread(numbers_until_killed, program)
    spool = await opened(tmp_path / "s")
    assert max(told) <= spool.last_seq
    assert pending(spool) == list(range(1, spool.last_seq + 1))
    await spool.aclose()


async def test_a_torn_tail_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    """Cut anywhere, the file gives the whole events before the cut and takes new ones after them."""
    spool = await opened(tmp_path / "s")
    for number in range(3):
        await spool.append(receipt(number))
    await spool.aclose()
    whole = (tmp_path / "s").read_bytes()
    for length in range(len(whole) - 150, len(whole)):
        (tmp_path / "c").write_bytes(whole[:length])
        cut = await opened(tmp_path / "c")
        assert pending(cut) == list(range(1, cut.last_seq + 1))
        assert cut.last_seq < 3
        assert await cut.append(receipt()) == cut.last_seq
        await cut.aclose()


async def test_a_damaged_record_ends_what_is_believed(tmp_path: Path) -> None:
    """A flipped bit is found by the checksum: the events before it are kept, none after it is invented."""
    spool = await opened(tmp_path / "s")
    for number in range(3):
        await spool.append(receipt(number))
    await spool.aclose()
    data = bytearray((tmp_path / "s").read_bytes())
    data[-100] ^= 1
    (tmp_path / "s").write_bytes(data)
    damaged = await opened(tmp_path / "s")
    assert pending(damaged) == [1, 2]
    await damaged.aclose()


@pytest.mark.parametrize("content", [b"", b"something else entirely", b"BHSPOOL1" + bytes(40)])
async def test_a_file_that_is_no_spool_is_refused(tmp_path: Path, content: bytes) -> None:
    """A foreign or headless file is not overwritten: a person has to look."""
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(StateUnavailableError):
        await opened(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == content


async def test_appends_at_once_share_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred appends that wait together take far fewer than a hundred fsyncs."""
    spool = await opened(tmp_path / "s")
    syncs = 0
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    monkeypatch.setattr(spool_module.os, "fdatasync", counted)
    numbers = await asyncio.gather(*(spool.append(receipt(number)) for number in range(100)))
    assert sorted(numbers) == list(range(1, 101))
    assert syncs <= 5
    await spool.aclose()


async def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that the disk does not take raises, requests are stopped, and numbers go on without a gap later."""
    spool = await opened(tmp_path / "s")
    await spool.append(receipt(1))
    real = os.pwrite

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool_module.os, "pwrite", full)
    with pytest.raises(StateUnavailableError):
        await spool.append(receipt(2))
    assert not spool.sound
    await spool.repair()
    assert not spool.sound
    monkeypatch.setattr(spool_module.os, "pwrite", real)
    await spool.repair()
    assert spool.sound
    assert await spool.append(receipt(3)) == 2
    await spool.aclose()
    again = await opened(tmp_path / "s")
    assert [event.event for event in again.pending_after(0, limit=9)] == [receipt(1), receipt(3)]
    await again.aclose()


async def test_after_a_failed_fsync_the_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose fsync failed was refused, and does not come back after a restart."""
    spool = await opened(tmp_path / "s")
    real = os.fdatasync

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(spool_module.os, "fdatasync", failing)
    with pytest.raises(StateUnavailableError):
        await spool.append(receipt(1))
    monkeypatch.setattr(spool_module.os, "fdatasync", real)
    assert await spool.append(receipt(2)) == 1
    await spool.aclose()
    again = await opened(tmp_path / "s")
    assert [event.event for event in again.pending_after(0, limit=9)] == [receipt(2)]
    await again.aclose()


async def test_receipts_are_counted_until_acknowledged_and_taken_beyond_the_bound_of_new_requests(
    tmp_path: Path,
) -> None:
    """At 1,024 unacknowledged receipts leases let nothing new begin, yet receipts of running requests are taken."""
    spool = await opened(tmp_path / "s")
    await asyncio.gather(*(spool.append(receipt(number)) for number in range(MAX_UNACKNOWLEDGED_RECEIPTS)))
    assert spool.unacknowledged_receipts == MAX_UNACKNOWLEDGED_RECEIPTS
    assert await spool.append(receipt()) == MAX_UNACKNOWLEDGED_RECEIPTS + 1
    spool.acknowledge(2)
    assert spool.unacknowledged_receipts == MAX_UNACKNOWLEDGED_RECEIPTS - 1
    await spool.aclose()


async def test_every_kind_of_event_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts beyond the hard bound, refusals beyond theirs, and events beyond the whole are refused, typed."""
    monkeypatch.setattr(spool_module, "MAX_RECEIPTS", 2)
    monkeypatch.setattr(spool_module, "MAX_REFUSALS", 2)
    monkeypatch.setattr(spool_module, "MAX_EVENTS", 5)
    spool = await opened(tmp_path / "s")
    for event in (receipt(), receipt(), refusal(), refusal()):
        await spool.append(event)
    with pytest.raises(AuditLeaseError):
        await spool.append(receipt())
    with pytest.raises(ExhaustedError):
        await spool.append(refusal())
    await spool.append(step())
    with pytest.raises(ExhaustedError):
        await spool.append(step())
    spool.acknowledge(1)
    await spool.append(receipt())
    await spool.aclose()


async def test_acknowledging_what_was_never_given_out_is_refused(tmp_path: Path) -> None:
    """An acknowledgement beyond the last number changes nothing and raises; an old one is harmless."""
    spool = await opened(tmp_path / "s")
    await spool.append(receipt())
    with pytest.raises(MalformedRequestError):
        spool.acknowledge(2)
    assert pending(spool) == [1]
    spool.acknowledge(1)
    spool.acknowledge(0)
    assert pending(spool) == []
    await spool.aclose()


async def test_acknowledged_events_leave_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file shrinks once enough of it is acknowledged, and numbers go on."""
    monkeypatch.setattr(spool_module, "COMPACT_BYTES", 10_000)
    spool = await opened(tmp_path / "s")
    for number in range(100):
        await spool.append(receipt(number))
    before = (tmp_path / "s").stat().st_size
    spool.acknowledge(100)
    assert await spool.append(receipt()) == 101
    assert (tmp_path / "s").stat().st_size < before / 10
    await spool.aclose()


async def test_waiting_for_events_and_acknowledgements(tmp_path: Path) -> None:
    """A sender is woken by the next durable event, and a full window by the next acknowledgement."""
    spool = await opened(tmp_path / "s")
    arrived = asyncio.create_task(spool.wait_beyond(0))
    acknowledged = asyncio.create_task(spool.wait_acknowledged(1))
    await asyncio.sleep(0)
    await spool.append(receipt())
    await asyncio.wait_for(arrived, 1)
    assert not acknowledged.done()
    spool.acknowledge(1)
    await asyncio.wait_for(acknowledged, 1)
    await spool.aclose()


async def test_numbers_are_never_given_out_twice(tmp_path: Path) -> None:
    """A spool that lost events which the audit log has goes on after the log's number."""
    spool = await opened(tmp_path / "s")
    await spool.append(receipt())
    await spool.skip_to(7)
    assert pending(spool) == []
    assert await spool.append(receipt(1)) == 8
    await spool.aclose()
    again = await opened(tmp_path / "s")
    assert pending(again) == [8]
    await again.aclose()


def test_kinds_have_fixed_numbers() -> None:
    """The numbers stand in files, so they do not move."""
    assert [(kind.name, kind.value) for kind in EventKind] == [("RECEIPT", 1), ("PARTITION", 2), ("REFUSAL", 3)]
