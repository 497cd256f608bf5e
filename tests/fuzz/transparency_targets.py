"""Fuzz targets: what monitors, witnesses and offline verifiers read.

Rounds are signed here whatever the page says, so that the fuzzer gets behind the signature.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from google.protobuf.message import DecodeError

from audit.lockstore import FileLockStore
from audit.log.breaking import BreakStatement
from audit.model import IndexRow
from bulkhead.client import convert
from bulkhead.client.journal import JournalReader, RequestJournal
from bulkhead.client.monitor_state import MonitorState, read_state, write_state
from bulkhead.encoding import canonical_json
from bulkhead.errors import BulkheadError, ProofError
from bulkhead.transparency.batches import ReceiptBatch
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.cosignature import Cosigner, Witness
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.export_writer import ExportWriter
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    tree_root,
)
from bulkhead.transparency.monitor import Alarm
from bulkhead.transparency.note import NoteSigner, NoteVerifier, sign_note
from bulkhead.transparency.receipt import AuditReceipt
from bulkhead.transparency.rounds import RoundPath, RoundsSeen, next_round, round_leaf, verify_round_page
from bulkhead.transparency.tiles import TilePath, decode_bundle, encode_bundle
from bulkhead.transparency.tlog_proof import read_record_proof, write_record_proof
from bulkhead.transparency.witnessing import SIZE_TYPE, AddCheckpoint, read_answer
from bulkhead.v1 import audit_pb2
from tests.fuzz.registry import FuzzTarget

_ORIGIN = "audit.test/t/a/1"
_SIGNER = NoteSigner.from_seed(_ORIGIN, bytes(32))
_LEAF = (
    b'{"action":"log.opened","cause":{"kind":"platform","reason":"admin"},"data":{"origin":"audit.test/t/a/1",'
    b'"slot":0},"id":"rec_01h455vb4pex5vsknk084sn02q","mono_us":1,"tenant":"t","ts_us":1,"v":1,"writer":"w"}'
)
_NOTE = sign_checkpoint(Checkpoint(_ORIGIN, 1, leaf_hash(_LEAF)), _SIGNER)
_PLATFORM = NoteSigner.from_seed("audit.test/platform/1", bytes(range(32)))
_COSIGNER = Cosigner.from_seed("w.test/1", bytes(32))
_OWN = Frontier().extend([leaf_hash(_LEAF), leaf_hash(b"1"), leaf_hash(b"2")])
_SALT = bytes(range(32))
_STATE_SIZE = 3
_BREAK = f"bulkhead audit break v1\naudit.test\ndatabase 3 {'ab' * 32}\nlock {{lock}}\nreason because\n"


def _rounds() -> list[RoundPath]:
    """Return the paths into two rounds, of heads of size 1 and 2, of which the platform's log holds the records."""
    parts, records = [], [b"opened"]
    for number in (1, 2):
        text = Checkpoint(_ORIGIN, number, _own(number).root()).text()
        leaf = leaf_hash(round_leaf(round_number=number, slot=0, salt=_SALT, checkpoint_text=text))
        root = node_hash(leaf, bytes(32))
        record = {
            "action": "log.round", "cause": {"kind": "platform", "reason": "round"},
            "data": {"round": number, "root": root.hex(), "slots": 2}, "id": f"rec_01h455vb4pex5vsknk084sn02{number}",
            "mono_us": 1, "tenant": None, "ts_us": 1, "v": 1, "writer": "w",
        }  # fmt: skip
        records.append(canonical_json(record))
        parts.append(text)
    hashes = [leaf_hash(record) for record in records]
    note = sign_checkpoint(Checkpoint(_PLATFORM.verifier.name, 3, tree_root(hashes)), _PLATFORM)
    note += _COSIGNER.cosign(note.partition("\n\n")[0] + "\n", 1)
    return [
        RoundPath(
            0, _SALT, text, (bytes(32),),
            AuditReceipt(records[at], at, inclusion_proof(at, 3, _nodes(hashes)), note),
        )
        for at, text in enumerate(parts, start=1)
    ]  # fmt: skip


def _own(size: int) -> Frontier:
    return Frontier().extend([leaf_hash(_LEAF), leaf_hash(b"1"), leaf_hash(b"2")][:size])


def _nodes(hashes: list[bytes]) -> Callable[[int, int], bytes]:
    return lambda level, at: tree_root(hashes[at << level : (at + 1) << level])


def _pages() -> list[bytes]:
    paths = _rounds()
    own, platform = (
        [leaf_hash(_LEAF), leaf_hash(b"1"), leaf_hash(b"2")],
        [leaf_hash(b"opened"), *(leaf_hash(path.receipt.leaf) for path in paths)],
    )
    page = audit_pb2.ListRoundPathsResponse(
        checkpoint=paths[0].receipt.checkpoint, extension=consistency_proof(1, 3, _nodes(platform))
    )
    for size, path in enumerate(paths, start=1):
        item = page.rounds.add(
            slot=0, salt=path.salt, checkpoint=path.checkpoint_text, path=path.path, leaf=path.receipt.leaf,
            index=path.receipt.index, proof=path.receipt.proof,
        )  # fmt: skip
        item.consistency.extend(consistency_proof(size, 3, _nodes(own)))
    return [page.SerializeToString(deterministic=True)]


