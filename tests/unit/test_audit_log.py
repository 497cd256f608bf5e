import asyncio
import io
import itertools
from types import SimpleNamespace

import pytest

from audit.log import AuditLog
from audit.model import Page, RecordFilter
from bulkhead.errors import (
    AuditUnavailableError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    RecordError,
    ShuttingDownError,
)
from bulkhead.transparency import open_checkpoint, verify_consistency, verify_receipt
from bulkhead.transparency.export import verify_export
from tests.simulator.audit_world import OTHER, TENANT, decision, event, opened


@pytest.fixture
async def log(tmp_path):
    found = await opened(tmp_path)
    yield found
    await found.close()


async def indexed(log: AuditLog) -> None:
    """Wait until the index has caught up."""
    for _ in range(300):
        if log.health().unindexed == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the index does not follow")


async def test_a_tenant_gets_a_log_of_its_own(log):
    """Logs are made at need, once per tenant, also when asked for at the same time; names say nothing."""
    found = await asyncio.gather(*(log.ensure_log(tenant) for tenant in [TENANT, OTHER] * 5))
    assert len({info.log_id for info in found}) == 2
    assert sorted(info.slot for info in set(found)) == [0, 1]
    for info in set(found):
        assert info.tenant is not None
        assert info.tenant not in info.origin
        assert info.origin.startswith("audit.bulkhead.test/t/")
        receipt = await log.receipt(info.log_id, 0)
        fields = verify_receipt(receipt, vkey=log.vkey(info.log_id), origin=info.origin).fields
        assert (fields.action, fields.data["slot"]) == ("log.opened", info.slot)


async def test_an_appended_record_is_proven(log):
    """Every record has, at once, a receipt that verifies under the log's key to exactly its bytes."""
    info = await log.ensure_log(TENANT)
    for number in range(20):
        record = decision(number=number)
        appended = await log.append(info.log_id, record)
        assert (appended.index, appended.leaf) == (number + 1, record.leaf)
        receipt = await log.receipt(info.log_id, appended.index)
        verified = verify_receipt(receipt, vkey=log.vkey(info.log_id), origin=info.origin)
        assert (verified.leaf, verified.leaf_hash, verified.index) == (record.leaf, appended.leaf_hash, number + 1)


async def test_receipts_hold_across_tile_boundaries(log):
    """In a log of several tiles every place proves under the latest checkpoint, before and after a restart."""
    info = await log.ensure_log(TENANT)
    await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for n in range(600)))
    log._prover._nodes.clear()  # as after a restart
    for index in (0, 1, 255, 256, 257, 511, 512, 600):
        receipt = await log.receipt(info.log_id, index)
        verify_receipt(receipt, vkey=log.vkey(info.log_id), origin=info.origin)


async def test_checkpoints_are_consistent(log):
    """Any two checkpoints of a log prove to be one history."""
    info = await log.ensure_log(TENANT)
    notes = []
    for count in (1, 3, 300, 1):
        await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for n in range(count)))
        notes.append(await log.checkpoint(info.log_id))
    opened_notes = [open_checkpoint(note, vkey=log.vkey(info.log_id), origin=info.origin) for note in notes]
    for old, new in itertools.combinations(opened_notes, 2):
        proof, _note = await log.extension(info.log_id, old.size, new.size)
        verify_consistency(old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=proof)
    assert await log.checkpoint(info.log_id) == notes[-1]


async def test_sending_a_record_again_gives_its_place(log):
    """A retry, alone or at the same time, is recognised by its id; another record under that id is refused."""
    info = await log.ensure_log(TENANT)
    record = decision()
    first, *rest = await asyncio.gather(*(log.append(info.log_id, record) for _ in range(5)))
    assert [again.index for again in rest] == [first.index] * 4
    assert (await log.append(info.log_id, record)).index == first.index
    assert log.size(info.log_id) == 2
    changed = decision(number=5)
    object.__setattr__(changed.fields, "record_id", record.record_id)
    with pytest.raises(ConflictError):
        await log.append(info.log_id, changed)


