"""Fuzz targets: what monitors, witnesses and offline verifiers read."""

import io
from collections.abc import Iterator

from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.cosignature import Cosigner, Witness
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.export_writer import ExportWriter
from bulkhead.transparency.merkle import Frontier, leaf_hash
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.receipt import AuditReceipt
from bulkhead.transparency.tiles import TilePath, decode_bundle, encode_bundle
from bulkhead.transparency.tlog_proof import read_record_proof, write_record_proof
from bulkhead.transparency.witnessing import AddCheckpoint
from tests.fuzz.registry import FuzzTarget

_ORIGIN = "audit.test/t/a/1"
_SIGNER = NoteSigner.from_seed(_ORIGIN, bytes(32))
_LEAF = (
    b'{"action":"log.opened","cause":{"kind":"platform","reason":"admin"},"data":{"origin":"audit.test/t/a/1",'
    b'"slot":0},"id":"rec_01h455vb4pex5vsknk084sn02q","mono_us":1,"tenant":"t","ts_us":1,"v":1,"writer":"w"}'
)
_NOTE = sign_checkpoint(Checkpoint(_ORIGIN, 1, leaf_hash(_LEAF)), _SIGNER)


def _export() -> bytes:
    stream = io.BytesIO()
    writer = ExportWriter(stream)
    writer.begin_log(origin=_ORIGIN, tenant="t", vkey=_SIGNER.vkey)
    writer.record(0, _LEAF, leaf_hash(_LEAF))
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
        parse=lambda data: verify_export(io.BytesIO(data), vkeys=[_SIGNER.vkey]),
        seeds=lambda: [_export()],
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