def _page(data: bytes) -> None:
    """Verify a server's reply, its checkpoint signed again."""
    reply = audit_pb2.ListRoundPathsResponse()
    try:
        reply.ParseFromString(data)
    except DecodeError:
        return
    text, found, cosignatures = reply.checkpoint.partition("\n\n")
    if found:
        cosigned = "".join(cosignatures.splitlines(keepends=True)[1:])
        reply.checkpoint = sign_note(f"{text}\n", [_PLATFORM]) + cosigned
    seen = RoundsSeen(round=0, size=0, root=b"", platform_size=1, platform_root=leaf_hash(b"opened"))
    _, rounds = verify_round_page(
        convert.round_page(reply), seen=seen, own=_OWN, slot=0, origin=_ORIGIN, platform_vkey=_PLATFORM.vkey,
        witnesses=(_COSIGNER.witness,),
    )  # fmt: skip
    if [one.round for one in rounds] != list(range(1, len(rounds) + 1)):
        raise AssertionError("a round is missing")


def _leaf(data: bytes) -> None:
    fields = parse_leaf(data)
    IndexRow.of(1, 1, 0, fields)
    with suppress(BulkheadError):
        ReceiptBatch.of(fields)
    next_round(fields, 0)


def _leaves() -> list[bytes]:
    receipts = {
        "action": "receipts", "cause": {"kind": "platform", "reason": "spool"},
        "data": {"completion_tokens": 2, "count": 3, "final": True, "first": 1, "prompt_tokens": 1, "root": "ab" * 32},
        "id": "rec_01h455vb4pex5vsknk084sn02q", "mono_us": 1, "partition": "part_1", "session": "sess_1", "tenant": "t",
        "ts_us": 1, "v": 1, "writer": "w",
    }  # fmt: skip
    return [_LEAF, canonical_json(receipts), _rounds()[0].receipt.leaf]


@cache
def _directory() -> Path:
    """Return a directory for files that are read by path; it is gone with the process."""
    kept = tempfile.TemporaryDirectory(prefix="bh-fuzz-")
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _file(data: bytes) -> Path:
    path = _directory() / "file"
    path.write_bytes(data)
    return path


def _state(data: bytes) -> None:
    """Read a monitor's state; what is read can be used and written."""
    found = read_state(_file(data), _ORIGIN)
    found.followed.rounds_seen  # noqa: B018 - what a check begins with
    again = _directory() / "again"
    write_state(again, _ORIGIN, found)
    if read_state(again, _ORIGIN).followed != found.followed:
        raise AssertionError("what was read is written otherwise")


def _states() -> list[bytes]:
    path = _directory() / "seed"
    write_state(path, _ORIGIN, MonitorState())
    made = [path.read_bytes()]
    state = MonitorState(offsets={"a": 7}, settled={"ab" * 16}, left="x.checkpoint")
    followed = state.followed
    followed.frontier, followed.note, followed.slot, followed.round = _own(_STATE_SIZE), _NOTE, 0, 4
    followed.round_size, followed.round_root = 2, "ab" * 32
    followed.found.add("req_1")
    followed.strangers["req_2"] = (2, "rec_1", 5)
    followed.alarm(Alarm("gap", "message", "subject"))
    write_state(path, _ORIGIN, state)
    return [*made, path.read_bytes()]


def _journals() -> list[bytes]:
    path = _directory() / "journal"
    path.unlink(missing_ok=True)
    journal = RequestJournal(path, wall_ns=lambda: 1_000)
    journal.sent("req_1", "OpenSession")
    journal.answered("req_1", "")
    whole = path.read_bytes()
    return [whole, whole + b'{"v":1,"ev{"v":1,"event":"torn"}\n' + whole[:20]]


def _lock(data: bytes) -> None:
    store = FileLockStore(_file(data))
    store.open(create=False)
    try:
        store.read()
    finally:
        store.close()


def _locks() -> list[bytes]:
    path = _directory() / "lock"
    path.unlink(missing_ok=True)
    store = FileLockStore(path)
    store.open(create=True)
    store.close()
    return [path.read_bytes()]