async def test_a_record_goes_into_its_own_log_only(log):
    """A tenant's record in another tenant's log, or in the platform's, is refused; so is an unknown log."""
    mine, other = await log.ensure_log(TENANT), await log.ensure_log(OTHER)
    for log_id in (other.log_id, log.platform_log.log_id):
        with pytest.raises(InvalidRequestError):
            await log.append(log_id, decision())
    with pytest.raises(InvalidRequestError):
        await log.append(mine.log_id, event())
    with pytest.raises(NotFoundError):
        await log.append(99, decision())


async def test_write_finds_the_log(log):
    """A record goes to its tenant's log, made at need, or to the platform's."""
    assert (await log.write(event())).log_id == log.platform_log.log_id
    appended = await log.write(decision())
    assert log.logs()[1].tenant == TENANT
    assert appended.index == 1


async def test_what_is_not_there_is_not_found(log):
    """A receipt of a record beyond the head, and anything of an unknown log, is NOT_FOUND."""
    info = await log.ensure_log(TENANT)
    for call in (
        log.receipt(info.log_id, 1),
        log.receipt(info.log_id, -1),
        log.receipt(99, 0),
        log.checkpoint(99),
        log.round_path(99),
    ):
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(InvalidRequestError):
        await log.extension(info.log_id, 0, 2)


async def test_it_goes_on_after_a_restart(tmp_path):
    """A reopened log has the same logs, keys and records, and continues at the next index."""
    log = await opened(tmp_path)
    info = await log.ensure_log(TENANT)
    record = decision()
    await log.append(info.log_id, record)
    vkey, note = log.vkey(info.log_id), await log.checkpoint(info.log_id)
    await log.close()
    with pytest.raises(ShuttingDownError):
        await log.append(info.log_id, decision())
    again = await opened(tmp_path)
    assert await again.ensure_log(TENANT) == info
    assert (again.vkey(info.log_id), await again.checkpoint(info.log_id)) == (vkey, note)
    assert (await again.append(info.log_id, record)).index == 1
    assert (await again.append(info.log_id, decision())).index == 2
    await again.close()


async def test_only_one_process_writes(tmp_path):
    """A second log over the same database is refused while the first is open."""
    log = await opened(tmp_path)
    with pytest.raises(AuditUnavailableError, match="another process"):
        await opened(tmp_path)
    await log.close()


async def test_listing_finds_what_was_recorded(log):
    """Officers' filters find the records; the page says how much was indexed and how much there is."""
    info = await log.ensure_log(TENANT)
    for number in range(10):
        await log.append(info.log_id, decision(number=number, allow=number % 4 > 0))
    await indexed(log)
    page = await log.records(RecordFilter(log_id=info.log_id, decision="deny"), Page(limit=2))
    assert [item.fields.session for item in page.records] == ["sess_8", "sess_4"]
    assert (page.indexed, page.size) == (11, 11)
    rest = await log.records(RecordFilter(log_id=info.log_id, decision="deny"), Page(limit=2, after=page.next))
    assert [item.fields.session for item in rest.records] == ["sess_0"]
    assert rest.next == ""
    everything = await log.records(RecordFilter(), Page())
    assert {item.log_id for item in everything.records} == {1, info.log_id}


async def test_an_edited_index_is_noticed_when_listing(log):
    """An index row that says something else than its leaf, or points to nothing, is an error that names the record."""
    from sqlalchemy import text

    info = await log.ensure_log(TENANT)
    appended = await log.append(info.log_id, decision())
    await indexed(log)
    for change in (
        "UPDATE audit_index SET decision = 'deny' WHERE idx = 1 AND log_id = 2",
        "UPDATE audit_index SET decision = 'allow', idx = 7 WHERE idx = 1 AND log_id = 2",
    ):
        with log._store._writing() as connection:
            connection.execute(text(change))
        with pytest.raises(RecordError, match=appended.record_id):
            await log.records(RecordFilter(log_id=info.log_id), Page())


