"""Fuzz targets of what hosts, files and vendors' services hand over: parts of hardware evidence, tables, answers."""

import base64
import json
import tempfile
import tomllib
from pathlib import Path

from bulkhead.attestation.collateral import CollateralEntry, CollateralKind
from bulkhead.attestation.collateral.dates import end_of_use
from bulkhead.attestation.collateral.intel import signed_document
from bulkhead.attestation.collateral.nvidia import check_ocsp_nonce, manifest_of
from bulkhead.attestation.parts import GpuParts, ProcessorPart
from bulkhead.attestation.policy import TrustPolicy, parse_trust_policy
from bulkhead.attestation.policy_writing import write_trust_policy
from bulkhead.attestation.snp.certificate_table import read_certificate_table
from bulkhead.cli.evidence_files import NamedBytes
from bulkhead.cli.evidence_nvidia import evidence_in
from bulkhead.cli.evidence_tdx import quote_in
from bulkhead.cli.tdx_pieces import TdxPieces
from bulkhead.errors import EvidenceError
from tests.fuzz.registry import FuzzTarget

_KIB = 1024


def _worker() -> "tuple[ProcessorPart, GpuParts]":
    from tests.simulator.hardware_world import HardwareWorld

    with tempfile.TemporaryDirectory() as folder:
        world = HardwareWorld(directory=Path(folder))
        return world.processor(bytes(64)), GpuParts(tuple(world.gpu(number, bytes(32)) for number in world.gpus))


def _tables() -> list[bytes]:
    from tests.simulator.hardware_world import certificate_table
    from tests.simulator.snp_machine import Machine

    return [certificate_table(Machine())]


def _intel(data: bytes) -> None:
    for kind in (CollateralKind.INTEL_TCB_INFO, CollateralKind.INTEL_QE_IDENTITY):
        try:
            document, signature = signed_document(data, kind)
        except EvidenceError:
            continue
        assert len(signature) == 64
        assert document in data
        end_of_use(CollateralEntry(kind=kind, name="x", data=data, chain=b"", fetched_s=0, source="x"))


def _answers() -> list[bytes]:
    from tests.simulator.hardware_world import answer
    from tests.simulator.tdx_world import TdxWorld

    collateral = TdxWorld().collateral()
    return [
        answer("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature),
        answer("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature),
    ]


def _pieces(data: bytes) -> None:
    pieces = TdxPieces()
    pieces.add(NamedBytes(name="x", data=data))


def _bundles() -> list[bytes]:
    from tests.simulator.tdx_world import TdxWorld, bundle

    collateral = TdxWorld().collateral()
    return [json.dumps(bundle(collateral)).encode(), *_answers(), collateral.pck_crl, collateral.tcb_info_issuer_chain]


def _manifests() -> list[bytes]:
    from tests.simulator.hardware_world import rim_answer

    return [rim_answer(b"<xml/>"), b"<xml/>"]


def _ocsp(data: bytes) -> None:
    check_ocsp_nonce(data, bytes(32))


def _ocsp_answers() -> list[bytes]:
    from tests.simulator.collateral_server import ocsp_with_nonce

    return [ocsp_with_nonce(bytes(32))]


def _policy(data: bytes) -> None:
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except ValueError:  # what TOML's own parser says of it
        return
    policy = parse_trust_policy(table)
    assert parse_trust_policy(tomllib.loads(write_trust_policy(policy))) == policy


def _policies() -> list[bytes]:
    return [
        write_trust_policy(TrustPolicy()).encode(),
        b'[snp.tcb_floors.turin]\nsnp = 4\n[[tdx.images]]\nmr_td = "' + b"11" * 48 + b'"\nrtmr0 = "not compared"\n'
        b'rtmr1 = "' + b"11" * 48 + b'"\nrtmr2 = "' + b"11" * 48 + b'"\nrtmr3 = "not compared"\n',
    ]


def _gpu_files() -> list[bytes]:
    from tests.simulator.nvidia_world import GpuCase

    case = GpuCase()
    member = {
        "evidence": base64.b64encode(case.report).decode(),
        "certificate": base64.b64encode(case.certificates).decode(),
    }
    return [case.report, json.dumps([member]).encode()]


def _quote_files() -> list[bytes]:
    from tests.simulator.tdx_world import TdxWorld

    quote = TdxWorld().quote()
    return [quote, json.dumps({"quote": quote.hex()}).encode()]


TARGETS = (
    FuzzTarget(
        name="processor-part", parse=ProcessorPart.parse, seeds=lambda: [_worker()[0].encode()], max_bytes=16 * _KIB
    ),
    FuzzTarget(name="gpu-parts", parse=GpuParts.parse, seeds=lambda: [_worker()[1].encode()], max_bytes=32 * _KIB),
    FuzzTarget(name="snp-certificate-table", parse=read_certificate_table, seeds=_tables, max_bytes=4 * _KIB),
    FuzzTarget(name="intel-answer", parse=_intel, seeds=_answers, max_bytes=8 * _KIB),
    FuzzTarget(name="nvidia-rim-answer", parse=manifest_of, seeds=_manifests, max_bytes=4 * _KIB),
    FuzzTarget(name="nvidia-ocsp-answer", parse=_ocsp, seeds=_ocsp_answers, max_bytes=4 * _KIB),
    FuzzTarget(name="tdx-pieces", parse=_pieces, seeds=_bundles, max_bytes=32 * _KIB),
    FuzzTarget(name="gpu-evidence-file", parse=evidence_in, seeds=_gpu_files, max_bytes=24 * _KIB),
    FuzzTarget(name="tdx-quote-file", parse=quote_in, seeds=_quote_files, max_bytes=24 * _KIB),
    FuzzTarget(name="trust-policy", parse=_policy, seeds=_policies, max_bytes=32 * _KIB),
)