def _statement(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if BreakStatement.parse(text).text() != text:
        raise AssertionError("a statement has one form")


_ANSWERS = ((200, "text/plain"), (409, SIZE_TYPE), (409, "text/plain"), (422, ""), (404, ""))


def _answer(data: bytes) -> None:
    """Read a witness's answer; the first byte chooses its status."""
    if data:
        status, kind = _ANSWERS[data[0] % len(_ANSWERS)]
        request = AddCheckpoint(0, (), _NOTE)
        read_answer(status, kind, data[1:], request=request, witnesses=(_COSIGNER.witness,))


def _answers() -> list[bytes]:
    return [b"\0" + _COSIGNER.cosign(_NOTE.partition("\n\n")[0] + "\n", 1).encode(), b"\x011\n"]


def _key(data: bytes) -> None:
    """Read a key of a log or a witness, public or secret."""
    text = data.decode("utf-8", "replace")
    for read in (NoteSigner.from_skey, Cosigner.from_skey):
        with suppress(BulkheadError):
            read(text)
    NoteVerifier.from_vkey(text)


def _exports() -> list[bytes]:
    return [_export(cosigned=False), _export(cosigned=True)]


def _verify_export(data: bytes) -> None:
    """Verify an export, and what witnesses saw of it."""
    vkeys = [_SIGNER.vkey, _PLATFORM.vkey]
    verify_export(io.BytesIO(data), vkeys=vkeys)
    with suppress(ProofError):
        verify_export(io.BytesIO(data), vkeys=vkeys, witnesses=(_COSIGNER.witness,), quorum=1)


def _export(*, cosigned: bool) -> bytes:
    stream = io.BytesIO()
    writer = ExportWriter(stream)
    writer.begin_log(origin=_ORIGIN, tenant="t", vkey=_SIGNER.vkey)
    writer.record(0, _LEAF, leaf_hash(_LEAF))
    if cosigned:
        writer.checkpoint(_NOTE)
        writer.round(_rounds()[0])
    writer.end_log(sign_checkpoint(Checkpoint(_ORIGIN, 1, Frontier().append(leaf_hash(_LEAF)).root()), _SIGNER))
    writer.end()
    return stream.getvalue()


def _proofs() -> Iterator[bytes]:
    yield write_record_proof(AuditReceipt(_LEAF, 0, (), _NOTE)).encode()
    yield write_record_proof(AuditReceipt(_LEAF, 3, (bytes(32), bytes(32)), _NOTE)).encode()


def _bundle(data: bytes) -> None:
    if data:
        entries = decode_bundle(data[1:], data[0])
        if encode_bundle(entries) != data[1:]:
            raise AssertionError("a bundle has one form")


def _tile_path(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if str(TilePath.parse(text)) != text:
        raise AssertionError("a path has one form")


TARGETS = (
    FuzzTarget(
        name="audit-export",
        parse=_verify_export,
        seeds=_exports,
        max_bytes=8_192,
    ),
    FuzzTarget(
        name="audit-proof-file",
        parse=lambda data: read_record_proof(data.decode("utf-8", "replace")),
        seeds=_proofs,
        max_bytes=8_192,
    ),
    FuzzTarget(
        name="witness-request",
        parse=AddCheckpoint.parse,
        seeds=lambda: [AddCheckpoint(1, (bytes(32),), _NOTE).encode()],
        max_bytes=4_096,
    ),
    FuzzTarget(
        name="witness-key",
        parse=lambda data: Witness.from_vkey(data.decode("utf-8", "replace")),
        seeds=lambda: [Cosigner.from_seed("w.test/1", bytes(32)).witness.vkey.encode()],
        max_bytes=2_048,
    ),
    FuzzTarget(name="audit-leaf", parse=_leaf, seeds=_leaves, max_bytes=4_096),
    FuzzTarget(name="round-page", parse=_page, seeds=_pages, max_bytes=4_096),
    FuzzTarget(name="monitor-state", parse=_state, seeds=_states, max_bytes=4_096),
    FuzzTarget(
        name="request-journal",
        parse=lambda data: JournalReader([_file(data)], {}).read(),
        seeds=_journals,
        max_bytes=2_048,
    ),
    FuzzTarget(name="lock-store", parse=_lock, seeds=_locks, max_bytes=16_384),
    FuzzTarget(
        name="break-statement",
        parse=_statement,
        seeds=lambda: [_BREAK.format(lock=lock).encode() for lock in ("lost", f"2 {'cd' * 32}")],
        max_bytes=1_024,
    ),
    FuzzTarget(name="witness-answer", parse=_answer, seeds=_answers, max_bytes=4_096),
    FuzzTarget(name="log-key", parse=_key, seeds=lambda: [_SIGNER.vkey.encode()], max_bytes=512),
    FuzzTarget(
        name="tile-bundle", parse=_bundle, seeds=lambda: [b"\x02" + encode_bundle([b"ab", b"c"])], max_bytes=2_048
    ),
    FuzzTarget(
        name="tile-path",
        parse=_tile_path,
        seeds=lambda: [b"tile/0/x001/234.p/5", b"tile/entries/000"],
        max_bytes=64,
    ),
)