async def test_an_edited_leaf_has_no_receipt(log):
    """A leaf that is no longer what the tree was built from is an error, not a proof that fails at the tenant's."""
    from sqlalchemy import text

    info = await log.ensure_log(TENANT)
    record, other = decision(), decision(number=9)
    await log.append(info.log_id, record)
    with log._store._writing() as connection:
        connection.execute(
            text("UPDATE audit_leaf SET leaf = :leaf WHERE record_id = :id"),
            {"leaf": other.leaf, "id": record.record_id},
        )
    with pytest.raises(RecordError, match=record.record_id):
        await log.receipt(info.log_id, 1)


async def test_an_export_verifies_offline(log):
    """An export of all logs verifies against the pinned keys, with earlier checkpoints among it."""
    info = await log.ensure_log(TENANT)
    await log.append(info.log_id, decision())
    early = await log.checkpoint(info.log_id)
    await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for n in range(300)))
    await indexed(log)
    stream, seen = io.BytesIO(), []
    logs = [entry.log_id for entry in log.logs()]
    written = await log.export(logs, stream, progress=lambda done, total: seen.append((done, total)))
    stream.seek(0)
    found = verify_export(stream, vkeys=[log.vkey(log_id) for log_id in logs], seen=[early])
    assert written == found.records == 303
    assert seen[-1] == (303, 303)
    assert [entry.tenant for entry in found.logs] == [None, TENANT]
    assert found.logs[1].checkpoints >= 2


async def test_an_export_is_many_short_reads(log, monkeypatch):
    """Where every read that looks at the clock has had its second, a whole log is exported none the less."""
    info = await log.ensure_log(TENANT)
    await asyncio.gather(*(log.append(info.log_id, decision(number=n)) for n in range(1_100)))
    await indexed(log)
    seconds = itertools.count(step=3)
    monkeypatch.setattr("audit.sql.sqlite.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with pytest.raises(AuditUnavailableError, match="took too long"):
        await asyncio.to_thread(log._store.leaves, info.log_id, 0, 1_100)
    stream = io.BytesIO()
    assert await log.export([info.log_id], stream) == 1_101
    stream.seek(0)
    assert verify_export(stream, vkeys=[log.vkey(info.log_id)]).records == 1_101


async def test_closing_keeps_a_signed_checkpoint_of_everything(tmp_path):
    """After a close the database alone can be exported: each log has a checkpoint of its last size."""
    log = await opened(tmp_path)
    info = await log.ensure_log(TENANT)
    await log.append(info.log_id, decision())
    await log.close()
    again = await opened(tmp_path)
    assert [size for size, _ in again._store.checkpoints(info.log_id, 0, 99)] == [2]
    await again.close()


async def test_a_clock_set_back_a_year_loses_nothing(tmp_path):
    """Order is the index: records with an earlier time are appended after, with the time the clock gave."""
    log = await opened(tmp_path)
    info = await log.ensure_log(TENANT)
    from tests.simulator.audit_world import stamper

    late, early = stamper(start_us=1_800_000_000_000_000), stamper(start_us=1_768_000_000_000_000)
    first = await log.append(info.log_id, decision(stamps=late))
    second = await log.append(info.log_id, decision(stamps=early))
    assert (first.index, second.index) == (1, 2)
    await indexed(log)
    page = await log.records(RecordFilter(log_id=info.log_id, action="decision"), Page())
    assert [item.fields.ts_us for item in page.records] == [1_768_000_000_000_000, 1_800_000_000_000_000]
    await log.close()


async def test_many_at_once_are_committed_in_groups(tmp_path):
    """A thousand concurrent appends over three logs all get their own place, in far fewer commits."""
    log = await opened(tmp_path, append_timeout_s=60.0)  # how long they take is not the matter here
    tenants = [TENANT, OTHER, "tenant_01h455vb4pex5vsknk084sn02s"]
    infos = [await log.ensure_log(tenant) for tenant in tenants]
    before = log._store.last_commit().seq
    done = await asyncio.gather(
        *(log.append(infos[n % 3].log_id, decision(number=n, tenant=tenants[n % 3])) for n in range(999))
    )
    assert len({(item.log_id, item.index) for item in done}) == 999
    assert log._store.last_commit().seq - before < 250
    await log.close()
